//! Weight matrices as they would lie in a checkpoint.
use crate::number::{decode, encode, round};
use crate::rng::Rng;
use anyfleet_tensor::{
    Backend, DType, HostPart, HostScales, HostWeight, Operand, Result, WeightFormat, f8, halves, quant,
};

/// Magnitudes of drawn values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Normal, deviation 1.
    Normal,
    /// Normal, with one channel in a thousand (at least one) 50 to 100 times as large, as in the
    /// residual stream of large models.
    Outliers,
    /// Activations around 1e5 and weights around 1e-6: overflow of f16 and its subnormals.
    Extreme,
    /// Both ends in one matrix: rows of activations around 1e5, 1 and 1e-5, output features around 1 and 1e-6, and in all of
    /// them elements a thousand times smaller than the others.
    Mixed,
}

impl Spread {
    /// `[rows, cols]` activations. f16 cannot hold 1e5; it gets its own upper end.
    pub fn activations(self, rng: &mut Rng, rows: usize, cols: usize, dtype: DType) -> Vec<f32> {
        let scale = match (self, dtype) {
            (Spread::Extreme, DType::F16) => 100.0,
            (Spread::Extreme, _) => 1e5,
            _ => 1.0,
        };
        let mut channels = vec![scale; cols];
        if self == Spread::Outliers && cols > 0 {
            for _ in 0..cols.div_ceil(1000) {
                channels[rng.below(cols)] = 50.0 + 50.0 * rng.unit() as f32;
            }
        }
        if self == Spread::Mixed {
            channels.iter_mut().for_each(|channel| *channel = rng.pick(&[1.0, 1e-3]));
        }
        let mut values = Vec::with_capacity(rows * cols);
        for _ in 0..rows {
            let row = match (self, dtype) {
                (Spread::Mixed, DType::F16) => rng.pick(&[100.0, 1.0]),
                (Spread::Mixed, _) => rng.pick(&[1e5, 1.0, 1e-5]),
                _ => 1.0,
            };
            values.extend(channels.iter().map(|channel| round(dtype, rng.normal() * channel * row)));
        }
        values
    }

    /// Deviation of weights.
    fn weight_scale(self, cols: usize) -> f32 {
        if self == Spread::Extreme { 1e-6 } else { 1.0 / (cols as f32).sqrt() }
    }

    /// An output feature of weights of this deviation.
    fn weights(self, rng: &mut Rng, cols: usize, scale: f32) -> Vec<f32> {
        if self != Spread::Mixed {
            return rng.normals(cols, scale);
        }
        let scale = scale * rng.pick(&[1.0, 1e-6]);
        (0..cols).map(|_| rng.normal() * scale * rng.pick(&[1.0, 1e-3])).collect()
    }
}

#[derive(Clone)]
struct Part {
    dtype: DType,
    rows: usize,
    /// One byte too many in front: a memory map promises no alignment.
    bytes: Vec<u8>,
    /// Of elements of f8.
    scales: Option<Scales>,
}

/// Scales of a tensor of which a part of f8 is some rows and columns.
#[derive(Clone)]
struct Scales {
    dtype: DType,
    /// One byte too many in front, as above.
    bytes: Vec<u8>,
    /// Blocks side by side.
    cols: usize,
    block: [usize; 2],
    first: [usize; 2],
}

