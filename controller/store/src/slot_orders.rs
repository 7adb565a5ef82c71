//! What operators do with slots, and the signed orders to their hosts that follow.

use berth_api::agent::{SignedEnvelope, TaskResult};
use berth_api::ids::{NodeId, SlotId, TaskId};
use berth_api::rest::Slot;
use berth_api::slot::{SLOT_TASK_PAYLOAD_TYPE, SlotAction, SlotState, SlotTask};
use berth_controller_core::slot::Admission;
use berth_ledger::envelope;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::Cause;
use crate::rows::parsed;
use crate::slot_sync::slot_event;
use crate::slots::StoredSlot;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::sync::{clipped_to, judged};
use crate::tasks::{MAX_TASKS_PER_SYNC, TASK_LEAST_LEFT_S, TASK_LIFETIME_S};
use crate::writer::WriteTx;

/// What an operator wants of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotWish {
    /// That tenants may have it.
    Admit,
    /// That nobody gets it from here on.
    Quarantine {
        /// Why.
        reason: String,
    },
    /// That it leaves quarantine by a wipe.
    ReleaseQuarantine,
    /// That it is wiped.
    Wipe,
}

/// Why an operator's wish was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActOnSlotDenied {
    /// There is no such slot.
    #[error("there is no such slot")]
    NotFound,
    /// The owner of its host has not approved it.
    #[error("the slot is not approved on its host")]
    NotApproved,
    /// Not possible where it stands.
    #[error("the slot is in another state")]
    State {
        /// Where it stands.
        state: SlotState,
        /// Where it would have to.
        allowed: &'static [SlotState],
    },
    /// A VM has it.
    #[error("a VM has the slot")]
    InUse,
}

impl Db<'_> {
    /// Orders about slots that a node has not answered, oldest first.
    pub fn pending_slot_tasks(
        &self,
        node: NodeId,
    ) -> Result<Vec<(TaskId, SignedEnvelope)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT task_id, envelope FROM slot_task WHERE node_id = ?1 AND state = 'pending'
             ORDER BY task_id LIMIT ?2",
        )?;
        let rows = select.query_map((node.to_string(), MAX_TASKS_PER_SYNC), |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| {
            let (id, text) = row?;
            let envelope = serde_json::from_str(&text).map_err(|_| StoreError::Corrupt {
                what: "slot task envelope",
            })?;
            Ok((parsed(&id, "task id")?, envelope))
        })
        .collect()
    }
}

