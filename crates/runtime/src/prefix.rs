//! Which pages hold which prefixes.
use crate::pages::NO_PAGE;
use std::collections::HashMap;
use std::sync::Arc;

/// Names a node while it exists.
pub(crate) type NodeId = u32;

/// What must be equal before two requests may share anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) tenant_salt: Arc<[u8]>,
    pub(crate) adapter: u32,
}

/// A tree whose node at depth `d` stands for one exact sequence of `d` whole pages of tokens within
/// one [`Scope`], and names the page that holds its last page of state in each cache group.
///
/// A node is found by comparing tokens, level by level, never by a digest of them: no collision can
/// hand a request someone else's contents.
///
/// A node exists while a group has a page for it, a sequence is pinned to it, or it has children.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    roots: HashMap<Scope, NodeId>,
    groups: usize,
}

#[derive(Debug)]
struct Node {
    origin: Origin,
    children: HashMap<Arc<[u32]>, NodeId>,
    /// Per group; [`NO_PAGE`] for none.
    pages: Box<[u32]>,
    /// Sequences whose next page will be registered below this node.
    pins: u32,
}

#[derive(Clone, Debug)]
enum Origin {
    Root(Scope),
    Page { parent: NodeId, tokens: Arc<[u32]> },
    Unused,
}

impl PrefixTree {
    pub(crate) fn new(groups: usize) -> Self {
        PrefixTree { groups, ..PrefixTree::default() }
    }

    pub(crate) fn root(&self, scope: &Scope) -> Option<NodeId> {
        self.roots.get(scope).copied()
    }

    pub(crate) fn child(&self, node: NodeId, tokens: &[u32]) -> Option<NodeId> {
        self.nodes[node as usize].children.get(tokens).copied()
    }

    /// The group's page for the node's last page of tokens.
    pub(crate) fn page(&self, node: NodeId, group: usize) -> Option<u32> {
        Some(self.nodes[node as usize].pages[group]).filter(|&page| page != NO_PAGE)
    }

    /// The scope's root, pinned.
    pub(crate) fn pin_root(&mut self, scope: &Scope) -> NodeId {
        let node = match self.root(scope) {
            Some(node) => node,
            None => {
                let node = self.insert(Origin::Root(scope.clone()));
                self.roots.insert(scope.clone(), node);
                node
            }
        };
        self.pin(node);
        node
    }

    pub(crate) fn pin(&mut self, node: NodeId) {
        self.nodes[node as usize].pins += 1;
    }

    pub(crate) fn unpin(&mut self, node: NodeId) {
        self.nodes[node as usize].pins -= 1;
        self.prune(node);
    }

    /// Moves a pin from a node to its child for these tokens, which is created if need be.
    pub(crate) fn descend(&mut self, node: NodeId, tokens: &[u32]) -> NodeId {
        let child = match self.child(node, tokens) {
            Some(child) => child,
            None => {
                let tokens: Arc<[u32]> = tokens.into();
                let child = self.insert(Origin::Page { parent: node, tokens: tokens.clone() });
                self.nodes[node as usize].children.insert(tokens, child);
                child
            }
        };
        self.pin(child);
        self.unpin(node);
        child
    }

    pub(crate) fn set_page(&mut self, node: NodeId, group: usize, page: u32) {
        self.nodes[node as usize].pages[group] = page;
    }

    pub(crate) fn forget_page(&mut self, node: NodeId, group: usize) {
        self.nodes[node as usize].pages[group] = NO_PAGE;
        self.prune(node);
    }

    fn insert(&mut self, origin: Origin) -> NodeId {
        let pages = vec![NO_PAGE; self.groups].into();
        let node = Node { origin, children: HashMap::new(), pages, pins: 0 };
        match self.unused.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as NodeId - 1
            }
        }
    }

    /// Removes the node if nothing needs it, and then its ancestors likewise.
    fn prune(&mut self, mut id: NodeId) {
        loop {
            let node = &mut self.nodes[id as usize];
            if node.pins > 0 || !node.children.is_empty() || node.pages.iter().any(|&page| page != NO_PAGE) {
                return;
            }
            let origin = std::mem::replace(&mut node.origin, Origin::Unused);
            self.unused.push(id);
            match origin {
                Origin::Page { parent, tokens } => {
                    self.nodes[parent as usize].children.remove(&tokens);
                    id = parent;
                }
                Origin::Root(scope) => {
                    self.roots.remove(&scope);
                    return;
                }
                Origin::Unused => unreachable!("prefix tree: node {id} removed twice"),
            }
        }
    }

    /// Nodes in use.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.unused.len()
    }

    /// Whether the pins are those `pins` counted, links agree both ways, and `is_registered` confirms
    /// every (group, page, node).
    pub(crate) fn check(
        &self,
        pins: &HashMap<NodeId, u32>,
        is_registered: impl Fn(usize, u32, NodeId) -> bool,
    ) -> Result<(), String> {
        for (id, node) in self.nodes.iter().enumerate() {
            let id = id as NodeId;
            let linked = match &node.origin {
                Origin::Unused => continue,
                Origin::Root(scope) => self.root(scope) == Some(id),
                Origin::Page { parent, tokens } => self.child(*parent, tokens) == Some(id),
            };
            if !linked {
                return Err(format!("prefix tree: node {id} is not below its parent"));
            }
            if node.pins != pins.get(&id).copied().unwrap_or(0) {
                return Err(format!("prefix tree: node {id} has {} pins, not {:?}", node.pins, pins.get(&id)));
            }
            let mut pages = node.pages.iter().enumerate().filter(|&(_, &page)| page != NO_PAGE);
            if let Some((group, page)) = pages.clone().find(|&(group, &page)| !is_registered(group, page, id)) {
                return Err(format!(
                    "prefix tree: node {id} names page {page} of group {group}, which does not know it"
                ));
            }
            if pages.next().is_none() && node.children.is_empty() && node.pins == 0 {
                return Err(format!("prefix tree: node {id} is kept for nothing"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(salt: &[u8], adapter: u32) -> Scope {
        Scope { tenant_salt: salt.into(), adapter }
    }

    #[test]
    fn nodes_live_while_something_needs_them() {
        let mut tree = PrefixTree::new(1);
        let root = tree.pin_root(&scope(b"a", 0));
        let first = tree.descend(root, &[1, 2]);
        tree.set_page(first, 0, 7);
        let second = tree.descend(first, &[3, 4]);
        assert_eq!(tree.len(), 3);
        tree.unpin(second);
        assert_eq!((tree.len(), tree.page(first, 0)), (2, Some(7)));
        tree.forget_page(first, 0);
        assert_eq!((tree.len(), tree.root(&scope(b"a", 0))), (0, None));
    }

    #[test]
    fn scopes_and_prefixes_are_told_apart() {
        let mut tree = PrefixTree::new(1);
        let root = tree.pin_root(&scope(b"a", 0));
        let node = tree.descend(root, &[1, 2]);
        assert_eq!(tree.child(root, &[1, 2]), Some(node));
        assert_eq!(tree.child(root, &[2, 1]), None);
        assert_eq!(tree.child(node, &[1, 2]), None);
        assert_eq!(tree.root(&scope(b"b", 0)), None);
        assert_eq!(tree.root(&scope(b"a", 1)), None);
    }
}
