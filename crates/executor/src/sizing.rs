//! How long sequences may be and how many pages there are, over all parts of a model.
use crate::cache::{LayerGroup, cache_groups};
use crate::plan::{ExecutorOptions, PlanError, human};
use anyfleet_models::DecoderSpec;
use anyfleet_runtime::{CacheSpec, GroupSpec};

/// KV memory taken when nobody says how much, unless one sequence of the full length needs more.
const DEFAULT_KV_CAP: u64 = 4 << 30;

/// Sizes that depend on the length of a sequence.
pub(crate) struct Sizing<'a> {
    /// All of the model.
    pub spec: &'a DecoderSpec,
    pub options: &'a ExecutorOptions,
    pub page_size: usize,
    /// On how many devices it is, and what each has for it.
    pub parts: Vec<PartSizing<'a>>,
}

/// One device's part.
pub(crate) struct PartSizing<'a> {
    pub spec: &'a DecoderSpec,
    /// Memory for its keys and values.
    pub room: Option<u64>,
    /// The most bytes of one buffer.
    pub max_buffer: Option<u64>,
}

impl<'a> Sizing<'a> {
    pub(crate) fn groups(&self, len: usize) -> Vec<LayerGroup> {
        cache_groups(self.spec, len)
    }

    fn pages_per_sequence(&self, group: &LayerGroup, len: usize) -> u64 {
        group.pages_per_sequence(len, self.options.max_tokens, self.page_size)
    }

    /// Each group with the bytes of a page in `part`.
    fn page_bytes(&self, part: &PartSizing<'_>, len: usize) -> Vec<(LayerGroup, u64)> {
        let bytes = |g: LayerGroup| {
            let bytes = g.part(part.spec, len).page_bytes(part.spec, self.page_size, self.options.kv);
            (g, bytes)
        };
        self.groups(len).into_iter().map(bytes).collect()
    }

    /// Bytes of cache one sequence of `len` tokens needs in `part`.
    fn part_bytes(&self, part: &PartSizing<'_>, len: usize) -> u64 {
        self.page_bytes(part, len).iter().map(|(g, bytes)| self.pages_per_sequence(g, len) * bytes).sum()
    }

    /// Bytes of cache one sequence of `len` tokens needs in all parts together.
    fn sequence_bytes(&self, len: usize) -> u64 {
        self.parts.iter().map(|part| self.part_bytes(part, len)).sum()
    }

