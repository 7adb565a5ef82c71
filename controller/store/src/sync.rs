//! Taking in what an agent says: slots and receipts, results, then the VMs that it sees, in one
//! transaction. Which claims are over is asked last, when all of that is known.
//!
//! A node can speak of VMs that were placed on it and of no others. What does not fit is passed
//! over: a hostile agent must not be able to do more than lie about its own host.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use berth_api::agent::{
    ObservedImage, ObservedState, ObservedVm, StoppedReason, SyncRequest, TaskOutcome, TaskResult,
};
use berth_api::ids::{NodeId, ReceiptId, TaskId, TenantId, VmId};
use berth_api::rest::{StateReason, VmState};
use berth_controller_core::shape::is_image_name;
use berth_controller_core::vm::{Event, transition};
use berth_ledger::keys::PublicKey;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::nodes::NodeIdentity;
use crate::rows::{parsed, parsed_option, state_of};
use crate::sql::OptionalExtension as _;
use crate::tenants::object;
use crate::writer::WriteTx;

/// Longest text of an agent that is kept, in characters.
const MAX_TEXT_CHARS: usize = 500;
/// What a failed creation is called whose slot has no problem by name.
const SLOT_UNUSABLE: &str = "slot_unusable";
/// Most images of one node that are kept.
const MAX_IMAGES: usize = 1000;

/// What became of a sync.
#[derive(Clone, Debug, Default)]
pub struct SyncAccepted {
    /// Results that need not be sent again.
    pub acknowledged: Vec<TaskId>,
    /// Receipts that need not be sent again.
    pub acknowledged_receipts: Vec<ReceiptId>,
    /// Nodes that have work now.
    pub wake: Vec<NodeId>,
}

/// Why a sync was not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncDenied {
    /// No node has this key.
    #[error("no node is enrolled with this key")]
    UnknownKey,
    /// The key belongs to another node.
    #[error("the key belongs to another node")]
    WrongNode,
    /// From before the node's current epoch.
    #[error("the node is at epoch {current}")]
    OldEpoch {
        /// The current one.
        current: u64,
    },
    /// It was sent before, or by a run of the agent that another has replaced.
    #[error("this sync was sent before, or by an earlier run of the agent")]
    Replayed,
}

struct StoredTask {
    vm_id: VmId,
    tenant_id: TenantId,
    kind: String,
    generation: u64,
    state: String,
}

/// A VM on a node, as far as it takes to see whether its node says anything new of it: in a large fleet
/// nearly every word of nearly every sync is what is known.
struct VmOnNode {
    tenant: TenantId,
    generation: u64,
    state: VmState,
    /// Whether its node has an order that it did not answer yet.
    is_unanswered: bool,
}

impl VmOnNode {
    fn may_be_changed_by(&self, vm: &ObservedVm) -> bool {
        let (event, _) = event_of_observation(&vm.state);
        vm.generation >= self.generation && transition(self.state, event) != Ok((self.state, &[]))
    }
}

