//! Brings a model to where it can be measured, and tells what that took.
use super::account::{Account, ExpertBytes};
use super::case::Case;
use super::session::Session;
use crate::Result;
use crate::args::RunArgs;
use crate::memory::{Resident, reset_peak};
use crate::options::{ModelOptions, Quantize};
use anyfleet::{DTypeSpec, Engine, EngineBuilder, MemoryPlan};
use anyfleet_cpu::{CpuBackend, CpuOptions};
use anyfleet_models::{LayerSpec, LayerWeights, Model, open_model};
use anyfleet_tensor::{Backend, DType, WeightFormat};
use anyfleet_weights::MatrixSpec;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Prompt tokens of the request that ends the start.
const FIRST_PROMPT: usize = 8;

/// A loaded model and its cases.
pub struct Loaded {
    /// How its weights are quantized.
    pub quantize: Quantize,
    /// Runs it.
    pub session: Session,
    /// Bytes and operations.
    pub account: Account,
    /// Bytes planned.
    pub plan: MemoryPlan,
    /// Type its weights have, or had before they were quantized.
    pub dtype: DType,
    /// From the open directory to an executor.
    pub load_s: f64,
    /// From there to the first token of a short prompt.
    pub first_token_s: f64,
    /// Resident bytes of the process before it was loaded.
    pub before: Resident,
    /// Most resident bytes without a file behind them while it was loaded, looked at once a matrix.
    pub peak_anonymous: u64,
}

impl Loaded {
    /// Whether the model of `dir` can be loaded with room for `cases`, without reading a weight.
    ///
    /// # Errors
    /// As [`Loaded::new`], up to the plan.
    pub fn check(dir: &Path, args: &RunArgs, cases: &[Case]) -> Result<()> {
        let model = open_model(dir).map_err(|e| e.to_string())?;
        let plan = |case: &Case| builder(dir, args, case.quantize, cases, &model)?.plan().map_err(|e| e.to_string());
        cases.iter().try_for_each(|case| plan(case).map(drop))
    }

    /// Loads the model of `dir` with room for `cases`.
    ///
    /// # Errors
    /// The model cannot be used, or the cases do not fit it.
    pub fn new(dir: &Path, args: &RunArgs, quantize: Quantize, cases: &[Case]) -> Result<Loaded> {
        let model = open_model(dir).map_err(|e| e.to_string())?;
        let store = format(&args.options, &model, quantize);
        // What products of f8 multiply.
        let dtype = if store == WeightFormat::F8 { DType::BF16 } else { dtype(&args.options, &model) };
        let builder = builder(dir, args, quantize, cases, &model)?;
        let plan = builder.plan().map_err(|e| e.to_string())?;
        let experts = expert_bytes(&model, store)?;
        let account = Account::new(&model.spec, &plan, embedding_bytes(&model, store)?, experts);
        drop(model);
        reset_peak();
        let before = Resident::now();
        let start = Instant::now();
        let peak = Arc::new(AtomicU64::new(before.anonymous));
        let seen = peak.clone();
        let see = move |_| {
            seen.fetch_max(Resident::now().anonymous, Ordering::Relaxed);
        };
        let executor = builder.on_progress(see).executor().map_err(|e| e.to_string())?;
        let load_s = start.elapsed().as_secs_f64();
        let mut session = Session::new(executor)?;
        let prompt = FIRST_PROMPT.min(plan.limits.max_model_len - 1);
        session.generate(1, prompt, 0)?;
        let first_token_s = start.elapsed().as_secs_f64();
        Ok(Loaded {
            quantize,
            session,
            account,
            plan,
            dtype,
            load_s,
            first_token_s,
            before,
            peak_anonymous: peak.load(Ordering::Relaxed),
        })
    }
}

