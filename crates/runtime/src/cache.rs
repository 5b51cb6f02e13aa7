//! Cache groups: which pages a sequence holds in each, and what it can take over from earlier ones.
use crate::pages::{NO_PAGE, PagePool};
use crate::prefix::{NodeId, PrefixTree, Scope};
use crate::{CacheKind, CacheSpec, GroupBatch, GroupStats, TableRange};
use std::collections::{HashMap, VecDeque};

/// All cache groups of a model and the tree of prefixes they share.
#[derive(Debug)]
pub(crate) struct Cache {
    page_size: usize,
    groups: Vec<Group>,
    tree: PrefixTree,
    sharing: bool,
}

#[derive(Debug)]
struct Group {
    kind: CacheKind,
    pool: PagePool,
}

/// What one sequence holds. Opened by [`Cache::open`], grown by [`Cache::grant`], closed by
/// [`Cache::close`].
#[derive(Debug, Default)]
pub(crate) struct Lease {
    held: Vec<Held>,
    /// The deepest node whose tokens this sequence has stored, pinned, and its depth in pages.
    cursor: Option<(NodeId, usize)>,
}

/// What a sequence holds in one group.
#[derive(Debug)]
enum Held {
    /// One page per `page_size` tokens, from page index `first`.
    Pages { first: usize, pages: VecDeque<u32> },
    /// One state.
    State {
        /// The page the last granted step reads; [`NO_PAGE`] for the zero state.
        read: u32,
        /// The page it writes: the sequence's state from then on.
        write: u32,
        /// States before later steps, by position: kept until the step that reads them is over.
        previous: VecDeque<(u32, usize)>,
    },
}

/// Rows that a sequence wants to store next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// Position of the first.
    pub(crate) start: usize,
    /// How many.
    pub(crate) rows: usize,
    /// Whether everything before `start` has been computed, and not only submitted.
    pub(crate) settled: bool,
}

/// What a new lease starts with.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) lease: Lease,
    /// Tokens whose state is there already.
    pub(crate) restored: usize,
    /// Tokens that the groups with one entry per token could have restored; above `restored` where
    /// a recurrent state has no checkpoint at that position.
    pub(crate) reach: usize,
}

/// First page index that a window group still needs when the next row is at `start`.
fn window_first(window: u32, start: usize, page_size: usize) -> usize {
    (start + 1).saturating_sub(window as usize) / page_size
}

/// Most pages that a window's positions can touch.
fn window_span(window: u32, page_size: usize) -> usize {
    (window.max(1) as usize - 1).div_ceil(page_size) + 1
}

