//! Checking the ledger's entries, without asking for them.
//!
//! An operator sees every entry and builds the whole tree from them, up to the root that the ledger
//! has signed. A tenant sees only its own: each must open its leaf's commitment and follow the one
//! before, and what proves that the leaf is in the tree is in its export.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::rest::{AuditEntry, AuditHead};
use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::keys::PublicKey;
use berth_ledger::leaf::{Leaf, LeafKind, Nonce};
use berth_ledger::merkle::{Frontier, Hash};
use berth_ledger::note::{KeyKind, KeyName, Note, Vkey};
use berth_ledger::tenant_view::{BodyLink, ShownEvent, TenantView, ViewError, check_commitment};

use crate::failure::Failure;

/// What is wrong with an entry, or with all of them together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryFault {
    /// A field that is not readable.
    #[error("entry {index}: its {field} is not readable")]
    Unreadable {
        /// Which entry.
        index: u64,
        /// Which field.
        field: &'static str,
    },
    /// An entry is missing or stands in another place.
    #[error("entry {index} stands where entry {expected} belongs")]
    Order {
        /// Found.
        index: u64,
        /// Wanted.
        expected: u64,
    },
    /// It is not what the ledger has.
    #[error("entry {index} is not what the ledger has of it")]
    View {
        /// Which entry.
        index: u64,
        /// Why.
        #[source]
        cause: ViewError,
    },
    /// The entries do not lead to the signed root.
    #[error("the {size} entries do not lead to the root that the ledger has signed")]
    Root {
        /// How many there are.
        size: u64,
    },
    /// They end too early.
    #[error("the entries end at {found}, the checkpoint says {expected}")]
    End {
        /// Size found.
        found: u64,
        /// Size said.
        expected: u64,
    },
}

/// A check in progress.
#[derive(Debug)]
pub(crate) struct Verification {
    key: PublicKey,
    count: u64,
    views: HashMap<Option<String>, TenantView>,
    log: Option<(Frontier, Checkpoint)>,
}

impl Verification {
    /// Of the whole log up to a checkpoint that was opened with `key`.
    #[must_use]
    pub(crate) fn of_log(key: PublicKey, checkpoint: Checkpoint) -> Self {
        Self {
            key,
            count: 0,
            views: HashMap::new(),
            log: Some((Frontier::new(), checkpoint)),
        }
    }

    /// Of one tenant's entries, which do not touch each other in the tree.
    #[must_use]
    pub(crate) fn of_own_entries(key: PublicKey) -> Self {
        Self {
            key,
            count: 0,
            views: HashMap::new(),
            log: None,
        }
    }

    /// Whether the checkpoint is reached, so that what follows is younger than the check.
    #[must_use]
    pub(crate) fn is_complete(&self) -> bool {
        self.log
            .as_ref()
            .is_some_and(|(tree, checkpoint)| tree.size() >= checkpoint.size)
    }

