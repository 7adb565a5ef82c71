//! The right edge of a growing tree: what it takes to append, and no more.
//!
//! A tree of `n` leaves is a row of perfect subtrees, one for each 1 in `n`'s binary digits. Their
//! roots are all that the next leaf needs: at most 63 hashes, whatever the size.

use super::{Hash, MAX_SIZE, Node, node_hash, prove::peaks_of};

/// A tree's size and the roots of its perfect subtrees, left to right.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The right edge of a stored tree. `read` gets nodes that a log of this size has stored.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn load<E>(size: u64, read: impl FnMut(Node) -> Result<Hash, E>) -> Result<Self, E> {
        let peaks = peaks_of(0, size).map(read).collect::<Result<_, _>>()?;
        Ok(Self { size, peaks })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return Hash::of_empty_tree();
        };
        peaks.fold(*last, |right, left| node_hash(left, &right))
    }

    /// Append a leaf. `store` gets every node that it completes, the leaf itself first and then
    /// upwards: the order of [`Node::stored_index`].
    ///
    /// # Errors
    /// What `store` returns; the tree is then as it was.
    ///
    /// # Panics
    /// Not within 2^63 calls: a tree holds [`MAX_SIZE`] leaves.
    pub fn append<E>(
        &mut self,
        leaf: Hash,
        mut store: impl FnMut(Node, Hash) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(self.size < MAX_SIZE, "a tree holds 2^63 - 1 leaves");
        let (mut node, mut hash) = (Node::leaf(self.size), leaf);
        store(node, hash)?;
        let mut left = self.peaks.len();
        // Each trailing 1 of the size is a subtree as large as the one that has just come to be.
        while node.index % 2 == 1 {
            left -= 1;
            let peak = self.peaks.get(left);
            hash = node_hash(peak.expect("every 1 in the size has its peak"), &hash);
            node = Node {
                level: node.level + 1,
                index: node.index / 2,
            };
            store(node, hash)?;
        }
        self.peaks.truncate(left);
        self.peaks.push(hash);
        self.size += 1;
        Ok(())
    }

    /// Append a leaf whose nodes nobody keeps.
    pub fn push(&mut self, leaf: Hash) {
        let Ok(()) = self.append(leaf, |_, _| Ok::<_, std::convert::Infallible>(()));
    }
}
