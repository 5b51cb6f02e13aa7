//! Weight matrices, packed once at load into the order the matrix kernels read.
//!
//! f32 and f16: `[N/16][K][16]`, panel `p` holds output rows `16p .. 16p + 16`, and within it the sixteen
//! weights of one input feature lie side by side. bf16: panels of 32 output rows in the order of
//! [`pairs`], K padded to blocks of 32. Rows past N are zero. Each panel starts on a cache line.
use crate::buffer::{ALIGN, Allocation};
use crate::pairs::{self, BLOCK, PANEL};
use crate::simd::{Cell, LANES};
use anyfleet_tensor::{DType, Error, HostPart, HostWeight, Result, WeightFormat};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// A packed matrix; clones share it.
#[derive(Clone)]
pub struct CpuWeight(Arc<Packed>);

struct Packed {
    memory: Allocation,
    rows: usize,
    cols: usize,
    dtype: DType,
}

/// Output rows of a panel.
fn panel_rows(dtype: DType) -> usize {
    if dtype == DType::BF16 { PANEL } else { LANES }
}

/// Bytes from one panel to the next.
fn panel_bytes(cols: usize, dtype: DType) -> Option<usize> {
    let cols = if dtype == DType::BF16 { cols.checked_next_multiple_of(BLOCK)? } else { cols };
    cols.checked_mul(panel_rows(dtype) * dtype.size())?.checked_next_multiple_of(ALIGN)
}

/// Bytes kept for a `rows x cols` matrix; `None` when that overflows.
pub(crate) fn packed_bytes(rows: usize, cols: usize, dtype: DType) -> Option<usize> {
    panel_bytes(cols, dtype)?.checked_mul(rows.div_ceil(panel_rows(dtype)))
}

impl CpuWeight {
    /// Packs `weight` with the current thread pool.
    ///
    /// # Errors
    /// [`Error::Weight`], [`Error::OutOfMemory`].
    pub(crate) fn pack(weight: &HostWeight<'_>) -> Result<CpuWeight> {
        weight.check()?;
        let dtype = match weight.store {
            WeightFormat::Float(dtype) if dtype.is_float() => dtype,
            other => {
                let reason = format!("format {other} is not supported on the CPU; use f32, bf16 or f16");
                return Err(Error::Weight { name: weight.name.clone(), reason });
            }
        };
        let (rows, cols) = (weight.rows(), weight.cols);
        let too_large = || Error::Weight { name: weight.name.clone(), reason: "it is too large".into() };
        let bytes = packed_bytes(rows, cols, dtype).ok_or_else(too_large)?;
        let memory = Allocation::new(bytes, &format!("weight {}", weight.name))?;
        let packed = CpuWeight(Arc::new(Packed { memory, rows, cols, dtype }));
        match dtype {
            DType::F32 => packed.fill::<f32>(&weight.parts),
            DType::BF16 => packed.fill_pairs(&weight.parts),
            _ => packed.fill::<f16>(&weight.parts),
        }
        Ok(packed)
    }

    fn fill<C: Cell>(&self, parts: &[HostPart<'_>]) {
        (0..self.panels()).into_par_iter().for_each(|p| {
            // SAFETY: every panel is visited once, before anyone else has the weight.
            let panel = unsafe { std::slice::from_raw_parts_mut(self.panel::<C>(p).cast_mut(), self.cols() * LANES) };
            for (lane, row) in (p * LANES..self.rows().min((p + 1) * LANES)).enumerate() {
                let (dtype, bytes) = row_bytes(parts, row, self.cols());
                match dtype {
                    DType::F32 => pack_row::<f32, C>(bytes, panel, lane),
                    DType::BF16 => pack_row::<bf16, C>(bytes, panel, lane),
                    _ => pack_row::<f16, C>(bytes, panel, lane),
                }
            }
        });
    }

    fn fill_pairs(&self, parts: &[HostPart<'_>]) {
        (0..self.panels()).into_par_iter().for_each(|p| {
            // SAFETY: every panel is visited once, before anyone else has the weight.
            let panel =
                unsafe { std::slice::from_raw_parts_mut(self.panel::<bf16>(p).cast_mut(), self.panel_stride()) };
            for (n, row) in (p * PANEL..self.rows().min((p + 1) * PANEL)).enumerate() {
                let (dtype, bytes) = row_bytes(parts, row, self.cols());
                match dtype {
                    DType::F32 => pack_pairs::<f32>(bytes, panel, n),
                    DType::BF16 => pack_pairs::<bf16>(bytes, panel, n),
                    _ => pack_pairs::<f16>(bytes, panel, n),
                }
            }
        });
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.0.rows
    }
    /// Input features.
    pub fn cols(&self) -> usize {
        self.0.cols
    }
    /// Storage type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }
    /// Bytes kept, padding included.
    pub fn bytes(&self) -> usize {
        self.0.memory.len()
    }
    /// Panels, the last one padded.
    pub(crate) fn panels(&self) -> usize {
        self.rows().div_ceil(panel_rows(self.dtype()))
    }
    /// Elements from one panel to the next.
    pub(crate) fn panel_stride(&self) -> usize {
        self.bytes() / self.panels().max(1) / self.dtype().size()
    }
    /// First element of panel `p`.
    ///
    /// # Panics
    /// When there is no such panel or `C` is not its type: bugs of this crate.
    pub(crate) fn panel<C: Cell>(&self, p: usize) -> *const C {
        assert!(p < self.panels() && size_of::<C>() == self.dtype().size());
        // SAFETY: panel `p` lies in the allocation.
        unsafe { self.0.memory.as_ptr().cast::<C>().add(p * self.panel_stride()) }
    }
}

/// The bytes of output row `row` over all parts, and their type.
fn row_bytes<'a>(parts: &[HostPart<'a>], mut row: usize, cols: usize) -> (DType, &'a [u8]) {
    for part in parts {
        if row < part.rows {
            let size = cols * part.dtype.size();
            return (part.dtype, &part.bytes[row * size..][..size]);
        }
        row -= part.rows;
    }
    unreachable!("the weight was checked: it has row {row}")
}

