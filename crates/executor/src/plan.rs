//! The memory plan: every byte a model will take on a device, known before a weight is read.
use crate::cache::{LayerGroup, cache_groups};
use crate::inputs::StepInputs;
use crate::output::{HeadBuffers, LOGIT_ROWS};
use anyfleet_models::{Decoder, DecoderSpec, Scratch};
use anyfleet_runtime::{CacheSpec, GroupSpec, Limits};
use anyfleet_tensor::{Backend, DType, StepSizes, WeightFormat};
use std::fmt;

/// KV memory taken when nobody says how much, unless one sequence of the full length needs more.
const DEFAULT_KV_CAP: u64 = 4 << 30;

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

/// Bytes per purpose on one device.
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
}

impl MemoryPlan {
    /// All bytes of the plan.
    pub fn total(&self) -> u64 {
        self.weights + self.kv_cache + self.activations + self.workspace
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
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

/// Sizes that depend on the length of a sequence.
struct Sizing<'a> {
    spec: &'a DecoderSpec,
    options: &'a ExecutorOptions,
    page_size: usize,
    /// The most bytes of one buffer.
    max_buffer: Option<u64>,
}

impl Sizing<'_> {
    fn groups(&self, len: usize) -> Vec<LayerGroup> {
        cache_groups(self.spec, len)
    }

    /// Bytes of cache one sequence of `len` tokens needs.
    fn sequence_bytes(&self, len: usize) -> u64 {
        let bytes = |g: &LayerGroup| {
            g.pages_per_sequence(len, self.options.max_tokens, self.page_size)
                * g.page_bytes(self.spec, self.page_size, self.options.kv)
        };
        self.groups(len).iter().map(bytes).sum()
    }

    /// The most pages a group can have: slots are u32 = page * page size + offset, with u32::MAX kept for "nowhere",
    /// and keys and values of a layer are a buffer each.
    fn most_pages(&self, group: &LayerGroup) -> u64 {
        let slots = u64::from(u32::MAX) / self.page_size as u64 - 1;
        let part = group.largest_part(self.spec, self.page_size, self.options.kv).max(1);
        self.max_buffer.map_or(slots, |most| slots.min(most / part))
    }

    /// Bytes that the pages the device can hold in buffers have at most, shared out for sequences of `len` tokens.
    fn most_bytes(&self, len: usize) -> u64 {
        let sequences = |g: &LayerGroup| {
            let per_sequence = g.pages_per_sequence(len, self.options.max_tokens, self.page_size).max(1);
            self.most_pages(g) as f64 / per_sequence as f64
        };
        let scarcest = self.groups(len).iter().map(sequences).fold(f64::INFINITY, f64::min);
        (self.sequence_bytes(len) as f64 * scarcest) as u64
    }

    /// The longest sequence, in whole pages, whose cache fits `budget` bytes.
    fn longest(&self, budget: u64, limit: usize) -> usize {
        let fits = |pages: usize| {
            let len = pages * self.page_size;
            self.sequence_bytes(len) <= budget.min(self.most_bytes(len))
        };
        let (mut low, mut high) = (0, limit.div_ceil(self.page_size));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        (low * self.page_size).min(limit)
    }

    /// Splits `budget` over the groups in proportion to what a sequence of `len` tokens needs.
    fn cache(&self, len: usize, budget: u64) -> (CacheSpec, u64) {
        let groups = self.groups(len);
        let need = self.sequence_bytes(len).max(1);
        let mut used = 0;
        let specs = groups.iter().map(|g| {
            let per_sequence = g.pages_per_sequence(len, self.options.max_tokens, self.page_size);
            let pages = (u128::from(per_sequence) * u128::from(budget) / u128::from(need)) as u64;
            let pages = pages.min(self.most_pages(g)).max(per_sequence);
            used += pages * g.page_bytes(self.spec, self.page_size, self.options.kv);
            GroupSpec { kind: g.kind, pages: pages as u32 }
        });
        let spec = CacheSpec { page_size: self.page_size as u32, groups: specs.collect() };
        (spec, used)
    }
}

