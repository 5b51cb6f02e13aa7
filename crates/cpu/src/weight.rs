//! Weight matrices, packed once at load into the order the matrix kernels read.
//!
//! f32 and f16: `[N/16][K][16]`, panel `p` holds output rows `16p .. 16p + 16`, and within it the sixteen
//! weights of one input feature lie side by side. bf16, q8, q4 and f8: panels of 32 output rows in the order of
//! [`panels`](crate::panels). Rows past N are zero. Each panel starts on a cache line.
//!
//! In panels of 32, a gated matrix keeps sixteen gates and the sixteen rows they gate in one panel.
mod fill;

use crate::buffer::{ALIGN, Allocation};
use crate::panels::{Form, PANEL};
use crate::simd::{Cell, KernelSet, LANES};
use anyfleet_tensor::{DType, Error, HostWeight, PackedWeight, Result, SharedBytes, WeightFormat, quant};
use fill::{Fill, Scratch};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// A packed matrix, or a stack of such; clones share it.
#[derive(Clone)]
pub struct CpuWeight {
    packed: Arc<Packed>,
    /// Which matrix of a stack this stands for.
    member: usize,
}

struct Packed {
    /// The panels of each matrix, one matrix after the other.
    memory: Allocation,
    stack: usize,
    /// Of each.
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
}

/// Output rows of a panel.
fn panel_rows(format: WeightFormat) -> usize {
    if Form::of(format).is_some() { PANEL } else { LANES }
}

/// Bytes from one panel to the next; `None` when that overflows, or when there is no such format.
fn panel_bytes(cols: usize, format: WeightFormat) -> Option<usize> {
    match (Form::of(format), format) {
        (Some(form), _) => form.blocks(cols).checked_mul(form.block_bytes())?.checked_add(form.tail_bytes(cols)),
        (None, WeightFormat::Float(dtype)) => cols.checked_mul(LANES * dtype.size())?.checked_next_multiple_of(ALIGN),
        _ => None,
    }
}

/// Bytes kept for a `rows x cols` matrix; `None` when that overflows.
pub(crate) fn packed_bytes(rows: usize, cols: usize, format: WeightFormat) -> Option<usize> {
    panel_bytes(cols, format)?.checked_mul(rows.div_ceil(panel_rows(format)))
}

/// Bytes kept for a stack of such.
fn stack_bytes(stack: usize, rows: usize, cols: usize, format: WeightFormat) -> Option<usize> {
    packed_bytes(rows, cols, format)?.checked_mul(stack)
}

/// Whether rows lie beside their gates.
fn is_gated(asked: bool, rows: usize, format: WeightFormat) -> bool {
    asked && Form::of(format).is_some() && rows.is_multiple_of(2)
}

/// Name and version of the order above. Another order, or other integers for the same weights, is another
/// version: the test `the_layout_has_a_version` says when.
pub(crate) const LAYOUT: &str = if cfg!(target_endian = "big") { "cpu-panels-2-be" } else { "cpu-panels-2" };

/// The formats matrices are kept in.
pub(crate) const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Float(DType::F32),
    WeightFormat::Float(DType::BF16),
    WeightFormat::Float(DType::F16),
    WeightFormat::Q8,
    WeightFormat::Q4,
    WeightFormat::F8,
];

