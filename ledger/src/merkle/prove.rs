//! Makes proofs from stored nodes (RFC 6962 sections 2.1.1 and 2.1.2).

use super::{Frontier, Hash, MAX_SIZE, Node, split_below};

/// Why a proof was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildProofError<E: std::error::Error + 'static> {
    /// There is no such leaf.
    #[error("a tree of {size} leaves has no leaf {index}")]
    NoSuchLeaf {
        /// Asked for.
        index: u64,
        /// The tree's size.
        size: u64,
    },
    /// The trees are the wrong way round, or too large to exist.
    #[error("a tree of {from} leaves does not grow into one of {to}")]
    Sizes {
        /// The older tree's size.
        from: u64,
        /// The newer tree's size.
        to: u64,
    },
    /// A stored node could not be read.
    #[error("a node of the tree could not be read")]
    Read(#[source] E),
}

/// The proof that leaf `index` is in the tree of `size` leaves: siblings from the leaf to the root.
/// `read` gets only nodes that a log of this size has stored, at most 63 of them for each sibling.
///
/// # Errors
/// If there is no such leaf, or what `read` returns.
pub fn inclusion_proof<E: std::error::Error + 'static>(
    index: u64,
    size: u64,
    mut read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, BuildProofError<E>> {
    if index >= size || size > MAX_SIZE {
        return Err(BuildProofError::NoSuchLeaf { index, size });
    }
    let mut siblings = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + split_below(end - start);
        if index < middle {
            siblings.push((middle, end));
            end = middle;
        } else {
            siblings.push((start, middle));
            start = middle;
        }
    }
    hashes_of(siblings, &mut read)
}

/// The proof that the tree of `to` leaves begins with the tree of `from` leaves.
/// `read` gets only nodes that a log of size `to` has stored.
///
/// # Errors
/// If `from` is above `to`, or what `read` returns.
pub fn consistency_proof<E: std::error::Error + 'static>(
    from: u64,
    to: u64,
    mut read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, BuildProofError<E>> {
    if from > to || to > MAX_SIZE {
        return Err(BuildProofError::Sizes { from, to });
    }
    if from == 0 {
        return Ok(Vec::new());
    }
    let mut siblings = Vec::new();
    let (mut start, mut end) = (0, to);
    while from != end {
        let middle = start + split_below(end - start);
        if from <= middle {
            siblings.push((middle, end));
            end = middle;
        } else {
            siblings.push((start, middle));
            start = middle;
        }
    }
    // What is a whole tree of the older size need not be told: its root is known.
    if start > 0 {
        siblings.push((start, end));
    }
    hashes_of(siblings, &mut read)
}

/// The root of the tree of `size` leaves, from stored nodes alone.
///
/// # Errors
/// What `read` returns.
pub fn root_from_nodes<E>(size: u64, read: impl FnMut(Node) -> Result<Hash, E>) -> Result<Hash, E> {
    Frontier::load(size, read).map(|frontier| frontier.root())
}

/// The hashes of ranges that were found from the root down, from the leaf up.
fn hashes_of<E: std::error::Error + 'static>(
    ranges: Vec<(u64, u64)>,
    read: &mut impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, BuildProofError<E>> {
    ranges
        .into_iter()
        .rev()
        .map(|(start, end)| range_hash(start, end, read).map_err(BuildProofError::Read))
        .collect()
}

/// The hash over the leaves `start` to `end`, a range that RFC 6962's splits lead to.
fn range_hash<E>(
    start: u64,
    end: u64,
    read: &mut impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Hash, E> {
    let mut peaks = peaks_of(start, end)
        .map(read)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .rev();
    let last = peaks.next().unwrap_or_else(Hash::of_empty_tree);
    Ok(peaks.fold(last, |right, left| super::node_hash(&left, &right)))
}

/// The perfect subtrees that make up the leaves `start` to `end`, largest first. `start` is a multiple
/// of the first one's width, as every range that RFC 6962's splits lead to has it.
pub(super) fn peaks_of(start: u64, end: u64) -> impl Iterator<Item = Node> {
    let mut start = start;
    std::iter::from_fn(move || {
        let left = end.checked_sub(start)?;
        let level = left.checked_ilog2()?;
        let node = Node {
            level: u8::try_from(level).ok()?,
            index: start >> level,
        };
        start += 1 << level;
        Some(node)
    })
}
