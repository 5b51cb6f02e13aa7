//! Sixteen f32 lanes on every instruction set.
//!
//! A kernel is written once, generic over [`Simd`], and compiled for each instruction set by
//! [`KernelSet::run`]. Every method below is exact or correctly rounded and has one definition of its
//! order, so all sets compute the same bits.
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dots;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// A vector of sixteen f32 lanes. A value of the implementing type is the proof that the
/// instructions exist on this machine.
///
/// Methods that take pointers are unsafe: sixteen elements must be readable (or writable) there; no
/// alignment is needed.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Whether there are registers for 24 vectors: chooses the shapes of the matrix kernels.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::V;
    unsafe fn load(self, p: *const f32) -> Self::V;
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V;
    unsafe fn load_f16(self, p: *const half::f16) -> Self::V;
    /// Sixteen pairs: the first elements, then the second ones. 32 elements must be readable.
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const half::bf16) -> (Self::V, Self::V) {
        // SAFETY: the caller's promise. Pairs of bf16 pass through f32 registers as they are.
        self.split_pairs(unsafe { self.load(p.cast()) })
    }
    /// Of sixteen pairs of bf16: the first elements, then the second ones, widened.
    fn split_pairs(self, v: Self::V) -> (Self::V, Self::V);
    /// Sixteen pairs of bytes as numbers: the first elements, then the second ones. 32 bytes must be readable.
    unsafe fn load_pairs_i8(self, p: *const i8) -> (Self::V, Self::V);
    /// Sixteen pairs of floats of eight bits, each times 2^-8: the first elements, then the second ones. 32 bytes must be
    /// readable; of bytes that are NaN it makes any number.
    unsafe fn load_pairs_f8(self, p: *const u8) -> (Self::V, Self::V);
    /// 32 elements as sixteen pairs of bf16, which hold them exactly; 32 must be readable.
    #[inline(always)]
    unsafe fn load_f8(self, p: *const F8) -> Self::V {
        let mut cells = [0u16; 2 * LANES];
        // SAFETY: the caller promises 32 elements, and the array has as many.
        unsafe {
            let bytes = p.cast::<[u8; 2 * LANES]>().read_unaligned();
            for (cell, byte) in cells.iter_mut().zip(bytes) {
                *cell = F8(byte).bf16_bits();
            }
            self.load(cells.as_ptr().cast())
        }
    }
    /// The inverse of [`Simd::split_pairs`]: numbers are rounded to bf16, to nearest, ties to even. Of a NaN
    /// the upper half is kept, so its lower half must be zero, as that of `f32::NAN` is.
    fn join_pairs(self, first: Self::V, second: Self::V) -> Self::V;
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Low bytes of lanes that hold whole numbers in -128..128; sixteen are writable.
    unsafe fn store_i8(self, p: *mut i8, v: Self::V);
    /// Sixteen i32 as floats, rounded to nearest, ties to even.
    unsafe fn load_i32(self, p: *const i32) -> Self::V;
    /// Sixteen pairs of bf16 each: pairs of their elements, the first sixteen and the others.
    fn zip_bf16(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// Rounds to nearest, ties to even; a NaN stays one and becomes quiet.
    unsafe fn store_bf16(self, p: *mut half::bf16, v: Self::V);
    /// Rounds to nearest, ties to even; a NaN stays one and becomes quiet.
    unsafe fn store_f16(self, p: *mut half::f16, v: Self::V);
    /// [`Simd::store_bf16`] in the order of [`CHAINED`].
    #[inline(always)]
    unsafe fn store_chained(self, p: *mut half::bf16, v: Self::V) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the arrays have sixteen elements; the caller's promise.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            self.store_bf16(p, self.load(CHAINED.map(|i| lanes[i as usize]).as_ptr()));
        }
    }
    /// Rounded to bf16, to nearest, ties to even; a NaN stays one.
    fn round_bf16(self, v: Self::V) -> Self::V;
    /// The same of numbers whose magnitude is 0 or in 2^-126..2^111; a zero may lose its sign.
    #[inline(always)]
    fn round_near_bf16(self, v: Self::V) -> Self::V {
        // 2^16 times the number's first eight bits have steps of an f32 that are those of a bf16 near the number, and are an
        // even number of them: adding the number rounds it.
        let (_, first) = self.split_pairs(v);
        let sum = self.fma(first, self.splat(65_536.0), v);
        self.fma(first, self.splat(-65_536.0), sum)
    }
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`, so `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `x > y ? a : b`, so `b` where `x` or `y` is NaN.
    fn select_gt(self, x: Self::V, y: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Bit `i` tells whether `x > y` in lane `i`.
    fn gt_mask(self, x: Self::V, y: Self::V) -> u32;
    /// The largest integers not above numbers in `0..=2^22`.
    fn floor(self, v: Self::V) -> Self::V;
    /// Adds the low nine bits of `n` (as an integer) to the exponent of `v`: the last step of `exp`.
    fn add_exponent(self, v: Self::V, n: Self::V) -> Self::V;
    /// Sum over lanes: lane `i` takes `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn reduce_add(self, v: Self::V) -> f32;
    /// Maximum over lanes in the same tree.
    fn reduce_max(self, v: Self::V) -> f32;
    /// Of 32 elements in a row: those at even places, then those at odd ones.
    fn unzip(self, low: Self::V, high: Self::V) -> (Self::V, Self::V);
    /// The inverse of [`Simd::unzip`].
    fn zip(self, even: Self::V, odd: Self::V) -> (Self::V, Self::V);
    /// Rows become columns.
    fn transpose(self, rows: &mut [Self::V; 16]);
    /// Asks for the cache line at `p`, which need not be valid.
    fn prefetch(self, p: *const u8);
}