impl Scales {
    /// Draws what a part of `rows` x `cols` elements needs: a scale for each channel, for the tensor, or for blocks of any
    /// size, of which the part need not begin with the first.
    fn draw(rng: &mut Rng, rows: usize, cols: usize, scale: f32) -> Self {
        let (dtype, most) = (rng.pick(&[DType::F32, DType::BF16]), 1 << 20);
        let block = match rng.below(5) {
            0 => [1, most],
            1 => [most, most],
            2 => [rng.range(1, 40), rng.range(1, 200)],
            _ => [128, 128],
        };
        // Whole blocks before the part, or an odd number of elements.
        let first = block.map(|block| match block == most {
            true => 0,
            false => rng.below(3) * if rng.chance(0.5) { block } else { rng.below(2 * block) },
        });
        let [down, side] = [(rows, 0), (cols, 1)].map(|(n, i)| (first[i] + n).div_ceil(block[i]) + rng.below(2));
        let values: Vec<f32> = (0..down * side).map(|_| scale / 100.0 * (0.2 + rng.unit() as f32)).collect();
        Scales { dtype, bytes: [vec![0], encode(dtype, &values)].concat(), cols: side, block, first }
    }

    /// The block that an element of the part is in, and its scale.
    fn of(&self, row: usize, col: usize) -> (usize, f32) {
        let block = (self.first[0] + row) / self.block[0] * self.cols + (self.first[1] + col) / self.block[1];
        (block, decode(self.dtype, &self.bytes[1..], block) as f32)
    }
}

/// What an element of f8 stands for.
fn read_as(byte: u8, scale: f32) -> f32 {
    round(DType::BF16, f8::decode(byte) * scale)
}

/// A weight matrix in parts of possibly different types, and the type it shall be kept in.
#[derive(Clone)]
pub struct Matrix {
    cols: usize,
    parts: Vec<Part>,
    store: WeightFormat,
    /// The device multiplies floats as f16 times a power of two.
    halves: bool,
}

impl Matrix {
    /// Draws a `rows` x `cols` matrix. Small ones are split into up to three parts of any float
    /// type; large ones come in one part of the stored type.
    pub fn draw(rng: &mut Rng, rows: usize, cols: usize, store: WeightFormat, spread: Spread) -> Self {
        const LARGE: usize = 1 << 22;
        let scale = spread.weight_scale(cols);
        let mut left = rows;
        let mut parts = Vec::new();
        while left > 0 {
            let small = rows * cols < LARGE;
            let take = if small && parts.len() < 2 { rng.range(1, left) } else { left };
            let kept = match store {
                WeightFormat::Float(dtype) => dtype,
                WeightFormat::F8 => DType::F8,
                _ => DType::BF16,
            };
            let any = [DType::F32, DType::BF16, DType::F16, DType::F8, kept];
            let dtype = if small { rng.pick(&any) } else { kept };
            let scales = (dtype == DType::F8).then(|| Scales::draw(rng, take, cols, scale));
            let mut bytes = vec![0; 1 + take * cols * dtype.size()];
            for (r, row) in bytes[1..].chunks_exact_mut(cols * dtype.size()).enumerate() {
                let mut values = spread.weights(rng, cols, scale);
                if let Some(scales) = &scales {
                    values.iter_mut().enumerate().for_each(|(c, v)| *v /= scales.of(r, c).1);
                }
                row.copy_from_slice(&encode(dtype, &values));
            }
            parts.push(Part { dtype, rows: take, bytes, scales });
            left -= take;
        }
        Matrix { cols, parts, store, halves: false }
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    /// `in_features`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Says which form activations take that meet it: weights may take the same.
    pub fn met_by(&mut self, operand: Option<Operand>) {
        self.halves = operand == Some(Operand::Halves);
    }

    /// The bf16 matrix that one of f8 reads as.
    #[must_use]
    pub fn as_bf16(&self) -> Self {
        let (dtype, rows) = (DType::BF16, self.rows());
        let values: Vec<f32> = (0..rows).flat_map(|row| self.row(row)).collect();
        let part = Part { dtype, rows, bytes: [vec![0], encode(dtype, &values)].concat(), scales: None };
        Matrix { cols: self.cols, parts: vec![part], store: WeightFormat::Float(dtype), halves: false }
    }

    /// One output row as the device multiplies it: rounded to the stored type, or what its integers stand for.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let drawn = self.drawn(row);
        match self.store {
            WeightFormat::Float(kept) => {
                let kept: Vec<f32> = drawn.into_iter().map(|v| round(kept, v)).collect();
                if self.halves { halves::values(&kept) } else { kept }
            }
            WeightFormat::F8 => {
                let kept = self.kept_as_f8(row, &drawn);
                if self.halves { halves::values(&kept) } else { kept }
            }
            WeightFormat::Q8 => {
                let mut q = vec![0; drawn.len()];
                let scale = quant::q8_row(&drawn, &mut q);
                q.into_iter().map(|q| f32::from(q) * scale).collect()
            }
            WeightFormat::Q4 => {
                let (mut q, mut multipliers) = (vec![0; drawn.len()], vec![0; drawn.len().div_ceil(quant::GROUP)]);
                let scale = quant::q4_row(&drawn, &mut q, &mut multipliers);
                let group = |(q, m): (&[i8], &i8)| q.iter().map(|&q| f32::from(q * m) * scale).collect::<Vec<_>>();
                q.chunks(quant::GROUP).zip(&multipliers).flat_map(group).collect()
            }
            other => unreachable!("format {other} is not drawn"),
        }
    }