impl Cache {
    pub(crate) fn new(spec: &CacheSpec, sharing: bool) -> Self {
        let groups = spec.groups.iter().map(|g| Group { kind: g.kind, pool: PagePool::new(g.pages) });
        Cache {
            page_size: spec.page_size as usize,
            groups: groups.collect(),
            tree: PrefixTree::new(spec.groups.len()),
            sharing,
        }
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    pub(crate) fn sharing(&self) -> bool {
        self.sharing
    }

    /// Whether a group can only be restored where a step ended.
    pub(crate) fn checkpoints(&self) -> bool {
        self.sharing && self.groups.iter().any(|g| g.kind == CacheKind::Recurrent)
    }

    /// Tokens that one sequence can have in the cache when it runs alone.
    pub(crate) fn capacity(&self) -> usize {
        let tokens = |group: &Group| {
            let pages = group.pool.len() as usize;
            match group.kind {
                CacheKind::Window(window) if pages >= window_span(window, self.page_size) => usize::MAX,
                CacheKind::Recurrent if pages >= 1 => usize::MAX,
                CacheKind::Recurrent => 0,
                _ => pages.saturating_mul(self.page_size),
            }
        };
        self.groups.iter().map(tokens).min().unwrap_or(usize::MAX)
    }

    pub(crate) fn stats(&self) -> Vec<GroupStats> {
        let stats = |g: &Group| GroupStats { pages: g.pool.len(), free: g.pool.free(), cached: g.pool.cached() };
        self.groups.iter().map(stats).collect()
    }

    /// A lease on the longest cached prefix of `tokens` that has at most `most` tokens and that
    /// every group can restore.
    pub(crate) fn open(&mut self, scope: &Scope, tokens: &[u32], most: usize) -> Opened {
        let (path, depth, reach) = self.lookup(scope, tokens, most);
        let mut held = Vec::with_capacity(self.groups.len());
        for (g, group) in self.groups.iter_mut().enumerate() {
            let first = match group.kind {
                CacheKind::Window(window) => window_first(window, depth * self.page_size, self.page_size),
                CacheKind::Paged | CacheKind::Latent => 0,
                CacheKind::Recurrent => {
                    let state = depth.checked_sub(1).and_then(|last| self.tree.page(path[last], g));
                    state.inspect(|&page| group.pool.retain(page));
                    let write = state.unwrap_or(NO_PAGE);
                    held.push(Held::State { read: NO_PAGE, write, previous: VecDeque::new() });
                    continue;
                }
            };
            let pages = path[..depth].iter().skip(first).filter_map(|&node| self.tree.page(node, g));
            let pages: VecDeque<u32> = pages.inspect(|&page| group.pool.retain(page)).collect();
            held.push(Held::Pages { first, pages });
        }
        let cursor = self.sharing.then(|| match depth.checked_sub(1) {
            Some(last) => {
                self.tree.pin(path[last]);
                (path[last], depth)
            }
            None => (self.tree.pin_root(scope), 0),
        });
        Opened { lease: Lease { held, cursor }, restored: depth * self.page_size, reach: reach * self.page_size }
    }

    /// The nodes along the tokens, the depth that all groups can restore, and the depth that those
    /// other than the recurrent can.
    fn lookup(&self, scope: &Scope, tokens: &[u32], most: usize) -> (Vec<NodeId>, usize, usize) {
        let (mut path, mut depth, mut reach) = (Vec::new(), 0, 0);
        let Some(mut node) = self.tree.root(scope).filter(|_| self.sharing) else { return (path, 0, 0) };
        // Per group, the pages in an unbroken run up to this depth.
        let mut runs = vec![0usize; self.groups.len()];
        for page in tokens[..most.min(tokens.len())].chunks_exact(self.page_size) {
            match self.tree.child(node, page) {
                Some(child) => node = child,
                None => break,
            }
            path.push(node);
            let here = path.len();
            let (mut pages_restorable, mut states_restorable) = (true, true);
            for (g, group) in self.groups.iter().enumerate() {
                let present = self.tree.page(node, g).is_some();
                runs[g] = if present { runs[g] + 1 } else { 0 };
                match group.kind {
                    CacheKind::Paged | CacheKind::Latent => pages_restorable &= runs[g] == here,
                    CacheKind::Window(w) => {
                        let needed = here - window_first(w, here * self.page_size, self.page_size).min(here);
                        pages_restorable &= runs[g] >= needed;
                    }
                    CacheKind::Recurrent => states_restorable &= present,
                }
            }
            if pages_restorable {
                reach = here;
                depth = if states_restorable { here } else { depth };
            }
        }
        (path, depth, reach)
    }

    /// Whether there are pages enough, now, for the lease to hold everything up to `end`.
    pub(crate) fn fits(&self, lease: &Lease, end: usize) -> bool {
        self.groups.iter().zip(&lease.held).all(|(group, held)| {
            let missing = match held {
                Held::Pages { first, pages } => {
                    let missing = end.div_ceil(self.page_size).saturating_sub(first + pages.len());
                    match group.kind {
                        CacheKind::Window(window) => missing.min(window_span(window, self.page_size)),
                        _ => missing,
                    }
                }
                Held::State { write, .. } => usize::from(*write == NO_PAGE || group.pool.refs(*write) > 1),
            };
            missing <= group.pool.available() as usize
        })
    }

    /// Takes pages for as many of the wanted rows as there are pages for, and frees those that left
    /// the window. Returns how many rows that is; 0 takes nothing.
    pub(crate) fn grant(&mut self, lease: &mut Lease, want: Want) -> usize {
        let mut rows = want.rows;
        for (group, held) in self.groups.iter_mut().zip(&mut lease.held) {
            match held {
                Held::Pages { first, pages } => {
                    if let CacheKind::Window(window) = group.kind {
                        let keep = window_first(window, want.start, self.page_size);
                        while *first < keep {
                            pages.pop_front().into_iter().for_each(|page| group.pool.release(page));
                            *first += 1;
                        }
                    }
                    let room = (*first + pages.len() + group.pool.available() as usize) * self.page_size;
                    rows = rows.min(room.saturating_sub(want.start));
                }
                Held::State { write, .. } => {
                    let must_move = *write == NO_PAGE || group.pool.refs(*write) > 1;
                    if must_move && group.pool.available() == 0 {
                        rows = 0;
                    }
                }
            }
        }
        if rows > 0 {
            for g in 0..self.groups.len() {
                self.grow(g, &mut lease.held[g], Want { rows, ..want });
            }
        }
        rows
    }

    /// Takes the pages of one group, which are known to be available.
    fn grow(&mut self, g: usize, held: &mut Held, want: Want) {
        match held {
            Held::Pages { first, pages } => {
                let end = (want.start + want.rows).div_ceil(self.page_size);
                while *first + pages.len() < end {
                    pages.push_back(self.take(g).expect("granted pages are available"));
                }
            }
            Held::State { read, write, previous } => {
                *read = *write;
                if *write == NO_PAGE {
                    *write = self.take(g).expect("a granted state is available");
                    return;
                }
                // A state at a page's end is worth keeping as a checkpoint, if it is not known to
                // be one already. Keeping it is optional; leaving a shared one alone is not.
                let pool = &self.groups[g].pool;
                let may_register = self.sharing && !want.settled && want.start.is_multiple_of(self.page_size);
                if pool.refs(*write) > 1 || pool.node(*write).is_some() || may_register {
                    match self.take(g) {
                        Some(page) => {
                            previous.push_back((*write, want.start));
                            *write = page;
                        }
                        None => self.disown(g, *write),
                    }
                }
            }
        }
    }

    fn take(&mut self, g: usize) -> Option<u32> {
        let (page, evicted) = self.groups[g].pool.take()?;
        if let Some(node) = evicted {
            self.tree.forget_page(node, g);
        }
        Some(page)
    }

    /// Removes a page in use from the tree, so that it can be written.
    fn disown(&mut self, g: usize, page: u32) {
        if let Some(node) = self.groups[g].pool.unregister(page) {
            self.tree.forget_page(node, g);
        }
    }

    /// Registers what a finished step stored. The first `stored` of `tokens` are in the cache;
    /// `submitted` is where the last granted step ends.
    ///
    /// Where the tree already has an equal page, the sequence takes that and frees its own: a
    /// page's contents depend on nothing but its prefix (and on the adapter, part of the scope).
    pub(crate) fn commit(&mut self, lease: &mut Lease, tokens: &[u32], stored: usize, submitted: usize) {
        for (group, held) in self.groups.iter_mut().zip(&mut lease.held) {
            if let Held::State { previous, .. } = held {
                while previous.front().is_some_and(|&(_, position)| position < stored) {
                    previous.pop_front().into_iter().for_each(|(page, _)| group.pool.release(page));
                }
            }
        }
        let Some((mut node, mut depth)) = lease.cursor else { return };
        while (depth + 1) * self.page_size <= stored {
            let page_tokens = &tokens[depth * self.page_size..][..self.page_size];
            node = self.tree.descend(node, page_tokens);
            for (g, held) in lease.held.iter_mut().enumerate() {
                if let Held::Pages { first, pages } = held
                    && let Some(own) = depth.checked_sub(*first).and_then(|i| pages.get_mut(i))
                {
                    self.share(g, node, own);
                }
            }
            depth += 1;
        }
        lease.cursor = Some((node, depth));
        if stored == depth * self.page_size && depth > 0 {
            self.checkpoint(lease, node, stored, submitted);
        }
    }

    fn share(&mut self, g: usize, node: NodeId, own: &mut u32) {
        let pool = &mut self.groups[g].pool;
        match self.tree.page(node, g) {
            None => {
                pool.register(*own, node);
                self.tree.set_page(node, g, *own);
            }
            Some(page) if page != *own => {
                pool.retain(page);
                pool.release(std::mem::replace(own, page));
            }
            Some(_) => {}
        }
    }

    fn checkpoint(&mut self, lease: &mut Lease, node: NodeId, stored: usize, submitted: usize) {
        for (g, held) in lease.held.iter().enumerate() {
            let Held::State { write, previous, .. } = held else { continue };
            let state = match previous.front() {
                Some(&(page, position)) if position == stored => page,
                _ if submitted == stored => *write,
                // The next step overwrites it in place.
                _ => continue,
            };
            if self.tree.page(node, g).is_none() && self.groups[g].pool.node(state).is_none() {
                self.groups[g].pool.register(state, node);
                self.tree.set_page(node, g, state);
            }
        }
    }

    /// Gives everything back. Deep pages first, so that a prefix outlives what continues it.
    pub(crate) fn close(&mut self, lease: Lease) {
        for (group, held) in self.groups.iter_mut().zip(lease.held) {
            match held {
                Held::Pages { pages, .. } => pages.into_iter().rev().for_each(|page| group.pool.release(page)),
                Held::State { write, previous, .. } => {
                    let states = previous.into_iter().map(|(page, _)| page).chain([write]).rev();
                    states.filter(|&page| page != NO_PAGE).for_each(|page| group.pool.release(page));
                }
            }
        }
        if let Some((node, _)) = lease.cursor {
            self.tree.unpin(node);
        }
    }

    /// Forgets every prefix that no sequence uses.
    pub(crate) fn forget_unused(&mut self) {
        for (g, group) in self.groups.iter_mut().enumerate() {
            while let Some(node) = group.pool.evict() {
                self.tree.forget_page(node, g);
            }
        }
    }

    /// Group entries of a batch, empty.
    pub(crate) fn empty_batch(&self) -> Vec<GroupBatch> {
        let entry = |group: &Group| match group.kind {
            CacheKind::Recurrent => GroupBatch::States { read: Vec::new(), write: Vec::new() },
            _ => GroupBatch::Pages { slots: Vec::new(), table: Vec::new(), ranges: Vec::new() },
        };
        self.groups.iter().map(entry).collect()
    }

    /// Appends a sequence's last granted rows to the group entries of a batch.
    pub(crate) fn describe(&self, lease: &Lease, start: usize, rows: usize, batch: &mut [GroupBatch]) {
        for (held, group) in lease.held.iter().zip(batch) {
            match (held, group) {
                (Held::Pages { first, pages }, GroupBatch::Pages { slots, table, ranges }) => {
                    ranges.push(TableRange { start: table.len() as u32, first_page: *first as u32 });
                    table.extend(pages);
                    slots.extend((start..start + rows).map(|position| {
                        let page = pages[position / self.page_size - first] as usize;
                        (page * self.page_size + position % self.page_size) as u32
                    }));
                }
                (Held::State { read, write, .. }, GroupBatch::States { read: reads, write: writes }) => {
                    reads.push(*read);
                    writes.push(*write);
                }
                _ => unreachable!("a group's batch entry has its kind"),
            }
        }
    }

    /// Whether pages and tree agree with these leases, which must be all there are.
    pub(crate) fn check<'a>(&self, leases: impl Iterator<Item = (&'a Lease, usize)>) -> Result<(), String> {
        let mut owners: Vec<Vec<u32>> = self.groups.iter().map(|g| vec![0; g.pool.len() as usize]).collect();
        let mut pins: HashMap<NodeId, u32> = HashMap::new();
        for (lease, computed) in leases {
            if let Some((node, _)) = lease.cursor {
                *pins.entry(node).or_default() += 1;
            }
            for (held, owners) in lease.held.iter().zip(&mut owners) {
                match held {
                    Held::Pages { first, pages } => {
                        pages.iter().for_each(|&page| owners[page as usize] += 1);
                        if (first + pages.len()) * self.page_size < computed {
                            return Err(format!(
                                "a sequence of {computed} tokens has pages up to {}",
                                first + pages.len()
                            ));
                        }
                    }
                    Held::State { write, previous, .. } => {
                        let states = previous.iter().map(|&(page, _)| page).chain([*write]);
                        states.filter(|&page| page != NO_PAGE).for_each(|page| owners[page as usize] += 1);
                    }
                }
            }
        }
        for (g, (group, owners)) in self.groups.iter().zip(&owners).enumerate() {
            group.pool.check(owners).map_err(|message| format!("group {g}: {message}"))?;
            let stray = (0..group.pool.len())
                .find(|&page| group.pool.node(page).is_some_and(|node| self.tree.page(node, g) != Some(page)));
            if let Some(page) = stray {
                return Err(format!("group {g}: page {page} is registered where the prefix tree has another"));
            }
        }
        self.tree.check(&pins, |g, page, node| self.groups[g].pool.node(page) == Some(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupSpec;

    fn cache(kind: CacheKind, pages: u32) -> (Cache, Scope) {
        let cache = Cache::new(&CacheSpec { page_size: 2, groups: vec![GroupSpec { kind, pages }] }, true);
        (cache, Scope { tenant_salt: [][..].into(), adapter: 0 })
    }

    fn want(start: usize, rows: usize) -> Want {
        Want { start, rows, settled: true }
    }

    fn states(lease: &Lease) -> (u32, u32) {
        match lease.held[0] {
            Held::State { read, write, .. } => (read, write),
            Held::Pages { .. } => panic!("not a state"),
        }
    }

    #[test]
    fn a_shared_state_is_read_and_never_written() {
        let (mut cache, scope) = cache(CacheKind::Recurrent, 2);
        let tokens = [1, 2, 3];
        let mut first = cache.open(&scope, &tokens, 2).lease;
        assert_eq!(cache.grant(&mut first, want(0, 2)), 2);
        cache.commit(&mut first, &tokens, 2, 2);
        let checkpoint = states(&first).1;
        let opened = cache.open(&scope, &tokens, 2);
        assert_eq!(opened.restored, 2);
        let mut second = opened.lease;
        // The other state is free: the first moves there.
        assert_eq!(cache.grant(&mut first, want(2, 1)), 1);
        let moved = states(&first);
        assert!(moved.0 == checkpoint && moved.1 != checkpoint);
        // Now nothing is free, and the first still reads the checkpoint.
        assert!(!cache.fits(&second, 3));
        assert_eq!(cache.grant(&mut second, want(2, 1)), 0);
        // Once it has, the second has the checkpoint to itself and may as well overwrite it.
        cache.commit(&mut first, &tokens, 3, 3);
        assert_eq!(cache.grant(&mut second, want(2, 1)), 1);
        assert_eq!(states(&second), (checkpoint, checkpoint));
        cache.check([(&first, 3), (&second, 3)].into_iter()).unwrap();
        cache.close(first);
        cache.close(second);
        assert_eq!(cache.open(&scope, &tokens, 2).restored, 0);
    }

    #[test]
    fn equal_pages_are_stored_once() {
        let (mut cache, scope) = cache(CacheKind::Paged, 4);
        let tokens = [1, 2, 3, 4];
        let mut leases: Vec<Lease> = (0..2).map(|_| cache.open(&scope, &tokens, 3).lease).collect();
        for lease in &mut leases {
            assert_eq!(cache.grant(lease, want(0, 4)), 4);
        }
        assert_eq!(cache.stats()[0].free, 0);
        leases.iter_mut().for_each(|lease| cache.commit(lease, &tokens, 4, 4));
        assert_eq!(cache.stats()[0].free, 2);
        cache.check(leases.iter().map(|lease| (lease, 4))).unwrap();
        leases.into_iter().for_each(|lease| cache.close(lease));
        assert_eq!(cache.stats()[0], GroupStats { pages: 4, free: 2, cached: 2 });
        cache.forget_unused();
        assert_eq!((cache.stats()[0].free, cache.tree.len()), (4, 0));
    }

    #[test]
    fn rows_are_granted_as_far_as_pages_reach() {
        let (mut cache, scope) = cache(CacheKind::Window(3), 3);
        let mut lease = cache.open(&scope, &[0; 20], 19).lease;
        assert_eq!(cache.grant(&mut lease, want(0, 20)), 6);
        // Position 6 sees 4 and later: two pages are free again.
        assert_eq!(cache.grant(&mut lease, want(6, 14)), 4);
        assert_eq!(cache.grant(&mut lease, want(10, 1)), 1);
        assert_eq!(cache.capacity(), usize::MAX);
        assert_eq!(self::cache(CacheKind::Window(6), 3).0.capacity(), 6);
        assert_eq!(self::cache(CacheKind::Window(5), 3).0.capacity(), usize::MAX);
        assert_eq!(self::cache(CacheKind::Paged, 3).0.capacity(), 6);
    }
}
