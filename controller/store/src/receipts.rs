//! Receipts of hosts about their slots: verified, kept as they came, recorded in the ledger.
//!
//! A receipt that is not the node's own, or not about its own slots, is refused, written down once and
//! acknowledged, so that it does not come again for ever. The entry of one that is stored has what the
//! host signed, as it came. That names who had the slot; so of what later tenants may be shown there is
//! a second, bare entry.

use berth_api::agent::SignedEnvelope;
use berth_api::ids::{EventId, NodeId, ReceiptId, SlotId, VmId};
use berth_api::rest::StoredReceipt;
use berth_api::slot::{RECEIPT_PAYLOAD_TYPE, Receipt, SlotHolder, Statement};
use berth_controller_core::slot::MAX_COUNT;
use berth_ledger::envelope::OpenError;
use berth_ledger::keys::PublicKey;
use berth_ledger::{envelope, receipt as statements};
use serde::Deserialize;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::passports::SlotMark;
use crate::rows::{parsed, parsed_option, rfc3339};
use crate::slot_sync::slot_event;
use crate::slots::StoredSlot;
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// Most receipts that one sync brings; the others come again with the next.
const MAX_RECEIPTS: usize = 256;
/// Longest receipt that is kept, in characters of base64: it and what is said of it fit one entry.
const MAX_RECEIPT_CHARS: usize = 160 * 1024;

const SELECT: &str =
    "SELECT receipt_id, slot_id, vm_id, kind, at_s, generation, sha256, audit_index,
    receipt.node_id, public_key, envelope
    FROM receipt JOIN node ON node.node_id = receipt.node_id";

/// As much of any contract's receipt as is needed to acknowledge it.
#[derive(Deserialize)]
struct Named {
    receipt_id: ReceiptId,
}