    /// The most pages a group can have: slots are u32 = page * page size + offset, with u32::MAX kept for "nowhere",
    /// and keys and values of a layer are a buffer each.
    fn most_pages(&self, group: &LayerGroup, len: usize) -> u64 {
        let slots = u64::from(u32::MAX) / self.page_size as u64 - 1;
        let of_part = |part: &PartSizing<'_>| {
            let largest = group.part(part.spec, len).largest_part(part.spec, self.page_size, self.options.kv);
            part.max_buffer.map_or(slots, |most| slots.min(most / largest.max(1)))
        };
        self.parts.iter().map(of_part).min().unwrap_or(slots)
    }

    /// Bytes that the pages the devices can hold in buffers have at most, shared out for sequences of `len` tokens.
    fn most_bytes(&self, len: usize) -> u64 {
        let sequences = |g: &LayerGroup| self.most_pages(g, len) as f64 / self.pages_per_sequence(g, len).max(1) as f64;
        let scarcest = self.groups(len).iter().map(sequences).fold(f64::INFINITY, f64::min);
        (self.sequence_bytes(len) as f64 * scarcest) as u64
    }

    /// Bytes of cache in all parts together, for sequences of `len` tokens, that no part lacks the memory for.
    fn room(&self, len: usize) -> Option<u64> {
        let whole = u128::from(self.sequence_bytes(len));
        let of_part = |part: &PartSizing<'_>| {
            let need = u128::from(self.part_bytes(part, len).max(1));
            Some(u64::try_from(u128::from(part.room?) * whole / need).unwrap_or(u64::MAX))
        };
        self.parts.iter().filter_map(of_part).min()
    }

    /// As much of `wanted` bytes as there can be for sequences of `len` tokens.
    fn budget(&self, wanted: u64, len: usize) -> u64 {
        wanted.min(self.room(len).unwrap_or(u64::MAX)).min(self.most_bytes(len))
    }

    /// The longest sequence, in whole pages, whose cache fits `budget` bytes.
    fn longest(&self, budget: u64, limit: usize) -> usize {
        let fits = |pages: usize| {
            let len = pages * self.page_size;
            self.sequence_bytes(len) <= self.budget(budget, len)
        };
        let (mut low, mut high) = (0, limit.div_ceil(self.page_size));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        (low * self.page_size).min(limit)
    }

    /// Splits `budget` over the groups in proportion to what a sequence of `len` tokens needs. One block table
    /// addresses all parts, so all have as many pages. Also the bytes of these in each part.
    pub(crate) fn cache(&self, len: usize, budget: u64) -> (CacheSpec, Vec<u64>) {
        let need = self.sequence_bytes(len).max(1);
        let pages = |g: &LayerGroup| {
            let per_sequence = self.pages_per_sequence(g, len);
            let pages = (u128::from(per_sequence) * u128::from(budget) / u128::from(need)) as u64;
            pages.min(self.most_pages(g, len)).max(per_sequence)
        };
        let groups = self.groups(len);
        let pages: Vec<u64> = groups.iter().map(pages).collect();
        let used = |part| self.page_bytes(part, len).iter().zip(&pages).map(|((_, bytes), pages)| bytes * pages).sum();
        let used = self.parts.iter().map(used).collect();
        let specs = groups.iter().zip(&pages).map(|(g, &pages)| GroupSpec { kind: g.kind, pages: pages as u32 });
        (CacheSpec { page_size: self.page_size as u32, groups: specs.collect() }, used)
    }

    /// Chooses sequence length and KV bytes of all parts together: what was asked for, or what fits.
    pub(crate) fn choose(&self, limit: usize) -> Result<(usize, u64, Vec<String>), PlanError> {
        let ExecutorOptions { max_model_len, kv_bytes, max_sequences, .. } = *self.options;
        let one = self.sequence_bytes(limit);
        if let (Some(asked), Some(room)) = (kv_bytes, self.room(limit))
            && asked > room
        {
            return Err(PlanError::new(format!(
                "--kv-cache-memory {} does not fit beside the weights; at most {} does",
                human(asked),
                human(room)
            )));
        }
        let wanted = one.saturating_mul(max_sequences as u64).min(DEFAULT_KV_CAP.max(one));
        let most = self.most_bytes(limit);
        let budget = self.budget(kv_bytes.unwrap_or(wanted), limit);
        if budget >= one {
            let note = kv_bytes.filter(|&asked| asked > most).map(|asked| {
                format!(
                    "the KV cache is {}, not {}: a buffer of the device holds no more of a layer",
                    human(most),
                    human(asked)
                )
            });
            return Ok((limit, budget, note.into_iter().collect()));
        }
        let fits = self.longest(budget, limit);
        if fits == 0 {
            let page = self.sequence_bytes(self.page_size.min(limit));
            return Err(PlanError::new(format!(
                "a KV cache of {} holds no page; the smallest useful --kv-cache-memory is {}",
                human(budget),
                human(page)
            )));
        }
        if max_model_len.is_some() {
            let or_more = if most < one { String::new() } else { format!(" or --kv-cache-memory {}", human(one)) };
            return Err(PlanError::new(format!(
                "one sequence of {limit} tokens needs {} of KV cache, but {} is what fits; use --max-model-len {fits}{or_more}",
                human(one),
                human(budget)
            )));
        }
        let note =
            format!("max-model-len lowered from {limit} to {fits}: that is what {} of KV cache holds", human(budget));
        Ok((fits, self.budget(budget, fits), vec![note]))
    }
}
