//! From a model's name to a running engine.
mod backend;
mod split;

use crate::engine::Shared;
use crate::worker::{Board, Worker};
use crate::{
    ChatTemplate, DTypeSpec, DeviceSpec, Engine, EngineInfo, Error, KvDType, PackCache, QuantizeSpec, Result,
    SamplingParams, Tokenizer,
};
use anyfleet_executor::{ExecutorOptions, MemoryPlan, ModelExecutor, Part, plan_weights};
use anyfleet_models::{Decoder, LoadOptions, Model, open_model};
use anyfleet_runtime::{Executor, Identity, Runtime, RuntimeOptions};
use anyfleet_tensor::{Backend, DType, Gemm, WeightFormat};
use anyfleet_text::Files;
use anyfleet_weights::{Bundle, Hub, ModelFiles};
pub(crate) use backend::OnBackend;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Changes whenever the same inputs may give other bits than in the version before.
const NUMERICS_VERSION: u32 = 1;

/// How far a load is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A file is being downloaded from the hub.
    Download {
        /// Its name.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, where the hub says.
        total: Option<u64>,
    },
    /// Weights are being read and packed.
    Weights {
        /// Elements so far.
        done: u64,
        /// Elements in all.
        total: u64,
    },
}

type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Describes an engine; see [`Engine::builder`].
#[derive(Clone)]
pub struct EngineBuilder {
    model: String,
    /// The model, where it is part of the program; otherwise `model` says where it is.
    bundle: Option<Bundle>,
    device: DeviceSpec,
    dtype: DTypeSpec,
    quantize: QuantizeSpec,
    kv_dtype: KvDType,
    gemm: Gemm,
    max_model_len: Option<usize>,
    kv_cache_bytes: Option<u64>,
    max_num_seqs: usize,
    max_batch_tokens: usize,
    page_size: Option<usize>,
    prefix_cache: bool,
    max_queue: usize,
    threads: Option<usize>,
    pack_cache: PackCache,
    device_memory: Option<u64>,
    #[cfg(feature = "check")]
    self_check: crate::SelfCheck,
    on_progress: OnProgress,
}

/// Everything but the engine's thread: a model on a device.
struct Loaded {
    executor: Box<dyn Executor>,
    plan: MemoryPlan,
    device: String,
    dtype: DType,
    numerics_id: String,
}

impl EngineBuilder {
    pub(crate) fn new(model: String, bundle: Option<Bundle>) -> Self {
        EngineBuilder {
            model,
            bundle,
            device: DeviceSpec::Auto,
            dtype: DTypeSpec::Auto,
            quantize: QuantizeSpec::None,
            kv_dtype: KvDType::Auto,
            gemm: Gemm::Invariant,
            max_model_len: None,
            kv_cache_bytes: None,
            max_num_seqs: 64,
            max_batch_tokens: 512,
            page_size: None,
            prefix_cache: true,
            max_queue: 1024,
            threads: None,
            pack_cache: PackCache::Off,
            device_memory: None,
            #[cfg(feature = "check")]
            self_check: crate::SelfCheck::Default,
            on_progress: Arc::new(|_| {}),
        }
    }

    /// Where the model runs; [`DeviceSpec::Auto`] by default.
    #[must_use]
    pub fn device(mut self, device: DeviceSpec) -> Self {
        self.device = device;
        self
    }

    /// Type of weights on the device, and of the KV cache unless [`EngineBuilder::kv_dtype`] says otherwise; the
    /// checkpoint's by default.
    #[must_use]
    pub fn dtype(mut self, dtype: DTypeSpec) -> Self {
        self.dtype = dtype;
        self
    }

    /// Whether weights are kept as integers; as floats by default. The KV cache keeps its type.
    #[must_use]
    pub fn quantize(mut self, quantize: QuantizeSpec) -> Self {
        self.quantize = quantize;
        self
    }

    /// Type of keys and values in the cache; that of the weights by default, before they are quantized.
    #[must_use]
    pub fn kv_dtype(mut self, kv_dtype: KvDType) -> Self {
        self.kv_dtype = kv_dtype;
        self
    }

    /// How products of many rows are computed; [`Gemm::Invariant`] by default. With [`Gemm::Fast`] an adapter of wgpu with
    /// matrix units and an NVIDIA GPU with cuBLASLt may compute prompts faster, and answers may depend on what else runs:
    /// the NumericsId says so. On other devices it changes nothing, which a warning of the engine says.
    #[must_use]
    pub fn gemm(mut self, gemm: Gemm) -> Self {
        self.gemm = gemm;
        self
    }

    /// Tokens per sequence, prompt and output together; by default the model's limit, or what the
    /// KV cache holds.
    #[must_use]
    pub fn max_model_len(mut self, tokens: usize) -> Self {
        self.max_model_len = Some(tokens);
        self
    }

