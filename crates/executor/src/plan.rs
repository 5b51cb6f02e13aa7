//! The memory plan: every byte a model will take on a device, known before a weight is read.
use crate::cache::cache_groups;
use crate::inputs::StepInputs;
use crate::output::{HeadBuffers, LOGIT_ROWS};
use crate::sizing::{PartSizing, Sizing};
use anyfleet_models::{AttentionSpec, Decoder, DecoderSpec, Scratch, Shard, WeightMap};
use anyfleet_runtime::Limits;
use anyfleet_tensor::{Backend, Caps, DType, StepSizes, WeightFormat};
use std::fmt;

/// Most tokens of a step, and of a page.
const MAX_STEP: usize = 1 << 16;

/// Share of the memory left beside the weights that is given to the KV cache at most, in percent.
const KV_SHARE: u64 = 90;

/// What the operator chose. `None` leaves the choice to the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecutorOptions {
    /// Format of weight matrices on the device.
    pub weights: WeightFormat,
    /// Type of keys and values.
    pub kv: DType,
    /// Type of activations.
    pub activation: DType,
    /// Tokens per sequence; the model's own limit, or what fits, by default.
    pub max_model_len: Option<usize>,
    /// Bytes of KV cache.
    pub kv_bytes: Option<u64>,
    /// Sequences per step.
    pub max_sequences: usize,
    /// Token rows per step.
    pub max_tokens: usize,
    /// Tokens per KV page; the backend's preference by default.
    pub page_size: Option<usize>,
}

/// Why a plan cannot be made; one line that says what would fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(String);

impl PlanError {
    pub(crate) fn new(text: String) -> Self {
        PlanError(text)
    }
}

/// Bytes per purpose on one device, or on several together.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Device name.
    pub device: String,
    /// Its [`Caps::numerics`](anyfleet_tensor::Caps::numerics): kernels and how they compute.
    pub numerics: String,
    /// Packed weights and norm vectors.
    pub weights: u64,
    /// Keys and values.
    pub kv_cache: u64,
    /// Activations of one step.
    pub activations: u64,
    /// Step inputs, rotary tables, logits, results, and what the device's operations keep between their kernels.
    pub workspace: u64,
    /// Memory free on the device when the plan was made.
    pub available: Option<u64>,
    /// Tokens the KV cache holds over all sequences (in its scarcest group).
    pub kv_tokens: u64,
    /// What the executor will take.
    pub limits: Limits,
    /// Choices the plan made that the operator should know of.
    pub notes: Vec<String>,
    /// Where there are several devices, the plan of each, of which this is the sum.
    pub parts: Vec<MemoryPlan>,
}

impl MemoryPlan {
    /// All bytes of the plan.
    pub fn total(&self) -> u64 {
        self.weights + self.kv_cache + self.activations + self.workspace
    }

    /// The sum of plans for parts of one model; `device` and `numerics` name all of them.
    pub(crate) fn sum(parts: Vec<MemoryPlan>, device: String, numerics: String) -> Option<MemoryPlan> {
        let first = parts.first()?;
        let sum = |bytes: fn(&MemoryPlan) -> u64| parts.iter().map(bytes).sum();
        Some(MemoryPlan {
            device,
            numerics,
            weights: sum(|p| p.weights),
            kv_cache: sum(|p| p.kv_cache),
            activations: sum(|p| p.activations),
            workspace: sum(|p| p.workspace),
            available: parts.iter().map(|p| p.available).sum(),
            kv_tokens: first.kv_tokens,
            limits: first.limits.clone(),
            notes: first.notes.clone(),
            parts,
        })
    }
}

/// `n` bytes in binary units, for messages.
pub(crate) fn human(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if n < 1024 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.available.map_or(String::new(), |n| format!(" of {} free", human(n)));
        writeln!(f, "memory plan for {}: {}{free}", self.device, human(self.total()))?;
        for (name, bytes) in [
            ("weights", self.weights),
            ("KV cache", self.kv_cache),
            ("activations", self.activations),
            ("workspace", self.workspace),
        ] {
            write!(f, "  {name:<12} {:>10}", human(bytes))?;
            if name == "KV cache" {
                let Limits { max_model_len, max_sequences, cache, .. } = &self.limits;
                write!(
                    f,
                    "  ({} tokens in pages of {}; up to {max_sequences} sequences of up to {max_model_len})",
                    self.kv_tokens, cache.page_size
                )?;
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))?;
        self.parts.iter().try_for_each(|part| {
            let of = part.available.map_or(String::new(), |n| format!(" of {} free", human(n)));
            let [total, weights, kv] = [part.total(), part.weights, part.kv_cache].map(human);
            writeln!(f, "  on {}: {total}{of}, weights {weights}, KV cache {kv}", part.device)
        })
    }
}