impl Db<'_> {
    /// A slot's newest receipts, newest first.
    pub fn slot_receipts(
        &self,
        slot: SlotId,
        limit: u32,
    ) -> Result<Vec<StoredReceipt>, StoreError> {
        let sql = format!("{SELECT} WHERE slot_id = ?1 ORDER BY audit_index DESC LIMIT ?2");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select.query_map((slot.to_string(), limit), |row| Ok(receipt_row(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Receipts that name a VM as the holder and were stored after a ledger index, in that order.
    pub fn vm_receipts(
        &self,
        vm_id: VmId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<StoredReceipt>, StoreError> {
        let sql =
            format!("{SELECT} WHERE vm_id = ?1 AND audit_index > ?2 ORDER BY audit_index LIMIT ?3");
        let after = after.map_or(-1, |index| i64::try_from(index).unwrap_or(i64::MAX));
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select.query_map((vm_id.to_string(), after, limit), |row| {
            Ok(receipt_row(row))
        })?;
        rows.map(|row| row?).collect()
    }
}

fn receipt_row(row: &Row<'_>) -> Result<StoredReceipt, StoreError> {
    let key: Vec<u8> = row.get(9)?;
    let corrupt = |what| StoreError::Corrupt { what };
    let at_s: i64 = row.get(4)?;
    Ok(StoredReceipt {
        receipt_id: parsed(&row.get::<_, String>(0)?, "receipt id")?,
        slot_id: parsed(&row.get::<_, String>(1)?, "slot id")?,
        vm_id: parsed_option(row.get(2)?, "VM id")?,
        kind: row.get(3)?,
        at: rfc3339(at_s.saturating_mul(1000)),
        generation: row.get(5)?,
        sha256: row.get(6)?,
        audit_index: row.get(7)?,
        node_id: parsed(&row.get::<_, String>(8)?, "node id")?,
        node_public_key: PublicKey::from_bytes(&key)
            .map_err(|_| corrupt("node key"))?
            .to_base64(),
        envelope: serde_json::from_str(&row.get::<_, String>(10)?)
            .map_err(|_| corrupt("receipt"))?,
    })
}

impl WriteTx<'_> {
    /// Store a node's receipts; those that need not be sent again.
    pub(crate) fn take_receipts(
        &mut self,
        node: NodeId,
        key: &PublicKey,
        receipts: &[SignedEnvelope],
        cause: &Cause,
    ) -> Result<Vec<ReceiptId>, StoreError> {
        let mut acknowledged = Vec::new();
        let mut sound = Vec::new();
        for sealed in receipts.iter().take(MAX_RECEIPTS) {
            let sha256 = envelope::payload_sha256(sealed).unwrap_or_default();
            // Only for telling the node which one is meant.
            let named: Option<Named> = envelope::read_unverified(sealed);
            acknowledged.extend(named.map(|named| named.receipt_id));
            let refused = match envelope::open(&[*key], RECEIPT_PAYLOAD_TYPE, sealed) {
                Ok(_) if sealed.payload.len() > MAX_RECEIPT_CHARS => "too_long",
                Ok(receipt) => {
                    let receipt: Receipt = receipt;
                    sound.push((receipt, sealed, sha256));
                    continue;
                }
                Err(OpenError::Payload(_)) => "not_of_this_contract",
                Err(
                    OpenError::PayloadType
                    | OpenError::Malformed
                    | OpenError::UnknownKey
                    | OpenError::BadSignature,
                ) => "bad_signature",
            };
            self.refuse_once(node, &format!("receipt {sha256}"), refused, cause)?;
        }
        sound.sort_by_key(|(receipt, _, _)| (receipt.at, receipt.generation));
        for (receipt, sealed, sha256) in sound {
            if let Err(code) = self.take_receipt(node, &receipt, sealed, &sha256, cause)? {
                self.refuse_once(node, &format!("receipt {sha256}"), code, cause)?;
            }
        }
        Ok(acknowledged)
    }

    fn take_receipt(
        &mut self,
        node: NodeId,
        receipt: &Receipt,
        sealed: &SignedEnvelope,
        sha256: &str,
        cause: &Cause,
    ) -> Result<Result<(), &'static str>, StoreError> {
        if receipt.node_id != node {
            return Ok(Err("receipt_of_another_node"));
        }
        let slot = match self.stored_slot(receipt.slot_id)? {
            Some(slot) if slot.node_id == node => slot,
            Some(_) => return Ok(Err("slot_of_another_node")),
            None => return Ok(Err("unknown_slot")),
        };
        if receipt.generation > MAX_COUNT {
            return Ok(Err("not_believable"));
        }
        if statements::check(receipt).is_err() {
            return Ok(Err("statement_does_not_hold"));
        }
        let known: Option<String> = self
            .conn
            .prepare_cached("SELECT sha256 FROM receipt WHERE receipt_id = ?1")?
            .query_row([receipt.receipt_id.to_string()], |row| row.get(0))
            .optional()?;
        match known {
            Some(known) if known == sha256 => return Ok(Ok(())),
            Some(_) => return Ok(Err("receipt_id_used_twice")),
            None => {}
        }
        self.store_receipt(&slot, receipt, sealed, sha256, cause)?;
        self.apply_wipe(&slot, receipt)?;
        Ok(Ok(()))
    }

    fn store_receipt(
        &mut self,
        slot: &StoredSlot,
        receipt: &Receipt,
        sealed: &SignedEnvelope,
        sha256: &str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let owner = match &receipt.holder {
            Some(holder) if holder.claim.slot_id == slot.slot_id && self.is_claim(holder)? => {
                Some(holder)
            }
            Some(_) | None => None,
        };
        let audit_index = self.record_receipt(slot, (receipt, sealed, sha256), owner, cause)?;
        let text = serde_json::to_string(sealed)
            .map_err(|_| StoreError::Unstorable { what: "receipt" })?;
        self.conn
            .prepare_cached(
                "INSERT INTO receipt (receipt_id, slot_id, node_id, tenant_id, vm_id, kind,
                 generation, at_s, sha256, envelope, audit_index, stored_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .send((
                receipt.receipt_id.to_string(),
                slot.slot_id.to_string(),
                slot.node_id.to_string(),
                owner.map(|holder| holder.tenant_id.to_string()),
                owner.map(|holder| holder.vm_id.to_string()),
                kind_of(&receipt.statement),
                receipt.generation,
                receipt.at,
                sha256,
                text,
                audit_index,
                self.now,
            ))?;
        Ok(())
    }

    /// The entries of a receipt; the place of the one that has what was signed.
    fn record_receipt(
        &mut self,
        slot: &StoredSlot,
        (receipt, sealed, sha256): (&Receipt, &SignedEnvelope, &str),
        owner: Option<&SlotHolder>,
        cause: &Cause,
    ) -> Result<u64, StoreError> {
        let (event_type, mark) = match &receipt.statement {
            Statement::Wipe { .. } => ("SLOT_WIPED", Some(SlotMark::Wiped)),
            Statement::Approval { .. } => ("SLOT_RECEIPT_STORED", Some(SlotMark::Approved)),
            Statement::Claim { .. } => (
                "SLOT_RECEIPT_STORED",
                owner.map(|holder| SlotMark::Launched(holder.vm_id)),
            ),
            Statement::Release { .. } | Statement::Quarantine { .. } => {
                ("SLOT_RECEIPT_STORED", None)
            }
        };
        let fencing_epoch = self.epoch_before(receipt)?;
        let event_id = EventId::generate();
        let bare = json!({
            "kind": kind_of(&receipt.statement),
            "sha256": sha256,
            "generation": receipt.generation,
            "fencing_epoch": fencing_epoch,
            "summary": summary(receipt),
        });
        let bare = slot_event(event_type, slot.node_id, slot.slot_id, bare);
        let mut event = NewEvent {
            event_id: Some(event_id),
            tenant_id: owner.map(|holder| holder.tenant_id.clone()),
            vm_id: owner.map(|holder| holder.vm_id),
            ..bare.clone()
        };
        event.detail.append(&mut object(json!({
            "receipt_id": receipt.receipt_id,
            "claim_id": receipt.holder.as_ref().map(|holder| holder.claim.claim_id),
            "envelope": sealed,
        })));
        match mark {
            Some(mark @ (SlotMark::Wiped | SlotMark::Approved)) if receipt.holder.is_some() => {
                let index = self.append(event, cause)?;
                let at = (slot.slot_id, mark, fencing_epoch);
                self.append_bare(bare, at, event_id, cause)?;
                Ok(index)
            }
            Some(mark) => self.append_marked(event, (slot.slot_id, mark, fencing_epoch), cause),
            None => self.append(event, cause),
        }
    }

    /// The last claim that the host had heard of when it wrote a receipt: the one that it names, or
    /// one that it was seen to know before.
    fn epoch_before(&self, receipt: &Receipt) -> Result<u64, StoreError> {
        let named = receipt.holder.as_ref();
        let named = named.map_or(0, |holder| holder.claim.fencing_epoch.min(MAX_COUNT));
        let seen: u64 = self
            .conn
            .prepare_cached(
                "SELECT COALESCE(MAX(fencing_epoch), 0) FROM claim
                 WHERE slot_id = ?1 AND seen_generation < ?2",
            )?
            .query_row((receipt.slot_id.to_string(), receipt.generation), |row| {
                row.get(0)
            })?;
        Ok(named.max(seen))
    }

    /// What a wipe settles: the claim that it came after, and an order that waits for one.
    fn apply_wipe(&mut self, slot: &StoredSlot, receipt: &Receipt) -> Result<(), StoreError> {
        if let Some(claim) = slot.live_claim().filter(|claim| claim.is_wiped_by(receipt)) {
            self.conn
                .prepare_cached("UPDATE claim SET wiped_by = ?2 WHERE claim_id = ?1")?
                .send((
                    claim.holder.claim.claim_id.to_string(),
                    receipt.receipt_id.to_string(),
                ))?;
        }
        let ends_wait = slot
            .wipe_required_after
            .is_some_and(|after| receipt.generation > after);
        if ends_wait && matches!(receipt.statement, Statement::Wipe { .. }) {
            self.conn
                .prepare_cached("UPDATE slot SET wipe_required_after = NULL WHERE slot_id = ?1")?
                .send([slot.slot_id.to_string()])?;
        }
        Ok(())
    }

    /// Whether this controller made that claim, for that VM and tenant. A host cannot put its
    /// statements before anybody else.
    fn is_claim(&self, holder: &SlotHolder) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM claim WHERE claim_id = ?1 AND slot_id = ?2
                 AND vm_id = ?3 AND tenant_id = ?4 AND fencing_epoch = ?5)",
            )?
            .query_row(
                (
                    holder.claim.claim_id.to_string(),
                    holder.claim.slot_id.to_string(),
                    holder.vm_id.to_string(),
                    holder.tenant_id.as_str(),
                    i64::try_from(holder.claim.fencing_epoch).unwrap_or(-1),
                ),
                |row| row.get(0),
            )?)
    }
}

fn kind_of(statement: &Statement) -> &'static str {
    match statement {
        Statement::Approval { .. } => "approval",
        Statement::Claim { .. } => "claim",
        Statement::Release { .. } => "release",
        Statement::Wipe { .. } => "wipe",
        Statement::Quarantine { .. } => "quarantine",
    }
}

/// What the ledger says of a receipt beyond its digest.
fn summary(receipt: &Receipt) -> serde_json::Value {
    match &receipt.statement {
        Statement::Approval { approval_sha256 } => json!({ "approval_sha256": approval_sha256 }),
        Statement::Claim { steps } | Statement::Release { steps } => {
            json!({ "steps": steps.len() })
        }
        Statement::Wipe { devices } => devices
            .iter()
            .map(|wipe| {
                json!({
                    "address": wipe.address,
                    "method": wipe.method,
                    "bytes_read": wipe.read_back.bytes_read,
                    "bytes_wrong": wipe.read_back.bytes_wrong,
                })
            })
            .collect(),
        Statement::Quarantine { problem } => json!({ "problem": problem.code }),
    }
}
