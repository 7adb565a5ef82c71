//! How the ledger's key came to be the one that it is: what each key said of the next, in the entries that
//! tell of it. Hosts follow a new key by that, and by nothing else.

use berth_api::agent::{
    LEDGER_KEY_PAYLOAD_TYPE, LedgerKeyChange, MAX_LEDGER_KEY_CHANGES, SignedEnvelope,
};
use berth_api::rest::AuditBody;
use berth_controller_store::{EntryFilter, Store, StoreError};
use berth_ledger::envelope::seal;
use berth_ledger::keys::{PublicKey, SigningKey};

/// The member of an entry's detail that has the statement.
pub(crate) const MEMBER: &str = "envelope";

/// What the old key says.
pub(crate) fn seal_change(
    old: &SigningKey,
    new: &PublicKey,
    at: i64,
) -> Result<SignedEnvelope, serde_json::Error> {
    let change = LedgerKeyChange {
        old: old.public().to_base64(),
        new: new.to_base64(),
        at,
    };
    seal(old, LEDGER_KEY_PAYLOAD_TYPE, &change)
}

/// The newest changes that the log tells of, oldest first.
pub(crate) fn of(store: &Store) -> Result<Vec<SignedEnvelope>, StoreError> {
    let mut changes: Vec<_> = rotations(store)?
        .iter()
        .filter_map(|body| serde_json::from_value(body.detail.get(MEMBER)?.clone()).ok())
        .collect();
    let superfluous = changes.len().saturating_sub(MAX_LEDGER_KEY_CHANGES);
    changes.drain(..superfluous);
    Ok(changes)
}

/// Whether the log says that this key was made.
pub(crate) fn is_recorded(store: &Store, new: &PublicKey) -> Result<bool, StoreError> {
    let new = new.to_base64();
    let is_of_it =
        |body: &AuditBody| body.detail.get("new").and_then(|key| key.as_str()) == Some(&new);
    Ok(rotations(store)?.iter().any(is_of_it))
}

fn rotations(store: &Store) -> Result<Vec<AuditBody>, StoreError> {
    let rotations = EntryFilter {
        event_type: Some("KEY_ROTATED".to_owned()),
        limit: u32::MAX,
        ..EntryFilter::default()
    };
    let entries = store.read(|db| db.entries(&rotations))?;
    let body = |text: &String| serde_json::from_str(text).ok();
    Ok(entries
        .iter()
        .filter_map(|entry| body(&entry.body))
        .collect())
}