/// A part of a model and the device it is planned for.
pub(crate) struct Placed<'a> {
    spec: &'a DecoderSpec,
    caps: &'a Caps,
    /// Bytes of its weights.
    weights: u64,
    activations: u64,
    /// For sequences of so many tokens, of so many pages, in so many cache groups.
    workspace: Box<dyn Fn(usize, usize, usize) -> u64 + 'a>,
    /// Memory it may take.
    available: Option<u64>,
}

impl<'a> Placed<'a> {
    /// `shard` on `device`, of which it may take `available` bytes.
    pub(crate) fn new<B: Backend>(
        device: &'a B,
        shard: &'a Shard,
        options: &'a ExecutorOptions,
        available: Option<u64>,
    ) -> Self {
        let spec = &shard.spec;
        let workspace = move |len, pages, groups| {
            let head = if shard.has_head() { HeadBuffers::<B>::bytes(spec, options) } else { 0 };
            let inputs = StepInputs::<B>::bytes(options, groups, pages);
            let scratch = device.scratch_bytes(&step_sizes(spec, options, len));
            let sums = match shard.place.ranks {
                1 => 0,
                ranks => device.communicator_bytes(ranks, residual_elements(shard, options)),
            };
            (Decoder::<B>::rope_bytes(spec, len) + inputs + head + scratch + sums) as u64
        };
        Placed {
            spec,
            caps: device.caps(),
            weights: Decoder::weight_bytes(device, shard, options.weights) as u64,
            // A larger step is refused before this counts.
            activations: Scratch::<B>::bytes(spec, options.activation, options.max_tokens.min(MAX_STEP)) as u64,
            workspace: Box::new(workspace),
            available,
        }
    }
}

/// Plans a model on a device, before anything is known of its checkpoint.
///
/// # Errors
/// One line that says what does not fit and what would.
pub fn plan<B: Backend>(device: &B, spec: &DecoderSpec, options: &ExecutorOptions) -> Result<MemoryPlan, PlanError> {
    plan_weights(device, spec, &WeightMap::new(spec), options)
}

/// Plans a model on a device. Which of its matrices have another format than most, `weights` knows.
///
/// # Errors
/// As [`plan`].
pub fn plan_weights<B: Backend>(
    device: &B,
    spec: &DecoderSpec,
    weights: &WeightMap,
    options: &ExecutorOptions,
) -> Result<MemoryPlan, PlanError> {
    let shard = Shard::whole(spec, weights);
    let placed = Placed::new(device, &shard, options, device.caps().memory.available);
    let mut plans = plan_placed(spec, &[placed], options)?;
    plans.pop().ok_or_else(|| PlanError::new("no device was named".into()))
}

