//! What the gateway counts, for Prometheus.
use crate::pool::Pool;
use crate::status::{Health, Move};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// The text format of [`Metrics::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MoveLabels {
    cause: &'static str,
}

pub(crate) struct Metrics {
    registry: Registry,
    http: Family<HttpLabels, Counter>,
    moves: Family<MoveLabels, Counter>,
    gaps: Histogram,
    replayed: Counter,
    pub retries: Counter,
    pub failures: Counter,
}

impl Metrics {
    pub fn new(pools: &[Arc<Pool>]) -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("anyfleet_gateway"),
            http: Family::default(),
            moves: Family::default(),
            gaps: Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            replayed: Counter::default(),
            retries: Counter::default(),
            failures: Counter::default(),
        };
        let Metrics { registry: r, http, moves, gaps, replayed, retries, failures } = &mut metrics;
        r.register("http_requests", "Answers begun, by endpoint and HTTP status", http.clone());
        r.register("moves", "Answers that went on on another server, by cause", moves.clone());
        r.register("move_gap_seconds", "From the moment a server was known to be lost to the next news", gaps.clone());
        r.register("replayed_tokens", "Tokens that servers had to compute again for moves", replayed.clone());
        r.register("retries", "Requests tried again before their first byte", retries.clone());
        r.register("failures", "Answers that ended with an error of the gateway", failures.clone());
        r.register_collector(Box::new(Pools(pools.to_vec())));
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

    pub fn moved(&self, done: &Move) {
        self.moves.get_or_create(&MoveLabels { cause: done.cause.name() }).inc();
        self.gaps.observe(done.gap_seconds);
        self.replayed.inc_by(done.replayed_tokens as u64);
    }
}

/// Reads the pools at each scrape.
struct Pools(Vec<Arc<Pool>>);

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools").finish_non_exhaustive()
    }
}

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let pools: Vec<_> = self.0.iter().map(|pool| pool.status()).collect();
        let name = |i: usize| [("pool", pools[i].name.as_str())];
        let mut up = encoder.encode_descriptor("pool_up", "The server takes requests", None, MetricType::Gauge)?;
        for (i, pool) in pools.iter().enumerate() {
            ConstGauge::new(i64::from(pool.health == Health::Up)).encode(up.encode_family(&name(i))?)?;
        }
        let help = "Requests the server has from this gateway";
        let mut in_flight = encoder.encode_descriptor("pool_in_flight", help, None, MetricType::Gauge)?;
        for (i, pool) in pools.iter().enumerate() {
            ConstGauge::new(pool.in_flight as i64).encode(in_flight.encode_family(&name(i))?)?;
        }
        let help = "Requests the server was given";
        let mut requests = encoder.encode_descriptor("pool_requests", help, None, MetricType::Counter)?;
        for (i, pool) in pools.iter().enumerate() {
            ConstCounter::new(pool.requests).encode(requests.encode_family(&name(i))?)?;
        }
        let help = "Answers that moved away from the server";
        let mut moved = encoder.encode_descriptor("pool_moved_away", help, None, MetricType::Counter)?;
        for (i, pool) in pools.iter().enumerate() {
            ConstCounter::new(pool.moved_away).encode(moved.encode_family(&name(i))?)?;
        }
        Ok(())
    }
}