    /// Bytes of KV cache; by default what `max_num_seqs` full sequences need, at most 4 GiB (or one
    /// full sequence) and at most what fits.
    #[must_use]
    pub fn kv_cache_bytes(mut self, bytes: u64) -> Self {
        self.kv_cache_bytes = Some(bytes);
        self
    }

    /// Sequences that run at once; 64 by default.
    #[must_use]
    pub fn max_num_seqs(mut self, sequences: usize) -> Self {
        self.max_num_seqs = sequences;
        self
    }

    /// Token rows per step: bounds activation memory and how long a prefill chunk holds up decodes;
    /// 512 by default.
    #[must_use]
    pub fn max_batch_tokens(mut self, tokens: usize) -> Self {
        self.max_batch_tokens = tokens;
        self
    }

    /// Tokens per KV page; the device's preference by default. Results do not depend on it.
    #[must_use]
    pub fn page_size(mut self, tokens: usize) -> Self {
        self.page_size = Some(tokens);
        self
    }

    /// Whether requests share the pages of equal prefixes; on by default. Results do not depend on it.
    #[must_use]
    pub fn prefix_cache(mut self, on: bool) -> Self {
        self.prefix_cache = on;
        self
    }

    /// Requests that may wait to start; 1024 by default.
    #[must_use]
    pub fn max_queue(mut self, requests: usize) -> Self {
        self.max_queue = requests;
        self
    }

    /// Threads of the CPU backend; all cores by default. Results do not depend on it.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Where packed weights are kept between starts; nowhere by default.
    #[must_use]
    pub fn pack_cache(mut self, packs: PackCache) -> Self {
        self.pack_cache = packs;
        self
    }

    /// Bytes of memory to plan with, for devices that do not say how much they have: without it a plan is made as if
    /// everything fitted. Other devices ignore it.
    #[must_use]
    pub fn device_memory(mut self, bytes: u64) -> Self {
        self.device_memory = Some(bytes);
        self
    }

    /// Whether an adapter is checked before its first use; it is by default.
    #[cfg(feature = "check")]
    #[must_use]
    pub fn self_check(mut self, check: crate::SelfCheck) -> Self {
        self.self_check = check;
        self
    }

    /// Called while the model is downloaded and loaded, from the loading thread.
    #[must_use]
    pub fn on_progress(mut self, call: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.on_progress = Arc::new(call);
        self
    }

    /// The memory plan, without reading a weight.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`], up to the plan.
    pub fn plan(&self) -> Result<MemoryPlan> {
        let model = self.open()?;
        self.planned(&model, &mut Vec::new())
    }

