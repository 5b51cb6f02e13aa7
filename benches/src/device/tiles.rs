//! Rates of the matrix unit of x86 (AMX), from registers.
//!
//! Four sums of 16 x 16, two tiles of each operand: what a blocked product keeps in the eight tile
//! registers, without its loads. The intrinsics are not stable, hence `asm!`; the instructions are Intel's
//! (SDM vol. 1, chapter 18).

/// Elements a tile product can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `tdpbf16ps`: 16 x 16 sums over 32 products.
    Bf16,
    /// `tdpbssd`: 16 x 16 sums over 64 products.
    Int8,
}

/// Turns of a run: some 30 ms.
pub(super) const TURNS: usize = 1 << 20;

impl Kind {
    /// Operations of a turn of four products; a multiply-add is two.
    pub(super) const fn operations(self) -> usize {
        match self {
            Kind::Bf16 => 4 * 2 * 16 * 16 * 32,
            Kind::Int8 => 4 * 2 * 16 * 16 * 64,
        }
    }

    /// Whether tiles of this kind work here; the reason where they do not.
    pub(super) fn check(self) -> Result<(), &'static str> {
        #[cfg(target_arch = "x86_64")]
        {
            // The CPU backend asked the system for the tile registers and saw them compute.
            if !anyfleet_cpu::Isa::supported().any(|isa| isa == anyfleet_cpu::Isa::Amx) {
                return Err("the processor has no AMX, or the system does not grant it");
            }
            const INT8: u32 = 1 << 25;
            if self == Kind::Int8 && std::arch::x86_64::__cpuid_count(7, 0).edx & INT8 == 0 {
                return Err("the processor's AMX has no int8");
            }
            Ok(())
        }
        #[cfg(not(target_arch = "x86_64"))]
        Err("AMX is of x86 only")
    }

    /// Runs so many turns. Only after [`Kind::check`].
    pub(super) fn run(self, turns: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `check` saw that tiles of this kind work.
        unsafe {
            x86::turn(self, turns.max(1));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = turns;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kind;
    use std::arch::asm;

    /// What `ldtilecfg` reads: palette 1, eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    #[repr(C, align(64))]
    struct Tile([u8; 1024]);

    /// # Safety
    /// Tiles of this kind work here; `turns` is not 0.
    pub(super) unsafe fn turn(kind: Kind, turns: usize) {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // As bf16 a normal number near 0.75, as int8 the numbers 64 and 63: neither unit sees special cases.
        let mut operand = Tile([0; 1024]);
        for pair in operand.0.chunks_exact_mut(2) {
            pair.copy_from_slice(&[0x40, 0x3F]);
        }
        macro_rules! turns {
            ($product:literal) => {
                // SAFETY: the configuration is valid, the operand has 1024 bytes, and the block declares every
                // register it changes. In the end it forgets the tiles, so that the system need not save them.
                unsafe {
                    asm!(
                        "ldtilecfg [{config}]",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "tileloadd tmm4, [{operand} + {stride}*1]",
                        "tileloadd tmm5, [{operand} + {stride}*1]",
                        "tileloadd tmm6, [{operand} + {stride}*1]",
                        "tileloadd tmm7, [{operand} + {stride}*1]",
                        "2:",
                        concat!($product, " tmm0, tmm4, tmm6"),
                        concat!($product, " tmm1, tmm4, tmm7"),
                        concat!($product, " tmm2, tmm5, tmm6"),
                        concat!($product, " tmm3, tmm5, tmm7"),
                        "dec {turns}",
                        "jnz 2b",
                        "tilerelease",
                        config = in(reg) &raw const config,
                        operand = in(reg) &raw const operand,
                        stride = in(reg) 64usize,
                        turns = inout(reg) turns => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                        out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, readonly),
                    );
                }
            };
        }
        match kind {
            Kind::Bf16 => turns!("tdpbf16ps"),
            Kind::Int8 => turns!("tdpbssd"),
        }
    }
}
