//! Brings a checkpoint's weights onto a device.
use crate::decoder::{Decoder, Head, Layer, Projection};
use crate::latent::{LatentLayer, LatentWeights};
use crate::pack::Packs;
use crate::{DecoderSpec, LayerWeights, Model, RopeSpec, Shard, rope_table};
use anyfleet_tensor::{Backend, DType, HostWeight, Tensor, WeightFormat};
use anyfleet_weights::{MatrixSpec, ModelDir, VectorSpec};
use half::{bf16, f16};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint's fault.
    #[error(transparent)]
    Checkpoint(#[from] anyfleet_weights::Error),
    /// The device's.
    #[error(transparent)]
    Device(#[from] anyfleet_tensor::Error),
    /// The caller's wish.
    #[error("loading was stopped")]
    Stopped,
}

/// Loads, and tells how far it is.
struct Loader<'a, B: Backend> {
    device: &'a B,
    dir: &'a ModelDir,
    store: WeightFormat,
    packs: Packs<B>,
    /// Columns of a matrix, while it is loaded.
    copy: Vec<u8>,
    /// Matrix elements done and to do.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

type Result<T> = std::result::Result<T, LoadError>;

impl<B: Backend> Loader<'_, B> {
    fn matrix(&mut self, spec: &MatrixSpec, role: Role) -> Result<B::Weight> {
        let (store, gated) = (stored_as(self.store, role, spec), role == Role::Gated);
        let weight = match self.packs.take(self.device, spec, store, gated) {
            Some(weight) => weight,
            None => {
                let weight = self.device.load(HostWeight { gated, ..self.dir.matrix(spec, store, &mut self.copy)? })?;
                self.dir.release(spec);
                self.packs.keep(spec, store, gated, &weight);
                weight
            }
        };
        self.done += elements(spec);
        match (self.progress)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(weight),
            ControlFlow::Break(()) => Err(LoadError::Stopped),
        }
    }

    fn vector(&self, spec: &VectorSpec) -> Result<Tensor<B>> {
        let values = self.dir.vector(spec)?;
        Ok(upload(self.device, &values, &[values.len()])?)
    }

    fn projection(&mut self, weight: &MatrixSpec, role: Role, bias: Option<&VectorSpec>) -> Result<Projection<B>> {
        Ok(Projection { weight: self.matrix(weight, role)?, bias: bias.map(|b| self.vector(b)).transpose()? })
    }

    fn latent(&mut self, weights: &LatentWeights) -> Result<LatentLayer<B>> {
        let queries = match &weights.queries {
            Some((norm, matrix)) => Some((self.vector(norm)?, self.matrix(matrix, Role::Plain)?)),
            None => None,
        };
        Ok(LatentLayer {
            queries,
            norm: self.vector(&weights.norm)?,
            keys: self.matrix(&weights.keys, Role::Plain)?,
            values: self.matrix(&weights.values, Role::Plain)?,
        })
    }

    fn layer(&mut self, weights: &LayerWeights, rope: Option<usize>) -> Result<Layer<B>> {
        Ok(Layer {
            input_norm: self.vector(&weights.input_norm)?,
            qkv: self.projection(&weights.qkv, Role::Plain, weights.qkv_bias.as_ref())?,
            latent: weights.latent.as_ref().map(|latent| self.latent(latent)).transpose()?,
            qk_norm: match (&weights.q_norm, &weights.k_norm) {
                (Some(q), Some(k)) => Some((self.vector(q)?, self.vector(k)?)),
                _ => None,
            },
            rope,
            output: self.projection(&weights.output, Role::Output, weights.output_bias.as_ref())?,
            mlp_norm: self.vector(&weights.mlp_norm)?,
            router: weights.router.as_ref().map(|router| self.matrix(router, Role::Router)).transpose()?,
            router_bias: weights.router_bias.as_ref().map(|bias| self.vector(bias)).transpose()?,
            gate_up: self.projection(&weights.gate_up, Role::Gated, weights.gate_up_bias.as_ref())?,
            down: self.projection(&weights.down, Role::Plain, weights.down_bias.as_ref())?,
            shared: match &weights.shared {
                Some((gate_up, down)) => Some((self.matrix(gate_up, Role::Gated)?, self.matrix(down, Role::Plain)?)),
                None => None,
            },
            attention_post_norm: weights.attention_post_norm.as_ref().map(|norm| self.vector(norm)).transpose()?,
            mlp_post_norm: weights.mlp_post_norm.as_ref().map(|norm| self.vector(norm)).transpose()?,
        })
    }
}

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Embedding or head.
    Table,
    /// Attention's output projection.
    Output,
    /// Gates, and what they gate.
    Gated,
    /// What chooses experts.
    Router,
    /// Any other.
    Plain,
}

/// Most input features of a matrix that keeps eight bits where others have four.
const NARROW: usize = 64;

/// The format of a matrix. Some keep eight bits where the model has four: embedding and head, whose errors no
/// layer averages; the attention's output projection, where four bits cost the most for its size; and narrow
/// matrices, whose sums have too few terms for their errors to average, and which are small.
///
/// In a model of f8, embedding and head are bf16, as published checkpoints have them, and so is what a checkpoint of f8 has
/// as floats.
///
/// A router is kept in f32: it is small, and what it rounds away changes which experts a token meets.
///
/// A part of a matrix has the format of the whole: how a model is split does not decide how it is quantized.
fn stored_as(store: WeightFormat, role: Role, spec: &MatrixSpec) -> WeightFormat {
    let cols = spec.tensors().next().map_or(spec.cols, |(_, [_, cols])| cols);
    match (store, role) {
        (_, Role::Router) => WeightFormat::Float(DType::F32),
        (WeightFormat::F8, Role::Table) => WeightFormat::Float(DType::BF16),
        (WeightFormat::F8, _) if spec.floats => WeightFormat::Float(DType::BF16),
        (WeightFormat::Q4, Role::Table | Role::Output) => WeightFormat::Q8,
        (WeightFormat::Q4, _) if cols <= NARROW => WeightFormat::Q8,
        _ => store,
    }
}