/// An element of caches of [`DType::F8`](anyfleet_tensor::DType::F8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct F8(pub(crate) u8);

impl F8 {
    /// bf16 of the smallest magnitudes, which have no exponent: 0 to 7 times 2^-9.
    const SMALL: [u16; 8] = [0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60];
    /// What the others' exponents lack, in the place of a bf16's.
    const BIAS: u16 = (127 - 7) << 7;
    const NAN: u16 = 0x7fc0;

    /// The same number in bf16.
    #[inline(always)]
    fn bf16_bits(self) -> u16 {
        let (sign, magnitude) = (u16::from(self.0 & 0x80) << 8, u16::from(self.0 & 0x7f));
        sign | match magnitude {
            0..8 => Self::SMALL[usize::from(magnitude)],
            0x7f => Self::NAN,
            _ => (magnitude << 4) + Self::BIAS,
        }
    }
}

/// Lanes of a [`Simd`] vector.
pub(crate) const LANES: usize = 16;

/// The order of sixteen elements that chains of dot products take: of each four the even ones as a pair, the later one first,
/// and then the odd ones so.
pub(crate) const CHAINED: [i32; LANES] = [2, 0, 6, 4, 10, 8, 14, 12, 3, 1, 7, 5, 11, 9, 15, 13];

/// An element type vectors are loaded from, widening exactly, and stored as, rounding to nearest, ties
/// to even.
pub(crate) trait Cell: bytemuck::Pod + Send + Sync {
    /// # Safety
    /// Sixteen elements are readable at `p`.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    /// # Safety
    /// Sixteen elements are writable at `p`.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V);
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(x: f32) -> Self;
}

impl Cell for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, v) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Cell for half::bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const half::bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut half::bf16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(p, v) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> half::bf16 {
        half::bf16::from_f32(x)
    }
}

impl Cell for half::f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const half::f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut half::f16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f16(p, v) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> half::f16 {
        half::f16::from_f32(x)
    }
}

