//! The ledger's entries: a hash chain in which every link is signed.
//!
//! `hash = SHA-256("berth-ledger-entry-v1" || index as u64 big-endian || prev_hash || SHA-256(body))`
//! and the ledger key signs `"berth-ledger-sign-v1" || hash`. The body is the stored text, byte for
//! byte; nobody re-serialises it. The first entry's `prev_hash` is 32 zero bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::rest::{AuditEntry, AuditHead};
use ring::digest::{SHA256, digest};

use crate::keys::{PublicKey, SigningKey};

/// The last link of a chain: what the next entry builds on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// Hash of the last one; zeros when there is none.
    pub hash: [u8; 32],
}

/// Why an entry or a chain is not what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A hash or signature that is not hex or base64.
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
    /// The entry does not follow from the one before.
    #[error("entry {index}: it does not build on the entry before")]
    Link {
        /// Which entry.
        index: u64,
    },
    /// The body was changed.
    #[error("entry {index}: its hash does not belong to its body")]
    Hash {
        /// Which entry.
        index: u64,
    },
    /// Not signed by this ledger's key.
    #[error("entry {index}: its signature is wrong")]
    Signature {
        /// Which entry.
        index: u64,
    },
    /// The chain does not end at the head that the controller shows.
    #[error("the entries end at {found}, the head says {expected}")]
    Head {
        /// Size found.
        found: u64,
        /// Size said.
        expected: u64,
    },
}

fn entry_hash(index: u64, prev_hash: &[u8; 32], body: &str) -> [u8; 32] {
    let mut input = b"berth-ledger-entry-v1".to_vec();
    input.extend_from_slice(&index.to_be_bytes());
    input.extend_from_slice(prev_hash);
    input.extend_from_slice(digest(&SHA256, body.as_bytes()).as_ref());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &input).as_ref());
    hash
}

fn signed_text(hash: &[u8; 32]) -> Vec<u8> {
    let mut text = b"berth-ledger-sign-v1".to_vec();
    text.extend_from_slice(hash);
    text
}

fn to_hex(bytes: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The next entry after `head`, and the head after it.
#[must_use]
pub fn append(key: &SigningKey, head: &Head, body: String) -> (AuditEntry, Head) {
    let hash = entry_hash(head.size, &head.hash, &body);
    let entry = AuditEntry {
        index: head.size,
        body,
        prev_hash: to_hex(&head.hash),
        hash: to_hex(&hash),
        signature: STANDARD.encode(key.sign(&signed_text(&hash))),
    };
    (
        entry,
        Head {
            size: head.size.saturating_add(1),
            hash,
        },
    )
}

/// Check one entry on its own: body, hash and signature belong together.
pub fn verify_entry(key: &PublicKey, entry: &AuditEntry) -> Result<(), VerifyError> {
    let index = entry.index;
    let prev = from_hex(&entry.prev_hash).ok_or(VerifyError::Unreadable {
        index,
        field: "prev_hash",
    })?;
    let hash = from_hex(&entry.hash).ok_or(VerifyError::Unreadable {
        index,
        field: "hash",
    })?;
    let signature = STANDARD
        .decode(&entry.signature)
        .map_err(|_| VerifyError::Unreadable {
            index,
            field: "signature",
        })?;
    if hash != entry_hash(index, &prev, &entry.body) {
        return Err(VerifyError::Hash { index });
    }
    key.verify(&signed_text(&hash), &signature)
        .map_err(|_| VerifyError::Signature { index })
}

/// Check an entry and that it follows `head`; the head after it.
pub fn verify_next(key: &PublicKey, head: &Head, entry: &AuditEntry) -> Result<Head, VerifyError> {
    if entry.index != head.size {
        return Err(VerifyError::Order {
            index: entry.index,
            expected: head.size,
        });
    }
    if entry.prev_hash != to_hex(&head.hash) {
        return Err(VerifyError::Link { index: entry.index });
    }
    verify_entry(key, entry)?;
    let hash = from_hex(&entry.hash).ok_or(VerifyError::Unreadable {
        index: entry.index,
        field: "hash",
    })?;
    Ok(Head {
        size: head.size.saturating_add(1),
        hash,
    })
}

/// Check that a chain read up to `head` ends where the controller says that it ends.
pub fn verify_head(head: &Head, said: &AuditHead) -> Result<(), VerifyError> {
    if head.size == said.size && to_hex(&head.hash) == said.hash {
        Ok(())
    } else {
        Err(VerifyError::Head {
            found: head.size,
            expected: said.size,
        })
    }
}

/// A head as the REST surface shows it.
#[must_use]
pub fn published_head(head: &Head, key: &PublicKey) -> AuditHead {
    AuditHead {
        size: head.size,
        hash: to_hex(&head.hash),
        public_key: key.to_base64(),
    }
}

/// The head after an entry that was stored by us.
pub fn head_after(entry: &AuditEntry) -> Result<Head, VerifyError> {
    let hash = from_hex(&entry.hash).ok_or(VerifyError::Unreadable {
        index: entry.index,
        field: "hash",
    })?;
    Ok(Head {
        size: entry.index.saturating_add(1),
        hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain_of(key: &SigningKey, bodies: &[&str]) -> Vec<AuditEntry> {
        let mut head = Head::default();
        bodies
            .iter()
            .map(|body| {
                let (entry, next) = append(key, &head, (*body).to_owned());
                head = next;
                entry
            })
            .collect()
    }

    fn verify_all(key: &PublicKey, entries: &[AuditEntry]) -> Result<Head, VerifyError> {
        entries.iter().try_fold(Head::default(), |head, entry| {
            verify_next(key, &head, entry)
        })
    }

    #[test]
    fn a_chain_verifies_from_the_first_entry_to_its_head() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let head = verify_all(&key.public(), &chain_of(&key, &["a", "b", "c"])).unwrap();
        assert_eq!(
            verify_head(&head, &published_head(&head, &key.public())),
            Ok(())
        );
    }

    #[test]
    fn every_kind_of_change_names_its_entry() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let entries = chain_of(&key, &["a", "b", "c"]);
        let check = |change: &dyn Fn(&mut Vec<AuditEntry>), expected: VerifyError| {
            let mut changed = entries.clone();
            change(&mut changed);
            assert_eq!(verify_all(&key.public(), &changed), Err(expected));
        };
        check(
            &|e| e[1].body = "B".to_owned(),
            VerifyError::Hash { index: 1 },
        );
        check(
            &|e| drop(e.remove(1)),
            VerifyError::Order {
                index: 2,
                expected: 1,
            },
        );
        check(
            &|e| e.swap(0, 1),
            VerifyError::Order {
                index: 1,
                expected: 0,
            },
        );
        let other = SigningKey::from_seed(&[2; 32]).unwrap();
        let forged = chain_of(&other, &["a", "x"]);
        check(
            &|e| e[1] = forged[1].clone(),
            VerifyError::Signature { index: 1 },
        );
    }

    #[test]
    fn a_chain_cut_at_the_end_does_not_reach_the_head() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let entries = chain_of(&key, &["a", "b"]);
        let whole = verify_all(&key.public(), &entries).unwrap();
        let cut = verify_all(&key.public(), &entries[..1]).unwrap();
        assert_eq!(
            verify_head(&cut, &published_head(&whole, &key.public())),
            Err(VerifyError::Head {
                found: 1,
                expected: 2
            })
        );
    }
}
