//! Key and value caches `[P, G, p, d]`, and the scales `[P, G, p]` of caches of i8.
use crate::expect::{Expected, Want};
use crate::number::poison;
use crate::stage::Stage;
use anyfleet_tensor::ops::KvScales;
use anyfleet_tensor::{Backend, DType, Result, Tensor, f8};
use std::collections::BTreeMap;

/// Shape of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageShape {
    pub groups: usize,
    pub tokens: usize,
    pub size: usize,
    pub dtype: DType,
}

impl PageShape {
    pub fn elements(&self) -> usize {
        self.groups * self.tokens * self.size
    }
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
    /// Elements of one head's vector at `offset` in a page.
    pub fn head(&self, group: usize, offset: usize) -> std::ops::Range<usize> {
        let start = (group * self.tokens + offset) * self.size;
        start..start + self.size
    }
    pub fn dims(&self, pages: usize) -> [usize; 4] {
        [pages, self.groups, self.tokens, self.size]
    }
    /// The scales of these pages: heads of one element.
    pub fn scales(&self) -> PageShape {
        PageShape { size: 1, dtype: DType::F32, ..*self }
    }
    /// A page nobody wrote.
    pub fn blank(&self) -> Vec<u8> {
        poison(self.dtype).iter().copied().cycle().take(self.bytes()).collect()
    }
}

/// Two caches whose pages in use lie past `offset` bytes, and their scales. Only `pages` of them are ever
/// touched, so memory that is committed lazily stays small. Returns them and the first page in use.
pub(super) fn far_caches<B: Backend>(
    stage: &Stage<'_, B>,
    shape: PageShape,
    offset: u64,
    pages: usize,
) -> Result<(Caches<B>, usize)> {
    let first = (offset as usize).div_ceil(shape.bytes());
    let dims = shape.dims(first + pages + 1);
    let cache = || Tensor::new(stage.backend(), shape.dtype, &dims);
    let scale = || Tensor::new(stage.backend(), DType::F32, &dims[..3]);
    let scales = if shape.dtype.is_scaled() { Some([scale()?, scale()?]) } else { None };
    Ok((Caches { cells: [cache()?, cache()?], scales }, first))
}

/// Keys and values on a device.
pub(super) struct Caches<B: Backend> {
    pub cells: [Tensor<B>; 2],
    /// Of caches of i8.
    pub scales: Option<[Tensor<B>; 2]>,
}

impl<B: Backend> Caches<B> {
    pub fn kv_scales(&self) -> Option<KvScales<'_, B>> {
        self.scales.as_ref().map(|[k, v]| KvScales { k, v })
    }
}

/// Names of both caches and their scales, as operands.
pub(super) const NAMES: [[&str; 2]; 2] = [["k_cache", "v_cache"], ["k_scale", "v_scale"]];

/// What a cache of this type keeps of a number: E4M3 ends where others go on.
pub(super) fn bounded(kv: DType, want: Want) -> Want {
    match want {
        Want::Near { value, scale } if kv == DType::F8 => {
            let most = f64::from(f8::MAX);
            Want::Near { value: value.clamp(-most, most), scale }
        }
        want => want,
    }
}

/// What pages of a cache must hold: everything is kept but the heads that are set.
pub(super) struct CacheWants {
    shape: PageShape,
    pages: BTreeMap<usize, Vec<Want>>,
}

impl CacheWants {
    pub fn new(shape: PageShape) -> Self {
        CacheWants { shape, pages: BTreeMap::new() }
    }

    pub fn set(&mut self, slot: usize, group: usize, wants: &[Want]) {
        let (page, offset) = (slot / self.shape.tokens, slot % self.shape.tokens);
        let blank = || vec![Want::Kept; self.shape.elements()];
        self.pages.entry(page).or_insert_with(blank)[self.shape.head(group, offset)].copy_from_slice(wants);
    }

    pub fn finish(self) -> Expected {
        Expected { rows: self.pages.into_iter().collect() }
    }
}