/// Plans a model on a device.
///
/// # Errors
/// One line that says what does not fit and what would.
pub fn plan<B: Backend>(device: &B, spec: &DecoderSpec, options: &ExecutorOptions) -> Result<MemoryPlan, PlanError> {
    let caps = device.caps();
    check_options(spec, options)?;
    let page_size = options.page_size.unwrap_or(caps.page_size);
    let sizing = Sizing { spec, options, page_size, max_buffer: caps.max_buffer };
    let limit = options.max_model_len.unwrap_or(spec.max_position_embeddings);
    let weights = Decoder::weight_bytes(device, spec, options.weights) as u64;
    let activations = Scratch::<B>::bytes(spec, options.activation, options.max_tokens) as u64;
    let workspace = |len: usize| {
        let groups = sizing.groups(len).len();
        let tables = Decoder::<B>::rope_bytes(spec, len);
        (tables
            + StepInputs::<B>::bytes(options, groups, len.div_ceil(page_size))
            + HeadBuffers::<B>::bytes(spec, options)
            + device.scratch_bytes(&step_sizes(spec, options, len))) as u64
    };
    let fixed = weights + activations + workspace(limit);
    let room = match caps.memory.available {
        Some(available) if fixed >= available => {
            return Err(PlanError(format!(
                "{} has {} free, but weights ({}), activations and workspace need {}; choose a narrower --dtype, a lower --max-model-len or another device",
                caps.device,
                human(available),
                human(weights),
                human(fixed)
            )));
        }
        Some(available) => Some((available - fixed) / 100 * KV_SHARE),
        None => None,
    };
    let (len, budget, notes) = choose_kv(&sizing, limit, room)?;
    let (cache, kv_cache) = sizing.cache(len, budget);
    let kv_tokens = u64::from(cache.groups.iter().map(|g| g.pages).min().unwrap_or(0)) * page_size as u64;
    Ok(MemoryPlan {
        device: caps.device.clone(),
        numerics: caps.numerics.clone(),
        weights,
        kv_cache,
        activations,
        workspace: workspace(len),
        available: caps.memory.available,
        kv_tokens,
        limits: Limits {
            max_tokens: options.max_tokens,
            max_sequences: options.max_sequences,
            max_model_len: len,
            vocab_size: spec.vocab_size,
            cache,
            steps_in_flight: 1,
        },
        notes,
    })
}

/// The largest operations of a step with sequences of `positions` tokens.
pub(crate) fn step_sizes(spec: &DecoderSpec, options: &ExecutorOptions, positions: usize) -> StepSizes {
    let attention = || spec.layers.iter().map(|layer| &layer.attention);
    StepSizes {
        tokens: options.max_tokens,
        query_width: attention().map(|a| a.heads * a.head_dim).max().unwrap_or(0),
        head_size: attention().map(|a| a.head_dim).min().unwrap_or(0),
        widest: spec
            .layers
            .iter()
            .map(|l| l.mlp.intermediate_size.max(l.attention.q_width()))
            .fold(spec.hidden_size, usize::max),
        positions,
        logit_rows: LOGIT_ROWS,
        vocab_size: spec.vocab_size,
    }
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

/// Chooses sequence length and KV bytes: what was asked for, or what fits.
fn choose_kv(sizing: &Sizing<'_>, limit: usize, room: Option<u64>) -> Result<(usize, u64, Vec<String>), PlanError> {
    let ExecutorOptions { max_model_len, kv_bytes, max_sequences, .. } = *sizing.options;
    let one = sizing.sequence_bytes(limit);
    if let (Some(asked), Some(room)) = (kv_bytes, room)
        && asked > room
    {
        return Err(PlanError(format!(
            "--kv-cache-memory {} does not fit beside the weights; at most {} does",
            human(asked),
            human(room)
        )));
    }
    let wanted = one.saturating_mul(max_sequences as u64).min(DEFAULT_KV_CAP.max(one));
    let most = sizing.most_bytes(limit);
    let budget = kv_bytes.unwrap_or(wanted).min(room.unwrap_or(u64::MAX)).min(most);
    if budget >= one {
        let note = kv_bytes.filter(|&asked| asked > most).map(|asked| {
            format!(
                "the KV cache is {}, not {}: a buffer of the device holds no more of a layer",
                human(most),
                human(asked)
            )
        });
        return Ok((limit, budget, note.into_iter().collect()));
    }
    let fits = sizing.longest(budget, limit);
    if fits == 0 {
        let page = sizing.sequence_bytes(sizing.page_size.min(limit));
        return Err(PlanError(format!(
            "a KV cache of {} holds no page; the smallest useful --kv-cache-memory is {}",
            human(budget),
            human(page)
        )));
    }
    if max_model_len.is_some() {
        let or_more = if most < one { String::new() } else { format!(" or --kv-cache-memory {}", human(one)) };
        return Err(PlanError(format!(
            "one sequence of {limit} tokens needs {} of KV cache, but {} is what fits; use --max-model-len {fits}{or_more}",
            human(one),
            human(budget)
        )));
    }
    let note =
        format!("max-model-len lowered from {limit} to {fits}: that is what {} of KV cache holds", human(budget));
    Ok((fits, budget, vec![note]))
}

/// Chunks of logit rows in the largest step, where every row may be wanted.
pub(crate) const fn logit_chunks(max_tokens: usize) -> usize {
    max_tokens.div_ceil(LOGIT_ROWS)
}
