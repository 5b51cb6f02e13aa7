//! Cache groups of a model and the memory behind them.
use anyfleet_models::{DecoderSpec, LayerCache, LayerSpec};
use anyfleet_runtime::{CacheKind, Limits};
use anyfleet_tensor::{Backend, DType, Result, Tensor};

/// Layers of one kind of state: they share an allocator and a block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerGroup {
    /// Kind of state.
    pub kind: CacheKind,
    /// Layer indices, ascending.
    pub layers: Vec<usize>,
}

/// Groups the layers of `spec` by kind of state. A window that covers `max_model_len` is no window.
pub fn cache_groups(spec: &DecoderSpec, max_model_len: usize) -> Vec<LayerGroup> {
    let mut groups: Vec<LayerGroup> = Vec::new();
    for (i, layer) in spec.layers.iter().enumerate() {
        let kind = kind(layer, max_model_len);
        match groups.iter_mut().find(|g| g.kind == kind) {
            Some(group) => group.layers.push(i),
            None => groups.push(LayerGroup { kind, layers: vec![i] }),
        }
    }
    groups
}

fn kind(layer: &LayerSpec, max_model_len: usize) -> CacheKind {
    match layer.attention.window {
        _ if layer.attention.latent.is_some() => CacheKind::Latent,
        Some(window) if window < max_model_len => CacheKind::Window(window as u32),
        _ => CacheKind::Paged,
    }
}

impl LayerGroup {
    /// The same group in a part of the model: its layers of this kind, which may be none. One block table addresses all
    /// parts, so each has all groups.
    pub fn part(&self, spec: &DecoderSpec, max_model_len: usize) -> LayerGroup {
        let same = |&i: &usize| kind(&spec.layers[i], max_model_len) == self.kind;
        LayerGroup { kind: self.kind, layers: (0..spec.layers.len()).filter(same).collect() }
    }

    /// Bytes of one page over all layers of the group, keys and values, their scales included.
    pub fn page_bytes(&self, spec: &DecoderSpec, page_size: usize, kv: DType) -> u64 {
        let scale = if kv.is_scaled() { DType::F32.size() } else { 0 };
        let token = |layer: &LayerSpec| {
            let attention = &layer.attention;
            attention.cached_width() * kv.size() + attention.cached_width() / attention.head_dim * scale
        };
        self.layers.iter().map(|&i| (token(&spec.layers[i]) * page_size) as u64).sum()
    }

    /// Bytes of one page in the largest buffer it has a part of: the keys, or the values, of one layer.
    pub fn largest_part(&self, spec: &DecoderSpec, page_size: usize, kv: DType) -> u64 {
        let attention = |&i: &usize| &spec.layers[i].attention;
        self.layers
            .iter()
            .map(attention)
            .map(|a| (a.kv_heads * a.head_dim * kv.size() * page_size) as u64)
            .max()
            .unwrap_or(0)
    }

    /// Pages one sequence of `len` tokens holds at most, when a step adds up to `chunk` tokens.
    pub fn pages_per_sequence(&self, len: usize, chunk: usize, page_size: usize) -> u64 {
        let all = len.div_ceil(page_size);
        let held = match self.kind {
            // The window may begin in the middle of a page and the chunk end in the middle of one.
            CacheKind::Window(window) => (window as usize + chunk).div_ceil(page_size) + 1,
            _ => all,
        };
        held.min(all) as u64
    }
}

/// Allocates keys and values of every layer, in layer order.
pub fn allocate<B: Backend>(device: &B, spec: &DecoderSpec, limits: &Limits, kv: DType) -> Result<Vec<LayerCache<B>>> {
    let Limits { cache, max_model_len, .. } = limits;
    let group_of = |layer| {
        let kind = kind(layer, *max_model_len);
        cache.groups.iter().position(|group| group.kind == kind).expect("cache: a layer of a kind that was not planned")
    };
    spec.layers
        .iter()
        .map(|layer| {
            let group = group_of(layer);
            let pages = cache.groups[group].pages as usize;
            let shape = [pages, layer.attention.kv_heads, cache.page_size as usize, layer.attention.head_dim];
            let tensor = |dtype, shape: &[usize]| Tensor::new(device, dtype, shape);
            let scales = match kv.is_scaled() {
                true => Some((tensor(DType::F32, &shape[..3])?, tensor(DType::F32, &shape[..3])?)),
                false => None,
            };
            let k = tensor(kv, &shape)?;
            let v = if layer.attention.latent.is_some() { k.clone() } else { tensor(kv, &shape)? };
            Ok(LayerCache { k, v, scales, group })
        })
        .collect()
}
