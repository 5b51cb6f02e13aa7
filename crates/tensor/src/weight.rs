//! Weights as they lie in the checkpoint, borrowed from the memory map.
use crate::{DType, Error, Result, WeightFormat, f8, quant};
use half::{bf16, f16};
use std::ops::Range;

/// Consecutive output rows of a matrix, contiguous in host memory (little endian, any alignment).
#[derive(Clone, Copy, Debug)]
pub struct HostPart<'a> {
    /// Element type in the file: f32, bf16, f16, or f8 with scales.
    pub dtype: DType,
    /// Output rows this part holds.
    pub rows: usize,
    /// `rows * cols` elements, row-major.
    pub bytes: &'a [u8],
    /// What elements of f8 are multiplied with; `None` for all others.
    pub scales: Option<HostScales<'a>>,
}

/// Scales of a tensor of f8, of which a part may have some rows and columns: one for each block of elements, row-major.
/// A scale for a whole row is one of a block with one row and all columns, and so on.
#[derive(Clone, Copy, Debug)]
pub struct HostScales<'a> {
    /// Type of a scale: f32, bf16 or f16.
    pub dtype: DType,
    /// Scales of the tensor, any alignment.
    pub bytes: &'a [u8],
    /// Scales side by side.
    pub cols: usize,
    /// The part is the transpose of what the tensor has: scales side by side are of blocks one below the other.
    pub turned: bool,
    /// Rows and columns of a block, as the part has them; the last blocks may have fewer.
    pub block: [usize; 2],
    /// The row and the column where the part begins, as it has them.
    pub first: [usize; 2],
}

/// A `rows x cols` matrix (`out_features x in_features`) made of parts stacked along the rows, so
/// that q, k and v, or gate and up, merge without a copy; or a stack of such matrices, one for each of a layer's experts.
#[derive(Clone, Debug)]
pub struct HostWeight<'a> {
    /// Name for messages; merged names are joined by `+`.
    pub name: String,
    /// Input features.
    pub cols: usize,
    /// How many matrices of as many rows lie one after the other; 1 but for experts.
    pub stack: usize,
    /// Parts from the first output row to the last.
    pub parts: Vec<HostPart<'a>>,
    /// The format the device shall keep.
    pub store: WeightFormat,
    /// The first half of the rows of each are gates, the second half what they are multiplied with
    /// ([`LinearActMul`](crate::ops::LinearActMul)): a device may keep a row and its gate side by side.
    pub gated: bool,
}

impl HostWeight<'_> {
    /// Output rows of each matrix.
    pub fn rows(&self) -> usize {
        self.all_rows() / self.stack.max(1)
    }

    /// Output rows over all parts.
    pub fn all_rows(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    /// Checks that every part has elements of a known type, exactly `rows * cols` of them, and their scales where they are
    /// f8; and that they share out evenly.
    ///
    /// # Errors
    /// [`Error::Weight`] naming the weight and the part.
    pub fn check(&self) -> Result<()> {
        let bad = |reason: String| Err(Error::Weight { name: self.name.clone(), reason });
        if self.cols == 0 || self.parts.is_empty() {
            return bad("it is empty; the checkpoint is damaged".into());
        }
        if self.stack == 0 || !self.all_rows().is_multiple_of(self.stack) {
            return bad(format!("{} rows are no stack of {} matrices", self.all_rows(), self.stack));
        }
        for (i, part) in self.parts.iter().enumerate() {
            let scaled = part.dtype == DType::F8 && part.scales.is_some();
            if !scaled && !part.dtype.is_float() {
                let dtype = part.dtype;
                return bad(format!("part {i} has dtype {dtype}; f32, bf16, f16, and f8 with scales are supported"));
            }
            let want = part.rows.checked_mul(self.cols).and_then(|n| n.checked_mul(part.dtype.size()));
            if want != Some(part.bytes.len()) {
                return bad(format!(
                    "part {i} has {} bytes, but {} x {} {} were expected; the checkpoint is damaged",
                    part.bytes.len(),
                    part.rows,
                    self.cols,
                    part.dtype
                ));
            }
            if let Some(scales) = part.scales.filter(|scales| !scaled || !scales.covers(part.rows, self.cols)) {
                return bad(format!(
                    "part {i} has {} bytes of {} scales, {} side by side of {:?} elements each, which are not those of \
                     {} x {} {} from {:?} on",
                    scales.bytes.len(),
                    scales.dtype,
                    scales.cols,
                    scales.block,
                    part.rows,
                    self.cols,
                    part.dtype,
                    scales.first
                ));
            }
        }
        Ok(())
    }
}