/// Writes one row, converted, into its lane of the panel.
fn pack_row<From: Cell, To: Cell>(bytes: &[u8], panel: &mut [To], lane: usize) {
    let cells = bytes.chunks_exact(size_of::<From>()).map(bytemuck::pod_read_unaligned::<From>);
    for (group, cell) in panel.chunks_exact_mut(LANES).zip(cells) {
        group[lane] = To::narrow(cell.widen());
    }
}

/// Writes one row, converted, into its places in a panel of pairs.
fn pack_pairs<From: Cell>(bytes: &[u8], panel: &mut [bf16], n: usize) {
    let cells = bytes.chunks_exact(size_of::<From>()).map(bytemuck::pod_read_unaligned::<From>);
    for (k, cell) in cells.enumerate() {
        panel[pairs::place(n, k)] = bf16::narrow(cell.widen());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element (row, col) of a packed weight.
    fn at<C: Cell>(weight: &CpuWeight, row: usize, col: usize) -> f32 {
        if weight.dtype() == DType::BF16 {
            // SAFETY: inside the panel.
            return unsafe { *weight.panel::<bf16>(row / PANEL).add(pairs::place(row % PANEL, col)) }.to_f32();
        }
        // SAFETY: inside the panel.
        unsafe { *weight.panel::<C>(row / LANES).add(col * LANES + row % LANES) }.widen()
    }

    fn value(row: usize, col: usize) -> f32 {
        (row * 31 + col) as f32 * 0.37 - 5.0
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
            let part = |dtype, rows, bytes| HostPart { dtype, rows, bytes };
            let host = HostWeight {
                name: "w".into(),
                cols,
                parts: vec![part(DType::F32, 3, &a[1..]), part(DType::BF16, 15, &b[1..]), part(DType::F16, 2, &c[1..])],
                store: WeightFormat::Float(store),
            };
            let packed = CpuWeight::pack(&host).unwrap();
            assert_eq!((packed.rows(), packed.cols()), (20, cols));
            assert_eq!(Some(packed.bytes()), packed_bytes(20, cols, store));
            for row in 0..32 {
                for col in 0..cols {
                    let source = match row {
                        0..3 => value(row, col),
                        3..18 => bf16::from_f32(value(row, col)).to_f32(),
                        18..20 => f16::from_f32(value(row, col)).to_f32(),
                        _ => 0.0,
                    };
                    let (got, want) = match store {
                        DType::F32 => (at::<f32>(&packed, row, col), source),
                        DType::BF16 => (at::<bf16>(&packed, row, col), bf16::from_f32(source).to_f32()),
                        _ => (at::<f16>(&packed, row, col), f16::from_f32(source).to_f32()),
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
            cols,
            parts: vec![HostPart { dtype, rows: 1, bytes: &bytes }],
            store: WeightFormat::Float(store),
        };
        assert!(CpuWeight::pack(&host(3, DType::F32, DType::F32)).is_ok());
        assert!(CpuWeight::pack(&host(4, DType::F32, DType::F32)).is_err());
        assert!(CpuWeight::pack(&host(3, DType::U32, DType::F32)).is_err());
        assert!(CpuWeight::pack(&host(3, DType::F32, DType::U8)).is_err());
    }
}
