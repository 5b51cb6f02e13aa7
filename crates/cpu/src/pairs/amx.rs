//! The product on the matrix unit of x86 (AMX).
//!
//! Eight tile registers: sums of up to 2 x 2 tiles (32 rows, 32 features), two tiles of activations, two
//! of weights. The intrinsics are not stable, so a product is one `asm!` block; the instructions are
//! Intel's (SDM vol. 1, chapter 18).
use super::pack::PackRow;
use super::{BLOCK, Product};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// What `ldtilecfg` reads: palette 1, and rows and bytes a row of each tile.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Sums in tiles 0 to 3 (by row group, then by feature tile), activations in 4 and 5, weights in 6
    /// and 7.
    fn new(first_rows: u8, second_rows: u8) -> TileConfig {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        // The processor refuses a tile with bytes a row but no rows, used or not.
        let (first, second) = (first_rows, second_rows.max(1));
        config.rows[..8].copy_from_slice(&[first, first, second, second, first, second, 16, 16]);
        config
    }
}

/// Linux gives the tile registers to a process that asks: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`.
fn ask_permission() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XTILEDATA: i64 = 18;
        let result: i64;
        // SAFETY: a system call that takes two numbers and touches no memory of this process.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
                 in("rsi") XTILEDATA, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether the processor says it has bf16 tiles and the system saves them.
fn announced() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const XSAVED: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & (1 << 27) == 0 {
        return false;
    }
    let leaf = __cpuid_count(7, 0);
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE was seen, so xgetbv of register 0 is allowed; it touches no memory.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    let state = u64::from(high) << 32 | u64::from(low);
    leaf.edx & (BF16 | TILE) == BF16 | TILE && state & XSAVED == XSAVED
}

/// Whether tiles work here: announced, granted by the system, and seen to compute.
pub(crate) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        vectors && announced() && ask_permission() && computes()
    })
}

/// Multiplies ones by ones.
fn computes() -> bool {
    #[repr(C, align(64))]
    struct Ones([u16; super::STEP]);
    let ones = Ones([half::bf16::ONE.to_bits(); super::STEP]);
    let mut acc = [0.0f32; 16 * super::PANEL];
    let product = Product {
        x: ones.0.as_ptr().cast(),
        group_bytes: 1024,
        rows: 16,
        w: ones.0.as_ptr().cast(),
        blocks: 1,
        acc: acc.as_mut_ptr(),
        acc_stride: super::PANEL,
        resume: false,
    };
    // SAFETY: the arrays have the product's shapes, and the processor announced the instructions.
    unsafe { multiply(std::iter::once(product)) };
    acc.iter().all(|&sum| sum == BLOCK as f32)
}

/// # Safety
/// As for [`super::multiply`]; [`is_supported`], or about to be found out.
pub(super) unsafe fn multiply(products: impl Iterator<Item = Product>) {
    let mut shape = None;
    for product in products {
        for first in (0..product.rows).step_by(32) {
            let rows = (product.rows - first).min(32);
            if shape != Some(rows) {
                let config = TileConfig::new(rows.min(16) as u8, rows.saturating_sub(16) as u8);
                // SAFETY: the configuration is valid; the block sees all of it.
                unsafe {
                    asm!("ldtilecfg [{0}]", in(reg) &raw const config, out("tmm0") _, out("tmm1") _, out("tmm2") _,
                         out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                         options(nostack, readonly, preserves_flags));
                }
                shape = Some(rows);
            }
            let group = Group {
                x: product.x.wrapping_add(first / 16 * product.group_bytes),
                acc: product.acc.wrapping_add(first * product.acc_stride),
                product: &product,
            };
            // SAFETY: the caller's promise; the tiles have these rows.
            unsafe { if rows <= 16 { group.narrow() } else { group.wide() } }
        }
    }
    // SAFETY: forgets the tiles, so that the system need not save them.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
             out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem, preserves_flags));
    }
}

/// Up to 32 rows of a product.
struct Group<'a> {
    x: *const u8,
    acc: *mut f32,
    product: &'a Product,
}

/// Bytes ahead of their use that few rows, which wait for memory, ask for.
const PREFETCH: usize = 16 * 1024;