/// Plans the parts of the model `spec`, each on its device: as many pages everywhere.
pub(crate) fn plan_placed(
    spec: &DecoderSpec,
    parts: &[Placed<'_>],
    options: &ExecutorOptions,
) -> Result<Vec<MemoryPlan>, PlanError> {
    check_options(spec, options)?;
    // Any size works anywhere; the largest preference has the fewest pages.
    let preferred = parts.iter().map(|part| part.caps.page_size).max().unwrap_or(1);
    let page_size = options.page_size.unwrap_or(preferred);
    let limit = options.max_model_len.unwrap_or(spec.max_position_embeddings);
    let workspace =
        |part: &Placed<'_>, len: usize| (part.workspace)(len, len.div_ceil(page_size), cache_groups(spec, len).len());
    let rooms = parts.iter().map(|part| {
        let fixed = part.weights + part.activations + workspace(part, limit);
        match part.available {
            Some(available) if fixed >= available => Err(PlanError::new(format!(
                "{} has {} free, but weights ({}), activations and workspace need {}; choose a narrower --dtype, a lower --max-model-len or another device",
                part.caps.device,
                human(available),
                human(part.weights),
                human(fixed)
            ))),
            available => Ok(available.map(|available| (available - fixed) / 100 * KV_SHARE)),
        }
    });
    let rooms = rooms.collect::<Result<Vec<_>, _>>()?;
    let sized = parts.iter().zip(rooms).map(|(part, room)| PartSizing {
        spec: part.spec,
        room,
        max_buffer: part.caps.max_buffer,
    });
    let sizing = Sizing { spec, options, page_size, parts: sized.collect() };
    let (len, budget, notes) = sizing.choose(limit)?;
    let (cache, kv_bytes) = sizing.cache(len, budget);
    let kv_tokens = u64::from(cache.groups.iter().map(|g| g.pages).min().unwrap_or(0)) * page_size as u64;
    let limits = Limits {
        max_tokens: options.max_tokens,
        max_sequences: options.max_sequences,
        max_model_len: len,
        vocab_size: spec.vocab_size,
        cache,
        steps_in_flight: match parts {
            [part] if part.caps.queued => 2,
            _ => 1,
        },
    };
    let planned = |(part, kv_cache): (&Placed<'_>, u64)| MemoryPlan {
        device: part.caps.device.clone(),
        numerics: part.caps.numerics.clone(),
        weights: part.weights,
        kv_cache,
        activations: part.activations,
        workspace: workspace(part, len),
        available: part.available,
        kv_tokens,
        limits: limits.clone(),
        notes: notes.clone(),
        parts: Vec::new(),
    };
    Ok(parts.iter().zip(kv_bytes).map(planned).collect())
}

/// The most elements of the residual stream.
pub(crate) fn residual_elements(shard: &Shard, options: &ExecutorOptions) -> usize {
    options.max_tokens.min(MAX_STEP) * shard.spec.hidden_size
}

/// The largest operations of a step with sequences of `positions` tokens.
pub(crate) fn step_sizes(spec: &DecoderSpec, options: &ExecutorOptions, positions: usize) -> StepSizes {
    let attention = || spec.layers.iter().map(|layer| &layer.attention);
    let latents = || attention().filter_map(|a| Some((a.heads, a.latent?)));
    let experts = || spec.layers.iter().filter_map(|layer| Some((layer.mlp.intermediate_size, layer.mlp.experts?)));
    StepSizes {
        tokens: options.max_tokens,
        query_width: attention().map(|a| a.heads * a.head_dim).max().unwrap_or(0),
        head_size: attention().map(|a| a.head_dim).min().unwrap_or(0),
        widest: spec
            .layers
            .iter()
            .map(|l| {
                l.mlp.intermediate_size.max(l.mlp.experts.map_or(0, |experts| experts.shared)).max(widest(&l.attention))
            })
            .fold(spec.hidden_size, usize::max),
        grouped_rows: options.max_tokens * experts().map(|(_, experts)| experts.per_token).max().unwrap_or(0),
        grouped_widest: experts().map(|(inner, _)| inner.max(spec.hidden_size)).max().unwrap_or(0),
        head_rows: options.max_tokens * latents().map(|(heads, _)| heads).max().unwrap_or(0),
        head_widest: latents().map(|(_, latent)| latent.rank.max(latent.plain)).max().unwrap_or(0),
        positions,
        logit_rows: LOGIT_ROWS,
        vocab_size: spec.vocab_size,
    }
}

/// The most input features of a product around attention.
fn widest(attention: &AttentionSpec) -> usize {
    attention.output_width().max(attention.latent.and_then(|latent| latent.query_rank).unwrap_or(0))
}

fn check_options(spec: &DecoderSpec, options: &ExecutorOptions) -> Result<(), PlanError> {
    let ExecutorOptions { max_model_len, max_sequences, max_tokens, page_size, .. } = *options;
    let bad = |text: String| Err(PlanError(text));
    if max_sequences == 0 || max_tokens == 0 || page_size == Some(0) || max_model_len == Some(0) {
        return bad("max-num-seqs, max-batch-tokens, page size and max-model-len must be at least 1".into());
    }
    if max_sequences > max_tokens {
        return bad(format!(
            "{max_sequences} sequences do not fit a step of {max_tokens} tokens; lower --max-num-seqs or raise the step's tokens"
        ));
    }
    if max_tokens > MAX_STEP {
        return bad(format!(
            "a step of {max_tokens} tokens is too large; use at most {MAX_STEP} for --max-batch-tokens and --max-num-seqs"
        ));
    }
    if let Some(size) = page_size.filter(|&size| size > MAX_STEP) {
        return bad(format!("--page-size {size} is too large; use at most {MAX_STEP}"));
    }
    if max_model_len.unwrap_or(spec.max_position_embeddings) < 2 {
        return bad(format!(
            "a context of 1 token has no room for a prompt and an answer; use at least 2 for --max-model-len \
             (the model's max_position_embeddings is {})",
            spec.max_position_embeddings
        ));
    }
    if let Some(len) = max_model_len.filter(|&len| len > spec.max_position_embeddings) {
        let most = spec.max_position_embeddings;
        return bad(format!(
            "--max-model-len {len} is more than the model's max_position_embeddings {most}; use at most {most}"
        ));
    }
    Ok(())
}

/// Chunks of logit rows in the largest step, where every row may be wanted.
pub(crate) const fn logit_chunks(max_tokens: usize) -> usize {
    max_tokens.div_ceil(LOGIT_ROWS)
}