    /// Loads the model and returns the executor, for those who drive steps themselves.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn executor(&self) -> Result<Box<dyn Executor>> {
        let model = self.open()?;
        Ok(self.loaded(&model, &AtomicBool::new(false), &mut Vec::new())?.executor)
    }

    /// Opens, plans and loads the model and starts the engine.
    ///
    /// # Errors
    /// [`Error::Model`] for files that cannot be used, [`Error::Device`] for a device that cannot,
    /// [`Error::Plan`] when the model does not fit.
    pub fn build(self) -> Result<Engine> {
        let model = self.open()?;
        // A tokenizer of megabytes takes as long as weights that are only mapped; a broken one stops them.
        let stop = AtomicBool::new(false);
        let mut device_warnings = Vec::new();
        let (text, loaded) = std::thread::scope(|scope| {
            let text = scope.spawn(|| {
                let text = load_text(model.dir.files()).map_err(model_error);
                stop.store(text.is_err(), Ordering::Relaxed);
                text
            });
            let loaded = self.loaded(&model, &stop, &mut device_warnings);
            (text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
        });
        let ((tokenizer, template), loaded) = (text?, loaded?);
        let (eos_token_ids, mut warnings) = eos_token_ids(&model);
        let (defaults, defaults_warning) = default_params(&model);
        warnings.extend(device_warnings);
        warnings.extend(unused_warning(&model).into_iter().chain(defaults_warning));
        let identity = Identity {
            numerics_id: loaded.numerics_id,
            weights: model.dir.identity(),
            tokenizer: tokenizer.as_ref().map_or(String::new(), |t| hex(&t.content_hash())),
            template: template.as_ref().map_or(String::new(), |t| hex(&t.content_hash())),
            adapter: String::new(),
        };
        let options = RuntimeOptions {
            eos_token_ids: eos_token_ids.clone(),
            tokenizer: tokenizer.clone(),
            prefix_cache: self.prefix_cache,
            max_queue: self.max_queue,
            identity: identity.clone(),
            ..RuntimeOptions::default()
        };
        let limits = loaded.executor.limits().clone();
        let runtime = Runtime::new(limits.clone(), options).map_err(|e| Error::Plan(e.to_string()))?;
        let max_sequence_len = runtime.max_sequence_len();
        let (commands, receiver) = async_channel::unbounded();
        let board = Arc::new(Board::default());
        let worker = Worker {
            runtime,
            executor: loaded.executor,
            commands: receiver,
            board: board.clone(),
            streams: Default::default(),
        };
        std::thread::Builder::new()
            .name("anyfleet-engine".into())
            .spawn(move || worker.run())
            .map_err(|e| Error::Device(format!("cannot start the engine's thread: {e}")))?;
        let info = EngineInfo {
            model: self.model,
            path: model.dir.files().dir().map(Into::into),
            family: model.spec.family,
            device: loaded.device,
            dtype: loaded.dtype.to_string(),
            identity,
            max_model_len: limits.max_model_len,
            max_sequence_len,
            vocab_size: limits.vocab_size,
            eos_token_ids,
            plan: loaded.plan,
            warnings,
        };
        Ok(Engine::from_shared(Shared { info, tokenizer, template, defaults, commands, board }))
    }

    fn open(&self) -> Result<Model> {
        let files = match self.bundle {
            Some(bundle) => Ok(bundle.into()),
            None => Hub::from_env()
                .resolve(&self.model, &mut |p| {
                    (self.on_progress)(Progress::Download { file: p.file.to_owned(), done: p.done, total: p.total });
                })
                .map(ModelFiles::from),
        };
        files.and_then(open_model).map_err(model_error)
    }

    /// The type of the weights, before they are quantized.
    fn weight_dtype(&self, model: &Model) -> DType {
        match self.dtype {
            DTypeSpec::F32 => DType::F32,
            DTypeSpec::Bf16 => DType::BF16,
            DTypeSpec::F16 => DType::F16,
            DTypeSpec::Auto => model.dir.main_dtype().unwrap_or(DType::F32),
        }
    }

    /// What the checkpoint has in eight bits is not asked for in another form.
    fn stays_f8(&self, model: &Model) -> bool {
        self.dtype == DTypeSpec::Auto && self.quantize == QuantizeSpec::None && model.dir.has_f8()
    }

    fn executor_options<B: Backend>(&self, device: &B, model: &Model) -> Result<ExecutorOptions> {
        let dtype = self.weight_dtype(model);
        let kv = match self.kv_dtype {
            KvDType::Auto => dtype,
            KvDType::F32 => DType::F32,
            KvDType::Bf16 => DType::BF16,
            KvDType::F16 => DType::F16,
            KvDType::I8 => DType::I8,
            KvDType::F8 => DType::F8,
        };
        let caps = device.caps();
        let weights = match self.quantize {
            QuantizeSpec::None if self.stays_f8(model) && caps.weights.contains(&WeightFormat::F8) => WeightFormat::F8,
            QuantizeSpec::None => WeightFormat::Float(dtype),
            QuantizeSpec::Q8 => WeightFormat::Q8,
            QuantizeSpec::Q4 => WeightFormat::Q4,
            QuantizeSpec::F8 => WeightFormat::F8,
        };
        if !caps.weights.contains(&WeightFormat::Float(dtype)) {
            return Err(Error::Device(format!("{} does not support --dtype {dtype}; use another dtype", caps.device)));
        }
        let flag = |kv: &DType| match kv {
            DType::I8 => "int8",
            DType::F8 => "fp8",
            other => other.name(),
        };
        if !caps.kv.contains(&kv) {
            let known: Vec<&str> = caps.kv.iter().map(flag).collect();
            return Err(Error::Device(format!(
                "{} has no KV cache of {kv}; use one of these for --kv-dtype: {}",
                caps.device,
                known.join(", ")
            )));
        }
        if model.spec.layers.iter().any(|layer| layer.attention.latent.is_some()) && !caps.latent.contains(&kv) {
            let (family, device, known) = (model.spec.family, &caps.device, &caps.latent);
            return Err(Error::Device(match known.is_empty() {
                true => format!("{family} needs latent attention, which {device} does not have yet; use cpu"),
                false => {
                    let known: Vec<&str> = known.iter().map(flag).collect();
                    let known = known.join(", ");
                    format!("{device} keeps no latents of {family} as {kv}; use one of these for --kv-dtype: {known}")
                }
            }));
        }
        if !caps.weights.contains(&weights) {
            return Err(Error::Device(format!("{} does not support --quantize {weights}; use none", caps.device)));
        }
        let activation = caps.activations.first().copied().unwrap_or(DType::F32);
        Ok(ExecutorOptions {
            weights,
            kv,
            activation,
            max_model_len: self.max_model_len,
            kv_bytes: self.kv_cache_bytes,
            max_sequences: self.max_num_seqs,
            max_tokens: self.max_batch_tokens.max(self.max_num_seqs),
            page_size: self.page_size,
        })
    }
}

