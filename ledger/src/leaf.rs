//! The public leaf of an event: 80 bytes that anybody may see.
//!
//! `"LDG1" || kind || 3 zeros || u64 BE unix ms || tag[32] || commitment[32]`. The commitment binds
//! the event's stored body and hides it, by a nonce; the tag binds its place in its tenant's own
//! sequence, and only who has the tenant's view key can tell whose it is. So the log is public, a
//! tenant learns nothing of others but how much happens when, and can still find every event of its
//! own, also one that it was not shown.

use std::fmt;

use ring::digest::{Context, SHA256, digest};
use ring::hmac;
use ring::rand::SystemRandom;

use crate::keys::GenerateKeyError;
use crate::merkle::{self, Hash};

/// Bytes of a leaf.
pub const LEAF_BYTES: usize = 80;
const MAGIC: [u8; 4] = *b"LDG1";

/// What a leaf is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LeafKind {
    /// An event of a tenant or of the deployment itself.
    Event,
    /// The first leaf of a log that goes on after a loss: its body has the last checkpoint that is
    /// known of the log before. Its tag is zeros and its nonce too, so that anybody can check it.
    EpochStart,
}

/// The public leaf of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    /// What it is for.
    pub kind: LeafKind,
    /// When it was sequenced, milliseconds since the epoch.
    pub time_ms: u64,
    /// The place in the sequence of whoever it belongs to.
    pub tag: Tag,
    /// What it binds.
    pub commitment: Commitment,
}

/// HMAC-SHA256 with a view key over `"ledger-tag-v1" || u64 BE sequence number`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Tag(pub [u8; 32]);

/// SHA-256 of `"ledger-commit-v1" || nonce[32] || SHA-256(body)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Commitment(pub [u8; 32]);

/// What hides a body behind its commitment. Destroying it and the body erases the event; the log
/// stays valid.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 32]);

/// What a tenant recognises its own leaves with. Whoever has it sees how much this tenant does.
#[derive(Clone, PartialEq, Eq)]
pub struct ViewKey([u8; 32]);

/// Why bytes are not a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseLeafError {
    /// Another length.
    #[error("a leaf has {LEAF_BYTES} bytes, this has {bytes}")]
    Length {
        /// Bytes found.
        bytes: usize,
    },
    /// Another version, or not a leaf at all.
    #[error("the leaf is of no version that is known here")]
    Version,
    /// A kind that is not known.
    #[error("the leaf is of no kind that is known here")]
    Kind,
}

impl LeafKind {
    fn byte(self) -> u8 {
        match self {
            Self::Event => 1,
            Self::EpochStart => 3,
        }
    }
}

impl Leaf {
    /// The leaf of an event.
    #[must_use]
    pub fn of_event(time_ms: u64, tag: Tag, commitment: Commitment) -> Self {
        Self {
            kind: LeafKind::Event,
            time_ms,
            tag,
            commitment,
        }
    }

    /// The first leaf of a log that goes on after a loss. `body` is public.
    #[must_use]
    pub fn of_epoch_start(time_ms: u64, body: &[u8]) -> Self {
        Self {
            kind: LeafKind::EpochStart,
            time_ms,
            tag: Tag([0; 32]),
            commitment: Commitment::of(&Nonce([0; 32]), body),
        }
    }

    /// The entry of the log.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LEAF_BYTES] {
        let mut bytes = [0; LEAF_BYTES];
        let parts: [&[u8]; 6] = [
            &MAGIC,
            &[self.kind.byte()],
            &[0; 3],
            &self.time_ms.to_be_bytes(),
            &self.tag.0,
            &self.commitment.0,
        ];
        for (byte, part) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *part;
        }
        bytes
    }

    /// Read an entry of the log.
    ///
    /// # Errors
    /// If it is no leaf of this version.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseLeafError> {
        let length = ParseLeafError::Length { bytes: bytes.len() };
        let whole: &[u8; LEAF_BYTES] = bytes.try_into().map_err(|_| length)?;
        let (head, rest) = whole.split_first_chunk::<8>().ok_or(length)?;
        let (time, rest) = rest.split_first_chunk::<8>().ok_or(length)?;
        let (tag, commitment) = rest.split_first_chunk::<32>().ok_or(length)?;
        let [magic @ .., kind, 0, 0, 0] = head else {
            return Err(ParseLeafError::Version);
        };
        if magic != &MAGIC {
            return Err(ParseLeafError::Version);
        }
        let kinds = [LeafKind::Event, LeafKind::EpochStart];
        let kind = kinds.into_iter().find(|known| known.byte() == *kind);
        Ok(Self {
            kind: kind.ok_or(ParseLeafError::Kind)?,
            time_ms: u64::from_be_bytes(*time),
            tag: Tag(*tag),
            commitment: Commitment(commitment.try_into().map_err(|_| length)?),
        })
    }

    /// Its hash in the tree.
    #[must_use]
    pub fn hash(&self) -> Hash {
        merkle::leaf_hash(&self.to_bytes())
    }
}

impl Commitment {
    /// The commitment to a body, which is hashed as it is stored, byte for byte.
    #[must_use]
    pub fn of(nonce: &Nonce, body: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"ledger-commit-v1");
        context.update(&nonce.0);
        context.update(digest(&SHA256, body).as_ref());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

impl Nonce {
    /// A new nonce from the system's random source.
    ///
    /// # Errors
    /// If that fails.
    pub fn generate() -> Result<Self, GenerateKeyError> {
        ring::rand::generate(&SystemRandom::new())
            .map(|random| Self(random.expose()))
            .map_err(|_| GenerateKeyError)
    }
}

/// Says nothing: whoever has a nonce can test guesses of the body.
impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce")
    }
}

impl ViewKey {
    /// The key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key of one holder, from a secret that the deployment keeps:
    /// HMAC-SHA256 over `"ledger-view-v1" || holder`. Holders are tenants' ids, and the empty text
    /// for what belongs to no tenant.
    #[must_use]
    pub fn derive(deployment_secret: &[u8; 32], holder: &str) -> Self {
        let input = [b"ledger-view-v1", holder.as_bytes()].concat();
        Self(hmac_sha256(deployment_secret, &input))
    }

    /// The 32 bytes, for the tenant that it belongs to.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The tag of the event with this sequence number.
    #[must_use]
    pub fn tag(&self, sequence: u64) -> Tag {
        let input = [&b"ledger-tag-v1"[..], &sequence.to_be_bytes()].concat();
        Tag(hmac_sha256(&self.0, &input))
    }
}

/// Says nothing: it is a secret of its tenant.
impl fmt::Debug for ViewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewKey")
    }
}

fn hmac_sha256(key: &[u8; 32], input: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), input);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

#[cfg(test)]
mod tests;