    /// Check the next entry.
    pub(crate) fn step(&mut self, entry: &AuditEntry) -> Result<(), EntryFault> {
        let index = entry.index;
        let (leaf, nonce) = parts_of(entry)?;
        let event = ShownEvent {
            index,
            leaf: &leaf,
            nonce: &nonce,
            body: entry.body.as_bytes(),
        };
        let wrong = |cause| EntryFault::View { index, cause };
        check_commitment(&event).map_err(wrong)?;
        if leaf.kind == LeafKind::Event {
            let link: BodyLink = serde_json::from_str(&entry.body)
                .map_err(|cause| wrong(ViewError::Body { index, cause }))?;
            let holder = link.tenant_id;
            self.views
                .entry(holder.clone())
                .or_insert_with(|| TenantView::from_start(holder, None))
                .accept(&event)
                .map_err(wrong)?;
        }
        if let Some((tree, _)) = &mut self.log {
            let expected = tree.size();
            if index != expected {
                return Err(EntryFault::Order { index, expected });
            }
            tree.push(leaf.hash());
        }
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    /// How many entries were right so far, and of how many, if that is known.
    #[must_use]
    pub(crate) fn progress(&self) -> (u64, Option<u64>) {
        let all = self.log.as_ref().map(|(_, checkpoint)| checkpoint.size);
        (self.count, all)
    }

    /// The result, once there are no more entries.
    pub(crate) fn finish(self) -> Result<Verified, EntryFault> {
        let root = match self.log {
            Some((tree, checkpoint)) => {
                let (found, expected) = (tree.size(), checkpoint.size);
                if found != expected {
                    return Err(EntryFault::End { found, expected });
                }
                if tree.root() != checkpoint.root {
                    return Err(EntryFault::Root { size: found });
                }
                Some(tree.root().to_string())
            }
            None => None,
        };
        Ok(Verified {
            entries: self.count,
            root,
            public_key: self.key.to_base64(),
        })
    }
}

fn parts_of(entry: &AuditEntry) -> Result<(Leaf, Nonce), EntryFault> {
    let index = entry.index;
    let unreadable = |field| EntryFault::Unreadable { index, field };
    let leaf = STANDARD
        .decode(&entry.leaf)
        .ok()
        .and_then(|bytes| Leaf::parse(&bytes).ok())
        .ok_or(unreadable("leaf"))?;
    let nonce = Hash::from_hex(&entry.nonce).map_err(|_| unreadable("nonce"))?;
    Ok((leaf, Nonce(nonce.0)))
}

/// What was found right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Verified {
    /// Number of entries.
    pub(crate) entries: u64,
    /// The tree's root, if the whole log was checked.
    pub(crate) root: Option<String>,
    /// The key that signed, standard base64.
    pub(crate) public_key: String,
}

