//! Brings a checkpoint's weights onto a device.
use crate::decoder::{Decoder, Layer, Projection};
use crate::{DecoderSpec, LayerWeights, Model, RopeSpec, WeightMap, rope_table};
use anyfleet_tensor::{Backend, DType, Tensor, WeightFormat};
use anyfleet_weights::{MatrixSpec, ModelDir, VectorSpec};

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint's fault.
    #[error(transparent)]
    Checkpoint(#[from] anyfleet_weights::Error),
    /// The device's.
    #[error(transparent)]
    Device(#[from] anyfleet_tensor::Error),
}

/// Loads, and tells how far it is.
struct Loader<'a, B: Backend> {
    device: &'a B,
    dir: &'a ModelDir,
    store: WeightFormat,
    /// Matrix elements done and to do.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

type Result<T> = std::result::Result<T, LoadError>;

impl<B: Backend> Loader<'_, B> {
    fn matrix(&mut self, spec: &MatrixSpec) -> Result<B::Weight> {
        let weight = self.device.load(self.dir.matrix(spec, self.store)?)?;
        self.done += elements(spec);
        (self.progress)(self.done, self.total);
        Ok(weight)
    }

    fn vector(&self, spec: &VectorSpec) -> Result<Tensor<B>> {
        let values = self.dir.vector(spec)?;
        Ok(upload(self.device, &values, &[values.len()])?)
    }

    fn projection(&mut self, weight: &MatrixSpec, bias: Option<&VectorSpec>) -> Result<Projection<B>> {
        Ok(Projection { weight: self.matrix(weight)?, bias: bias.map(|b| self.vector(b)).transpose()? })
    }

    fn layer(&mut self, weights: &LayerWeights, rope: Option<usize>) -> Result<Layer<B>> {
        Ok(Layer {
            input_norm: self.vector(&weights.input_norm)?,
            qkv: self.projection(&weights.qkv, weights.qkv_bias.as_ref())?,
            qk_norm: match (&weights.q_norm, &weights.k_norm) {
                (Some(q), Some(k)) => Some((self.vector(q)?, self.vector(k)?)),
                _ => None,
            },
            rope,
            output: self.projection(&weights.output, weights.output_bias.as_ref())?,
            mlp_norm: self.vector(&weights.mlp_norm)?,
            gate_up: self.projection(&weights.gate_up, weights.gate_up_bias.as_ref())?,
            down: self.projection(&weights.down, weights.down_bias.as_ref())?,
        })
    }
}

fn elements(spec: &MatrixSpec) -> u64 {
    (spec.rows() * spec.cols) as u64
}

fn upload<B: Backend>(device: &B, values: &[f32], shape: &[usize]) -> anyfleet_tensor::Result<Tensor<B>> {
    let tensor = Tensor::new(device, DType::F32, shape)?;
    device.write(&tensor, bytemuck::cast_slice(values))?;
    Ok(tensor)
}

/// The distinct rotary embeddings of a decoder, in order of first use.
fn distinct_ropes(spec: &DecoderSpec) -> Vec<&RopeSpec> {
    let mut ropes: Vec<&RopeSpec> = Vec::new();
    for rope in spec.layers.iter().filter_map(|l| l.attention.rope.as_ref()) {
        if !ropes.contains(&rope) {
            ropes.push(rope);
        }
    }
    ropes
}

impl<B: Backend> Decoder<B> {
    /// Device bytes of the packed weights of `spec`, norms and biases included.
    pub fn weight_bytes(device: &B, spec: &DecoderSpec, store: WeightFormat) -> usize {
        let map = WeightMap::new(spec);
        let matrices: usize = map.matrices().map(|m| device.weight_bytes(m.rows(), m.cols, store)).sum();
        matrices + map.vector_elements() * DType::F32.size()
    }

    /// Device bytes of the rotary tables for `positions` positions.
    pub fn rope_bytes(spec: &DecoderSpec, positions: usize) -> usize {
        distinct_ropes(spec).iter().map(|r| r.rotary_dim * positions * DType::F32.size()).sum()
    }

    /// Loads every weight of `model`, keeping matrices as `store`, for sequences of up to
    /// `positions` tokens and activations of type `activation`. `progress` hears of matrix elements
    /// done and in all.
    ///
    /// # Errors
    /// The first tensor that is missing or malformed, or out of device memory.
    pub fn load(device: &B, model: &Model, options: LoadOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let Model { dir, spec, weights } = model;
        let total = weights.matrices().map(elements).sum();
        let mut loader = Loader { device, dir, store: options.store, done: 0, total, progress };
        let distinct = distinct_ropes(spec);
        let mut ropes = Vec::with_capacity(distinct.len());
        for rope in &distinct {
            let table = rope_table(rope, options.positions);
            ropes.push(((*rope).clone(), upload(device, &table, &[options.positions, rope.rotary_dim])?));
        }
        let rope_of =
            |i: usize| spec.layers[i].attention.rope.as_ref().and_then(|r| distinct.iter().position(|d| *d == r));
        Ok(Decoder {
            embed: loader.matrix(&weights.embed)?,
            layers: weights
                .layers
                .iter()
                .enumerate()
                .map(|(i, l)| loader.layer(l, rope_of(i)))
                .collect::<Result<_>>()?,
            final_norm: loader.vector(&weights.final_norm)?,
            head: weights.head.as_ref().map(|h| loader.matrix(h)).transpose()?,
            ropes,
            spec: spec.clone(),
        })
    }
}

/// How to load a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Format of matrices on the device.
    pub store: WeightFormat,
    /// Positions the rotary tables cover.
    pub positions: usize,
}
