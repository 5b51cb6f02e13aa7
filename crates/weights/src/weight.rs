//! What a model asks of a checkpoint: matrices and vectors, possibly merged from several tensors.
use crate::{Error, ModelDir, Result};
use anyfleet_tensor::{DType, HostPart, HostScales, HostWeight, WeightFormat};
use std::ops::Range;

/// A matrix made of tensors stacked along the output rows, e.g. q, k and v, or of parts of them; or several such of equal
/// shape, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Tensor names with the rows (`out_features`) taken of each, first rows first.
    pub parts: Vec<(String, usize)>,
    /// Columns (`in_features`) taken of each.
    pub cols: usize,
    /// How many matrices the parts make up; 1 but for experts.
    pub stack: usize,
    /// Not every part has eight bits in a checkpoint where others do: whoever made it kept this matrix from it.
    pub floats: bool,
    /// Which rows and columns, where the tensors have more.
    cut: Option<MatrixCut>,
    /// Each part is the transpose of what is taken: rows of a part are columns of its tensor.
    turned: bool,
}

/// What is taken of a matrix's tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MatrixCut {
    /// Of each part.
    rows: Vec<Span>,
    cols: Span,
}

/// A run along one dimension of a tensor; how long it is, the spec says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: usize,
    /// The tensor's size in this dimension.
    of: usize,
}

impl MatrixSpec {
    /// Whole tensors: names with their rows, and the columns of each.
    pub fn new(parts: Vec<(String, usize)>, cols: usize) -> Self {
        MatrixSpec { parts, cols, stack: 1, floats: false, cut: None, turned: false }
    }

    /// A stack of `heads` matrices that lie in one tensor of `heads * head_rows` rows: of each head the rows `taken`.
    ///
    /// # Panics
    /// When `taken` is not in a head: a bug of the caller.
    pub fn of_heads(name: &str, heads: usize, head_rows: usize, taken: Range<usize>, cols: usize) -> Self {
        assert!(taken.start <= taken.end && taken.end <= head_rows, "rows {taken:?} of a head of {head_rows}");
        let row = |head: usize| Span { first: head * head_rows + taken.start, of: heads * head_rows };
        let cut = MatrixCut { rows: (0..heads).map(row).collect(), cols: Span { first: 0, of: cols } };
        let parts = vec![(name.to_owned(), taken.len()); heads];
        MatrixSpec { parts, cols, stack: heads, floats: false, cut: Some(cut), turned: false }
    }

    /// The transpose of each matrix of [`MatrixSpec::of_heads`].
    #[must_use]
    pub fn turned(self) -> Self {
        let rows = self.parts.first().map_or(0, |(_, rows)| *rows);
        let parts = self.parts.into_iter().map(|(name, _)| (name, self.cols)).collect();
        MatrixSpec { parts, cols: rows, turned: true, ..self }
    }

    /// The same tensors as `stack` matrices, each of as many parts.
    ///
    /// # Panics
    /// When they do not share out evenly: a bug of the caller.
    #[must_use]
    pub fn stacked(self, stack: usize) -> Self {
        assert!(stack > 0 && self.parts.len().is_multiple_of(stack), "{} parts as {stack} matrices", self.parts.len());
        MatrixSpec { stack, ..self }
    }

    /// Rows of each matrix.
    pub fn matrix_rows(&self) -> usize {
        self.rows() / self.stack
    }

    /// Rows over all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Its tensors' names, joined by `+`; of many the first and the last.
    pub fn name(&self) -> String {
        if let Some((first, _)) = self.parts.first().filter(|_| self.turned) {
            return format!("{first} turned");
        }
        if let [(first, _), .., (last, _)] = &self.parts[..]
            && self.stack > 1
        {
            return format!("{first}..{last}");
        }
        self.parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("+")
    }

