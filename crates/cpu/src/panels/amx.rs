//! The product on the matrix unit of x86 (AMX).
//!
//! Eight tile registers: sums of up to 2 x 2 tiles (32 rows, 32 features), two tiles of activations, two
//! of weights. The intrinsics are not stable, so a product is one `asm!` block; the instructions are
//! Intel's (SDM vol. 1, chapter 18).
use super::{Form, Meanwhile, Product, STREAMS};
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

impl TileConfig {
    /// # Safety
    /// The processor has tiles, and the configuration is one it takes.
    unsafe fn load(&self) {
        // SAFETY: the caller's promise; the block sees all 64 bytes.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const *self, out("tmm0") _, out("tmm1") _, out("tmm2") _,
                 out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                 options(nostack, readonly, preserves_flags));
        }
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

/// Whether the processor says it has tiles for bf16 and bytes and the system saves them.
fn announced() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const XSAVED: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & (1 << 27) == 0 {
        return false;
    }
    let leaf = __cpuid_count(7, 0);
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE was seen, so xgetbv of register 0 is allowed; it touches no memory.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    let state = u64::from(high) << 32 | u64::from(low);
    leaf.edx & (BF16 | TILE | INT8) == BF16 | TILE | INT8 && state & XSAVED == XSAVED
}

/// Whether tiles work here: announced, granted by the system, and seen to compute.
pub(crate) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        vectors && announced() && ask_permission() && computes()
    })
}

/// Multiplies ones by ones, of both kinds.
fn computes() -> bool {
    #[repr(C, align(64))]
    struct Ones<T>([T; 2048]);
    let pairs = Ones([half::bf16::ONE.to_bits(); 2048]);
    let bytes = Ones([1i8; 2048]);
    let mut acc = [0.0f32; 16 * super::PANEL];
    let product = |form, ones: *const u8, acc: &mut [f32]| Product {
        form,
        x: ones,
        group_bytes: 1024,
        rows: 16,
        sums: std::ptr::null(),
        sums_stride: 0,
        w: ones,
        regrouped: false,
        meanwhile: Meanwhile::Nothing,
        blocks: 1,
        acc: acc.as_mut_ptr(),
        acc_stride: super::PANEL,
        resume: false,
    };
    let mut multiply_ones = |form, ones| {
        let product = product(form, ones, &mut acc);
        // SAFETY: the arrays have the product's shapes, and the processor announced the instructions.
        unsafe { multiply(std::iter::once(product)) };
        acc.map(f32::to_bits)
    };
    multiply_ones(Form::Pairs, pairs.0.as_ptr().cast()).iter().all(|&sum| sum == 32.0f32.to_bits())
        && multiply_ones(Form::Bytes, bytes.0.as_ptr().cast()).iter().all(|&sum| sum == 64)
}

/// # Safety
/// As for [`super::multiply`]; [`is_supported`], or about to be found out.
pub(super) unsafe fn multiply(products: impl Iterator<Item = Product>) {
    let mut shape = None;
    for product in products {
        for first in (0..product.rows).step_by(32) {
            let rows = (product.rows - first).min(32);
            if shape != Some(rows) {
                // SAFETY: a valid configuration.
                unsafe { TileConfig::new(rows.min(16) as u8, rows.saturating_sub(16) as u8).load() };
                shape = Some(rows);
            }
            let group = Group {
                x: product.x.wrapping_add(first / 16 * product.group_bytes),
                acc: product.acc.wrapping_add(first * product.acc_stride),
                product: &product,
            };
            // SAFETY: the caller's promise; the tiles have these rows.
            unsafe { group.run(first, rows) };
        }
    }
    // SAFETY: the processor has tiles.
    unsafe { release() };
}

/// Forgets the tiles, so that the system need not save them.
///
/// # Safety
/// The processor has tiles.
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
             out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem, preserves_flags));
    }
}

/// This thread's tiles, ready for products of four times sixteen rows with sixteen.
pub(super) struct Squares(());

impl Squares {
    /// # Safety
    /// [`is_supported`]; until it is dropped, nobody else uses the tiles of this thread.
    pub(super) unsafe fn new() -> Squares {
        // SAFETY: a valid configuration; the caller's promise.
        unsafe { TileConfig::new(16, 16).load() };
        Squares(())
    }

