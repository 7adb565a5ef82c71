//! The keys of the ledger that this host follows: the one that it was given when it joined, and those that
//! came after, each named by the one before.
//!
//! Pure. Whoever has the key before can name any other; nobody else can.

use berth_api::agent::{LEDGER_KEY_PAYLOAD_TYPE, LedgerKeyChange, SignedEnvelope};
use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::envelope::open;
use berth_ledger::keys::PublicKey;
use berth_ledger::note::{KeyKind, Note, Vkey};

/// Most changes of the key that a host follows before it has to join again.
const MAX_CHANGES: usize = 64;

/// The ledger's keys, as far as this host was told in a way that it can believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogKeys {
    /// What it joined with, and what came after.
    keys: Vec<PublicKey>,
    newest: PublicKey,
    /// The statements that led from one to the next.
    changes: Vec<SignedEnvelope>,
}

impl LogKeys {
    /// The key that the node joined with.
    pub(crate) fn new(joined: PublicKey) -> Self {
        Self {
            keys: vec![joined],
            newest: joined,
            changes: Vec::new(),
        }
    }

    /// The key that signs by now.
    pub(crate) fn newest(&self) -> &PublicKey {
        &self.newest
    }

    /// How it came to be that one, oldest first.
    pub(crate) fn changes(&self) -> &[SignedEnvelope] {
        &self.changes
    }

    /// With the changes that the newest key, and then each next one, has signed. What is not of that
    /// chain is passed over, and so is what leads back to a key before.
    pub(crate) fn follow<'a>(&self, changes: impl IntoIterator<Item = &'a SignedEnvelope>) -> Self {
        let mut keys = self.clone();
        for envelope in changes {
            if keys.changes.len() == MAX_CHANGES {
                break;
            }
            let said = open::<LedgerKeyChange>(&[keys.newest], LEDGER_KEY_PAYLOAD_TYPE, envelope);
            let Ok(change) = said else {
                continue;
            };
            let is_by_old = change.old == keys.newest.to_base64();
            let Some(new) = PublicKey::from_base64(&change.new)
                .ok()
                .filter(|_| is_by_old)
            else {
                continue;
            };
            if !keys.keys.contains(&new) {
                keys.keys.push(new);
                keys.newest = new;
                keys.changes.push(envelope.clone());
            }
        }
        keys
    }

    /// A checkpoint as it is shown now: by the newest key.
    pub(crate) fn open(&self, note: &str) -> Option<SignedCheckpoint> {
        open_by(note, &[self.newest])
    }

    /// A checkpoint that was kept: by any key that was the newest once.
    pub(crate) fn open_seen(&self, note: &str) -> Option<SignedCheckpoint> {
        open_by(note, &self.keys)
    }
}

fn open_by(note: &str, keys: &[PublicKey]) -> Option<SignedCheckpoint> {
    let note = Note::parse(note.as_bytes()).ok()?;
    let said = Checkpoint::parse(note.text()).ok()?;
    // The node was given the ledger's key; which log it signs for, the checkpoint says.
    let vkeys: Vec<Vkey> = keys
        .iter()
        .map(|key| Vkey::new(said.origin.clone(), KeyKind::Ed25519, *key))
        .collect();
    SignedCheckpoint::open_note(note, &vkeys).ok()
}
