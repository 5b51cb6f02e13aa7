//! Prometheus metrics: what the server counts, and what the engine counts, read at each scrape.
use crate::serving::Serving;
use anyfleet::{GroupStats, StreamEvent};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The text format of [`Metrics::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishLabels {
    reason: &'static str,
}

/// A server's metrics. Clones are handles to the same ones.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    http: Family<HttpLabels, Counter>,
    finished: Family<FinishLabels, Counter>,
    prompt_tokens: Counter,
    first_token: Histogram,
    between_tokens: Histogram,
    duration: Histogram,
}

impl Metrics {
    pub fn new(serving: Arc<OnceLock<Serving>>) -> Self {
        let seconds = |bounds: &[f64]| Histogram::new(bounds.iter().copied());
        let mut metrics = Metrics {
            registry: Arc::default(),
            http: Family::default(),
            finished: Family::default(),
            prompt_tokens: Counter::default(),
            first_token: seconds(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]),
            between_tokens: seconds(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]),
            duration: seconds(&[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]),
        };
        let mut r = Registry::with_prefix("anyfleet");
        r.register("http_requests", "Answers sent, by endpoint and HTTP status", metrics.http.clone());
        r.register(
            "choices",
            "Choices that ended, by reason; cancelled and failed requests count once",
            metrics.finished.clone(),
        );
        r.register("prompt_tokens", "Prompt tokens of accepted requests", metrics.prompt_tokens.clone());
        r.register(
            "time_to_first_token_seconds",
            "From the arrival of a request to each prompt's first token",
            metrics.first_token.clone(),
        );
        r.register("inter_token_latency_seconds", "Between two tokens of a choice", metrics.between_tokens.clone());
        r.register(
            "request_duration_seconds",
            "From the arrival of a request to its last token",
            metrics.duration.clone(),
        );
        r.register_collector(Box::new(EngineCollector { serving }));
        metrics.registry = Arc::new(r);
        metrics
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub fn answered(&self, endpoint: &'static str, status: u16) {
        self.http.get_or_create(&HttpLabels { endpoint, status }).inc();
    }

    /// Follows a request that has just arrived.
    pub fn request(&self) -> RequestMetrics {
        RequestMetrics { metrics: self.clone(), arrived: Instant::now(), last: HashMap::new(), open: false }
    }

    fn ended(&self, reason: &'static str) {
        self.finished.get_or_create(&FinishLabels { reason }).inc();
    }
}

/// One request's part of the metrics.
pub(crate) struct RequestMetrics {
    metrics: Metrics,
    arrived: Instant,
    /// When a prompt's choice had its last token.
    last: HashMap<(usize, u32), Instant>,
    /// With the engine, and neither refused nor finished nor failed.
    open: bool,
}

impl RequestMetrics {
    /// The engine has it, though it has not said yet whether it takes it: a client that goes now is noticed.
    pub fn submitted(&mut self) {
        self.open = true;
    }

    pub fn refused(&mut self) {
        self.open = false;
    }

    pub fn accepted(&mut self, prompt_tokens: usize) {
        self.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
    }

    pub fn event(&mut self, prompt: usize, event: &StreamEvent) {
        match event {
            StreamEvent::Delta { choice, tokens, .. } if !tokens.is_empty() => {
                let now = Instant::now();
                match self.last.insert((prompt, *choice), now) {
                    // Tokens that were held back come together.
                    Some(last) => {
                        let each = (now - last).as_secs_f64() / tokens.len() as f64;
                        tokens.iter().for_each(|_| self.metrics.between_tokens.observe(each));
                    }
                    None => self.metrics.first_token.observe((now - self.arrived).as_secs_f64()),
                }
            }
            StreamEvent::Finished { reason, .. } => self.metrics.ended(reason.as_str()),
            _ => {}
        }
    }

    pub fn finished(&mut self) {
        if std::mem::take(&mut self.open) {
            self.metrics.duration.observe(self.arrived.elapsed().as_secs_f64());
        }
    }

    pub fn failed(&mut self) {
        if std::mem::take(&mut self.open) {
            self.metrics.ended("error");
        }
    }
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        if self.open {
            self.metrics.ended("cancelled");
        }
    }
}

/// Reads the engine's own counters.
#[derive(Debug)]
struct EngineCollector {
    serving: Arc<OnceLock<Serving>>,
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(serving) = self.serving.get() else { return Ok(()) };
        let stats = serving.engine.stats();
        for (name, help, value) in [
            ("requests_running", "Requests with a choice that runs", stats.requests_running),
            ("requests_waiting", "Requests that have not started", stats.requests_waiting),
            ("sequences_running", "Choices that hold cache pages", stats.sequences_running),
            ("sequences_waiting", "Choices that wait for pages or for room in the batch", stats.sequences_waiting),
        ] {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, value) in [
            ("generated_tokens", "Tokens generated", stats.generated_tokens),
            (
                "prefill_tokens",
                "Token rows computed for prompts, repeated work after preemption included",
                stats.prefill_tokens,
            ),
            ("decode_tokens", "Token rows computed for generation", stats.decode_tokens),
            ("prefix_query_tokens", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
            ("prefix_hit_tokens", "Prompt tokens found in the prefix cache", stats.prefix_hits),
            ("preemptions", "Choices that gave up their pages to an older one", stats.preemptions),
            ("steps", "Steps submitted to the device", stats.steps),
            ("failed_steps", "Steps the device failed", stats.failed_steps),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        pages(&mut encoder, &stats.groups)?;
        info(encoder, serving)
    }
}

/// A gauge per cache group.
fn pages(encoder: &mut DescriptorEncoder, groups: &[GroupStats]) -> Result<(), fmt::Error> {
    type Read = fn(&GroupStats) -> u32;
    let gauges: [(&str, &str, Read); 4] = [
        ("kv_pages", "KV cache pages", |g| g.pages),
        ("kv_pages_used", "KV cache pages that a running choice uses", |g| g.pages.saturating_sub(g.free + g.cached)),
        ("kv_pages_free", "KV cache pages that hold nothing", |g| g.free),
        ("kv_pages_cached", "KV cache pages kept for prefix hits, given up on demand", |g| g.cached),
    ];
    for (name, help, read) in gauges {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (i, group) in groups.iter().enumerate() {
            let gauge = ConstGauge::new(i64::from(read(group)));
            gauge.encode(metric.encode_family(&[("group", i.to_string())])?)?;
        }
    }
    Ok(())
}

fn info(mut encoder: DescriptorEncoder, serving: &Serving) -> Result<(), fmt::Error> {
    let info = serving.engine.info();
    let labels = [
        ("model", serving.name()),
        ("family", info.family),
        ("device", &info.device),
        ("dtype", &info.dtype),
        ("numerics_id", &info.identity.numerics_id),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    let mut metric = encoder.encode_descriptor("model_info", "The model being served", None, MetricType::Gauge)?;
    ConstGauge::new(1i64).encode(metric.encode_family(&labels)?)
}