impl Verified {
    /// For people, with what the result does not say.
    #[must_use]
    pub(crate) fn sentence(&self, key_is_pinned: bool) -> String {
        let mut text = match &self.root {
            Some(root) => format!("verified: {} entries, root {root}", self.entries),
            None => format!(
                "verified: {} entries, without gaps and each one bound by its leaf (that the leaves \
                 are in the signed tree is proved by `ledger export` and `ledger verify FILE`)",
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
    let previous = shown.and_then(|head| head.previous_public_key.as_deref());
    let previous = previous.map(parse_key).transpose()?;
    let shown = shown.map(|head| parse_key(&head.public_key)).transpose()?;
    match (pinned, shown) {
        // While the key is changed, both sign.
        (Some(pinned), Some(_)) if previous.as_ref() == Some(pinned) => Ok(Some(*pinned)),
        (Some(pinned), Some(shown)) if *pinned != shown => Err(Failure::LedgerKey {
            shown: shown.to_base64(),
            pinned: pinned.to_base64(),
        }),
        (Some(pinned), _) => Ok(Some(*pinned)),
        (None, shown) => Ok(shown),
    }
}

/// The checkpoint of a head, if `key` has signed it.
pub(crate) fn open_checkpoint(head: &AuditHead, key: &PublicKey) -> Result<Checkpoint, Failure> {
    let vkeys: Vec<Vkey> = KeyName::new(&head.origin)
        .map(|origin| Vkey::new(origin, KeyKind::Ed25519, *key))
        .into_iter()
        .collect();
    SignedCheckpoint::open(head.checkpoint.as_bytes(), &vkeys)
        .map(|opened| opened.checkpoint().clone())
        .map_err(Failure::Checkpoint)
}

/// Keys for a file's checkpoint: the caller's under the name that the checkpoint has, or what the file
/// says of itself. If that cannot be read, the member that it is in.
pub(crate) fn log_keys(
    checkpoint: &str,
    named: &[String],
    pinned: Option<&PublicKey>,
) -> Result<Vec<Vkey>, &'static str> {
    let Some(pinned) = pinned else {
        let named = named.iter().map(|text| text.parse());
        return named.collect::<Result<_, _>>().map_err(|_| "log_keys");
    };
    let origin = Note::parse(checkpoint.as_bytes())
        .ok()
        .and_then(|note| Checkpoint::parse(note.text()).ok())
        .map(|checkpoint| checkpoint.origin)
        .ok_or("checkpoint")?;
    Ok(vec![Vkey::new(origin, KeyKind::Ed25519, *pinned)])
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
    use berth_ledger::keys::SigningKey;
    use berth_ledger::leaf::{Commitment, Tag};

    fn key(seed: u8) -> PublicKey {
        SigningKey::from_seed(&[seed; 32]).unwrap().public()
    }

    /// Entries of these tenants in this order, and the checkpoint over them.
    fn ledger(tenants: &[&str]) -> (Vec<AuditEntry>, Checkpoint) {
        let mut ends: HashMap<&str, (u64, Hash)> = HashMap::new();
        let mut tree = Frontier::new();
        let mut entries = Vec::new();
        for (index, tenant) in tenants.iter().enumerate() {
            let (seq, prev) = ends.get(tenant).copied().unwrap_or((1, Hash([0; 32])));
            let body = format!(r#"{{"tenant_id":"{tenant}","tenant_seq":{seq},"prev":"{prev}"}}"#);
            ends.insert(tenant, (seq + 1, Hash::of_bytes(body.as_bytes())));
            let nonce = Nonce([7; 32]);
            let commitment = Commitment::of(&nonce, body.as_bytes());
            let leaf = Leaf::of_event(0, Tag([0; 32]), commitment);
            tree.push(leaf.hash());
            entries.push(AuditEntry {
                index: u64::try_from(index).unwrap(),
                body,
                nonce: Hash(nonce.0).to_string(),
                leaf: STANDARD.encode(leaf.to_bytes()),
                leaf_hash: leaf.hash().to_string(),
            });
        }
        let checkpoint = Checkpoint {
            origin: KeyName::new("log.example/e1").unwrap(),
            size: tree.size(),
            root: tree.root(),
        };
        (entries, checkpoint)
    }

    fn run(mut check: Verification, entries: &[AuditEntry]) -> Result<Verified, EntryFault> {
        for entry in entries {
            check.step(entry)?;
        }
        check.finish()
    }

    #[test]
    fn a_whole_ledger_is_verified_up_to_its_checkpoint() {
        let (entries, checkpoint) = ledger(&["a", "b", "a"]);
        let root = checkpoint.root.to_string();
        let verified = run(Verification::of_log(key(1), checkpoint), &entries).unwrap();
        assert_eq!((verified.entries, verified.root), (3, Some(root)));
    }

    #[test]
    fn an_empty_ledger_is_verified() {
        let (entries, checkpoint) = ledger(&[]);
        let check = Verification::of_log(key(1), checkpoint);
        assert!(check.is_complete());
        assert_eq!(run(check, &entries).unwrap().entries, 0);
    }

    #[test]
    fn a_ledger_that_lost_its_end_is_refused() {
        let (entries, checkpoint) = ledger(&["a", "b"]);
        let refused = run(Verification::of_log(key(1), checkpoint), &entries[..1]);
        assert!(matches!(
            refused,
            Err(EntryFault::End {
                found: 1,
                expected: 2
            })
        ));
    }

    #[test]
    fn a_tenants_own_entries_are_verified_across_the_gaps() {
        let (entries, _) = ledger(&["a", "b", "a", "b"]);
        let own = [entries[0].clone(), entries[2].clone()];
        let verified = run(Verification::of_own_entries(key(1)), &own).unwrap();
        assert_eq!((verified.entries, verified.root), (2, None));
        let holed = run(Verification::of_own_entries(key(1)), &entries[2..]);
        assert!(
            matches!(holed, Err(EntryFault::View { index: 2, .. })),
            "{holed:?}"
        );
    }

    #[test]
    fn every_kind_of_change_names_its_entry() {
        let (entries, checkpoint) = ledger(&["a", "a", "a"]);
        let check = |change: &dyn Fn(&mut Vec<AuditEntry>), words: &str| {
            let mut changed = entries.clone();
            change(&mut changed);
            let fault = run(Verification::of_log(key(1), checkpoint.clone()), &changed);
            let fault = fault.unwrap_err().to_string();
            assert!(fault.contains(words), "{fault}");
        };
        check(&|e| e[1].body.push(' '), "entry 1 ");
        check(&|e| e[1].nonce = Hash([0; 32]).to_string(), "entry 1 ");
        check(&|e| drop(e.remove(1)), "entry 2 ");
        check(&|e| e[2].leaf = "x".to_owned(), "entry 2: its leaf");
    }
}
