//! A tenant's own check that it was shown everything, in order, and nothing that the log does not have.
//!
//! Owns two checks. [`TenantView`] follows the tenant's sequence: numbers without gaps, each body
//! naming the hash of the one before, each leaf with the tag and the commitment that belong to it.
//! [`OwnLeaves`] looks through the leaves of the whole log for this tenant's tags: one that was not
//! shown, one that stands twice or elsewhere, one that is not there. That a leaf is in the tree is
//! `merkle`'s to show. A deployment's own events are a sequence of the same kind.

use std::collections::HashMap;

use serde::Deserialize;

use crate::leaf::{Commitment, Leaf, Nonce, Tag, ViewKey};
use crate::merkle::Hash;

/// The number of a holder's first event.
pub const FIRST_SEQUENCE: u64 = 1;
/// What stands as the hash of the body before the first.
pub const NO_PREVIOUS: Hash = Hash([0; 32]);
/// How far past the last event that was shown [`OwnLeaves`] looks.
const LOOKAHEAD: u64 = 64;

/// The members of every event's body that tie it to its holder's sequence.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct BodyLink {
    /// Whose sequence it is; absent for the deployment's own.
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// The number in that sequence, from [`FIRST_SEQUENCE`].
    pub tenant_seq: u64,
    /// SHA-256 of the body before in that sequence; [`NO_PREVIOUS`] in the first.
    pub prev: Hash,
}

/// An event as its holder is shown it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShownEvent<'a> {
    /// The leaf's place in the log.
    pub index: u64,
    /// The public leaf.
    pub leaf: &'a Leaf,
    /// What hides the body.
    pub nonce: &'a Nonce,
    /// The body as it is stored, byte for byte.
    pub body: &'a [u8],
}

/// Why an event does not belong where it was shown.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The body has no sequence number or hash of the body before.
    #[error("the body of entry {index} does not say where it belongs")]
    Body {
        /// The leaf's place.
        index: u64,
        /// What is missing.
        #[source]
        cause: serde_json::Error,
    },
    /// It is somebody else's.
    #[error("entry {index} belongs to {found:?}, not to {expected:?}")]
    Holder {
        /// The leaf's place.
        index: u64,
        /// Whose it is by its own word.
        found: Option<String>,
        /// Whose sequence is being read.
        expected: Option<String>,
    },
    /// An event was left out, or shown twice.
    #[error("entry {index} is event {found} where {expected} belongs")]
    Sequence {
        /// The leaf's place.
        index: u64,
        /// The number that it has.
        found: u64,
        /// The number that is next.
        expected: u64,
    },
    /// It stands before an older event of the same sequence.
    #[error("event {sequence} is entry {index}, which is not after the event before")]
    Order {
        /// The event's number.
        sequence: u64,
        /// The leaf's place.
        index: u64,
    },
    /// It names another body as the one before.
    #[error("event {sequence} does not follow from the event before: one of both was replaced")]
    Previous {
        /// The event's number.
        sequence: u64,
    },
    /// The leaf has another tag than this number's.
    #[error("the leaf of event {sequence} does not bear its tag")]
    Tag {
        /// The event's number.
        sequence: u64,
    },
    /// The leaf binds another body.
    #[error("the leaf at {index} does not bind the body that was shown")]
    Commitment {
        /// The leaf's place.
        index: u64,
    },
}

/// Follows one holder's sequence.
#[derive(Clone, Debug)]
pub struct TenantView {
    holder: Option<String>,
    view_key: Option<ViewKey>,
    next: u64,
    previous: Hash,
    after_index: Option<u64>,
}

impl TenantView {
    /// From the first event on. Without the view key tags are not checked: for somebody to whom the
    /// holder gave events, and not the key.
    #[must_use]
    pub fn from_start(holder: Option<String>, view_key: Option<ViewKey>) -> Self {
        Self::from(holder, view_key, FIRST_SEQUENCE, NO_PREVIOUS)
    }

    /// From event `next` on, after one whose body has the hash `previous`. Both are the caller's to
    /// know, from its own last check.
    #[must_use]
    pub fn from(
        holder: Option<String>,
        view_key: Option<ViewKey>,
        next: u64,
        previous: Hash,
    ) -> Self {
        Self {
            holder,
            view_key,
            next,
            previous,
            after_index: None,
        }
    }

    /// The number of the event that must come next.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Hash of the last body.
    #[must_use]
    pub fn previous(&self) -> Hash {
        self.previous
    }

