//! Weight matrices as they would lie in a checkpoint.
use crate::number::{decode, encode, round};
use crate::rng::Rng;
use anyfleet_tensor::{Backend, DType, HostPart, HostWeight, Operand, Result, WeightFormat, halves, quant};

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

struct Part {
    dtype: DType,
    rows: usize,
    /// One byte too many in front: a memory map promises no alignment.
    bytes: Vec<u8>,
}

/// A weight matrix in parts of possibly different types, and the type it shall be kept in.
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
                _ => DType::BF16,
            };
            let dtype = if small { rng.pick(&[DType::F32, DType::BF16, DType::F16, kept]) } else { kept };
            let mut bytes = vec![0; 1 + take * cols * dtype.size()];
            for row in bytes[1..].chunks_exact_mut(cols * dtype.size()) {
                row.copy_from_slice(&encode(dtype, &spread.weights(rng, cols, scale)));
            }
            parts.push(Part { dtype, rows: take, bytes });
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

    /// One output row as the device multiplies it: rounded to the stored type, or what its integers stand for.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let drawn = self.drawn(row);
        match self.store {
            WeightFormat::Float(kept) => {
                let kept: Vec<f32> = drawn.into_iter().map(|v| round(kept, v)).collect();
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
    fn drawn(&self, mut row: usize) -> Vec<f32> {
        for part in &self.parts {
            if row < part.rows {
                let bytes = &part.bytes[1 + row * self.cols * part.dtype.size()..];
                return (0..self.cols).map(|c| decode(part.dtype, bytes, c) as f32).collect();
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
        let parts = self.parts.iter().map(|p| HostPart { dtype: p.dtype, rows: p.rows, bytes: &p.bytes[1..] });
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