impl CpuWeight {
    /// Packs `weight` with the current thread pool.
    ///
    /// # Errors
    /// [`Error::Weight`], [`Error::OutOfMemory`].
    pub(crate) fn pack(kernels: KernelSet, weight: &HostWeight<'_>) -> Result<CpuWeight> {
        weight.check()?;
        let format = weight.store;
        if !FORMATS.contains(&format) {
            let reason = format!("format {format} is not supported on the CPU; use f32, bf16, f16, q8, q4 or f8");
            return Err(Error::Weight { name: weight.name.clone(), reason });
        }
        let (rows, cols) = (weight.rows(), weight.cols);
        if cols > quant::FEATURES && matches!(format, WeightFormat::Q8 | WeightFormat::Q4) {
            let most = quant::FEATURES;
            let reason = format!("{cols} input features are too many for {format}, at most {most}; use bf16");
            return Err(Error::Weight { name: weight.name.clone(), reason });
        }
        let too_large = || Error::Weight { name: weight.name.clone(), reason: "it is too large".into() };
        let stack = weight.stack;
        let bytes = stack_bytes(stack, rows, cols, format).ok_or_else(too_large)?;
        let memory = Allocation::new(bytes, &format!("weight {}", weight.name))?;
        let gated = is_gated(weight.gated, rows, format);
        let packed = Arc::new(Packed { memory, stack, rows, cols, format, gated });
        let whole = CpuWeight { packed, member: 0 };
        let panels = whole.panels();
        (0..stack * panels).into_par_iter().for_each_init(Scratch::default, |scratch, i| {
            let (packed, p) = (whole.matrix(i / panels), i % panels);
            // SAFETY: every panel is visited once, before anyone else has the weight.
            let panel = unsafe { std::slice::from_raw_parts_mut(packed.panel(p).cast_mut(), packed.panel_stride()) };
            kernels.run(Fill { weight: &packed, parts: &weight.parts, p, scratch, panel });
        });
        Ok(whole)
    }

    /// Takes bytes that were packed before ([`CpuWeight::all_bytes`]).
    ///
    /// # Errors
    /// [`Error::Weight`] when they are not as many as the matrix takes, or do not start on a cache line.
    pub(crate) fn adopt(weight: &PackedWeight, bytes: SharedBytes) -> Result<CpuWeight> {
        let &PackedWeight { stack, rows, cols, store: format, gated, .. } = weight;
        let bad = |reason: String| Error::Weight { name: weight.name.clone(), reason };
        let want = stack_bytes(stack, rows, cols, format).filter(|_| FORMATS.contains(&format));
        if want != Some(bytes.len()) {
            return Err(bad(format!(
                "{} bytes were kept, which is not what {rows} x {cols} {format} take",
                bytes.len()
            )));
        }
        let memory = Allocation::borrow(bytes).ok_or_else(|| bad("was not kept on a cache line".into()))?;
        let gated = is_gated(gated, rows, format);
        Ok(CpuWeight { packed: Arc::new(Packed { memory, stack, rows, cols, format, gated }), member: 0 })
    }

    /// Matrices.
    pub fn stack(&self) -> usize {
        self.packed.stack
    }
    /// Matrix `member` of a stack; everything below is about it.
    ///
    /// # Panics
    /// When there is no such matrix: a bug of this crate.
    pub(crate) fn matrix(&self, member: usize) -> CpuWeight {
        assert!(member < self.stack(), "matrix {member} of {}", self.stack());
        CpuWeight { packed: self.packed.clone(), member }
    }
    /// Which matrix of the stack it is.
    pub(crate) fn member(&self) -> usize {
        self.member
    }
    /// Output features.
    pub fn rows(&self) -> usize {
        self.packed.rows
    }
    /// Input features.
    pub fn cols(&self) -> usize {
        self.packed.cols
    }
    /// Storage format.
    pub fn format(&self) -> WeightFormat {
        self.packed.format
    }
    /// Bytes kept of all matrices, padding included.
    pub fn bytes(&self) -> usize {
        self.packed.memory.len()
    }
    /// All panels.
    pub(crate) fn all_bytes(&self) -> &[u8] {
        // SAFETY: the allocation has this many bytes, and nobody writes to them once it is packed.
        unsafe { std::slice::from_raw_parts(self.packed.memory.as_ptr(), self.bytes()) }
    }
    /// Whether a panel holds gates and what they gate.
    pub(crate) fn is_gated(&self) -> bool {
        self.packed.gated
    }
    /// How the panels are laid out; nothing for f32 and f16.
    pub(crate) fn form(&self) -> Option<Form> {
        Form::of(self.format())
    }
    /// Panels, the last one padded.
    pub(crate) fn panels(&self) -> usize {
        self.rows().div_ceil(panel_rows(self.format()))
    }
    /// Bytes from one panel to the next.
    pub(crate) fn panel_stride(&self) -> usize {
        self.bytes() / (self.stack() * self.panels()).max(1)
    }

