//! Checks proofs: RFC 9162 sections 2.1.3.2 and 2.1.4.2, step by step.

use super::{Hash, MAX_SIZE, node_hash};

/// Why a proof shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyProofError {
    /// There is no such leaf.
    #[error("a tree of {size} leaves has no leaf {index}")]
    NoSuchLeaf {
        /// The leaf that the proof is for.
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
    /// It has more or fewer hashes than such a proof has.
    #[error("the proof has {hashes} hashes, which is not what a proof for these sizes has")]
    Length {
        /// Found.
        hashes: usize,
    },
    /// It leads to another root than the older tree's.
    #[error("the proof does not lead to the root of the older tree")]
    OldRoot,
    /// It leads to another root than the tree's.
    #[error("the proof does not lead to the root of the tree")]
    Root,
}

/// Check that the tree of `size` leaves with this root has this leaf at `index`.
///
/// # Errors
/// If the proof does not show that.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), VerifyProofError> {
    if index >= size || size > MAX_SIZE {
        return Err(VerifyProofError::NoSuchLeaf { index, size });
    }
    let wrong_length = VerifyProofError::Length {
        hashes: proof.len(),
    };
    let (mut at, mut last) = (index, size - 1);
    let mut found = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(wrong_length);
        }
        if at % 2 == 1 || at == last {
            found = node_hash(sibling, &found);
            // A node that is the last of its level and has no sibling there moves up as it is.
            while at % 2 == 0 && at != 0 {
                (at, last) = (at / 2, last / 2);
            }
        } else {
            found = node_hash(&found, sibling);
        }
        (at, last) = (at / 2, last / 2);
    }
    if last != 0 {
        return Err(wrong_length);
    }
    if found != *root {
        return Err(VerifyProofError::Root);
    }
    Ok(())
}

/// Check that the tree of `to` leaves with root `new_root` begins with the tree of `from` leaves with
/// root `old_root`. Any tree begins with the empty one, whose root is that of RFC 6962.
///
/// # Errors
/// If the proof does not show that.
pub fn verify_consistency(
    from: u64,
    to: u64,
    old_root: &Hash,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), VerifyProofError> {
    if from > to || to > MAX_SIZE {
        return Err(VerifyProofError::Sizes { from, to });
    }
    let wrong_length = VerifyProofError::Length {
        hashes: proof.len(),
    };
    if from == 0 && *old_root != Hash::of_empty_tree() {
        return Err(VerifyProofError::OldRoot);
    }
    if from == 0 || from == to {
        return match (proof.is_empty(), from == 0 || old_root == new_root) {
            (false, _) => Err(wrong_length),
            (true, false) => Err(VerifyProofError::Root),
            (true, true) => Ok(()),
        };
    }
    // A perfect older tree is itself the first node of the way up; its hash is not told again.
    let told = if from.is_power_of_two() {
        None
    } else {
        Some(proof.split_first().ok_or(wrong_length)?)
    };
    let (seed, rest) = told.map_or((old_root, proof), |(first, rest)| (first, rest));
    let (mut at, mut last) = (from - 1, to - 1);
    while at % 2 == 1 {
        (at, last) = (at / 2, last / 2);
    }
    let (mut old, mut new) = (*seed, *seed);
    for sibling in rest {
        if last == 0 {
            return Err(wrong_length);
        }
        if at % 2 == 1 || at == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            while at % 2 == 0 && at != 0 {
                (at, last) = (at / 2, last / 2);
            }
        } else {
            new = node_hash(&new, sibling);
        }
        (at, last) = (at / 2, last / 2);
    }
    if last != 0 {
        return Err(wrong_length);
    }
    if old != *old_root {
        return Err(VerifyProofError::OldRoot);
    }
    if new != *new_root {
        return Err(VerifyProofError::Root);
    }
    Ok(())
}