    /// Take the next event; its number.
    ///
    /// # Errors
    /// If it is not the next event of this holder; the view is then as it was.
    pub fn accept(&mut self, event: &ShownEvent<'_>) -> Result<u64, ViewError> {
        let index = event.index;
        check_commitment(event)?;
        let link: BodyLink =
            serde_json::from_slice(event.body).map_err(|cause| ViewError::Body { index, cause })?;
        if link.tenant_id != self.holder {
            return Err(ViewError::Holder {
                index,
                found: link.tenant_id,
                expected: self.holder.clone(),
            });
        }
        let sequence = link.tenant_seq;
        if sequence != self.next {
            return Err(ViewError::Sequence {
                index,
                found: sequence,
                expected: self.next,
            });
        }
        if link.prev != self.previous {
            return Err(ViewError::Previous { sequence });
        }
        let has_tag = |key: &ViewKey| key.tag(sequence) == event.leaf.tag;
        if !self.view_key.as_ref().is_none_or(has_tag) {
            return Err(ViewError::Tag { sequence });
        }
        if self.after_index.is_some_and(|after| index <= after) {
            return Err(ViewError::Order { sequence, index });
        }
        self.next = sequence.saturating_add(1);
        self.previous = Hash::of_bytes(event.body);
        self.after_index = Some(index);
        Ok(sequence)
    }
}

/// Check that a leaf binds the body that was shown with it.
///
/// # Errors
/// [`ViewError::Commitment`] if it does not.
pub fn check_commitment(event: &ShownEvent<'_>) -> Result<(), ViewError> {
    if event.leaf.commitment == Commitment::of(event.nonce, event.body) {
        return Ok(());
    }
    Err(ViewError::Commitment { index: event.index })
}

/// What the leaves of the log show against what a tenant was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnLeavesError {
    /// The log has an event that was not shown.
    #[error("entry {index} is event {sequence} of this tenant, which was not shown")]
    Omitted {
        /// The event's number.
        sequence: u64,
        /// The leaf's place.
        index: u64,
    },
    /// One number stands at two places.
    #[error("event {sequence} was shown as entry {shown}, and entry {index} bears its tag too")]
    Repeated {
        /// The event's number.
        sequence: u64,
        /// The place that was shown.
        shown: u64,
        /// Another.
        index: u64,
    },
    /// The log has no such event where it was shown.
    #[error("event {sequence} was shown as entry {index}, which does not bear its tag")]
    Invented {
        /// The event's number.
        sequence: u64,
        /// The place that was shown.
        index: u64,
    },
}

/// Looks for one tenant's leaves in the whole log. Holds about 100 bytes for each event that was
/// shown, whatever the log's size.
#[derive(Debug)]
pub struct OwnLeaves {
    /// By tag: the event's number, and its place if it was shown.
    expected: HashMap<Tag, (u64, Option<u64>)>,
    /// Those that were shown and not yet met.
    left: HashMap<u64, u64>,
}

impl OwnLeaves {
    /// `shown` are the events that the tenant was shown, as number and place; all from the first to
    /// the last of them. An event after the last one is looked for too.
    #[must_use]
    pub fn new(view_key: &ViewKey, shown: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut expected = HashMap::new();
        let mut left = HashMap::new();
        let mut next = FIRST_SEQUENCE;
        for (sequence, index) in shown {
            expected.insert(view_key.tag(sequence), (sequence, Some(index)));
            left.insert(sequence, index);
            next = next.max(sequence.saturating_add(1));
        }
        for sequence in next..next.saturating_add(LOOKAHEAD) {
            expected.insert(view_key.tag(sequence), (sequence, None));
        }
        Self { expected, left }
    }

    /// Look at the leaf at `index`.
    ///
    /// # Errors
    /// If it is the tenant's and was not shown, or not as this.
    pub fn look(&mut self, index: u64, leaf: &Leaf) -> Result<(), OwnLeavesError> {
        match self.expected.get(&leaf.tag) {
            None => Ok(()),
            Some((sequence, None)) => Err(OwnLeavesError::Omitted {
                sequence: *sequence,
                index,
            }),
            Some((sequence, Some(shown))) if *shown == index => {
                self.left.remove(sequence);
                Ok(())
            }
            Some((sequence, Some(shown))) => Err(OwnLeavesError::Repeated {
                sequence: *sequence,
                shown: *shown,
                index,
            }),
        }
    }

    /// After the last leaf.
    ///
    /// # Errors
    /// If an event was shown that the log does not have.
    pub fn finish(self) -> Result<(), OwnLeavesError> {
        match self.left.into_iter().min() {
            None => Ok(()),
            Some((sequence, index)) => Err(OwnLeavesError::Invented { sequence, index }),
        }
    }
}

#[cfg(test)]
mod tests;