    /// The output features of tile `t` of panel `p` of 32: the first and where they end.
    pub(crate) fn tile_rows(&self, p: usize, t: usize) -> (usize, usize) {
        let half = self.rows() / 2;
        match (self.is_gated(), t) {
            (true, 0) => (p * LANES, half.min((p + 1) * LANES)),
            (true, _) => (half + p * LANES, self.rows().min(half + (p + 1) * LANES)),
            (false, _) => (p * PANEL + t * LANES, self.rows().min(p * PANEL + (t + 1) * LANES)),
        }
    }

    /// The panel of 32 that holds output feature `row`, and its place there.
    pub(crate) fn place_of(&self, row: usize) -> (usize, usize) {
        let half = self.rows() / 2;
        match self.is_gated() {
            true if row < half => (row / LANES, row % LANES),
            true => ((row - half) / LANES, LANES + (row - half) % LANES),
            false => (row / PANEL, row % PANEL),
        }
    }

    /// First byte of panel `p`.
    ///
    /// # Panics
    /// When there is no such panel: a bug of this crate.
    pub(crate) fn panel(&self, p: usize) -> *const u8 {
        assert!(p < self.panels());
        // SAFETY: panel `p` of a matrix of the stack lies in the allocation.
        unsafe { self.packed.memory.as_ptr().add((self.member * self.panels() + p) * self.panel_stride()) }
    }

    /// First element of panel `p` of a float matrix.
    ///
    /// # Panics
    /// When there is no such panel or `C` is not its type: bugs of this crate.
    pub(crate) fn cells<C: Cell>(&self, p: usize) -> *const C {
        assert!(matches!(self.format(), WeightFormat::Float(dtype) if dtype.size() == size_of::<C>()));
        self.panel(p).cast()
    }

    /// One weight, as a number.
    ///
    /// # Panics
    /// When it is past the end.
    pub(crate) fn at(&self, row: usize, col: usize) -> f32 {
        assert!(row < self.rows() && col < self.cols());
        let (p, n) = self.place_of(row);
        // SAFETY: the places of `row` and `col` lie in their panel.
        unsafe {
            let Some(form) = self.form() else {
                let lane = col * LANES + row % LANES;
                return match self.format() {
                    WeightFormat::Float(DType::F32) => *self.cells::<f32>(row / LANES).add(lane),
                    _ => (*self.cells::<f16>(row / LANES).add(lane)).to_f32(),
                };
            };
            let (panel, (place, high)) = (self.panel(p), form.place(n, col));
            let byte = panel.add(place);
            match form {
                Form::Pairs => (*byte.cast::<bf16>()).to_f32(),
                Form::Eights => {
                    let group = col / quant::F8_GROUP;
                    quant::f8_value(*byte, *self.scales(p).add(group * PANEL + n)).to_f32()
                }
                Form::Bytes => f32::from(*byte.cast::<i8>()) * *self.scales(p).add(n),
                Form::Nibbles => {
                    let nibble = if high { *byte >> 4 } else { *byte & 15 };
                    let multiplier = *panel.add(form.multiplier_place(n, col / quant::GROUP)).cast::<i8>();
                    f32::from((nibble as i8 - 8) * multiplier) * *self.scales(p).add(n)
                }
            }
        }
    }

