//! What hosts have seen of the ledger: each is a witness, and says in every sync what it saw last.
//!
//! A host's cosignature is kept if it is right. That a host refuses work, that it goes on, and that its
//! operator has made it follow another ledger are entries. Nothing here makes the controller stop: a
//! host can say anything, and what stops a database that went back is its anchor and other parties'
//! witnesses.

use berth_api::agent::{
    ACCEPT_ROLLBACK_PAYLOAD_TYPE, AcceptRollback, LogFreeze, LogReport, SignedEnvelope, TreeHead,
};
use berth_api::ids::NodeId;
use berth_api::rest::{HostCosignature, NodeLog};
use berth_ledger::checkpoint::Checkpoint;
use berth_ledger::cosignature::node_witness_name;
use berth_ledger::envelope;
use berth_ledger::keys::PublicKey;
use berth_ledger::merkle::Hash;
use berth_ledger::note::{KeyKind, KeyName, Note, SignatureLine, Vkey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::parsed;
use crate::slots::text_of;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// That a host was not believed.
const DENIED: &str = "NODE_REPORT_DENIED";
/// Longest word of an operator that is recorded, in characters of its envelope's payload.
const MAX_WORD_CHARS: usize = 16 * 1024;

/// What is kept of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredNodeLog {
    seen: Option<TreeHead>,
    cosignature: Option<String>,
    frozen: Option<LogFreeze>,
    accepted_sha256: Option<String>,
}

impl StoredNodeLog {
    pub(crate) fn shown(self) -> NodeLog {
        NodeLog {
            seen: self.seen,
            frozen: self.frozen,
        }
    }
}

impl Db<'_> {
    /// What a host has seen, as far as it has said.
    pub(crate) fn node_log(&self, node: NodeId) -> Result<StoredNodeLog, StoreError> {
        type Row = (
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
        );
        let row: Option<Row> = self
            .conn
            .prepare_cached(
                "SELECT seen, cosignature, frozen, accepted_sha256 FROM node_log WHERE node_id = ?1",
            )?
            .query_row([node.to_string()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((seen, cosignature, frozen, accepted_sha256)) = row else {
            return Ok(StoredNodeLog::default());
        };
        Ok(StoredNodeLog {
            seen: from_json(seen)?,
            cosignature,
            frozen: from_json(frozen)?,
            accepted_sha256,
        })
    }

    /// What hosts have cosigned, by their ids.
    pub fn host_cosignatures(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<HostCosignature>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT node_log.node_id, public_key, seen, cosignature FROM node_log
             JOIN node ON node.node_id = node_log.node_id
             WHERE node_log.node_id > ?1 AND cosignature IS NOT NULL
             ORDER BY node_log.node_id LIMIT ?2",
        )?;
        let rows = select.query_map((after, limit), |row| {
            let (node, key): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let (seen, line): (Option<String>, String) = (row.get(2)?, row.get(3)?);
            Ok((node, key, seen, line))
        })?;
        let corrupt = || StoreError::Corrupt {
            what: "host's cosignature",
        };
        rows.map(|row| {
            let (node, key, seen, line) = row?;
            let node_id = parsed(&node, "node id")?;
            let key = PublicKey::from_bytes(&key).map_err(|_| corrupt())?;
            let seen = from_json(seen)?.ok_or_else(corrupt)?;
            let note = cosigned(&seen, &line).ok_or_else(corrupt)?;
            Ok(HostCosignature {
                node_id,
                vkey: vkey_of(node_id, &key).to_string(),
                note: note.to_string(),
            })
        })
        .collect()
    }
}

