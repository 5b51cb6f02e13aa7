//! Packed weights from the last start, and for the next one.
use crate::load::stored;
use crate::{Place, Shard};
use anyfleet_tensor::{Backend, PackedWeight, WeightFormat};
use anyfleet_weights::pack::{Pack, PackError, PackMatrix, PackPlace, give_way};
use anyfleet_weights::{MatrixSpec, ModelDir};
use std::path::Path;

/// What a load does with packs.
pub(crate) enum Packs<B: Backend> {
    /// Nothing: there is no folder for them, or none of this device or model.
    Off,
    /// Takes the weights from one.
    Read(Pack),
    /// Keeps the weights for one.
    Write(PackPlace, Vec<(PackMatrix, B::Weight)>),
}

/// All matrices as a pack keeps them.
fn expected(shard: &Shard, store: WeightFormat) -> Vec<PackMatrix> {
    stored(shard, store).map(|(spec, store, gated)| describe(spec, store, gated)).collect()
}

fn describe(spec: &MatrixSpec, store: WeightFormat, gated: bool) -> PackMatrix {
    let (stack, rows) = (spec.stack, spec.matrix_rows());
    PackMatrix { name: spec.name(), stack, rows, cols: spec.cols, store, gated }
}

/// What tells the pack of a part from those of other parts: nothing for all of a model.
fn part(shard: &Shard) -> String {
    let Place { layers, rank, ranks } = &shard.place;
    match (shard.embeds() && shard.has_head(), ranks) {
        (true, 1) => String::new(),
        _ => format!(" layers {layers:?} rank {rank} of {ranks}"),
    }
}

impl<B: Backend> Packs<B> {
    /// Looks for the pack of this part of a model in `folder`.
    pub(crate) fn open(
        device: &B,
        dir: &ModelDir,
        shard: &Shard,
        store: WeightFormat,
        folder: Option<&Path>,
    ) -> Packs<B> {
        let layout = || Some(device.layout()? + &part(shard));
        let place = || PackPlace::new(folder?, dir, &layout()?, store);
        let Some(place) = place() else { return Packs::Off };
        let bytes = |m: &PackMatrix| m.stack * device.weight_bytes(m.rows, m.cols, m.store);
        match place.open(&expected(shard, store), bytes) {
            Ok(Some(pack)) => {
                pack.prefetch();
                return Packs::Read(pack);
            }
            Ok(None) => {}
            Err(e) => tracing::warn!("{e}"),
        }
        Packs::Write(place, Vec::new())
    }

    /// A matrix, if it was kept.
    pub(crate) fn take(&self, device: &B, spec: &MatrixSpec, store: WeightFormat, gated: bool) -> Option<B::Weight> {
        let Packs::Read(pack) = self else { return None };
        let PackMatrix { name, stack, rows, cols, .. } = describe(spec, store, gated);
        let bytes = pack.bytes(&name)?;
        let adopted = device.adopt(&PackedWeight { name, stack, rows, cols, store, gated }, bytes);
        adopted.inspect_err(|e| tracing::warn!("{e}; it is loaded from the checkpoint")).ok()
    }

    /// Keeps a matrix that was packed now.
    pub(crate) fn keep(&mut self, spec: &MatrixSpec, store: WeightFormat, gated: bool, weight: &B::Weight) {
        if let Packs::Write(_, matrices) = self {
            matrices.push((describe(spec, store, gated), weight.clone()));
        }
    }

    /// Writes what was kept, on a thread of its own that gives way to all others.
    pub(crate) fn finish(self) {
        let Packs::Write(place, matrices) = self else { return };
        let write = move || {
            give_way();
            if let Err(e) = write::<B>(&place, &matrices) {
                tracing::warn!("{e}; the next start packs again");
            }
        };
        if let Err(e) = std::thread::Builder::new().name("anyfleet-pack".into()).spawn(write) {
            tracing::warn!("packed weights are not kept: no thread could be started: {e}");
        }
    }
}

fn write<B: Backend>(place: &PackPlace, matrices: &[(PackMatrix, B::Weight)]) -> Result<(), PackError> {
    let exported = matrices.iter().map(|(matrix, weight)| Some((matrix.clone(), B::export(weight)?)));
    match exported.collect::<Option<Vec<_>>>() {
        Some(exported) => place.write(&exported),
        None => Ok(()),
    }
}
