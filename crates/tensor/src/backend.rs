//! What a device offers.
use crate::{
    Communicator, DType, Encoder, Error, HostWeight, PackedWeight, Recorder, Result, SharedBytes, Tensor, WeightFormat,
};
use std::fmt;
use std::str::FromStr;

/// Memory of a device, as far as it can be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All of it, in bytes; `None` where the device cannot be asked.
    pub total: Option<u64>,
    /// What is free now, in bytes.
    pub available: Option<u64>,
}

/// What a device's results depend on beside the program: what a verdict on its arithmetic holds for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Name of the hardware.
    pub adapter: String,
    /// What drives it, with its version.
    pub driver: String,
    /// Which kernels run: a hash of their sources, or the version of the crate that has them.
    pub kernels: String,
}

/// How a device with matrix units computes products of many rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Gemm {
    /// In one order of sums for every number of rows: a row's results do not depend on the rows around it.
    #[default]
    Invariant,
    /// On matrix units where there are any, whose operands are narrower and whose order of sums is not known: a row's
    /// results depend on how many rows there are.
    Fast,
}

impl fmt::Display for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gemm::Invariant => "invariant",
            Gemm::Fast => "fast",
        })
    }
}

impl FromStr for Gemm {
    type Err = String;

    fn from_str(name: &str) -> Result<Gemm, String> {
        match name {
            "invariant" => Ok(Gemm::Invariant),
            "fast" => Ok(Gemm::Fast),
            _ => Err(format!("gemm \"{name}\" is unknown; use invariant or fast")),
        }
    }
}

/// What a backend can do, known before anything is loaded.
#[derive(Clone, Debug)]
pub struct Caps {
    /// Device name for people, e.g. `cpu (2 threads, avx512)`.
    pub device: String,
    /// What it is made of.
    pub identity: Identity,
    /// Backend and kernel set: the part of the NumericsId that the device decides. Two backends
    /// with the same value compute the same bits.
    pub numerics: String,
    /// Activation types the ops take, best first.
    pub activations: Vec<DType>,
    /// Formats [`Backend::load`] takes as [`HostWeight::store`].
    pub weights: Vec<WeightFormat>,
    /// Formats whose products take activations in a narrower form, and which. Products of other formats
    /// take them as they are. What it says of [`WeightFormat::F8`] it says of bf16.
    pub operands: Vec<(WeightFormat, Operand)>,
    /// Rows of capacity from which on `operands` holds; products of fewer take activations as they are.
    pub operand_rows: usize,
    /// As `operands`, of products with experts' matrices ([`GroupedLinear`](crate::ops::GroupedLinear)), of any number of
    /// rows.
    pub grouped_operands: Vec<(WeightFormat, Operand)>,
    /// Rows of products do not depend on the rows around them, bit for bit; not so with [`Gemm::Fast`]. Rows of all
    /// other operations, products with experts' matrices included, never do.
    pub invariant: bool,
    /// KV-cache types whose attention rounds queries and softmax weights first, and to what.
    pub attention_operands: Vec<(DType, DType)>,
    /// KV-cache types; with [`DType::I8`] come [scales](crate::ops::KvScales).
    pub kv: Vec<DType>,
    /// Types of caches of latents ([`LatentKv`](crate::ops::LatentKv)); those of them in `attention_operands` round queries
    /// and softmax weights, too.
    pub latent: Vec<DType>,
    /// Tokens per KV page the backend prefers; it takes any page size from 1 up.
    pub page_size: usize,
    /// Memory, where it can be asked.
    pub memory: DeviceMemory,
    /// Largest single buffer in bytes.
    pub max_buffer: Option<u64>,
    /// [`Backend::replay`] and [`Backend::read`] return before the device is done, so that a step can be submitted while
    /// the one before it runs. Writes, plans and reads take effect in the order of the calls either way.
    pub queued: bool,
}

impl Caps {
    /// The form activations are brought into before they meet a weight of this format, if any, in a product of `rows`
    /// rows of capacity.
    pub fn operand(&self, weight: WeightFormat, rows: usize) -> Option<Operand> {
        if rows < self.operand_rows {
            return None;
        }
        self.operands.iter().find(|(format, _)| *format == weight).map(|&(_, operand)| operand)
    }

    /// The form activations are brought into before they meet experts' matrices of this format, if any.
    pub fn grouped_operand(&self, weight: WeightFormat) -> Option<Operand> {
        self.grouped_operands.iter().find(|(format, _)| *format == weight).map(|&(_, operand)| operand)
    }

    /// What queries and softmax weights are rounded to before they meet keys and values of this type, if
    /// anything.
    pub fn attention_operand(&self, kv: DType) -> Option<DType> {
        self.attention_operands.iter().find(|(cache, _)| *cache == kv).map(|&(_, dtype)| dtype)
    }
}

/// The form in which activations enter a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Rounded to this type, to nearest, ties to even.
    Rounded(DType),
    /// Signed bytes with one scale a row, as [`quant::ByteRow`](crate::quant::ByteRow) states.
    Bytes,
    /// f16 times a power of two a row, as [`halves`](crate::halves) states. Floats of the weight take the same form, by
    /// output feature; those that are f16 already may stay as they lie.
    Halves,
}

