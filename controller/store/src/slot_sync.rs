//! Taking in what a host says of its slots.
//!
//! A host speaks of its own slots alone. What it says of another's, or what no honest host says, is
//! passed over and written down once. What it says that does not fit the claims closes the slot.

use std::collections::BTreeSet;

use berth_api::ids::{NodeId, SlotId, VmId};
use berth_api::slot::{ObservedSlot, SlotProblemCode, SlotState};
use berth_controller_core::slot::{is_believable, is_held_by_stranger, is_newer};
use serde_json::{Map, Value, json};

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::slots::{StoredSlot, identity_of, text_of, word};
use crate::sync::clipped;
use crate::tenants::object;
use crate::writer::WriteTx;

/// Most slots that one report brings.
const MAX_SLOTS: usize = 1024;
/// Most slots of one node that are kept, those among them that its host has forgotten.
const MAX_SLOTS_KEPT: usize = 8192;
/// Most things that one node was refused that are written down.
const MAX_REFUSALS: u32 = 1000;

impl WriteTx<'_> {
    /// Store what a node says of its slots.
    pub(crate) fn take_slots(
        &mut self,
        node: NodeId,
        observed: &[ObservedSlot],
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let known = self.slots_on(node)?;
        let mut kept = known.len();
        let mut seen = BTreeSet::new();
        for report in observed.iter().take(MAX_SLOTS) {
            if !seen.insert(report.slot_id) {
                continue;
            }
            if !is_believable(report) {
                let subject = format!("slot {}", report.slot_id);
                self.refuse_once(node, &subject, "not_believable", cause)?;
                continue;
            }
            match known.get(&report.slot_id) {
                None if kept >= MAX_SLOTS_KEPT => {
                    self.refuse_once(node, "slots beyond those that are kept", "too_many", cause)?;
                }
                None => {
                    kept += 1;
                    self.discover_slot(node, report, cause)?;
                }
                Some(old) if is_newer(old.generation, report) => {
                    self.update_slot(old, report, cause)?;
                }
                Some(old) => {
                    let subject = format!(
                        "slot {} back from generation {} to {}",
                        report.slot_id, old.generation, report.generation
                    );
                    self.refuse_once(node, &subject, "older_than_known", cause)?;
                }
            }
        }
        for gone in known.values().filter(|slot| slot.is_reported) {
            if !seen.contains(&gone.slot_id) {
                self.conn
                    .prepare_cached("UPDATE slot SET is_reported = 0 WHERE slot_id = ?1")?
                    .send([gone.slot_id.to_string()])?;
            }
        }
        Ok(())
    }

    fn discover_slot(
        &mut self,
        node: NodeId,
        report: &ObservedSlot,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        if let Some(other) = self.stored_slot(report.slot_id)? {
            let subject = format!("slot {} of {}", report.slot_id, other.node_id);
            return self.refuse_once(node, &subject, "slot_of_another_node", cause);
        }
        self.append(
            slot_event(
                "SLOT_DISCOVERED",
                node,
                report.slot_id,
                json!({
                    "name": report.name,
                    "class": report.class,
                    "state": report.state,
                    "devices": report.devices,
                }),
            ),
            cause,
        )?;
        let devices = json_of(&report.devices)?;
        self.conn
            .prepare_cached(
                "INSERT INTO slot (slot_id, node_id, name, class, host_state, generation, host_epoch,
                 devices, identity, is_reported, reported_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, ?6, ?7, 1, ?8)",
            )?
            .send((
                report.slot_id.to_string(),
                node.to_string(),
                &report.name,
                &report.class,
                text_of(&SlotState::Discovered),
                devices,
                identity_of(report),
                self.now,
            ))?;
        let stored = self
            .stored_slot(report.slot_id)?
            .ok_or(StoreError::Corrupt { what: "new slot" })?;
        self.update_slot(&stored, report, cause)
    }

    fn update_slot(
        &mut self,
        old: &StoredSlot,
        report: &ObservedSlot,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let holder = report.holder.as_ref().map(json_of).transpose()?;
        let devices = json_of(&report.devices)?;
        let same = old.is_reported
            && old.host_state == report.state
            && old.generation == report.generation
            && old.host_epoch == report.fencing_epoch
            && old.progress_percent == report.progress_percent
            && old.problem.as_ref().map(|problem| problem.code)
                == report.problem.as_ref().map(|problem| problem.code)
            && old.name == report.name
            && old.class == report.class
            && old.holder == holder
            && old.devices == devices;
        if same {
            return Ok(());
        }
        let identity = identity_of(report);
        self.record_change(old, report, &identity, cause)?;
        self.write_report(report, holder, devices, identity)?;
        self.mark_seen_claim(old, report)?;
        let is_strange =
            is_held_by_stranger(report.state, report.holder.as_ref(), old.live_claim());
        if is_strange && !old.is_quarantined() {
            let held_by = report
                .holder
                .as_ref()
                .map_or_else(|| "nobody".to_owned(), |h| h.claim.claim_id.to_string());
            let reason = format!(
                "its host says that {held_by} has it, which is not the claim that is known here"
            );
            self.quarantine_slot(old, &reason, "controller", &Cause::controller())?;
        }
        Ok(())
    }

    /// Ledger entries for what an operator would want to hear of.
    fn record_change(
        &mut self,
        old: &StoredSlot,
        report: &ObservedSlot,
        identity: &str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        if identity != old.identity {
            let detail = json!({ "class": report.class, "devices": report.devices });
            self.append(
                slot_event("SLOT_DEVICES_CHANGED", old.node_id, old.slot_id, detail),
                cause,
            )?;
        }
        if report.state == SlotState::Quarantined && old.host_state != SlotState::Quarantined {
            let problem = report.problem.as_ref();
            let detail = json!({
                "by": "host",
                "reason": problem.map(|problem| clipped(&problem.message)),
            });
            let mut event = slot_event("SLOT_QUARANTINED", old.node_id, old.slot_id, detail);
            event.code = problem.map(|problem| text_of(&problem.code));
            self.append(event, cause)?;
        }
        Ok(())
    }

    fn write_report(
        &mut self,
        report: &ObservedSlot,
        holder: Option<String>,
        devices: String,
        identity: String,
    ) -> Result<(), StoreError> {
        let problem = report.problem.as_ref();
        let mut numa_nodes: Vec<_> = report.devices.iter().map(|d| d.numa_node).collect();
        numa_nodes.dedup();
        let numa_node = match numa_nodes.as_slice() {
            [one] => *one,
            _ => None,
        };
        self.conn
            .prepare_cached(
                "UPDATE slot SET name = ?2, class = ?3, host_state = ?4, problem_code = ?5,
                 problem_message = ?6, generation = ?7, host_epoch = ?8, progress_percent = ?9,
                 holder = ?10, devices = ?11, identity = ?12, numa_node = ?13, is_reported = 1,
                 reported_at = ?14 WHERE slot_id = ?1",
            )?
            .send((
                report.slot_id.to_string(),
                &report.name,
                &report.class,
                text_of(&report.state),
                problem.map(|problem| text_of(&problem.code)),
                problem.map(|problem| clipped(&problem.message)),
                report.generation,
                report.fencing_epoch,
                report.progress_percent,
                holder,
                devices,
                identity,
                numa_node,
                self.now,
            ))?;
        Ok(())
    }

    /// From the first report on that knows the claim, every later wipe is one after it.
    fn mark_seen_claim(
        &mut self,
        old: &StoredSlot,
        report: &ObservedSlot,
    ) -> Result<(), StoreError> {
        let Some(claim) = old.live_claim() else {
            return Ok(());
        };
        let knows = report.fencing_epoch >= claim.holder.claim.fencing_epoch;
        let lost = claim
            .seen_generation
            .is_some_and(|seen| report.generation < seen);
        if (knows && claim.seen_generation.is_none()) || lost {
            self.conn
                .prepare_cached("UPDATE claim SET seen_generation = ?2 WHERE claim_id = ?1")?
                .send((claim.holder.claim.claim_id.to_string(), report.generation))?;
        }
        Ok(())
    }

    /// Write down that a node was not believed about slots, once for each subject.
    pub(crate) fn refuse_once(
        &mut self,
        node: NodeId,
        subject: &str,
        code: &str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        self.refuse_once_as("SLOT_REPORT_DENIED", node, (subject, code), cause)
    }

    /// The same about anything.
    pub(crate) fn refuse_once_as(
        &mut self,
        event_type: &'static str,
        node: NodeId,
        (subject, code): (&str, &str),
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let node_text = node.to_string();
        let recorded: u32 = self
            .conn
            .prepare_cached("SELECT COUNT(*) FROM slot_refusal WHERE node_id = ?1")?
            .query_row([&node_text], |row| row.get(0))?;
        if recorded >= MAX_REFUSALS {
            return Ok(());
        }
        let is_new = self
            .conn
            .prepare_cached(
                "INSERT INTO slot_refusal (node_id, subject) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?
            .execute((&node_text, subject))?
            == 1;
        if is_new {
            self.append(
                NewEvent {
                    event_type,
                    node_id: Some(node),
                    outcome: "denied",
                    code: Some(code.to_owned()),
                    detail: object(json!({ "subject": subject })),
                    ..NewEvent::default()
                },
                cause,
            )?;
        }
        Ok(())
    }

    /// The problem for which a VM could not have its slots: as its host's newest report names it, or
    /// as a word in parentheses in the failure's message, where the slot has come to rest since.
    pub(crate) fn slot_problem_of(
        &self,
        vm_id: VmId,
        message: &str,
    ) -> Result<Option<String>, StoreError> {
        let reported = self
            .vm_slots(vm_id)?
            .into_iter()
            .find_map(|slot| slot.problem)
            .map(|problem| problem.code);
        let told = || {
            message
                .split(['(', ')'])
                .find_map(|text| word::<SlotProblemCode>(text, "slot problem").ok())
        };
        Ok(reported.or_else(told).map(|code| text_of(&code)))
    }
}

/// An entry about a slot and no tenant.
pub(crate) fn slot_event(
    event_type: &'static str,
    node: NodeId,
    slot: SlotId,
    detail: Value,
) -> NewEvent {
    let mut all = Map::from_iter([("slot_id".to_owned(), json!(slot))]);
    all.append(&mut object(detail));
    NewEvent {
        event_type,
        node_id: Some(node),
        slot_ids: vec![slot],
        outcome: "completed",
        detail: all,
        ..NewEvent::default()
    }
}

fn json_of(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Unstorable {
        what: "slot report",
    })
}