/// The facade with room for the longest case and the largest batch, and no more.
fn builder(dir: &Path, args: &RunArgs, quantize: Quantize, cases: &[Case], model: &Model) -> Result<EngineBuilder> {
    let rows = args.max_batch_tokens;
    let most = |value: &dyn Fn(&Case) -> usize| cases.iter().map(value).max().unwrap_or(1);
    let (len, limit) = (most(&|c| c.max_len(rows)), model.spec.max_position_embeddings);
    if len > limit {
        return Err(format!(
            "a case needs {len} tokens, but the model's max_position_embeddings is {limit}; lower --prompt, --depth, \
             --gen or --batch"
        ));
    }
    let dir = dir.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", dir.display()))?;
    let builder = args.options.apply(Engine::builder(dir), quantize);
    let builder =
        builder.max_model_len(len).max_num_seqs(most(&|c| c.batch)).max_batch_tokens(rows).prefix_cache(false);
    // By default the cache has a cap, which batches of long sequences may exceed.
    let plan = builder.plan().map_err(|e| e.to_string())?;
    let page = plan.limits.cache.page_size as usize;
    let tokens = most(&|c| c.batch * c.max_len(rows).next_multiple_of(page)) as u64;
    Ok(match tokens > plan.kv_tokens {
        true => {
            builder.kv_cache_bytes((plan.kv_cache as u128 * u128::from(tokens)).div_ceil(plan.kv_tokens.into()) as u64)
        }
        false => builder,
    })
}

/// The format of a layer's matrices on the CPU, by the facade's rule.
fn format(options: &ModelOptions, model: &Model, quantize: Quantize) -> WeightFormat {
    match quantize {
        Quantize::None if options.dtype == DTypeSpec::Auto && model.dir.has_f8() => WeightFormat::F8,
        Quantize::None => WeightFormat::Float(dtype(options, model)),
        Quantize::Q8 => WeightFormat::Q8,
        Quantize::Q4 => WeightFormat::Q4,
        Quantize::F8 => WeightFormat::F8,
    }
}

/// The type `--dtype` means for this checkpoint, by the facade's rule.
fn dtype(options: &ModelOptions, model: &Model) -> DType {
    match options.dtype {
        DTypeSpec::F32 => DType::F32,
        DTypeSpec::Bf16 => DType::BF16,
        DTypeSpec::F16 => DType::F16,
        DTypeSpec::Auto => model.dir.main_dtype().unwrap_or(DType::F32),
    }
}

/// A device whose matrices are padded as those of the fastest one.
fn packer() -> Result<CpuBackend> {
    CpuBackend::new(CpuOptions { threads: Some(1), isa: None }).map_err(|e| e.to_string())
}

/// Bytes the experts of each layer that has some take on the device, padding included.
fn expert_bytes(model: &Model, store: WeightFormat) -> Result<Vec<ExpertBytes>> {
    let device = packer()?;
    let bytes = |m: &MatrixSpec| (m.stack * device.weight_bytes(m.matrix_rows(), m.cols, store)) as u64;
    let layers = model.spec.layers.iter().zip(&model.weights.layers);
    let of_layer = |(layer, weights): (&LayerSpec, &LayerWeights)| {
        let experts = layer.mlp.experts?;
        let (count, per_token) = (experts.count, experts.per_token);
        Some(ExpertBytes { bytes: bytes(&weights.gate_up) + bytes(&weights.down), count, per_token })
    };
    Ok(layers.filter_map(of_layer).collect())
}

/// Bytes the embedding takes on the device, padding included.
fn embedding_bytes(model: &Model, store: WeightFormat) -> Result<u64> {
    let device = packer()?;
    let (rows, cols) = (model.spec.vocab_size, model.spec.hidden_size);
    let format = match store {
        WeightFormat::Float(_) => store,
        WeightFormat::F8 => WeightFormat::Float(DType::BF16),
        _ => WeightFormat::Q8,
    };
    Ok(device.weight_bytes(rows, cols, format) as u64)
}
