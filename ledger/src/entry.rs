//! One event with all that shows it in the log: leaf, nonce, body, inclusion proof.
//!
//! Owns the JSON form that export bundles and passports share. Whose event it is and whether one is
//! missing is `tenant_view`'s to check.

use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checkpoint::Checkpoint;
use crate::leaf::{Leaf, Nonce};
use crate::merkle::{Hash, VerifyProofError, verify_inclusion};
use crate::tenant_view::{ShownEvent, ViewError, check_commitment};

/// An event and its place in a tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenEntry {
    /// The leaf's place in the log.
    pub index: u64,
    /// The public leaf, standard base64.
    #[serde(with = "leaf_base64")]
    pub leaf: Leaf,
    /// What hides the body, lower-case hex.
    #[serde(with = "nonce_hex")]
    pub nonce: Nonce,
    /// The body as it is stored, byte for byte.
    pub body: String,
    /// The siblings from the leaf to the root, lower-case hex.
    pub proof: Vec<Hash>,
}

/// Why an entry shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum VerifyEntryError {
    /// The leaf is not in the tree.
    #[error("entry {index} is not in the log")]
    Inclusion {
        /// The place that it names.
        index: u64,
        /// Why not.
        #[source]
        cause: VerifyProofError,
    },
    /// The leaf is of something else.
    #[error("entry {index} is of another event")]
    Body {
        /// The leaf's place.
        index: u64,
        /// Why.
        #[source]
        cause: ViewError,
    },
}

impl ProvenEntry {
    /// Check that the tree of a checkpoint, which the caller believes, has this leaf here, and that
    /// the leaf binds this body.
    ///
    /// # Errors
    /// If that is not shown.
    pub fn verify(&self, tree: &Checkpoint) -> Result<(), VerifyEntryError> {
        let index = self.index;
        verify_inclusion(&self.leaf.hash(), index, tree.size, &self.proof, &tree.root)
            .map_err(|cause| VerifyEntryError::Inclusion { index, cause })?;
        check_commitment(&self.shown()).map_err(|cause| VerifyEntryError::Body { index, cause })
    }

    /// As `tenant_view` takes it.
    #[must_use]
    pub fn shown(&self) -> ShownEvent<'_> {
        ShownEvent {
            index: self.index,
            leaf: &self.leaf,
            nonce: &self.nonce,
            body: self.body.as_bytes(),
        }
    }
}

mod leaf_base64 {
    use super::{Deserialize, Deserializer, Leaf, STANDARD, Serializer};
    use base64::Engine as _;
    use serde::de::Error as _;

    pub(super) fn serialize<S: Serializer>(leaf: &Leaf, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(leaf.to_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Leaf, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(from)?);
        Leaf::parse(&bytes.map_err(D::Error::custom)?).map_err(D::Error::custom)
    }
}

mod nonce_hex {
    use super::{Deserialize, Deserializer, Hash, Nonce, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(nonce: &Nonce, to: S) -> Result<S::Ok, S::Error> {
        Hash(nonce.0).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Nonce, D::Error> {
        Hash::deserialize(from).map(|bytes| Nonce(bytes.0))
    }
}
