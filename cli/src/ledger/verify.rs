//! Checking the ledger's entries, without asking for them.
//!
//! An operator sees every entry and checks the chain from the first to the head. A tenant sees only
//! its own, which do not touch each other; then each one's hash and signature stand alone.

use berth_api::rest::{AuditEntry, AuditHead};
use berth_ledger::chain::{Head, VerifyError, verify_entry, verify_head, verify_next};
use berth_ledger::keys::PublicKey;

use crate::failure::Failure;

/// A check in progress.
#[derive(Debug)]
pub(crate) enum Verification {
    /// Every entry, up to a head.
    Chain {
        /// The ledger's key.
        key: PublicKey,
        /// Where the chain stands so far.
        reached: Head,
        /// Where it must end.
        head: AuditHead,
    },
    /// Entries one by one.
    Alone {
        /// The ledger's key.
        key: PublicKey,
        /// How many were right.
        count: u64,
    },
}

impl Verification {
    /// Of the whole chain up to `head`.
    #[must_use]
    pub(crate) fn of_chain(key: PublicKey, head: AuditHead) -> Self {
        Self::Chain {
            key,
            reached: Head::default(),
            head,
        }
    }

    /// Of entries that do not touch each other.
    #[must_use]
    pub(crate) fn of_single_entries(key: PublicKey) -> Self {
        Self::Alone { key, count: 0 }
    }

    /// Whether the head is reached, so that what follows is younger than the check.
    #[must_use]
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Chain { reached, head, .. } => reached.size >= head.size,
            Self::Alone { .. } => false,
        }
    }

    /// Check the next entry.
    pub(crate) fn step(&mut self, entry: &AuditEntry) -> Result<(), VerifyError> {
        match self {
            Self::Chain { key, reached, .. } => {
                *reached = verify_next(key, reached, entry)?;
            }
            Self::Alone { key, count } => {
                verify_entry(key, entry)?;
                *count = count.saturating_add(1);
            }
        }
        Ok(())
    }

    /// How many entries were right so far, and of how many, if that is known.
    #[must_use]
    pub(crate) fn progress(&self) -> (u64, Option<u64>) {
        match self {
            Self::Chain { reached, head, .. } => (reached.size, Some(head.size)),
            Self::Alone { count, .. } => (*count, None),
        }
    }

    /// The result, once there are no more entries.
    pub(crate) fn finish(self) -> Result<Verified, VerifyError> {
        match self {
            Self::Chain { key, reached, head } => {
                verify_head(&reached, &head)?;
                Ok(Verified {
                    entries: reached.size,
                    head: Some(head.hash),
                    public_key: key.to_base64(),
                })
            }
            Self::Alone { key, count } => Ok(Verified {
                entries: count,
                head: None,
                public_key: key.to_base64(),
            }),
        }
    }
}

/// What was found right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Verified {
    /// Number of entries.
    pub(crate) entries: u64,
    /// The head's hash, if the whole chain was checked.
    pub(crate) head: Option<String>,
    /// The key that signed, standard base64.
    pub(crate) public_key: String,
}

impl Verified {
    /// For people, with what the result does not say.
    #[must_use]
    pub(crate) fn sentence(&self, key_is_pinned: bool) -> String {
        let mut text = match &self.head {
            Some(hash) => format!("verified: {} entries, head {hash}", self.entries),
            None => format!(
                "verified: {} entries, each one's hash and signature alone (a tenant's token does \
                 not see the entries between them, so gaps and order are not checked)",
                self.entries
            ),
        };
        let trust = if key_is_pinned {
            "the key that you gave"
        } else {
            "taken from the controller; give it with --public-key next time"
        };
        text.push_str(&format!("\nkey: {} ({trust})", self.public_key));
        text
    }
}

/// The key to check with: the pinned one, which must be the shown one if there is one, or the shown.
pub(crate) fn choose_key(
    pinned: Option<&PublicKey>,
    shown: Option<&AuditHead>,
) -> Result<Option<PublicKey>, Failure> {
    let shown = shown.map(|head| parse_key(&head.public_key)).transpose()?;
    match (pinned, shown) {
        (Some(pinned), Some(shown)) if *pinned != shown => Err(Failure::LedgerKey {
            shown: shown.to_base64(),
            pinned: pinned.to_base64(),
        }),
        (Some(pinned), _) => Ok(Some(*pinned)),
        (None, shown) => Ok(shown),
    }
}

/// A public key from a caller or a controller.
pub(crate) fn parse_key(text: &str) -> Result<PublicKey, Failure> {
    PublicKey::from_base64(text.trim()).map_err(|cause| Failure::PublicKey {
        text: text.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_ledger::chain::{append, published_head};
    use berth_ledger::keys::SigningKey;

    fn ledger(seed: u8, bodies: &[&str]) -> (PublicKey, Vec<AuditEntry>, AuditHead) {
        let key = SigningKey::from_seed(&[seed; 32]).unwrap();
        let mut head = Head::default();
        let entries = bodies
            .iter()
            .map(|body| {
                let (entry, next) = append(&key, &head, (*body).to_owned());
                head = next;
                entry
            })
            .collect();
        (key.public(), entries, published_head(&head, &key.public()))
    }

    fn run(mut check: Verification, entries: &[AuditEntry]) -> Result<Verified, VerifyError> {
        for entry in entries {
            check.step(entry)?;
        }
        check.finish()
    }

    #[test]
    fn a_whole_ledger_is_verified_up_to_its_head() {
        let (key, entries, head) = ledger(1, &["a", "b", "c"]);
        let verified = run(Verification::of_chain(key, head.clone()), &entries).unwrap();
        assert_eq!((verified.entries, verified.head), (3, Some(head.hash)));
    }

    #[test]
    fn an_empty_ledger_is_verified() {
        let (key, entries, head) = ledger(1, &[]);
        let check = Verification::of_chain(key, head);
        assert!(check.is_complete());
        assert_eq!(run(check, &entries).map(|verified| verified.entries), Ok(0));
    }

    #[test]
    fn a_ledger_that_lost_its_end_is_refused() {
        let (key, entries, head) = ledger(1, &["a", "b"]);
        assert_eq!(
            run(Verification::of_chain(key, head), &entries[..1]),
            Err(VerifyError::Head {
                found: 1,
                expected: 2
            })
        );
    }

    #[test]
    fn a_tenants_own_entries_are_verified_across_the_gaps() {
        let (key, mut entries, _) = ledger(1, &["a", "b", "c"]);
        entries.remove(1);
        let verified = run(Verification::of_single_entries(key), &entries).unwrap();
        assert_eq!((verified.entries, verified.head), (2, None));
        entries[1].body = "C".to_owned();
        assert_eq!(
            run(Verification::of_single_entries(key), &entries),
            Err(VerifyError::Hash { index: 2 })
        );
    }

    #[test]
    fn a_pinned_key_is_not_given_up_for_the_one_shown() {
        let (one, _, head_of_one) = ledger(1, &[]);
        let (two, _, _) = ledger(2, &[]);
        let chosen = choose_key(Some(&one), Some(&head_of_one)).unwrap();
        assert_eq!(chosen, Some(one));
        assert!(matches!(
            choose_key(Some(&two), Some(&head_of_one)),
            Err(Failure::LedgerKey { .. })
        ));
        assert_eq!(choose_key(None, Some(&head_of_one)).unwrap(), Some(one));
        assert_eq!(choose_key(None, None).unwrap(), None);
    }
}