    /// The tensors with their shapes `[rows, cols]` in the checkpoint.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, [usize; 2])> {
        self.parts.iter().enumerate().map(|(i, (name, rows))| {
            let whole = self.cut.as_ref().map(|cut| [cut.rows[i].of, cut.cols.of]);
            (name.as_str(), whole.unwrap_or([*rows, self.cols]))
        })
    }

    /// These rows of each tensor, one range a part.
    ///
    /// # Panics
    /// When it is a part already, or a range is not inside: a bug of the caller.
    #[must_use]
    pub fn take_rows(&self, ranges: &[Range<usize>]) -> Self {
        let cols = Span { first: 0, of: self.cols };
        let (parts, rows) = take(&self.parts, ranges);
        let cut = Some(MatrixCut { rows, cols });
        self.taken(MatrixSpec { parts, cut, ..self.clone() })
    }

    /// These columns of each tensor.
    ///
    /// # Panics
    /// As [`MatrixSpec::take_rows`].
    #[must_use]
    pub fn take_cols(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let rows = self.parts.iter().map(|&(_, of)| Span { first: 0, of }).collect();
        let cut = Some(MatrixCut { rows, cols: Span { first: range.start, of: self.cols } });
        self.taken(MatrixSpec { cols: range.len(), cut, ..self.clone() })
    }

    fn taken(&self, part: Self) -> Self {
        assert!(self.cut.is_none(), "{} is a part already", self.name());
        part
    }
}

/// A vector made of tensors one after the other, e.g. the biases of q, k and v, or of parts of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorSpec {
    /// Tensor names with the elements taken of each.
    pub parts: Vec<(String, usize)>,
    /// Which, where the tensors have more.
    cut: Option<Vec<Span>>,
    /// The checkpoint has every element less 1.
    less_one: bool,
}

impl VectorSpec {
    /// Whole tensors: names with their lengths.
    pub fn new(parts: Vec<(String, usize)>) -> Self {
        VectorSpec { parts, cut: None, less_one: false }
    }

    /// Of a checkpoint that has every element less 1, as some norms are kept: 1 is added, in f32, as they are read.
    #[must_use]
    pub fn stored_less_one(self) -> Self {
        VectorSpec { less_one: true, ..self }
    }

    /// Elements over all parts.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, len)| len).sum()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensors with their lengths in the checkpoint.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, usize)> {
        self.parts.iter().enumerate().map(|(i, (name, len))| {
            let whole = self.cut.as_ref().map(|cut| cut[i].of);
            (name.as_str(), whole.unwrap_or(*len))
        })
    }

    /// These elements of each tensor, one range a part.
    ///
    /// # Panics
    /// As [`MatrixSpec::take_rows`].
    #[must_use]
    pub fn take(&self, ranges: &[Range<usize>]) -> Self {
        assert!(self.cut.is_none(), "{:?} is a part already", self.parts);
        let (parts, cut) = take(&self.parts, ranges);
        VectorSpec { parts, cut: Some(cut), less_one: self.less_one }
    }
}

/// Names with the length of `ranges`, and where these are in tensors as long as `parts` says.
fn take(parts: &[(String, usize)], ranges: &[Range<usize>]) -> (Vec<(String, usize)>, Vec<Span>) {
    assert_eq!(parts.len(), ranges.len(), "one range a part of {parts:?}");
    let one = |((name, of), range): (&(String, usize), &Range<usize>)| {
        assert!(range.start <= range.end && range.end <= *of, "{range:?} of {name}, which has {of}");
        ((name.clone(), range.len()), Span { first: range.start, of: *of })
    };
    parts.iter().zip(ranges).map(one).unzip()
}