    /// The 32 scales of a panel of integers; of f8 as many for each group of input features.
    pub(crate) fn scales(&self, p: usize) -> *const f32 {
        let bytes = self.form().map_or(0, |form| form.tail_bytes(self.cols()));
        self.panel(p).wrapping_add(self.panel_stride() - bytes).cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;
    use anyfleet_tensor::HostPart;

    fn pack(host: &HostWeight<'_>) -> Result<CpuWeight> {
        let mut sets = Isa::supported().filter_map(KernelSet::new);
        let packed = CpuWeight::pack(sets.next().expect("a kernel set"), host)?;
        // Every set packs the same bytes.
        for kernels in sets {
            assert!(CpuWeight::pack(kernels, host)?.all_bytes() == packed.all_bytes(), "{kernels:?}");
        }
        Ok(packed)
    }

    fn value(row: usize, col: usize) -> f32 {
        (row * 31 + col) as f32 * 0.37 - 5.0
    }

    #[test]
    fn integers_whose_sums_could_overflow_are_refused() {
        for (cols, fits) in [(quant::FEATURES, true), (quant::FEATURES + 1, false)] {
            let bytes = vec![0; cols * 2];
            for store in [WeightFormat::Q8, WeightFormat::Q4, WeightFormat::Float(DType::BF16)] {
                let parts = vec![HostPart { dtype: DType::BF16, rows: 1, bytes: &bytes, scales: None }];
                let packed = pack(&HostWeight { name: "wide".into(), stack: 1, cols, parts, store, gated: false });
                assert_eq!(packed.is_ok(), fits || store == WeightFormat::Float(DType::BF16), "{cols} {store}");
                if let Err(error) = packed {
                    let error = error.to_string();
                    assert!(error.contains("wide") && error.contains("at most 133144"), "{error}");
                }
            }
        }
    }

    #[test]
    fn mixed_parts_at_odd_addresses_convert_once() {
        let cols = 5;
        let f32s: Vec<u8> = (0..3 * cols).flat_map(|i| value(i / cols, i % cols).to_le_bytes()).collect();
        let bf16s: Vec<u8> =
            (0..15 * cols).flat_map(|i| bf16::from_f32(value(3 + i / cols, i % cols)).to_le_bytes()).collect();
        let f16s: Vec<u8> =
            (0..2 * cols).flat_map(|i| f16::from_f32(value(18 + i / cols, i % cols)).to_le_bytes()).collect();
        // One byte in front makes every part misaligned.
        let odd = |bytes: &[u8]| [&[0xFF], bytes].concat();
        let (a, b, c) = (odd(&f32s), odd(&bf16s), odd(&f16s));
        for store in [DType::F32, DType::BF16, DType::F16] {
            let part = |dtype, rows, bytes| HostPart { dtype, rows, bytes, scales: None };
            let host = HostWeight {
                name: "w".into(),
                stack: 1,
                cols,
                parts: vec![part(DType::F32, 3, &a[1..]), part(DType::BF16, 15, &b[1..]), part(DType::F16, 2, &c[1..])],
                store: WeightFormat::Float(store),
                gated: false,
            };
            let packed = pack(&host).unwrap();
            assert_eq!((packed.rows(), packed.cols()), (20, cols));
            assert_eq!(Some(packed.bytes()), packed_bytes(20, cols, WeightFormat::Float(store)));
            for row in 0..20 {
                for col in 0..cols {
                    let source = match row {
                        0..3 => value(row, col),
                        3..18 => bf16::from_f32(value(row, col)).to_f32(),
                        _ => f16::from_f32(value(row, col)).to_f32(),
                    };
                    let (got, want) = match store {
                        DType::F32 => (packed.at(row, col), source),
                        DType::BF16 => (packed.at(row, col), bf16::from_f32(source).to_f32()),
                        _ => (packed.at(row, col), f16::from_f32(source).to_f32()),
                    };
                    assert_eq!(got, want, "row {row} col {col} as {store}");
                }
            }
        }
    }

    #[test]
    fn malformed_weights_are_errors() {
        let bytes = [0u8; 12];
        let host = |cols, dtype, store| HostWeight {
            name: "w".into(),
            stack: 1,
            cols,
            parts: vec![HostPart { dtype, rows: 1, bytes: &bytes, scales: None }],
            store: WeightFormat::Float(store),
            gated: false,
        };
        assert!(pack(&host(3, DType::F32, DType::F32)).is_ok());
        assert!(pack(&host(4, DType::F32, DType::F32)).is_err());
        assert!(pack(&host(3, DType::U32, DType::F32)).is_err());
        assert!(pack(&host(3, DType::F32, DType::U8)).is_err());
    }

    #[test]
    fn narrow_weights_are_the_definition_s_gated_or_not() {
        for (rows, cols) in [(2, 1), (20, 31), (34, 64), (70, 100), (66, 129), (40, 385)] {
            let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 77.0).collect();
            for (gated, store) in [false, true].into_iter().flat_map(|g| FORMATS.map(|f| (g, f))) {
                let part = HostPart { dtype: DType::F32, rows, bytes: bytemuck::cast_slice(&values), scales: None };
                let packed = pack(&HostWeight { name: "w".into(), stack: 1, cols, parts: vec![part], store, gated });
                let packed = packed.unwrap();
                for (r, row) in values.chunks(cols).enumerate() {
                    let want: Vec<f32> = match store {
                        WeightFormat::Q8 => {
                            let mut q = vec![0; cols];
                            let scale = quant::q8_row(row, &mut q);
                            q.into_iter().map(|q| f32::from(q) * scale).collect()
                        }
                        WeightFormat::Q4 => {
                            let (mut q, mut multipliers) = (vec![0; cols], vec![0; cols.div_ceil(quant::GROUP)]);
                            let scale = quant::q4_row(row, &mut q, &mut multipliers);
                            let value = |c: usize| f32::from(q[c] * multipliers[c / quant::GROUP]) * scale;
                            (0..cols).map(value).collect()
                        }
                        WeightFormat::F8 => {
                            let (mut q, mut scales) = (vec![0; cols], vec![0.0; cols.div_ceil(quant::F8_GROUP)]);
                            quant::f8_row(row, &mut q, &mut scales);
                            let value = |c: usize| quant::f8_value(q[c], scales[c / quant::F8_GROUP]).to_f32();
                            (0..cols).map(value).collect()
                        }
                        WeightFormat::Float(DType::BF16) => row.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
                        WeightFormat::Float(DType::F16) => row.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
                        _ => row.to_vec(),
                    };
                    let got: Vec<f32> = (0..cols).map(|c| packed.at(r, c)).collect();
                    assert_eq!(got, want, "{store} gated {gated} row {r} of {rows} x {cols}");
                }
            }
        }
    }