impl<'a> HostScales<'a> {
    /// Whether there are scales for a part of this size.
    fn covers(&self, rows: usize, cols: usize) -> bool {
        let blocks = |i: usize, count: usize| {
            let end = self.first[i].checked_add(count)?;
            (self.block[i] > 0).then(|| end.div_ceil(self.block[i]))
        };
        let bytes = |rows: usize| rows.checked_mul(self.cols)?.checked_mul(self.dtype.size());
        let (Some(down), Some(side)) = (blocks(0, rows), blocks(1, cols)) else { return false };
        let (rows, cols) = if self.turned { (side, down) } else { (down, side) };
        self.dtype.is_float() && cols <= self.cols && bytes(rows).is_some_and(|bytes| bytes <= self.bytes.len())
    }

    /// Which block of its row a column of the part is in.
    fn block_of(&self, col: usize) -> usize {
        (self.first[1] + col) / self.block[1]
    }

    /// The scale of block `block` in the row of blocks that row `row` of the part is in, as it is kept.
    fn scale(&self, row: usize, block: usize) -> f32 {
        let down = (self.first[0] + row) / self.block[0];
        let at = if self.turned { block * self.cols + down } else { down * self.cols + block } * self.dtype.size();
        let mut scale = [0.0];
        widen(self.dtype, &self.bytes[at..at + self.dtype.size()], &mut scale);
        quant::f8_scale(scale[0])
    }
}

impl<'a> HostPart<'a> {
    /// Row `row` of the part, which has `cols` columns.
    ///
    /// # Panics
    /// When there is no such row. The part must have been [checked](HostWeight::check).
    pub fn row(&self, row: usize, cols: usize) -> HostRow<'a> {
        let size = cols * self.dtype.size();
        let bytes = &self.bytes[row * size..][..size];
        HostRow { dtype: self.dtype, bytes, scales: self.scales.map(|scales| (scales, row)) }
    }
}

/// One output row as the checkpoint has it: what every backend packs.
#[derive(Clone, Copy, Debug)]
pub struct HostRow<'a> {
    /// Element type.
    pub dtype: DType,
    /// All elements.
    pub bytes: &'a [u8],
    /// Of f8: the part's scales, and which of its rows this is.
    scales: Option<(HostScales<'a>, usize)>,
}

impl HostRow<'_> {
    /// The row as numbers. Elements of f8 are what they read as ([`quant::f8_value`]), so that they are the same in whatever
    /// format a device keeps.
    ///
    /// # Panics
    /// When `out` has another length than the row.
    pub fn values(&self, out: &mut [f32]) {
        assert_eq!(out.len() * self.dtype.size(), self.bytes.len(), "numbers of a row");
        self.some_values(0..out.len(), out);
    }

    fn some_values(&self, cols: Range<usize>, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes[cols.start * size..cols.end * size];
        let Some((scales, row)) = self.scales else { return widen(self.dtype, bytes, out) };
        let mut col = cols.start;
        while col < cols.end {
            let block = scales.block_of(col);
            let end = ((block + 1).saturating_mul(scales.block[1]) - scales.first[1]).min(cols.end);
            let (scale, places) = (scales.scale(row, block), col - cols.start..end - cols.start);
            for (out, &byte) in out[places.clone()].iter_mut().zip(&bytes[places]) {
                *out = quant::f8_value(byte, scale).to_f32();
            }
            col = end;
        }
    }

    /// The row as [`WeightFormat::F8`] keeps it: a byte for each column and a scale for each [`quant::F8_GROUP`] of them.
    ///
    /// Where the checkpoint has f8 and one scale for a whole group, both are the checkpoint's; the scale becomes NaN where
    /// a byte is, so that only scales have to be looked at. All other groups are [quantized](quant::f8_group) from the
    /// numbers they read as: those of float checkpoints, and of blocks that end within a group.
    ///
    /// # Panics
    /// When there are not as many bytes as columns, or fewer scales than groups.
    pub fn f8(&self, bytes: &mut [u8], scales: &mut [f32]) {
        assert_eq!(bytes.len() * self.dtype.size(), self.bytes.len(), "bytes of a row");
        let scales = &mut scales[..bytes.len().div_ceil(quant::F8_GROUP)];
        for (group, (bytes, scale)) in bytes.chunks_mut(quant::F8_GROUP).zip(scales).enumerate() {
            let start = group * quant::F8_GROUP;
            let cols = start..start + bytes.len();
            match self.shared_scale(&cols) {
                Some(shared) => {
                    bytes.copy_from_slice(&self.bytes[cols]);
                    let odd = bytes.iter().any(|byte| byte & 0x7f == f8::NAN);
                    *scale = if odd { f32::NAN } else { shared };
                }
                None => {
                    let mut values = [0.0; quant::F8_GROUP];
                    let values = &mut values[..bytes.len()];
                    self.some_values(cols, values);
                    *scale = quant::f8_group(values, bytes);
                }
            }
        }
    }

    /// The scale of all these columns of f8, if there is one.
    fn shared_scale(&self, cols: &Range<usize>) -> Option<f32> {
        let (scales, row) = self.scales?;
        let block = scales.block_of(cols.start);
        (block == scales.block_of(cols.end - 1)).then(|| scales.scale(row, block))
    }
}