impl ModelDir {
    /// A matrix to be kept as `store`, borrowed from the checkpoint. Columns of larger tensors do not lie together
    /// there, nor do transposed parts: they are copied to `copy`, which is empty otherwise.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a part is missing, or has another shape or an unsupported dtype; or its scales are, of one of
    /// eight bits.
    pub fn matrix<'a>(
        &'a self,
        spec: &MatrixSpec,
        store: WeightFormat,
        copy: &'a mut Vec<u8>,
    ) -> Result<HostWeight<'a>> {
        copy.clear();
        let mut parts = Vec::with_capacity(spec.parts.len());
        for ((name, shape), (_, rows)) in spec.tensors().zip(&spec.parts) {
            let view = self.tensor_of_shape(name, &shape)?;
            let scales = if view.dtype == DType::F8 { Some(self.scales(name, shape)?) } else { None };
            parts.push(HostPart { dtype: view.dtype, rows: *rows, bytes: view.bytes, scales });
        }
        if let Some(cut) = &spec.cut {
            match spec.turned {
                false => cut.apply(spec.cols, &mut parts, copy),
                true => cut.turn(spec.cols, &mut parts, copy),
            }
        }
        let weight = HostWeight { name: spec.name(), stack: spec.stack, cols: spec.cols, parts, store, gated: false };
        weight.check().map_err(|e| Error::file(&self.files().root(), e.to_string()))?;
        Ok(weight)
    }

    /// A vector, converted to f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a part is missing, or has another shape or an unsupported dtype.
    pub fn vector(&self, spec: &VectorSpec) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(spec.len());
        for (i, ((name, of), (_, len))) in spec.tensors().zip(&spec.parts).enumerate() {
            let view = self.tensor_of_shape(name, &[of])?;
            let first = spec.cut.as_ref().map_or(0, |cut| cut[i].first);
            let size = view.dtype.size();
            extend_f32(&mut out, view.dtype, &view.bytes[first * size..(first + len) * size]);
        }
        if spec.less_one {
            out.iter_mut().for_each(|v| *v += 1.0);
        }
        Ok(out)
    }
}

impl MatrixCut {
    /// Narrows `parts`, which hold whole tensors but already say how many rows are wanted, to these rows and `cols`
    /// columns.
    fn apply<'a>(&self, cols: usize, parts: &mut [HostPart<'a>], copy: &'a mut Vec<u8>) {
        let row_bytes = |part: &HostPart<'_>| self.cols.of * part.dtype.size();
        for (part, span) in parts.iter_mut().zip(&self.rows) {
            let row = row_bytes(part);
            part.bytes = &part.bytes[span.first * row..(span.first + part.rows) * row];
            part.scales = part.scales.map(|scales| HostScales { first: [span.first, self.cols.first], ..scales });
        }
        if cols == self.cols.of {
            return;
        }
        for part in parts.iter() {
            let (size, row) = (part.dtype.size(), row_bytes(part));
            let taken = self.cols.first * size..(self.cols.first + cols) * size;
            part.bytes.chunks_exact(row).for_each(|row| copy.extend_from_slice(&row[taken.clone()]));
        }
        deal_out(cols, parts, copy);
    }

    /// The same for parts that are transposed: `cols` rows of each tensor become columns.
    fn turn<'a>(&self, cols: usize, parts: &mut [HostPart<'a>], copy: &'a mut Vec<u8>) {
        for (part, span) in parts.iter().zip(&self.rows) {
            let (size, row) = (part.dtype.size(), self.cols.of * part.dtype.size());
            let taken = &part.bytes[span.first * row..(span.first + cols) * row];
            for element in (0..part.rows * size).step_by(size) {
                taken.chunks_exact(row).for_each(|row| copy.extend_from_slice(&row[element..element + size]));
            }
        }
        for (part, span) in parts.iter_mut().zip(&self.rows) {
            part.scales = part.scales.map(|scales| {
                let [rows, cols] = scales.block;
                HostScales { turned: true, block: [cols, rows], first: [self.cols.first, span.first], ..scales }
            });
        }
        deal_out(cols, parts, copy);
    }
}

/// Gives parts of `cols` columns what `copy` has of them, one after the other.
fn deal_out<'a>(cols: usize, parts: &mut [HostPart<'a>], copy: &'a [u8]) {
    let mut rest = copy;
    for part in parts {
        (part.bytes, rest) = rest.split_at(part.rows * cols * part.dtype.size());
    }
}

/// Appends little-endian floats of any alignment as f32.
pub(crate) fn extend_f32(out: &mut Vec<f32>, dtype: DType, bytes: &[u8]) {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::BF16 => out.extend(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32())),
        DType::F16 => out.extend(pairs().map(|b| half::f16::from_le_bytes(b).to_f32())),
        DType::F8 => out.extend(bytes.iter().map(|&b| anyfleet_tensor::f8::decode(b))),
        DType::F32 | DType::U32 | DType::U8 | DType::I8 => {
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
    }
}