    #[test]
    fn integers_of_odd_numbers_are_the_definition_s() {
        // Every kind of float, by its bits; groups of one size, of many, and with something that is none.
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let (rows, cols) = (64, 32 * 40);
        let mut values = Vec::new();
        for group in 0..rows * cols / quant::GROUP {
            // What is not finite takes its row along, so only some rows have it.
            let kind = match (group / (cols / quant::GROUP) % 4, group % 8) {
                (1.., 3..7) => 2,
                (_, kind) => kind,
            };
            for i in 0..quant::GROUP {
                let unit = random() as f32 / u32::MAX as f32 - 0.5;
                values.push(match kind {
                    0..3 => unit * (random() as f32 / u32::MAX as f32),
                    3 => unit * 1e38 * 6.0,
                    4 => f32::from_bits(random() % 4000) * unit.signum(),
                    5 => f32::from_bits(random() & 0xBFFF_FFFF),
                    6 if i == 7 => [f32::NAN, f32::INFINITY, f32::MAX, -0.0][group / 8 % 4],
                    7 => (unit * 16.0).round() * 0.25,
                    _ => unit,
                });
            }
        }
        let part = HostPart { dtype: DType::F32, rows, bytes: bytemuck::cast_slice(&values), scales: None };
        for store in [WeightFormat::Q8, WeightFormat::Q4] {
            let host = HostWeight { name: "w".into(), stack: 1, cols, parts: vec![part], store, gated: false };
            let packed = pack(&host).unwrap();
            for (r, row) in values.chunks(cols).enumerate() {
                let (mut want, mut multipliers) = (vec![0i8; cols], vec![1; cols / quant::GROUP]);
                let scale = match store {
                    WeightFormat::Q4 => quant::q4_row(row, &mut want, &mut multipliers),
                    _ => quant::q8_row(row, &mut want),
                };
                for (c, q) in want.into_iter().enumerate() {
                    let want = f32::from(q * multipliers[c / quant::GROUP]) * scale;
                    let got = packed.at(r, c);
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{store} {r} {c}: {got}, expected {want}");
                }
            }
        }
    }