impl WriteTx<'_> {
    /// Take in a sync whose envelope was signed by `key`.
    pub fn sync(
        &mut self,
        key: &PublicKey,
        request: &SyncRequest,
    ) -> Result<Result<SyncAccepted, SyncDenied>, StoreError> {
        let node = match self.identify(key, request)? {
            Ok(node) => node,
            Err(denied) => return Ok(Err(denied)),
        };
        let cause = Cause::node(key, None);
        let rebooted = self.update_node(node, request)?;
        self.update_images(node, &request.images)?;
        self.take_log(node, key, &request.log, &cause)?;
        self.take_slots(node, &request.slots, &cause)?;
        let mut accepted = SyncAccepted {
            acknowledged_receipts: self.take_receipts(node, key, &request.receipts, &cause)?,
            ..SyncAccepted::default()
        };
        for result in &request.results {
            self.take_result(node, result, &cause)?;
            accepted.acknowledged.push(result.task_id);
        }
        self.take_observations(node, rebooted, &request.vms, &cause)?;
        // While receipts come there may be more of them, and the proof among those.
        let has_told_all = request.receipts.is_empty();
        self.settle_claims(node, has_told_all, &cause)?;
        accepted.wake = self.place_waiting()?;
        self.refresh_tasks(node)?;
        self.refresh_slot_tasks(node)?;
        Ok(Ok(accepted))
    }

    fn identify(
        &mut self,
        key: &PublicKey,
        request: &SyncRequest,
    ) -> Result<Result<NodeId, SyncDenied>, StoreError> {
        let Some(NodeIdentity { node_id, epoch }) = self.node_of_key(key)? else {
            return Ok(Err(SyncDenied::UnknownKey));
        };
        if node_id != request.node_id {
            return Ok(Err(SyncDenied::WrongNode));
        }
        if epoch != request.node_epoch {
            return Ok(Err(SyncDenied::OldEpoch { current: epoch }));
        }
        let run = (node_id.to_string(), request.agent_instance_id.to_string());
        let last_seq: Option<u64> = self
            .conn
            .prepare_cached(
                "SELECT last_seq FROM agent_run WHERE node_id = ?1 AND agent_instance_id = ?2",
            )?
            .query_row((&run.0, &run.1), |row| row.get(0))
            .optional()?;
        let current: Option<String> = self
            .conn
            .prepare_cached("SELECT agent_instance_id FROM node WHERE node_id = ?1")?
            .query_row([&run.0], |row| row.get(0))?;
        let fresh = match last_seq {
            None => true,
            Some(last) => current.as_ref() == Some(&run.1) && request.seq > last,
        };
        if !fresh {
            return Ok(Err(SyncDenied::Replayed));
        }
        self.conn
            .prepare_cached(
                "INSERT INTO agent_run (node_id, agent_instance_id, last_seq) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node_id, agent_instance_id) DO UPDATE SET last_seq = excluded.last_seq",
            )?
            .send((&run.0, &run.1, request.seq))?;
        Ok(Ok(node_id))
    }

    /// Store the node's own facts; whether its host has restarted.
    fn update_node(&mut self, node: NodeId, request: &SyncRequest) -> Result<bool, StoreError> {
        let old_boot: String = self
            .conn
            .prepare_cached("SELECT boot_id FROM node WHERE node_id = ?1")?
            .query_row([node.to_string()], |row| row.get(0))?;
        let boot_id = clipped(&request.boot_id);
        self.conn
            .prepare_cached(
                "UPDATE node SET last_sync_at = ?2, agent_instance_id = ?3, boot_id = ?4,
                 agent_version = ?5, vcpus = ?6, memory_mib = ?7, disk_mib = ?8, kvm = ?9
                 WHERE node_id = ?1",
            )?
            .send((
                node.to_string(),
                self.now,
                request.agent_instance_id.to_string(),
                &boot_id,
                clipped(&request.agent_version),
                request.capacity.vcpus,
                storable(request.capacity.memory_mib),
                storable(request.capacity.disk_mib),
                request.capacity.kvm,
            ))?;
        Ok(boot_id != old_boot)
    }

    fn update_images(&mut self, node: NodeId, images: &[ObservedImage]) -> Result<(), StoreError> {
        let seen: BTreeMap<&str, (String, i64)> = images
            .iter()
            .filter(|image| is_image_name(&image.name))
            .take(MAX_IMAGES)
            .map(|image| {
                let known = (clipped(&image.digest), storable(image.disk_mib));
                (image.name.as_str(), known)
            })
            .collect();
        let stored: Vec<(String, String, i64)> = self
            .conn
            .prepare_cached(
                "SELECT name, digest, disk_mib FROM node_image WHERE node_id = ?1 ORDER BY name",
            )?
            .query_map([node.to_string()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<Result<_, _>>()?;
        let same = stored.len() == seen.len()
            && stored
                .iter()
                .zip(&seen)
                .all(|(old, (name, (digest, disk)))| {
                    (old.0.as_str(), &old.1, &old.2) == (*name, digest, disk)
                });
        if same {
            return Ok(());
        }
        self.conn
            .prepare_cached("DELETE FROM node_image WHERE node_id = ?1")?
            .send([node.to_string()])?;
        for (name, (digest, disk_mib)) in seen {
            self.conn
                .prepare_cached(
                    "INSERT INTO node_image (node_id, name, digest, disk_mib, owned_by)
                     VALUES (?1, ?2, ?3, ?4,
                       (SELECT COALESCE(owned_by, '') FROM node WHERE node_id = ?1))",
                )?
                .send((node.to_string(), name, digest, disk_mib))?;
        }
        Ok(())
    }

    fn take_result(
        &mut self,
        node: NodeId,
        result: &TaskResult,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let Some(task) = self.stored_task(node, result.task_id)? else {
            if self.take_ejection_result(node, result, cause)? {
                return Ok(());
            }
            return self.take_slot_result(node, result, cause);
        };
        if task.state != "pending" {
            return Ok(());
        }
        let (state, mut reason) = judged(&result.outcome);
        if let Some(reason) = &mut reason
            && reason.code == SLOT_UNUSABLE
            && let Some(problem) = self.slot_problem_of(task.vm_id, &reason.message)?
        {
            reason.code = problem;
        }
        let text = serde_json::to_string(result).map_err(|_| StoreError::Unstorable {
            what: "task result",
        })?;
        self.conn
            .prepare_cached("UPDATE task SET state = ?2, result = ?3 WHERE task_id = ?1")?
            .send((
                result.task_id.to_string(),
                state,
                clipped_to(&text, 16 * 1024),
            ))?;
        self.append(
            NewEvent {
                event_type: "TASK_COMPLETED",
                tenant_id: Some(task.tenant_id.clone()),
                vm_id: Some(task.vm_id),
                node_id: Some(node),
                outcome: if reason.is_none() {
                    "completed"
                } else {
                    "failed"
                },
                code: reason.as_ref().map(|reason| reason.code.clone()),
                duration_ms: u64::try_from(result.ended_at.saturating_sub(result.started_at))
                    .ok()
                    .map(|seconds| seconds.saturating_mul(1000)),
                detail: object(json!({
                    "task_id": result.task_id,
                    "kind": task.kind,
                    "result": state,
                    "message": reason.as_ref().map(|reason| &reason.message),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        let newest = self
            .stored_vm(task.vm_id)?
            .is_some_and(|stored| stored.vm.generation == task.generation);
        if newest && let Some(event) = event_of_result(&task.kind, reason.is_none()) {
            // Reports are never denied.
            let reported = self.apply_event(task.vm_id, event, reason, cause)?;
            debug_assert!(reported.is_ok(), "{event:?} is a report");
        }
        Ok(())
    }

    fn stored_task(&self, node: NodeId, id: TaskId) -> Result<Option<StoredTask>, StoreError> {
        let row: Option<(String, String, String, u64, String)> = self
            .conn
            .prepare_cached(
                "SELECT vm_id, tenant_id, kind, generation, state FROM task
                 WHERE task_id = ?1 AND node_id = ?2",
            )?
            .query_row((id.to_string(), node.to_string()), |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                ))
            })
            .optional()?;
        row.map(|(vm_id, tenant_id, kind, generation, state)| {
            Ok(StoredTask {
                vm_id: parsed(&vm_id, "VM id")?,
                tenant_id: parsed(&tenant_id, "tenant id")?,
                kind,
                generation,
                state,
            })
        })
        .transpose()
    }

    fn take_observations(
        &mut self,
        node: NodeId,
        rebooted: bool,
        observed: &[ObservedVm],
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let mut known = self.vms_on(node)?;
        if rebooted {
            for vm_id in known.keys() {
                let reason = reason("host_reboot", "its host restarted under it");
                self.report(*vm_id, Event::HostRebooted, Some(reason), cause)?;
            }
            known = self.vms_on(node)?;
        }
        let mut seen = BTreeSet::new();
        for vm in observed {
            match known.get(&vm.vm_id).filter(|on| on.tenant == vm.tenant_id) {
                Some(on) => {
                    seen.insert(vm.vm_id);
                    if on.may_be_changed_by(vm) {
                        self.take_observation(vm, cause)?;
                    }
                }
                None if self.is_tombstone_on(node, vm)? => self.take_observation(vm, cause)?,
                None => {}
            }
        }
        for (vm_id, on) in &known {
            let expected = on.generation > 0 && !on.is_unanswered;
            if expected && !seen.contains(vm_id) {
                let reason = reason("vm_lost", "its node does not know it any more");
                self.report(*vm_id, Event::Missing, Some(reason), cause)?;
            }
        }
        Ok(())
    }

    fn take_observation(&mut self, vm: &ObservedVm, cause: &Cause) -> Result<(), StoreError> {
        let Some(stored) = self.stored_vm(vm.vm_id)? else {
            return Ok(());
        };
        // It speaks of what was before the newest order.
        if vm.generation < stored.vm.generation {
            return Ok(());
        }
        let unanswered = self.has_pending_task(vm.vm_id, None)?;
        let (event, reason) = event_of_observation(&vm.state);
        // While an order is unanswered its result will say how it ended.
        let in_progress = matches!(event, Event::Changing | Event::Running);
        if unanswered && !in_progress {
            return Ok(());
        }
        self.report(vm.vm_id, event, reason, cause)
    }

    fn report(
        &mut self,
        vm_id: VmId,
        event: Event,
        reason: Option<StateReason>,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let reported = self.apply_event(vm_id, event, reason, cause)?;
        debug_assert!(reported.is_ok(), "{event:?} is a report");
        Ok(())
    }

    fn vms_on(&self, node: NodeId) -> Result<BTreeMap<VmId, VmOnNode>, StoreError> {
        let rows: Vec<(String, String, u64, String, bool)> = self
            .conn
            .prepare_cached(
                "SELECT vm_id, tenant_id, generation, state, CASE WHEN EXISTS
                   (SELECT 1 FROM task WHERE task.vm_id = vm.vm_id AND task.state = 'pending')
                   THEN 1 ELSE 0 END
                 FROM vm WHERE node_id = ?1 AND state <> 'deleted'",
            )?
            .query_map([node.to_string()], |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                ))
            })?
            .collect::<Result<_, _>>()?;
        rows.into_iter()
            .map(|(vm, tenant, generation, state, is_unanswered)| {
                let on = VmOnNode {
                    tenant: parsed(&tenant, "tenant id")?,
                    generation,
                    state: state_of(&state)?,
                    is_unanswered,
                };
                Ok((parsed(&vm, "VM id")?, on))
            })
            .collect()
    }

    fn is_tombstone_on(&self, node: NodeId, vm: &ObservedVm) -> Result<bool, StoreError> {
        let row: Option<(Option<String>, String)> = self
            .conn
            .prepare_cached(
                "SELECT node_id, tenant_id FROM vm WHERE vm_id = ?1 AND state = 'deleted'",
            )?
            .query_row([vm.vm_id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((on, tenant)) = row else {
            return Ok(false);
        };
        let on: Option<NodeId> = parsed_option(on, "node id")?;
        Ok(on == Some(node) && tenant == vm.tenant_id.as_str())
    }
}

/// The state that a task ends in, and why if it did not succeed.
pub(crate) fn judged(outcome: &TaskOutcome) -> (&'static str, Option<StateReason>) {
    match outcome {
        TaskOutcome::Done { .. } => ("done", None),
        TaskOutcome::Console { .. } => (
            "failed",
            Some(reason(
                "unexpected_result",
                "the node answered with console bytes",
            )),
        ),
        TaskOutcome::Refused { code, message } => ("refused", Some(coded(code, message))),
        TaskOutcome::Failed { code, message } => ("failed", Some(coded(code, message))),
    }
}

fn event_of_result(kind: &str, succeeded: bool) -> Option<Event> {
    match (kind, succeeded) {
        ("create" | "start", true) => Some(Event::Running),
        ("create" | "start", false) => Some(Event::LaunchFailed),
        ("stop", true) => Some(Event::StopDone),
        ("stop", false) => Some(Event::StopFailed),
        ("delete", true) => Some(Event::DeleteDone),
        ("delete", false) => Some(Event::DeleteFailed),
        (_, _) => None,
    }
}

fn event_of_observation(state: &ObservedState) -> (Event, Option<StateReason>) {
    match state {
        ObservedState::Changing => (Event::Changing, None),
        ObservedState::Running { .. } => (Event::Running, None),
        ObservedState::Stopped { reason: why } => match why {
            StoppedReason::GuestShutdown => (
                Event::GuestShutdown,
                Some(reason("guest_shutdown", "the guest powered itself off")),
            ),
            StoppedReason::Requested => (Event::StopDone, None),
            StoppedReason::HostReboot => (
                Event::HostRebooted,
                Some(reason("host_reboot", "its host restarted under it")),
            ),
        },
        ObservedState::Failed { message } => {
            (Event::Broke, Some(reason("vmm_exit", &clipped(message))))
        }
    }
}

fn reason(code: &str, message: &str) -> StateReason {
    StateReason {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

/// A code of the contract as its own wire text.
fn coded(code: &impl serde::Serialize, message: &str) -> StateReason {
    let code = serde_json::to_value(code)
        .ok()
        .and_then(|value| value.as_str().map(ToOwned::to_owned));
    reason(code.as_deref().unwrap_or("internal"), &clipped(message))
}

pub(crate) fn clipped(text: &str) -> String {
    clipped_to(text, MAX_TEXT_CHARS)
}

pub(crate) fn clipped_to(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// A size that fits SQLite's integers; a host that claims more has at most that.
fn storable(mib: u64) -> i64 {
    i64::try_from(mib).unwrap_or(i64::MAX).min(1 << 40)
}