impl WriteTx<'_> {
    /// Take an operator's wish; the slot as it is then. `by` names the token.
    pub fn act_on_slot(
        &mut self,
        id: SlotId,
        wish: &SlotWish,
        by: &str,
        cause: &Cause,
    ) -> Result<Result<Slot, ActOnSlotDenied>, StoreError> {
        let Some(slot) = self.stored_slot(id)? else {
            return Ok(Err(ActOnSlotDenied::NotFound));
        };
        if let Err(denied) = permit(&slot, wish) {
            return Ok(Err(denied));
        }
        match wish {
            SlotWish::Admit => self.admit_slot(&slot, by, cause)?,
            SlotWish::Quarantine { reason } => self.quarantine_slot(&slot, reason, by, cause)?,
            SlotWish::ReleaseQuarantine => {
                self.append(
                    slot_event(
                        "SLOT_QUARANTINE_RELEASED",
                        slot.node_id,
                        slot.slot_id,
                        json!({}),
                    ),
                    cause,
                )?;
                self.order_wipe(&slot, cause)?;
                self.conn
                    .prepare_cached(
                        "UPDATE slot SET quarantined_at = NULL, quarantined_by = NULL,
                         quarantine_reason = NULL WHERE slot_id = ?1",
                    )?
                    .send([id.to_string()])?;
            }
            SlotWish::Wipe => self.order_wipe(&slot, cause)?,
        }
        self.slot(id)?
            .map(Ok)
            .ok_or(StoreError::Corrupt { what: "slot" })
    }

    fn admit_slot(&mut self, slot: &StoredSlot, by: &str, cause: &Cause) -> Result<(), StoreError> {
        if slot.facts().admission == Admission::Holds {
            return Ok(());
        }
        let detail = json!({ "class": slot.class, "identity": slot.identity });
        self.append(
            slot_event("SLOT_APPROVED", slot.node_id, slot.slot_id, detail),
            cause,
        )?;
        self.conn
            .prepare_cached(
                "UPDATE slot SET admitted_identity = identity, admitted_at = ?2, admitted_by = ?3
                 WHERE slot_id = ?1",
            )?
            .send((slot.slot_id.to_string(), self.now, by))?;
        Ok(())
    }

    /// Close a slot here at once, and have its host close it.
    pub(crate) fn quarantine_slot(
        &mut self,
        slot: &StoredSlot,
        reason: &str,
        by: &str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let detail = json!({ "by": by, "reason": reason });
        let index = self.append(
            slot_event("SLOT_QUARANTINED", slot.node_id, slot.slot_id, detail),
            cause,
        )?;
        self.conn
            .prepare_cached(
                "UPDATE slot SET quarantined_at = ?2, quarantined_by = ?3, quarantine_reason = ?4
                 WHERE slot_id = ?1",
            )?
            .send((slot.slot_id.to_string(), self.now, by, reason))?;
        let action = SlotAction::Quarantine {
            reason: reason.to_owned(),
        };
        self.sign_slot_task(slot, action, index, cause)
    }

    /// Nobody gets the slot before a wipe that is later than all that is known of it here.
    pub(crate) fn order_wipe(
        &mut self,
        slot: &StoredSlot,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let index = self.append(
            slot_event(
                "SLOT_WIPE_ORDERED",
                slot.node_id,
                slot.slot_id,
                json!({ "after_generation": slot.generation }),
            ),
            cause,
        )?;
        self.require_wipe(slot)?;
        self.sign_slot_task(slot, SlotAction::Wipe {}, index, cause)
    }

    fn require_wipe(&mut self, slot: &StoredSlot) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE slot SET wipe_required_after = generation WHERE slot_id = ?1")?
            .send([slot.slot_id.to_string()])?;
        Ok(())
    }

    /// The newest order takes the place of an unanswered one.
    fn sign_slot_task(
        &mut self,
        slot: &StoredSlot,
        action: SlotAction,
        ledger_index: u64,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let now_s = self.now.div_euclid(1000);
        let kind = kind_of(&action);
        let task = SlotTask {
            task_id: TaskId::generate(),
            node_id: slot.node_id,
            node_epoch: self.node_epoch(slot.node_id)?,
            slot_id: slot.slot_id,
            fencing_epoch: slot.epoch(),
            not_before: now_s,
            expires_at: now_s.saturating_add(TASK_LIFETIME_S),
            ledger_index,
            action,
        };
        let (envelope, signature) = self.seal_slot_task(&task)?;
        self.conn
            .prepare_cached(
                "UPDATE slot_task SET state = 'withdrawn' WHERE slot_id = ?1 AND state = 'pending'",
            )?
            .send([slot.slot_id.to_string()])?;
        self.conn
            .prepare_cached(
                "INSERT INTO slot_task (task_id, slot_id, node_id, kind, state, envelope,
                 expires_at_s, created_at) VALUES (?1, ?2, ?3, ?4, 'pending', ?5, ?6, ?7)",
            )?
            .send((
                task.task_id.to_string(),
                slot.slot_id.to_string(),
                slot.node_id.to_string(),
                kind,
                envelope,
                task.expires_at,
                self.now,
            ))?;
        let detail = json!({ "task_id": task.task_id, "kind": kind, "signature": signature });
        let mut event = slot_event("TASK_SIGNED", slot.node_id, slot.slot_id, detail);
        event.outcome = "accepted";
        self.append(event, cause)?;
        Ok(())
    }

    /// Sign anew what a node has not answered and will soon not be allowed to do.
    pub(crate) fn refresh_slot_tasks(&mut self, node: NodeId) -> Result<(), StoreError> {
        let now_s = self.now.div_euclid(1000);
        let ending: Vec<String> = self
            .conn
            .prepare_cached(
                "SELECT envelope FROM slot_task
                 WHERE node_id = ?1 AND state = 'pending' AND expires_at_s < ?2",
            )?
            .query_map(
                (node.to_string(), now_s.saturating_add(TASK_LEAST_LEFT_S)),
                |row| row.get(0),
            )?
            .collect::<Result<_, _>>()?;
        let trusted = [self.keys.task.public()];
        for text in ending {
            let mut task: SlotTask = serde_json::from_str(&text)
                .ok()
                .and_then(|sealed| envelope::open(&trusted, SLOT_TASK_PAYLOAD_TYPE, &sealed).ok())
                .ok_or(StoreError::Corrupt {
                    what: "slot task envelope",
                })?;
            task.not_before = now_s;
            task.expires_at = now_s.saturating_add(TASK_LIFETIME_S);
            let (envelope, _) = self.seal_slot_task(&task)?;
            self.conn
                .prepare_cached(
                    "UPDATE slot_task SET envelope = ?2, expires_at_s = ?3 WHERE task_id = ?1",
                )?
                .send((task.task_id.to_string(), envelope, task.expires_at))?;
        }
        Ok(())
    }

    /// Take a result if it is of an order about a slot.
    pub(crate) fn take_slot_result(
        &mut self,
        node: NodeId,
        result: &TaskResult,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let row: Option<(String, String)> = self
            .conn
            .prepare_cached(
                "SELECT slot_id, kind FROM slot_task
                 WHERE task_id = ?1 AND node_id = ?2 AND state = 'pending'",
            )?
            .query_row((result.task_id.to_string(), node.to_string()), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((slot_id, kind)) = row else {
            return Ok(());
        };
        let slot = self
            .stored_slot(parsed(&slot_id, "slot id")?)?
            .ok_or(StoreError::Corrupt { what: "slot" })?;
        let (state, reason) = judged(&result.outcome);
        let text = serde_json::to_string(result).map_err(|_| StoreError::Unstorable {
            what: "task result",
        })?;
        let detail = json!({
            "task_id": result.task_id,
            "kind": kind,
            "result": state,
            "message": reason.as_ref().map(|reason| &reason.message),
        });
        let mut event = slot_event("TASK_COMPLETED", node, slot.slot_id, detail);
        if let Some(reason) = &reason {
            event.outcome = "failed";
            event.code = Some(reason.code.clone());
        }
        self.append(event, cause)?;
        self.conn
            .prepare_cached("UPDATE slot_task SET state = ?2, result = ?3 WHERE task_id = ?1")?
            .send((
                result.task_id.to_string(),
                state,
                clipped_to(&text, 16 * 1024),
            ))?;
        // Whatever wipe was shown meanwhile was not the one that was asked for.
        if kind == "wipe" && reason.is_some() {
            self.require_wipe(&slot)?;
        }
        Ok(())
    }

    fn seal_slot_task(&self, task: &SlotTask) -> Result<(String, String), StoreError> {
        let unstorable = |_| StoreError::Unstorable { what: "slot task" };
        let sealed =
            envelope::seal(&self.keys.task, SLOT_TASK_PAYLOAD_TYPE, task).map_err(unstorable)?;
        let signature = sealed
            .signatures
            .first()
            .map(|signature| signature.sig.clone())
            .unwrap_or_default();
        let text = serde_json::to_string(&sealed).map_err(unstorable)?;
        Ok((text, signature))
    }
}

