//! The pages of one cache group: who uses them, which are free, which are kept for reuse.
use crate::prefix::NodeId;

/// No page.
pub(crate) const NO_PAGE: u32 = u32::MAX;

/// Reference-counted pages. Each is in exactly one of three states: free; in use (one reference per
/// sequence); or cached, which is unused but registered in the prefix tree and so still worth its
/// memory. Cached pages are given up least recently used first.
#[derive(Debug)]
pub(crate) struct PagePool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Ends of the list of cached pages.
    oldest: u32,
    newest: u32,
    cached: u32,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    refs: u32,
    /// Where the prefix tree knows the page.
    node: Option<NodeId>,
    /// Neighbours in the list of cached pages.
    older: u32,
    newer: u32,
}

impl PagePool {
    pub(crate) fn new(pages: u32) -> Self {
        PagePool {
            pages: vec![Page { refs: 0, node: None, older: NO_PAGE, newer: NO_PAGE }; pages as usize],
            free: (0..pages).rev().collect(),
            oldest: NO_PAGE,
            newest: NO_PAGE,
            cached: 0,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.pages.len() as u32
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    pub(crate) fn cached(&self) -> u32 {
        self.cached
    }

    /// Pages that [`PagePool::take`] can still hand out.
    pub(crate) fn available(&self) -> u32 {
        self.free() + self.cached
    }

    pub(crate) fn refs(&self, page: u32) -> u32 {
        self.pages[page as usize].refs
    }

    pub(crate) fn node(&self, page: u32) -> Option<NodeId> {
        self.pages[page as usize].node
    }

    /// A page with one reference, and the node that must forget it if it was a cached one.
    pub(crate) fn take(&mut self) -> Option<(u32, Option<NodeId>)> {
        if let Some(page) = self.free.pop() {
            self.pages[page as usize].refs = 1;
            return Some((page, None));
        }
        let page = self.oldest;
        if page == NO_PAGE {
            return None;
        }
        self.unlink(page);
        let entry = &mut self.pages[page as usize];
        entry.refs = 1;
        Some((page, entry.node.take()))
    }

    /// Adds a reference to a page that is in use or cached.
    pub(crate) fn retain(&mut self, page: u32) {
        if self.pages[page as usize].refs == 0 {
            self.unlink(page);
        }
        self.pages[page as usize].refs += 1;
    }

    /// Drops a reference; the last one makes the page free or cached.
    pub(crate) fn release(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        assert!(entry.refs > 0, "page {page} released more often than taken");
        entry.refs -= 1;
        match (entry.refs, entry.node) {
            (0, None) => self.free.push(page),
            (0, Some(_)) => self.link_newest(page),
            _ => {}
        }
    }

    /// Notes that the prefix tree knows this page, which is in use.
    pub(crate) fn register(&mut self, page: u32, node: NodeId) {
        debug_assert!(self.pages[page as usize].refs > 0 && self.pages[page as usize].node.is_none());
        self.pages[page as usize].node = Some(node);
    }

    /// Notes that the prefix tree no longer knows this page, which is in use.
    pub(crate) fn unregister(&mut self, page: u32) -> Option<NodeId> {
        debug_assert!(self.pages[page as usize].refs > 0);
        self.pages[page as usize].node.take()
    }

    /// Frees the least recently used cached page; the node that must forget it.
    pub(crate) fn evict(&mut self) -> Option<NodeId> {
        let page = self.oldest;
        if page == NO_PAGE {
            return None;
        }
        self.unlink(page);
        self.free.push(page);
        self.pages[page as usize].node.take()
    }

    fn link_newest(&mut self, page: u32) {
        let older = std::mem::replace(&mut self.newest, page);
        let entry = &mut self.pages[page as usize];
        (entry.older, entry.newer) = (older, NO_PAGE);
        match older {
            NO_PAGE => self.oldest = page,
            older => self.pages[older as usize].newer = page,
        }
        self.cached += 1;
    }

    fn unlink(&mut self, page: u32) {
        let Page { older, newer, .. } = self.pages[page as usize];
        match older {
            NO_PAGE => self.oldest = newer,
            older => self.pages[older as usize].newer = newer,
        }
        match newer {
            NO_PAGE => self.newest = older,
            newer => self.pages[newer as usize].older = older,
        }
        self.cached -= 1;
    }

    /// Whether every page is in exactly one state and has the references that `owners` counted.
    pub(crate) fn check(&self, owners: &[u32]) -> Result<(), String> {
        let mut places = vec![0u32; self.pages.len()];
        for &page in &self.free {
            places[page as usize] += 1;
            if self.node(page).is_some() {
                return Err(format!("free page {page} is still registered"));
            }
        }
        let (mut page, mut older, mut cached) = (self.oldest, NO_PAGE, 0);
        while page != NO_PAGE {
            let entry = self.pages[page as usize];
            if entry.older != older || entry.node.is_none() || cached > self.cached {
                return Err(format!("the list of cached pages is broken at page {page}"));
            }
            places[page as usize] += 1;
            cached += 1;
            (older, page) = (page, entry.newer);
        }
        if cached != self.cached || older != self.newest {
            return Err(format!("{cached} cached pages are listed, {} counted", self.cached));
        }
        for (page, (entry, (&places, &owners))) in self.pages.iter().zip(places.iter().zip(owners)).enumerate() {
            if entry.refs != owners {
                return Err(format!("page {page} has {} references, but {owners} owners", entry.refs));
            }
            if places != u32::from(entry.refs == 0) {
                return Err(format!("page {page} with {} references is in {places} lists", entry.refs));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_usable_and_comes_back() {
        let mut pool = PagePool::new(3);
        let mut taken: Vec<u32> = (0..3).map(|_| pool.take().unwrap().0).collect();
        assert!(pool.take().is_none());
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2]);
        pool.check(&[1, 1, 1]).unwrap();
        taken.into_iter().for_each(|page| pool.release(page));
        pool.check(&[0, 0, 0]).unwrap();
        assert_eq!((pool.free(), pool.cached()), (3, 0));
    }

    #[test]
    fn cached_pages_go_least_recently_used_first_and_come_back_on_a_hit() {
        let mut pool = PagePool::new(3);
        for node in 0..3 {
            let (page, _) = pool.take().unwrap();
            pool.register(page, node);
        }
        [2, 0, 1].into_iter().for_each(|page| pool.release(page));
        pool.retain(2);
        pool.check(&[0, 0, 1]).unwrap();
        assert_eq!(pool.take(), Some((0, Some(0))));
        assert_eq!(pool.take(), Some((1, Some(1))));
        assert_eq!(pool.take(), None);
        pool.check(&[1, 1, 1]).unwrap();
    }

    #[test]
    fn the_check_sees_a_leak() {
        let mut pool = PagePool::new(1);
        pool.take();
        assert!(pool.check(&[0]).unwrap_err().contains("0 owners"));
    }
}