struct Plan<'a>(&'a EngineBuilder, &'a Model);
/// With what stops it.
struct Load<'a>(&'a EngineBuilder, &'a Model, &'a AtomicBool);

impl OnBackend for Plan<'_> {
    const COMPUTES: bool = false;
    type Output = MemoryPlan;

    fn run<B: Backend>(self, device: Arc<B>) -> Result<MemoryPlan> {
        let Plan(builder, model) = self;
        let options = builder.executor_options(&*device, model)?;
        plan_weights(&*device, &model.spec, &model.weights, &options).map_err(|e| Error::Plan(e.to_string()))
    }
}

impl OnBackend for Load<'_> {
    type Output = Loaded;

    fn run<B: Backend>(self, device: Arc<B>) -> Result<Loaded> {
        let Load(builder, model, stop) = self;
        let options = builder.executor_options(&*device, model)?;
        let plan =
            plan_weights(&*device, &model.spec, &model.weights, &options).map_err(|e| Error::Plan(e.to_string()))?;
        let load = LoadOptions {
            store: options.weights,
            positions: plan.limits.max_model_len,
            packs: builder.pack_cache.folder(plan.weights),
        };
        let mut progress = |done, total| {
            (builder.on_progress)(Progress::Weights { done, total });
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let decoder = Decoder::load(&*device, model, load, &mut progress).map_err(|e| Error::Model(e.to_string()))?;
        let caps = device.caps();
        let numerics_id = numerics_id(&caps.numerics, &options, &[]);
        let name = caps.device.clone();
        let mut executor =
            ModelExecutor::new(device, decoder, &options, &plan).map_err(|e| Error::Device(e.to_string()))?;
        executor.warm_up().map_err(|e| Error::Device(e.to_string()))?;
        Ok(Loaded { executor: Box::new(executor), plan, device: name, dtype: builder.weight_dtype(model), numerics_id })
    }
}

/// What decides the bits of a logit: how a device computes, or several, and the types there. Devices of one model differ in
/// the type of activations at most.
fn numerics_id(numerics: &str, first: &ExecutorOptions, others: &[Part]) -> String {
    let mut activations = vec![first.activation.name()];
    activations.extend(others.iter().map(|part| part.options.activation.name()));
    activations.dedup();
    format!("anyfleet-{NUMERICS_VERSION}/{numerics}/w-{}/a-{}/kv-{}", first.weights, activations.join(","), first.kv)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn model_error(error: impl std::fmt::Display) -> Error {
    Error::Model(error.to_string())
}

/// The tokenizer and the chat template of a model, where it has them.
fn load_text(files: &ModelFiles) -> anyfleet_text::Result<(Option<Tokenizer>, Option<ChatTemplate>)> {
    let label = files.to_string();
    let files = match files {
        ModelFiles::Dir(dir) => Files::Dir(dir),
        ModelFiles::Bundle(bundle) => Files::Memory { label: &label, files: bundle.files },
    };
    Ok((Tokenizer::from_files(files)?, ChatTemplate::from_files(files)?))
}

/// End-of-sequence ids within the vocabulary, and a warning for those outside.
fn eos_token_ids(model: &Model) -> (Vec<u32>, Vec<String>) {
    let vocab = model.spec.vocab_size;
    let (inside, outside): (Vec<u32>, Vec<u32>) =
        model.dir.generation().eos_token_ids.iter().partition(|&&id| (id as usize) < vocab);
    let warning = format!("end-of-sequence ids {outside:?} are not below the vocabulary size {vocab} and are ignored");
    (inside, if outside.is_empty() { Vec::new() } else { vec![warning] })
}

fn unused_warning(model: &Model) -> Option<String> {
    let unused = model.weights.unused(&model.dir);
    let first = unused.first()?;
    Some(format!("{} tensors of the checkpoint are not used by this architecture, {first} for one", unused.len()))
}

/// Sampling parameters from `generation_config.json`, and a warning for those no request may have.
fn default_params(model: &Model) -> (SamplingParams, Option<String>) {
    let generation = model.dir.generation();
    let base = SamplingParams::default();
    let temperature = match (generation.do_sample, generation.temperature) {
        (Some(false), _) => 0.0,
        (_, Some(temperature)) => temperature,
        _ => base.temperature,
    };
    let params = SamplingParams {
        temperature,
        top_k: generation.top_k.unwrap_or(base.top_k),
        top_p: generation.top_p.unwrap_or(base.top_p),
        min_p: generation.min_p.unwrap_or(base.min_p),
        repetition_penalty: generation.repetition_penalty.unwrap_or(base.repetition_penalty),
        ..base.clone()
    };
    match params.validate(model.spec.vocab_size) {
        Ok(()) => (params, None),
        Err(e) => (base, Some(format!("the sampling defaults of generation_config.json are not used: {e}"))),
    }
}
