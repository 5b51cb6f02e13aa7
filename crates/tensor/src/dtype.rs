//! Element types of tensors and storage formats of weights.
use std::fmt;

/// Element type of a [`Tensor`](crate::Tensor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE 754 binary16.
    F16,
    /// Unsigned 32-bit integers: token ids, positions, slots, tables.
    U32,
    /// Raw bytes.
    U8,
    /// Signed bytes: keys and values as [`quant::kv_head`](crate::quant::kv_head) makes them.
    I8,
    /// Floats of eight bits, E4M3: [`f8`](crate::f8). Weights of checkpoints, with scales beside them, and caches.
    F8,
}

impl DType {
    /// Size of one element in bytes.
    #[inline]
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 | DType::I8 | DType::F8 => 1,
        }
    }

    /// True for the types arithmetic is done on.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }

    /// True for a cache whose elements mean something only with a scale per token and head beside them.
    pub const fn is_scaled(self) -> bool {
        matches!(self, DType::I8)
    }

    /// The name used in messages, flags and `NumericsId`s.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::U32 => "u32",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::F8 => "f8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a weight matrix is stored on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WeightFormat {
    /// One float per element; never an integer type.
    Float(DType),
    /// A signed byte per element and an f32 scale per output feature: [`quant::q8_row`](crate::quant::q8_row).
    Q8,
    /// Four bits per element, a whole number per output feature and 32 input features, and an f32 scale per
    /// output feature: [`quant::q4_row`](crate::quant::q4_row).
    Q4,
    /// A float of eight bits ([`f8`](crate::f8)) per element and an f32 scale per output feature and
    /// [`quant::F8_GROUP`](crate::quant::F8_GROUP) input features. An element reads as the bf16 number
    /// [`quant::f8_value`](crate::quant::f8_value); a group whose scale is NaN reads as NaN altogether, and no byte is NaN
    /// in any other. Whatever a device does with such a matrix has, bit for bit, the results of the bf16 matrix that it
    /// reads as.
    F8,
}

impl WeightFormat {
    /// Bytes of a `rows` x `cols` matrix in this format, before a backend's padding.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        match self {
            WeightFormat::Float(dtype) => rows * cols * dtype.size(),
            WeightFormat::Q8 => rows * (cols + 4),
            WeightFormat::Q4 => rows * (cols.div_ceil(2) + cols.div_ceil(crate::quant::GROUP) + 4),
            WeightFormat::F8 => rows * (cols + 4 * cols.div_ceil(crate::quant::F8_GROUP)),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightFormat::Float(dtype) => dtype.fmt(f),
            WeightFormat::Q8 => f.write_str("q8"),
            WeightFormat::Q4 => f.write_str("q4"),
            WeightFormat::F8 => f.write_str("f8"),
        }
    }
}

/// A Rust type that is the in-memory form of one [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// The matching element type.
    const DTYPE: DType;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}
impl Element for i8 {
    const DTYPE: DType = DType::I8;
}
