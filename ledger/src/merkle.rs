//! The Merkle tree of RFC 6962 section 2.1 (RFC 9162 has the same) over SHA-256.
//!
//! Owns hashes, the places of nodes that a log stores, the growing right edge ([`Frontier`]), and
//! proofs: [`inclusion_proof`] and [`consistency_proof`] make them, [`verify_inclusion`] and
//! [`verify_consistency`] check them. It stores nothing: whoever keeps nodes hands in a function that
//! reads one. Only perfect subtrees are stored; they never change once their last leaf is there.

mod frontier;
mod prove;
mod verify;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use frontier::Frontier;
pub use prove::{BuildProofError, consistency_proof, inclusion_proof, root_from_nodes};
pub use verify::{VerifyProofError, verify_consistency, verify_inclusion};

/// The most leaves that a tree can have. Sizes of checkpoints are signed 64-bit numbers elsewhere.
pub const MAX_SIZE: u64 = i64::MAX.unsigned_abs();

/// A SHA-256 of the tree. JSON shows it in lower-case hex, the C2SP formats in base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// Why text is not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 32 bytes in {encoding}")]
pub struct ReadHashError {
    encoding: &'static str,
}

impl Hash {
    /// The root of the tree without leaves.
    #[must_use]
    pub fn of_empty_tree() -> Self {
        Self::of_bytes(b"")
    }

    /// Plain SHA-256, for what is not a node of the tree.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::from_digest(digest(&SHA256, bytes))
    }

    /// Standard base64 with padding.
    #[must_use]
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }

    /// From standard base64 with padding, and nothing around it.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn from_base64(text: &str) -> Result<Self, ReadHashError> {
        let error = ReadHashError { encoding: "base64" };
        let bytes = STANDARD.decode(text).map_err(|_| error)?;
        Self::from_bytes(&bytes).ok_or(error)
    }

    /// From 64 digits of lower-case hex.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn from_hex(text: &str) -> Result<Self, ReadHashError> {
        let error = ReadHashError {
            encoding: "lower-case hex",
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| error)?;
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(error);
        }
        Ok(Self(bytes))
    }

    /// From 32 bytes; `None` for another number of them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    fn from_digest(digest: ring::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).map_err(serde::de::Error::custom)
    }
}

/// The hash of a leaf: SHA-256 of 0x00 and the entry.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(entry);
    Hash::from_digest(context.finish())
}

/// The hash of an inner node: SHA-256 of 0x01 and both children.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut input = [1; 65];
    let (_, children) = input.split_at_mut(1);
    let (first, second) = children.split_at_mut(32);
    first.copy_from_slice(&left.0);
    second.copy_from_slice(&right.0);
    Hash::of_bytes(&input)
}

/// The place of a perfect subtree: it covers the leaves `index << level` to `(index + 1) << level`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Node {
    /// Height above the leaves, which are at 0. At most 62.
    pub level: u8,
    /// Number of such subtrees to its left.
    pub index: u64,
}

impl Node {
    /// A leaf's place.
    #[must_use]
    pub fn leaf(index: u64) -> Self {
        Self { level: 0, index }
    }

    /// The last leaf that it covers: with that one the node comes to be. `None` beyond [`MAX_SIZE`].
    #[must_use]
    pub fn last_leaf(self) -> Option<u64> {
        if u32::from(self.level) >= i64::BITS - 1 {
            return None;
        }
        let end = self.index.checked_add(1)?;
        let last = end.checked_mul(1 << self.level)?.checked_sub(1)?;
        (last < MAX_SIZE).then_some(last)
    }

    /// Its number in the order in which nodes come to be: after each leaf the nodes that it
    /// completes, lowest first. Numbers have no gaps, so they are a dense primary key.
    /// `None` beyond [`MAX_SIZE`].
    #[must_use]
    pub fn stored_index(self) -> Option<u64> {
        let last = self.last_leaf()?;
        // Before leaf n there are n leaves and n - popcount(n) nodes above them.
        let before = last.checked_mul(2)? - u64::from(last.count_ones());
        before.checked_add(u64::from(self.level))
    }

    /// The place with this number; the inverse of [`Node::stored_index`]. `None` beyond [`MAX_SIZE`].
    #[must_use]
    pub fn from_stored_index(stored: u64) -> Option<Self> {
        // 2n - popcount(n) <= stored, so n is at least stored / 2; it is within 64 of that.
        let mut leaf = stored / 2;
        while Self::leaf(leaf + 1).stored_index()? <= stored {
            leaf += 1;
        }
        let level = stored - Self::leaf(leaf).stored_index()?;
        let level = u8::try_from(level).ok()?;
        Some(Self {
            level,
            index: leaf >> level,
        })
    }

    /// Whether a tree of this size has it.
    #[must_use]
    pub fn is_in(self, size: u64) -> bool {
        self.last_leaf().is_some_and(|last| last < size)
    }
}

/// How many nodes a log of this size stores, leaves included.
#[must_use]
pub fn stored_count(size: u64) -> u64 {
    size.saturating_mul(2)
        .saturating_sub(u64::from(size.count_ones()))
}

/// The largest power of two below `count`, which is at least 2: where RFC 6962 splits.
fn split_below(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

#[cfg(test)]
mod tests;