impl WriteTx<'_> {
    /// Take in what a host says that it has seen.
    pub(crate) fn take_log(
        &mut self,
        node: NodeId,
        key: &PublicKey,
        report: &LogReport,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let old = self.node_log(node)?;
        let mut new = StoredNodeLog {
            frozen: report.frozen.clone(),
            ..old.clone()
        };
        if let (Some(seen), Some(line)) = (&report.seen, &report.cosignature)
            && old.seen.as_ref() != Some(seen)
        {
            if is_cosigned(seen, line, &vkey_of(node, key)) {
                new.seen = Some(seen.clone());
                new.cosignature = Some(line.clone());
            } else {
                let what = ("cosignature of the ledger", "bad_signature");
                self.refuse_once_as(DENIED, node, what, cause)?;
            }
        }
        let code = |freeze: &Option<LogFreeze>| freeze.as_ref().map(|freeze| freeze.code);
        if code(&old.frozen) != code(&new.frozen) {
            self.record_freeze(node, &new, cause)?;
        }
        if let Some(word) = &report.accepted {
            self.record_acceptance(node, key, word, &mut new, cause)?;
        }
        if new == old {
            return Ok(());
        }
        self.write_node_log(node, &new)
    }

    fn record_freeze(
        &mut self,
        node: NodeId,
        log: &StoredNodeLog,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let shown = log.frozen.as_ref().map(|freeze| &freeze.shown);
        let event = NewEvent {
            event_type: if log.frozen.is_some() {
                "NODE_LOG_FROZEN"
            } else {
                "NODE_LOG_FOLLOWED"
            },
            node_id: Some(node),
            outcome: if log.frozen.is_some() {
                "failed"
            } else {
                "completed"
            },
            code: log.frozen.as_ref().map(|freeze| text_of(&freeze.code)),
            detail: object(json!({ "seen": log.seen, "shown": shown })),
            ..NewEvent::default()
        };
        self.append(event, cause)?;
        Ok(())
    }

    /// An operator's word, as it was signed on the host; once.
    fn record_acceptance(
        &mut self,
        node: NodeId,
        key: &PublicKey,
        word: &SignedEnvelope,
        log: &mut StoredNodeLog,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let sha256 = envelope::payload_sha256(word);
        if sha256 == log.accepted_sha256 {
            return Ok(());
        }
        let opened: Option<AcceptRollback> =
            envelope::open(&[*key], ACCEPT_ROLLBACK_PAYLOAD_TYPE, word).ok();
        let opened = opened.filter(|word| word.node_id == node);
        let Some(said) = opened.filter(|_| word.payload.len() <= MAX_WORD_CHARS) else {
            let what = ("acceptance of a rollback", "bad_signature");
            return self.refuse_once_as(DENIED, node, what, cause);
        };
        let event = NewEvent {
            event_type: "NODE_ROLLBACK_ACCEPTED",
            node_id: Some(node),
            outcome: "completed",
            detail: object(json!({
                "seen": said.seen,
                "shown": said.shown,
                "reason": said.reason,
                "sha256": sha256,
                "envelope": word,
            })),
            ..NewEvent::default()
        };
        self.append(event, cause)?;
        log.accepted_sha256 = sha256;
        Ok(())
    }

    fn write_node_log(&mut self, node: NodeId, log: &StoredNodeLog) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO node_log (node_id, seen, cosignature, frozen, accepted_sha256)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (node_id) DO UPDATE SET seen = excluded.seen,
                   cosignature = excluded.cosignature, frozen = excluded.frozen,
                   accepted_sha256 = excluded.accepted_sha256",
            )?
            .send((
                node.to_string(),
                log.seen.as_ref().map(to_json).transpose()?,
                log.cosignature.clone(),
                log.frozen.as_ref().map(to_json).transpose()?,
                log.accepted_sha256.clone(),
            ))?;
        Ok(())
    }
}

fn vkey_of(node: NodeId, key: &PublicKey) -> Vkey {
    Vkey::new(node_witness_name(node), KeyKind::Cosignature, *key)
}

/// The checkpoint of a tree with a cosignature below; `None` if one of both cannot be read.
fn cosigned(seen: &TreeHead, line: &str) -> Option<Note> {
    let checkpoint = Checkpoint {
        origin: KeyName::new(&seen.origin).ok()?,
        size: seen.size,
        root: Hash::from_hex(&seen.root).ok()?,
    };
    let mut note = Note::unsigned(checkpoint.to_string()).ok()?;
    note.add(SignatureLine::parse(line)?);
    Some(note)
}

fn is_cosigned(seen: &TreeHead, line: &str, vkey: &Vkey) -> bool {
    let keys = std::slice::from_ref(vkey);
    cosigned(seen, line).is_some_and(|note| note.verify(keys).is_ok())
}

fn from_json<T: DeserializeOwned>(text: Option<String>) -> Result<Option<T>, StoreError> {
    let corrupt = |_| StoreError::Corrupt { what: "node log" };
    text.map(|text| serde_json::from_str(&text).map_err(corrupt))
        .transpose()
}

fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Unstorable { what: "node log" })
}