/// The largest operations of a model's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSizes {
    /// Rows of tokens.
    pub tokens: usize,
    /// Query heads of a row times their size, in elements.
    pub query_width: usize,
    /// The smallest head, in elements.
    pub head_size: usize,
    /// The most input features of a product.
    pub widest: usize,
    /// Rows of products with experts' matrices; 0 where there are none.
    pub grouped_rows: usize,
    /// The most input features of such a product.
    pub grouped_widest: usize,
    /// Rows of products for each head: those of tokens for each; 0 where there are none.
    pub head_rows: usize,
    /// The most input features of such a product.
    pub head_widest: usize,
    /// Positions of a sequence.
    pub positions: usize,
    /// Rows of logits at a time.
    pub logit_rows: usize,
    /// Logits of a row.
    pub vocab_size: usize,
}

/// A transfer from the device that may still be under way.
pub trait Readback: Send {
    /// Waits for the bytes and copies them into `out`.
    ///
    /// # Errors
    /// [`Error::Transfer`] when `out` has another size than the tensor,
    /// [`Error::Device`] when the device failed meanwhile.
    fn wait(self, out: &mut [u8]) -> Result<()>;
}

/// A kind of device. Implementations live in backend crates; models and executors are generic.
///
/// Order: what is written, run, replayed and read through one backend value happens in call order.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Reference-counted device bytes.
    type Buffer: Clone + Send + Sync + 'static;
    /// A matrix repacked once at load into the layout this backend's GEMM wants; cheap to clone.
    type Weight: Clone + Send + Sync + 'static;
    /// Receives checked operations.
    type Recorder: Recorder<Self>;
    /// A recorded list of operations that can be replayed with other live counts.
    type Plan: Send;
    /// A pending device-to-host copy.
    type Readback: Readback;

    /// What the device can do.
    fn caps(&self) -> &Caps;

    /// Allocates `bytes` bytes, at least 64-byte aligned, contents unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Packs a weight, converting to [`HostWeight::store`].
    ///
    /// # Errors
    /// [`Error::Weight`] for a malformed or unsupported weight,
    /// [`Error::OutOfMemory`].
    fn load(&self, weight: HostWeight<'_>) -> Result<Self::Weight>;

    /// Rows and columns of a packed weight (`out_features`, `in_features`), of each where it is a stack.
    fn weight_shape(weight: &Self::Weight) -> (usize, usize);

    /// How many matrices a packed weight has: [`HostWeight::stack`].
    fn weight_stack(weight: &Self::Weight) -> usize;

    /// Device bytes [`Backend::load`] will keep for a `rows x cols` matrix, padding included; a stack takes as many times
    /// that.
    fn weight_bytes(&self, rows: usize, cols: usize, store: WeightFormat) -> usize;

    /// Device bytes that a buffer of `bytes` bytes takes: as many, the default, or more where a device gives memory in pages.
    fn buffer_bytes(&self, bytes: usize) -> usize {
        bytes
    }

    /// Device bytes the operations of a step of at most these sizes keep between their kernels; 0, the default,
    /// where they keep none.
    fn scratch_bytes(&self, sizes: &StepSizes) -> usize {
        let _ = sizes;
        0
    }

    /// Allocates [`Backend::scratch_bytes`], so that no step of at most these sizes has to.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn reserve(&self, sizes: &StepSizes) -> Result<()> {
        let _ = sizes;
        Ok(())
    }

    /// Ends of a group of `devices` that share layers, in the order of ranks, for sums of at most `most` elements. `None`, the
    /// default, where they have no way to each other: sums go through the host's memory then.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn communicators(devices: &[&Self], most: usize) -> Result<Option<Vec<Box<dyn Communicator<Self>>>>> {
        let _ = (devices, most);
        Ok(None)
    }

    /// Device bytes that an end of [`Backend::communicators`] takes in a group of so many ranks.
    fn communicator_bytes(&self, ranks: usize, most: usize) -> usize {
        let _ = (ranks, most);
        0
    }

    /// Name and version of what [`Backend::load`] makes of a weight: equal for two backends exactly where
    /// one may [`adopt`](Backend::adopt) what the other [exported](Backend::export). `None`, the default,
    /// where packed weights cannot be kept.
    fn layout(&self) -> Option<String> {
        None
    }

    /// The bytes to keep of a packed weight; `None`, the default, where there are none on the host.
    fn export(weight: &Self::Weight) -> Option<&[u8]> {
        let _ = weight;
        None
    }

    /// Takes bytes that [`Backend::export`] gave for the same matrix, without a copy where it can. They
    /// start on a cache line and do not change.
    ///
    /// # Errors
    /// [`Error::Weight`] for bytes of another size, and where packed weights cannot be kept.
    fn adopt(&self, weight: &PackedWeight, bytes: SharedBytes) -> Result<Self::Weight> {
        let _ = bytes;
        let reason = format!("{} takes no packed weights; load it from the checkpoint", self.caps().device);
        Err(Error::Weight { name: weight.name.clone(), reason })
    }

    /// Copies `bytes` over the start of the contiguous tensor `dst`; `bytes` may be shorter than
    /// the tensor, the rest stays.
    ///
    /// # Errors
    /// [`Error::Transfer`] when `bytes` is longer than the tensor.
    fn write(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()>;

    /// Starts copying the contiguous tensor `src` to the host.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn read(&self, src: &Tensor<Self>) -> Result<Self::Readback>;

    /// Records operations and executes them once.
    ///
    /// # Errors
    /// The first failed shape rule of a recorded operation (nothing is executed then), or the
    /// device's own failure.
    fn run(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<()>;

    /// Records operations without executing them.
    ///
    /// # Errors
    /// The first failed shape rule of a recorded operation.
    fn record(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<Self::Plan>;

    /// Executes a recorded plan with the live counts now in its header tensor.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn replay(&self, plan: &Self::Plan) -> Result<()>;
}