    /// One output row as it was drawn.
    fn drawn(&self, row: usize) -> Vec<f32> {
        let (part, row) = self.part(row);
        let bytes = &part.bytes[1 + row * self.cols * part.dtype.size()..];
        let number = |c: usize| match &part.scales {
            Some(scales) => read_as(bytes[c], scales.of(row, c).1),
            None => decode(part.dtype, bytes, c) as f32,
        };
        (0..self.cols).map(number).collect()
    }

    /// An output row, drawn as `drawn`, as f8 keeps it: groups that have one scale in the checkpoint stay as they are.
    fn kept_as_f8(&self, row: usize, drawn: &[f32]) -> Vec<f32> {
        let (part, row) = self.part(row);
        let mut kept = Vec::with_capacity(drawn.len());
        for values in drawn.chunks(quant::F8_GROUP) {
            let [first, last] = [kept.len(), kept.len() + values.len() - 1];
            let block = |col| part.scales.as_ref().map(|scales| scales.of(row, col).0);
            if block(first).is_some() && block(first) == block(last) {
                kept.extend_from_slice(values);
                continue;
            }
            let mut bytes = vec![0; values.len()];
            let scale = quant::f8_group(values, &mut bytes);
            kept.extend(bytes.into_iter().map(|byte| read_as(byte, scale)));
        }
        kept
    }

    /// The part that has an output row, and which of its rows it is.
    fn part(&self, mut row: usize) -> (&Part, usize) {
        for part in &self.parts {
            if row < part.rows {
                return (part, row);
            }
            row -= part.rows;
        }
        panic!("row past the end of a drawn matrix");
    }

    /// Packs it on a device; the first half of the rows are gates if it is `gated`.
    ///
    /// # Errors
    /// The backend's.
    pub fn load<B: Backend>(&self, backend: &B, gated: bool) -> Result<B::Weight> {
        self.load_stack(backend, 1, gated)
    }

    /// Packs it as a stack of `stack` matrices.
    ///
    /// # Errors
    /// The backend's.
    pub fn load_stack<B: Backend>(&self, backend: &B, stack: usize, gated: bool) -> Result<B::Weight> {
        let parts = self.parts.iter().map(|p| {
            let scales = p.scales.as_ref().map(|s| HostScales {
                dtype: s.dtype,
                bytes: &s.bytes[1..],
                cols: s.cols,
                turned: false,
                block: s.block,
                first: s.first,
            });
            HostPart { dtype: p.dtype, rows: p.rows, bytes: &p.bytes[1..], scales }
        });
        backend.load(HostWeight {
            name: "conformance.weight".into(),
            stack,
            cols: self.cols,
            parts: parts.collect(),
            store: self.store,
            gated,
        })
    }
}