impl Group<'_> {
    /// Up to sixteen rows: a panel's blocks are one stream from memory.
    ///
    /// # Safety
    /// As for [`multiply`]; the tiles are configured for these rows.
    unsafe fn narrow(&self) {
        let p = self.product;
        // SAFETY: `blocks` tiles of activations and twice as many of weights are readable, and sixteen rows
        // of 32 sums writable; prefetches may point anywhere.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "test {resume:e}, {resume:e}",
                "jz 3f",
                "tileloadd tmm0, [{acc} + {acc_stride}*1]",
                "tileloadd tmm1, [{acc} + {acc_stride}*1 + 64]",
                "3:",
                "tileloadd tmm4, [{x} + {stride}*1]",
                "tileloadd tmm6, [{w} + {stride}*1]",
                "tileloadd tmm7, [{w} + {stride}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".irp line, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "prefetcht0 [{w} + {prefetch} + \\line*64]",
                ".endr",
                "add {x}, 1024",
                "add {w}, 2048",
                "dec {blocks}",
                "jnz 3b",
                "tilestored [{acc} + {acc_stride}*1], tmm0",
                "tilestored [{acc} + {acc_stride}*1 + 64], tmm1",
                x = inout(reg) self.x => _,
                w = inout(reg) p.w => _,
                blocks = inout(reg) p.blocks => _,
                resume = in(reg) u32::from(p.resume),
                acc = in(reg) self.acc,
                acc_stride = in(reg) p.acc_stride * 4,
                stride = in(reg) 64usize,
                prefetch = const PREFETCH,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Seventeen to 32 rows.
    ///
    /// # Safety
    /// As for [`Group::narrow`].
    unsafe fn wide(&self) {
        let p = self.product;
        // SAFETY: as in `narrow`, for two groups of rows.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {resume:e}, {resume:e}",
                "jz 3f",
                "tileloadd tmm0, [{acc} + {acc_stride}*1]",
                "tileloadd tmm1, [{acc} + {acc_stride}*1 + 64]",
                "tileloadd tmm2, [{acc2} + {acc_stride}*1]",
                "tileloadd tmm3, [{acc2} + {acc_stride}*1 + 64]",
                "3:",
                "tileloadd tmm6, [{w} + {stride}*1]",
                "tileloadd tmm4, [{x} + {stride}*1]",
                "tileloadd tmm7, [{w} + {stride}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x2} + {stride}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 1024",
                "add {x2}, 1024",
                "add {w}, 2048",
                "dec {blocks}",
                "jnz 3b",
                "tilestored [{acc} + {acc_stride}*1], tmm0",
                "tilestored [{acc} + {acc_stride}*1 + 64], tmm1",
                "tilestored [{acc2} + {acc_stride}*1], tmm2",
                "tilestored [{acc2} + {acc_stride}*1 + 64], tmm3",
                x = inout(reg) self.x => _,
                x2 = inout(reg) self.x.wrapping_add(p.group_bytes) => _,
                w = inout(reg) p.w => _,
                blocks = inout(reg) p.blocks => _,
                resume = in(reg) u32::from(p.resume),
                acc = in(reg) self.acc,
                acc2 = in(reg) self.acc.wrapping_add(16 * p.acc_stride),
                acc_stride = in(reg) p.acc_stride * 4,
                stride = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Packs one row as bf16, rounded to nearest even.
///
/// # Safety
/// The source has `k` elements, the target a row of every block, and nothing else accesses it; AVX-512
/// is there.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_row(row: &PackRow) {
    for start in (0..row.k).step_by(BLOCK) {
        let target = row.target.wrapping_add(start / BLOCK * row.step);
        let half = |first: usize| {
            let left = row.k.saturating_sub(first).min(16);
            let mask = ((1u32 << left) - 1) as __mmask16;
            // SAFETY: lanes past the row's end are not read.
            let v = row
                .source
                .map_or(_mm512_setzero_ps(), |x| unsafe { _mm512_maskz_loadu_ps(mask, x.wrapping_add(first)) });
            round(v)
        };
        // SAFETY: a row of a block has 64 bytes.
        unsafe {
            _mm256_storeu_si256(target.cast(), half(start));
            _mm256_storeu_si256(target.wrapping_add(32).cast(), half(start + 16));
        }
    }
}

/// Sixteen bf16, rounded to nearest even as [`Simd::round_bf16`](crate::simd::Simd::round_bf16) does.
#[target_feature(enable = "avx512f,avx512bw")]
fn round(v: __m512) -> __m256i {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    // A NaN stays one, and quiet.
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet)))
}