/// What embedding rows are multiplied with, as the reference implementation rounds it: to the type of the matrix.
fn embed_scale(spec: &DecoderSpec, store: WeightFormat) -> f32 {
    let scale = spec.embed_scale.unwrap_or(1.0) as f32;
    match store {
        WeightFormat::Float(DType::BF16) | WeightFormat::F8 => bf16::from_f32(scale).to_f32(),
        WeightFormat::Float(DType::F16) => f16::from_f32(scale).to_f32(),
        _ => scale,
    }
}

/// Every matrix with its format, and whether it is gated; embedding and head first.
pub(crate) fn stored(shard: &Shard, store: WeightFormat) -> impl Iterator<Item = (&MatrixSpec, WeightFormat, bool)> {
    let layers = shard.weights.layers.iter().flat_map(|l| {
        let router = l.router.iter().map(|router| (router, Role::Router));
        let latent = l.latent.iter().flat_map(LatentWeights::matrices).map(|matrix| (matrix, Role::Plain));
        let attention = [(&l.qkv, Role::Plain)].into_iter().chain(latent).chain([(&l.output, Role::Output)]);
        let shared = l.shared.iter().flat_map(|(gate_up, down)| [(gate_up, Role::Gated), (down, Role::Plain)]);
        attention.chain(router).chain([(&l.gate_up, Role::Gated), (&l.down, Role::Plain)]).chain(shared)
    });
    let tables = shard.tables().map(|m| (m, Role::Table));
    tables.chain(layers).map(move |(m, role)| (m, stored_as(store, role, m), role == Role::Gated))
}

impl Shard {
    /// Elements of all matrices that are loaded: what the progress of a load counts.
    pub fn elements(&self) -> u64 {
        self.matrices().map(elements).sum()
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
    /// Device bytes of the packed weights of `shard`, norms and biases included.
    pub fn weight_bytes(device: &B, shard: &Shard, store: WeightFormat) -> usize {
        let bytes = |(m, store, _): (&MatrixSpec, WeightFormat, bool)| {
            // A stack is one buffer.
            device.buffer_bytes(m.stack * device.weight_bytes(m.matrix_rows(), m.cols, store))
        };
        let matrices: usize = stored(shard, store).map(bytes).sum();
        matrices + shard.vector_elements() * DType::F32.size()
    }

    /// Device bytes of the rotary tables for `positions` positions.
    pub fn rope_bytes(spec: &DecoderSpec, positions: usize) -> usize {
        distinct_ropes(spec).iter().map(|r| r.rotary_dim * positions * DType::F32.size()).sum()
    }

    /// Loads every weight of `model`, keeping matrices as `store`, for sequences of up to
    /// `positions` tokens and activations of type `activation`. `progress` hears of matrix elements
    /// done and in all, and may stop the load.
    ///
    /// # Errors
    /// The first tensor that is missing or malformed, out of device memory, or stopped.
    pub fn load(
        device: &B,
        model: &Model,
        options: LoadOptions,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self> {
        Self::load_shard(device, &model.dir, &Shard::whole(&model.spec, &model.weights), options, progress)
    }

    /// As [`Decoder::load`], a part of the decoder that `dir` has.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_shard(
        device: &B,
        dir: &ModelDir,
        shard: &Shard,
        options: LoadOptions,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self> {
        let Shard { spec, weights, place, .. } = shard;
        let total = shard.elements();
        let packs = Packs::open(device, dir, shard, options.store, options.packs.as_deref());
        let mut loader =
            Loader { device, dir, store: options.store, packs, copy: Vec::new(), done: 0, total, progress };
        let distinct = distinct_ropes(spec);
        let mut ropes = Vec::with_capacity(distinct.len());
        for rope in &distinct {
            let table = rope_table(rope, options.positions);
            ropes.push(((*rope).clone(), upload(device, &table, &[options.positions, rope.rotary_dim])?));
        }
        let rope_of =
            |i: usize| spec.layers[i].attention.rope.as_ref().and_then(|r| distinct.iter().position(|d| *d == r));
        // The largest matrices first: for a moment they are in memory twice.
        let tables = shard.tables().map(|table| loader.matrix(table, Role::Table)).collect::<Result<Vec<_>>>()?;
        let embed = tables.first().filter(|_| shard.embeds()).cloned();
        let head = match tables.last().filter(|_| shard.has_head()) {
            Some(weight) => Some(Head { norm: loader.vector(&weights.final_norm)?, weight: weight.clone() }),
            None => None,
        };
        let decoder = Decoder {
            place: place.clone(),
            embed,
            embed_scale: embed_scale(spec, options.store),
            layers: weights
                .layers
                .iter()
                .enumerate()
                .map(|(i, l)| loader.layer(l, rope_of(i)))
                .collect::<Result<_>>()?,
            head,
            ropes,
            spec: spec.clone(),
        };
        loader.packs.finish();
        Ok(decoder)
    }
}

/// How to load a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Format of matrices on the device; with four bits, some have eight, and with f8 some are bf16.
    pub store: WeightFormat,
    /// Positions the rotary tables cover.
    pub positions: usize,
    /// Folder of packed weights ([`pack`](anyfleet_weights::pack)): they come from there, or are written
    /// there once they are loaded. Without one, nothing is kept.
    pub packs: Option<PathBuf>,
}