    #[test]
    fn the_layout_has_a_version() {
        let (rows, cols) = (70, 100);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 77.0).collect();
        let part = HostPart { dtype: DType::F32, rows, bytes: bytemuck::cast_slice(&values), scales: None };
        let hashes = FORMATS.map(|store| {
            let host = HostWeight { name: "w".into(), stack: 1, cols, parts: vec![part], store, gated: true };
            let packed = pack(&host).unwrap();
            packed.all_bytes().iter().fold(0u64, |hash, &b| hash.wrapping_mul(0x0100_0000_01B3) ^ u64::from(b))
        });
        let known = [
            0x1242e9440c8d13c6,
            0x51a0ddcb83636918,
            0x814e55e36eb45c09,
            0x38b4ba98dfaeb0dc,
            0x44a02716dd89d19c,
            0xdafc2c43b06a9b25,
        ];
        assert_eq!(hashes, known, "other bytes need another LAYOUT: packs on people's disks hold the old ones");
    }

    #[test]
    fn a_stack_is_its_matrices_one_after_the_other() {
        let (stack, rows, cols) = (3, 34, 70);
        let values: Vec<f32> = (0..stack * rows * cols).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 77.0).collect();
        let part =
            |rows, values| HostPart { dtype: DType::F32, rows, bytes: bytemuck::cast_slice(values), scales: None };
        for (gated, store) in [false, true].into_iter().flat_map(|g| FORMATS.map(|f| (g, f))) {
            let host = |stack, parts| HostWeight { name: "w".into(), stack, cols, parts, store, gated };
            // Parts end where matrices do not.
            let (first, rest) = values.split_at(50 * cols);
            let all = pack(&host(stack, vec![part(50, first), part(stack * rows - 50, rest)])).unwrap();
            assert_eq!((all.stack(), all.rows(), all.cols()), (stack, rows, cols));
            for (member, values) in values.chunks(rows * cols).enumerate() {
                let one = pack(&host(1, vec![part(rows, values)])).unwrap();
                let bytes = one.bytes();
                assert!(all.all_bytes()[member * bytes..][..bytes] == *one.all_bytes(), "{store} {gated} {member}");
                assert_eq!(all.matrix(member).at(33, 69), one.at(33, 69));
            }
        }
    }

    #[test]
    fn adopted_bytes_are_the_packed_ones() {
        let values: Vec<f32> = (0..40 * 33).map(|i| value(i / 33, i % 33)).collect();
        let part = HostPart { dtype: DType::F32, rows: 40, bytes: bytemuck::cast_slice(&values), scales: None };
        for store in FORMATS {
            let host = HostWeight { name: "w".into(), stack: 1, cols: 33, parts: vec![part], store, gated: true };
            let packed = pack(&host).unwrap();
            let bytes = [&[0; ALIGN], packed.all_bytes()].concat();
            let skip = bytes.as_ptr().addr().wrapping_neg() % ALIGN;
            let mut bytes = bytes;
            bytes.copy_within(ALIGN.., skip);
            let kept = SharedBytes::new(Arc::new(bytes), skip..skip + packed.bytes()).unwrap();
            let what = PackedWeight { name: "w".into(), stack: 1, rows: 40, cols: 33, store, gated: true };
            let adopted = CpuWeight::adopt(&what, kept.clone()).unwrap();
            assert!((0..40).all(|r| (0..33).all(|c| adopted.at(r, c) == packed.at(r, c))), "{store}");
            assert!(CpuWeight::adopt(&what, kept.slice(0..kept.len() - 64).unwrap()).is_err());
            assert!(CpuWeight::adopt(&PackedWeight { rows: 80, ..what.clone() }, kept.clone()).is_err());
            assert!(CpuWeight::adopt(&PackedWeight { store: WeightFormat::Float(DType::U8), ..what }, kept).is_err());
        }
    }
}