/// Floats of any alignment as f32.
fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    for (out, cell) in out.iter_mut().zip(bytes.chunks_exact(dtype.size())) {
        *out = match dtype {
            DType::F32 => bytemuck::pod_read_unaligned(cell),
            DType::BF16 => bytemuck::pod_read_unaligned::<bf16>(cell).to_f32(),
            _ => bytemuck::pod_read_unaligned::<f16>(cell).to_f32(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 5 x 300 bytes of f8, of which a part has all rows but the first two and the columns from `first` on, in blocks of
    /// `block` elements whose scales are 1, 2, 3 ...
    fn rows(block: [usize; 2], first: usize, see: impl Fn(usize, HostRow<'_>)) {
        let byte = |row: usize, col: usize| ((row * 300 + col) % 126) as u8;
        let (down, side) = (5usize.div_ceil(block[0]), 300usize.div_ceil(block[1]));
        let scales: Vec<f32> = (1..=down * side).map(|i| i as f32).collect();
        let bytes: Vec<u8> = (2..5).flat_map(|row| (first..300).map(move |col| byte(row, col))).collect();
        let scales = HostScales {
            dtype: DType::F32,
            bytes: bytemuck::cast_slice(&scales),
            cols: side,
            turned: false,
            block,
            first: [2, first],
        };
        let part = HostPart { dtype: DType::F8, rows: 3, bytes: &bytes, scales: Some(scales) };
        let (name, store) = ("w".to_string(), WeightFormat::F8);
        let weight = HostWeight { name, cols: 300 - first, stack: 1, parts: vec![part], store, gated: false };
        weight.check().unwrap();
        for row in 0..3 {
            let host = part.row(row, weight.cols);
            let mut values = vec![0.0; weight.cols];
            host.values(&mut values);
            for (col, value) in values.into_iter().enumerate() {
                let scale = (row + 2) / block[0] * side + (first + col) / block[1] + 1;
                let want = quant::f8_value(byte(row + 2, first + col), scale as f32).to_f32();
                assert_eq!(value, want, "row {row}, column {col} of blocks {block:?} from {first} on");
            }
            see(row, host);
        }
    }

    #[test]
    fn groups_with_one_scale_pass_through_and_others_are_quantized() {
        for (block, first, passes) in [
            ([2, 128], 0, [true; 3]),
            ([1, 300], 7, [true; 3]),
            ([5, 256], 128, [true; 3]),
            ([2, 128], 100, [false; 3]),
            // The last 44 columns are of one block.
            ([2, 50], 0, [false, false, true]),
        ] {
            rows(block, first, |_, host| {
                let cols = host.bytes.len();
                let (mut bytes, mut scales) = (vec![0; cols], vec![0.0; cols.div_ceil(quant::F8_GROUP)]);
                host.f8(&mut bytes, &mut scales);
                let mut values = vec![0.0; cols];
                host.values(&mut values);
                let groups = values.chunks(quant::F8_GROUP).zip(host.bytes.chunks(quant::F8_GROUP));
                for (group, (values, theirs)) in groups.enumerate() {
                    let ours = &bytes[group * quant::F8_GROUP..][..values.len()];
                    let mut quantized = vec![0; values.len()];
                    let scale = quant::f8_group(values, &mut quantized);
                    match passes[group] {
                        true => assert!(ours == theirs && scales[group].fract() == 0.0, "{block:?} {first} {group}"),
                        false => assert!(ours == quantized && scales[group] == scale, "{block:?} {first} {group}"),
                    }
                }
            });
        }
    }

    #[test]
    fn scales_of_a_transpose_are_found() {
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let scales = HostScales {
            dtype: DType::F32,
            bytes: bytemuck::cast_slice(&values),
            cols: 3,
            turned: true,
            block: [4, 2],
            first: [0, 1],
        };
        // Of 4 x 10 elements, in blocks of 2 x 4, the rows 1 and 2.
        let bytes = [f8::encode(1.0); 20];
        let part = HostPart { dtype: DType::F8, rows: 10, bytes: &bytes, scales: Some(scales) };
        let (name, store) = ("w".to_string(), WeightFormat::F8);
        HostWeight { name, cols: 2, stack: 1, parts: vec![part], store, gated: false }.check().unwrap();
        for row in 0..10 {
            let mut out = [0.0; 2];
            part.row(row, 2).values(&mut out);
            assert_eq!(out, [1.0, 4.0].map(|first| first + (row / 4) as f32), "row {row}");
        }
        let few = HostScales { cols: 2, ..scales };
        let part = HostPart { scales: Some(few), ..part };
        let weight = HostWeight { name: "w".into(), cols: 2, stack: 1, parts: vec![part], store, gated: false };
        assert!(weight.check().is_err());
    }

    #[test]
    fn a_byte_that_is_no_number_is_a_scale_that_is_none() {
        let mut elements = [0x38; 200];
        elements[150] = 0xff;
        let one = 1.0f32.to_le_bytes();
        let scales =
            HostScales { dtype: DType::F32, bytes: &one, cols: 1, turned: false, block: [1, 200], first: [0, 0] };
        let part = HostPart { dtype: DType::F8, rows: 1, bytes: &elements, scales: Some(scales) };
        let (mut bytes, mut scales, mut values) = ([0; 200], [0.0; 2], [0.0; 200]);
        part.row(0, 200).f8(&mut bytes, &mut scales);
        part.row(0, 200).values(&mut values);
        assert!(scales[0] == 1.0 && scales[1].is_nan());
        assert_eq!(values.iter().filter(|v| v.is_nan()).count(), 1);
    }

    #[test]
    fn scales_must_be_there_and_only_of_f8() {
        let (elements, values) = ([0u8; 6 * 8], [0u8; 6 * 4]);
        let scales =
            HostScales { dtype: DType::F32, bytes: &values, cols: 2, turned: false, block: [2, 4], first: [0, 0] };
        let check = |part| {
            let (name, store) = ("w".to_string(), WeightFormat::F8);
            HostWeight { name, cols: 8, stack: 1, parts: vec![part], store, gated: false }.check()
        };
        let part = HostPart { dtype: DType::F8, rows: 6, bytes: &elements, scales: Some(scales) };
        check(part).unwrap();
        let missing = check(HostPart { scales: None, ..part }).unwrap_err().to_string();
        assert!(missing.contains("part 0 has dtype f8") && missing.contains("f8 with scales"), "{missing}");
        for (why, scales) in [
            ("too few columns", HostScales { cols: 1, ..scales }),
            ("too few rows", HostScales { bytes: &values[..20], ..scales }),
            ("past the last row", HostScales { first: [1, 0], ..scales }),
            ("past the last column", HostScales { first: [0, 1], ..scales }),
            ("no block", HostScales { block: [0, 4], ..scales }),
            ("no numbers", HostScales { dtype: DType::U32, ..scales }),
        ] {
            let error = check(HostPart { scales: Some(scales), ..part }).map(|()| why).unwrap_err().to_string();
            assert!(error.contains("side by side"), "{error}");
        }
        let floats = HostPart { dtype: DType::F16, rows: 3, bytes: &elements, scales: Some(scales) };
        assert!(check(floats).is_err());
    }
}