    /// # Safety
    /// As for [`super::Squares::multiply`].
    pub(super) unsafe fn multiply(
        &self,
        rows: [*const u8; 4],
        stride: usize,
        others: *const u8,
        blocks: usize,
        out: *mut f32,
    ) {
        // SAFETY: the caller's promise; the tiles have sixteen rows.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm6, [{others} + {stride}*1]",
                "tileloadd tmm4, [{r0} + {row_stride}*1]",
                "tileloadd tmm5, [{r1} + {row_stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{r2} + {row_stride}*1]",
                "tdpbf16ps tmm1, tmm5, tmm6",
                "tileloadd tmm4, [{r3} + {row_stride}*1]",
                "tdpbf16ps tmm2, tmm7, tmm6",
                "tdpbf16ps tmm3, tmm4, tmm6",
                "add {r0}, 64",
                "add {r1}, 64",
                "add {r2}, 64",
                "add {r3}, 64",
                "add {others}, 1024",
                "dec {blocks}",
                "jnz 3b",
                "tilestored [{out} + {stride}*1], tmm0",
                "tilestored [{out} + {stride}*1 + 1024], tmm1",
                "tilestored [{out} + {stride}*1 + 2048], tmm2",
                "tilestored [{out} + {stride}*1 + 3072], tmm3",
                r0 = inout(reg) rows[0] => _,
                r1 = inout(reg) rows[1] => _,
                r2 = inout(reg) rows[2] => _,
                r3 = inout(reg) rows[3] => _,
                others = inout(reg) others => _,
                blocks = inout(reg) blocks => _,
                row_stride = in(reg) stride,
                stride = in(reg) 64usize,
                out = in(reg) out,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Squares {
    fn drop(&mut self) {
        // SAFETY: they were there.
        unsafe { release() };
    }
}

/// Up to 32 rows of a product.
struct Group<'a> {
    x: *const u8,
    acc: *mut f32,
    product: &'a Product,
}

/// Up to sixteen rows; for pairs or bytes, asking for what comes later or for nothing.
macro_rules! narrow_kernel {
    ($name:ident, $dot:literal, $ask:literal) => {
        /// Up to sixteen rows: a panel's blocks are one stream from memory.
        ///
        /// # Safety
        /// As for [`multiply`]; the tiles are configured for these rows.
        unsafe fn $name(&self, ahead: [*const u8; STREAMS]) {
            let p = self.product;
            // SAFETY: `blocks` tiles of activations and twice as many of weights are readable, and sixteen
            // rows of 32 sums writable; prefetches may point anywhere.
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
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    concat!(".if ", $ask),
                    ".irp line, 0,1,2,3,4,5,6,7",
                    "prefetcht1 [{a0} + \\line*64]",
                    "prefetcht1 [{a1} + \\line*64]",
                    "prefetcht1 [{a2} + \\line*64]",
                    "prefetcht1 [{a3} + \\line*64]",
                    ".endr",
                    ".endif",
                    "add {a0}, 512",
                    "add {a1}, 512",
                    "add {a2}, 512",
                    "add {a3}, 512",
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
                    a0 = inout(reg) ahead[0] => _,
                    a1 = inout(reg) ahead[1] => _,
                    a2 = inout(reg) ahead[2] => _,
                    a3 = inout(reg) ahead[3] => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Seventeen to 32 rows, of many.
macro_rules! wide_kernel {
    ($name:ident, $dot:literal, $ask:literal) => {
        /// Seventeen to 32 rows.
        ///
        /// # Safety
        /// As for the narrow kernel.
        unsafe fn $name(&self, claim: *mut u8, claim_stride: usize, later: *const u8) {
            let p = self.product;
            // SAFETY: as in the narrow kernel, for two groups of rows.
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
                    "tileloadd tmm5, [{x2} + {stride}*1]",
                    "dec {blocks}",
                    "jz 5f",
                    // A tile is loaded for the next block as soon as this block is done with it, from the
                    // first-level cache: what the second level keeps is asked for three blocks before.
                    "4:",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    concat!(".if ", $ask),
                    ".irp line, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "prefetcht0 [{x} + 3*1024 + \\line*64]",
                    ".endr",
                    ".endif",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm4, [{x} + {stride}*1 + 1024]",
                    concat!(".if ", $ask),
                    ".irp line, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "prefetcht0 [{x2} + 3*1024 + \\line*64]",
                    ".endr",
                    ".endif",
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    "tileloadd tmm6, [{w} + {stride}*1 + 2048]",
                    concat!(".if ", $ask),
                    ".irp line, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "prefetcht0 [{w} + 3*2048 + \\line*64]",
                    ".endr",
                    ".endif",
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    "tileloadd tmm5, [{x2} + {stride}*1 + 1024]",
                    "tileloadd tmm7, [{w} + {stride}*1 + 2048 + 1024]",
                    concat!(".if ", $ask),
                    ".irp line, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    "prefetcht0 [{w} + 3*2048 + \\line*64]",
                    ".endr",
                    "prefetchw [{claim}]",
                    "prefetchw [{claim} + 64]",
                    ".irp line, 0,1,2,3",
                    "prefetcht1 [{later} + \\line*64]",
                    ".endr",
                    "add {claim}, {claim_stride}",
                    "add {later}, 256",
                    ".endif",
                    "add {x}, 1024",
                    "add {x2}, 1024",
                    "add {w}, 2048",
                    "dec {blocks}",
                    "jnz 4b",
                    "5:",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    "tilestored [{acc} + {acc_stride}*1], tmm0",
                    "tilestored [{acc} + {acc_stride}*1 + 64], tmm1",
                    "tilestored [{acc2} + {acc_stride}*1], tmm2",
                    "tilestored [{acc2} + {acc_stride}*1 + 64], tmm3",
                    x = inout(reg) self.x => _,
                    x2 = inout(reg) self.x.wrapping_add(p.group_bytes) => _,
                    claim = inout(reg) claim => _,
                    claim_stride = in(reg) claim_stride,
                    later = inout(reg) later => _,
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
    };
}

/// Seventeen to 32 rows, of no more.
macro_rules! stream_kernel {
    ($name:ident, $dot:literal) => {
        /// Seventeen to 32 rows over a panel that is read once.
        ///
        /// # Safety
        /// As for the narrow kernel.
        unsafe fn $name(&self, ahead: [*const u8; STREAMS]) {
            let p = self.product;
            // SAFETY: as in the narrow kernel, for two groups of rows.
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
                    "tileloadd tmm5, [{x2} + {stride}*1]",
                    "tileloadd tmm7, [{w} + {stride}*1 + 1024]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    ".irp line, 0,1",
                    "prefetcht1 [{a0} + \\line*64]",
                    "prefetcht1 [{a1} + \\line*64]",
                    "prefetcht1 [{a2} + \\line*64]",
                    "prefetcht1 [{a3} + \\line*64]",
                    ".endr",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    ".irp line, 2,3",
                    "prefetcht1 [{a0} + \\line*64]",
                    "prefetcht1 [{a1} + \\line*64]",
                    "prefetcht1 [{a2} + \\line*64]",
                    "prefetcht1 [{a3} + \\line*64]",
                    ".endr",
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    ".irp line, 4,5",
                    "prefetcht1 [{a0} + \\line*64]",
                    "prefetcht1 [{a1} + \\line*64]",
                    "prefetcht1 [{a2} + \\line*64]",
                    "prefetcht1 [{a3} + \\line*64]",
                    ".endr",
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    ".irp line, 6,7",
                    "prefetcht1 [{a0} + \\line*64]",
                    "prefetcht1 [{a1} + \\line*64]",
                    "prefetcht1 [{a2} + \\line*64]",
                    "prefetcht1 [{a3} + \\line*64]",
                    ".endr",
                    "add {a0}, 512",
                    "add {a1}, 512",
                    "add {a2}, 512",
                    "add {a3}, 512",
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
                    a0 = inout(reg) ahead[0] => _,
                    a1 = inout(reg) ahead[1] => _,
                    a2 = inout(reg) ahead[2] => _,
                    a3 = inout(reg) ahead[3] => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                    out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

impl Group<'_> {
    narrow_kernel!(narrow_pairs, "tdpbf16ps", "0");
    narrow_kernel!(narrow_bytes, "tdpbssd", "0");
    narrow_kernel!(narrow_stream_pairs, "tdpbf16ps", "1");
    narrow_kernel!(narrow_stream_bytes, "tdpbssd", "1");
    stream_kernel!(wide_stream_pairs, "tdpbf16ps");
    stream_kernel!(wide_stream_bytes, "tdpbssd");
    wide_kernel!(wide_pairs, "tdpbf16ps", "0");
    wide_kernel!(wide_bytes, "tdpbssd", "0");
    wide_kernel!(wide_claim_pairs, "tdpbf16ps", "1");
    wide_kernel!(wide_claim_bytes, "tdpbssd", "1");

    /// # Safety
    /// As for [`multiply`]; the tiles are configured for these rows.
    unsafe fn run(&self, first: usize, rows: usize) {
        let (bytes, narrow, none) = (self.product.form != Form::Pairs, rows <= 16, std::ptr::null());
        // SAFETY: the caller's promise.
        unsafe {
            match (self.product.meanwhile, bytes, narrow) {
                (Meanwhile::Ask(ahead), false, true) => self.narrow_stream_pairs(ahead),
                (Meanwhile::Ask(ahead), true, true) => self.narrow_stream_bytes(ahead),
                (Meanwhile::Ask(ahead), false, false) => self.wide_stream_pairs(ahead),
                (Meanwhile::Ask(ahead), true, false) => self.wide_stream_bytes(ahead),
                (_, false, true) => self.narrow_pairs([none; STREAMS]),
                (_, true, true) => self.narrow_bytes([none; STREAMS]),
                (Meanwhile::Nothing, false, false) => self.wide_pairs(std::ptr::null_mut(), 0, none),
                (Meanwhile::Nothing, true, false) => self.wide_bytes(std::ptr::null_mut(), 0, none),
                (Meanwhile::Claim { out, stride, later }, bytes, false) => {
                    let out = out.wrapping_add(first * stride);
                    match bytes {
                        false => self.wide_claim_pairs(out, stride, later),
                        true => self.wide_claim_bytes(out, stride, later),
                    }
                }
            }
        }
    }
}