/// Loads `n < 16` elements and zeroes.
///
/// # Safety
/// `n` elements are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_partial<S: Simd, C: Cell>(s: S, p: *const C, n: usize) -> S::V {
    let mut lanes = [0.0f32; LANES];
    for (i, lane) in lanes[..n].iter_mut().enumerate() {
        // SAFETY: `i < n`.
        *lane = unsafe { *p.add(i) }.widen();
    }
    // SAFETY: the array has sixteen elements.
    unsafe { s.load(lanes.as_ptr()) }
}

/// Loads up to sixteen elements and zeroes for the rest.
///
/// # Safety
/// `min(n, 16)` elements are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_up_to<S: Simd, C: Cell>(s: S, p: *const C, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if n >= LANES { C::load(s, p) } else { load_partial(s, p, n) } }
}

/// Stores the first `n` lanes, at most sixteen.
///
/// # Safety
/// `min(n, 16)` elements are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_up_to<S: Simd, C: Cell>(s: S, p: *mut C, v: S::V, n: usize) {
    if n >= LANES {
        // SAFETY: the caller's promise.
        return unsafe { C::store(s, p, v) };
    }
    let mut lanes = [C::zeroed(); LANES];
    // SAFETY: the array has sixteen elements; the caller promises n at `p`.
    unsafe {
        C::store(s, lanes.as_mut_ptr(), v);
        p.copy_from_nonoverlapping(lanes.as_ptr(), n);
    }
}

/// A piece of work compiled once per instruction set. `run` and everything vectorised that it calls
/// is `#[inline(always)]`, so that it is compiled with the instruction set's features.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set the kernels can be compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// x86-64 with AMX tiles for bf16, and AVX-512 as below.
    Amx,
    /// x86-64 with AVX-512 as below and its dot products of bf16.
    Avx512Bf16,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// 64-bit Arm.
    Neon,
    /// Any processor, without explicit vector instructions.
    Portable,
}

impl Isa {
    /// All of them, fastest first; [`Isa::Avx512Bf16`] is no faster than [`Isa::Avx512`] on Intel's processors.
    pub const ALL: [Isa; 6] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// The name `ANYFLEET_CPU` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }

    /// Whether this processor has it.
    pub fn is_supported(self) -> bool {
        KernelSet::new(self).is_some()
    }

    /// The fastest set of this processor. Dot products of bf16 are twice as fast as multiply-adds on AMD's, and no faster on
    /// Intel's.
    pub(crate) fn fastest() -> Isa {
        let slow = |isa: Isa| isa == Isa::Avx512Bf16 && !made_by_amd();
        Isa::supported().find(|&isa| !slow(isa)).unwrap_or(Isa::Portable)
    }

    /// The sets this processor has, in the order of [`Isa::ALL`]; never empty.
    pub fn supported() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_supported())
    }
}

#[cfg(target_arch = "x86_64")]
fn made_by_amd() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    let name = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
    name == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn made_by_amd() -> bool {
    false
}

/// Exists only where the processor was seen to have AVX-512 with dot products of bf16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Chains(());

/// An [`Isa`] that this processor was seen to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelSet(Isa);

impl KernelSet {
    /// `None` when the processor lacks the instructions.
    pub(crate) fn new(isa: Isa) -> Option<KernelSet> {
        let present = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512.is_supported() && crate::panels::amx::is_supported(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.is_supported() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            Isa::Portable => true,
            _ => false,
        };
        present.then_some(KernelSet(isa))
    }

    /// Whether the matrix kernels use their wide shapes.
    pub(crate) fn wide(self) -> bool {
        matches!(self.0, Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512)
    }

    /// The proof that there are dot products of bf16, where they are to be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn chains(self) -> Option<Chains> {
        (self.0 == Isa::Avx512Bf16).then_some(Chains(()))
    }

    /// Which one.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Runs a kernel with this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: `new` saw the features the entry needs.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => unsafe { avx512::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::run(kernel),
            _ => portable::run(kernel),
        }
    }
}

#[cfg(test)]
mod tests;