fn kind_of(action: &SlotAction) -> &'static str {
    match action {
        SlotAction::Wipe {} => "wipe",
        SlotAction::Quarantine { .. } => "quarantine",
    }
}

fn permit(slot: &StoredSlot, wish: &SlotWish) -> Result<(), ActOnSlotDenied> {
    let facts = slot.facts();
    let state = facts.shown_state();
    let only = |allowed: &'static [SlotState]| {
        if allowed.contains(&state) {
            Ok(())
        } else {
            Err(ActOnSlotDenied::State { state, allowed })
        }
    };
    let unused = || {
        if facts.is_claimed && !facts.is_vm_gone {
            Err(ActOnSlotDenied::InUse)
        } else {
            Ok(())
        }
    };
    match (wish, slot.host_state) {
        (SlotWish::Admit, SlotState::Discovered | SlotState::Unapproved) => {
            Err(ActOnSlotDenied::NotApproved)
        }
        (SlotWish::Admit | SlotWish::Quarantine { .. }, SlotState::Retired) => only(&[]),
        (SlotWish::Admit | SlotWish::Quarantine { .. }, _) => Ok(()),
        (SlotWish::ReleaseQuarantine, _) => only(&[SlotState::Quarantined]).and_then(|()| unused()),
        (SlotWish::Wipe, SlotState::Free) if !slot.is_quarantined() => unused(),
        (SlotWish::Wipe, _) => only(&[SlotState::Free]),
    }
}
