//! The agent's slots: taken up at the start and whenever their owner approves one, ordered about by
//! signed tasks, and given back where no VM has them any more.

use std::sync::Arc;

use berth_agent_core::slot::record::SlotRecord;
use berth_agent_core::task_check::{TaskRefused, claimed_task_id};
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::slot_files::{SlotFiles, SlotFilesError};
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::VmmUnits;
use berth_api::agent::{FailureCode, RefusalCode, SignedEnvelope, Task, TaskAction};
use berth_api::ids::{SlotId, VmId};
use berth_api::slot::Claim;
use tokio::sync::mpsc;

use super::{Agent, failed, frozen};
use crate::clock;
use crate::host::blocking;
use crate::launch::in_one_line;
use crate::slots::SlotActor;

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> Agent<U, F, S> {
    /// Take up every slot that has a record, and every one that is approved.
    pub(super) async fn adopt_slots(&self) -> Result<(), SlotFilesError> {
        let files = Arc::clone(&self.host.slots.files);
        for slot_id in blocking(move || files.list()).await? {
            self.ensure_slot(slot_id).await;
        }
        self.look_at_slots().await;
        Ok(())
    }

    /// Something of the host may have changed: devices, the IOMMU, the owner's approvals.
    pub async fn look_at_slots(&self) {
        let approvals = Arc::clone(&self.host.slots.approvals);
        let found = blocking(move || approvals.read()).await;
        for refused in &found.refused {
            tracing::warn!("{} approves nothing: {}", refused.file, refused.reason);
        }
        for approved in found.approved {
            self.ensure_slot(approved.approval.slot_id).await;
        }
        self.slots.look();
    }

    /// Ensure that a slot has its task.
    async fn ensure_slot(&self, slot_id: SlotId) {
        if self.slots.record(slot_id).is_some() {
            return;
        }
        let files = Arc::clone(&self.host.slots.files);
        let boot_id = self.host.boot_id.clone();
        let read = blocking(move || read_or_replace(&*files, slot_id, &boot_id)).await;
        match read {
            Ok(record) => self.spawn_slot(record),
            Err(error) => {
                tracing::error!(SLOT_ID = %slot_id, "slot left alone: {}", in_one_line(&error));
            }
        }
    }

    fn spawn_slot(&self, record: SlotRecord) {
        let (messages, inbox) = mpsc::unbounded_channel();
        self.slots.add(record.clone(), messages);
        let actor = SlotActor::new(Arc::clone(&self.host), Arc::clone(&self.slots), record);
        tokio::spawn(actor.run(inbox));
    }

    /// Give back what VMs hold that are gone: an earlier agent died before it could.
    pub(super) async fn release_orphans(&self, unreadable: &[VmId], claims: &[(VmId, Claim)]) {
        for holder in self.slots.holders() {
            let is_claimed = claims
                .iter()
                .any(|(vm_id, claim)| *vm_id == holder.vm_id && *claim == holder.claim);
            if is_claimed || unreadable.contains(&holder.vm_id) {
                continue;
            }
            let slot_id = holder.claim.slot_id;
            tracing::warn!(SLOT_ID = %slot_id, VM_ID = %holder.vm_id, "no VM has the slot any more");
            if let Err(error) = self.slots.release_one(slot_id, holder.vm_id).await {
                tracing::error!(SLOT_ID = %slot_id, "slot not released: {error}");
            }
        }
    }

    /// Whether a task claims only slots that this host's owner approved.
    pub(super) fn check_slots(&self, task: &Task) -> Result<(), TaskRefused> {
        let TaskAction::VmCreate { claims, .. } = &task.action else {
            return Ok(());
        };
        for claim in claims {
            let record = self.slots.record(claim.slot_id);
            if record.is_none_or(|record| record.approval.is_none()) {
                return Err(TaskRefused {
                    code: RefusalCode::Policy,
                    message: format!("no file of this host's owner approves {}", claim.slot_id),
                });
            }
        }
        Ok(())
    }

    /// Take tasks of slots as they come from the controller. Returns how many of them were news.
    pub fn take_slot_tasks(&self, envelopes: &[SignedEnvelope]) -> usize {
        let news = envelopes
            .iter()
            .filter(|envelope| self.take_slot_task(envelope));
        news.count()
    }

    fn take_slot_task(&self, envelope: &SignedEnvelope) -> bool {
        let now = clock::now();
        let task = match self.trust.open_slot_task(envelope) {
            Ok(task) => task,
            Err(refused) => {
                let Some(task_id) = claimed_task_id(envelope) else {
                    tracing::warn!("an unreadable task of a slot came: {refused}");
                    return false;
                };
                return self.refuse(task_id, refused, now);
            }
        };
        if self.registry.has_loose(task.task_id) || self.slots.knows(&task) {
            return false;
        }
        let Some(record) = self.slots.record(task.slot_id) else {
            let message = format!("{} is not on this host", task.slot_id);
            let outcome = failed(FailureCode::SlotUnusable, message);
            self.registry.add_loose(task.task_id, outcome, now, now);
            return true;
        };
        let checked = self.trust.check_slot_task(&task, record.fencing_epoch, now);
        if let Err(refused) = checked {
            return self.refuse(task.task_id, refused, now);
        }
        if let Err(refused) = self.host.log.check_slot(&task.action) {
            return self.refuse(task.task_id, frozen(&refused), now);
        }
        self.slots.hand_over(task)
    }
}

/// A slot's record; one that cannot be read is kept, and the slot is taken to hold anything.
fn read_or_replace(
    files: &dyn SlotFiles,
    slot_id: SlotId,
    boot_id: &str,
) -> Result<SlotRecord, SlotFilesError> {
    match files.read_record(slot_id) {
        Ok(Some(record)) => Ok(record),
        Ok(None) => Ok(SlotRecord::new(slot_id, boot_id)),
        Err(error @ (SlotFilesError::Record { .. } | SlotFilesError::Missing { .. })) => {
            tracing::error!(SLOT_ID = %slot_id, "record lost: {}", in_one_line(&error));
            files.set_record_aside(slot_id)?;
            Ok(SlotRecord::lost(slot_id, boot_id, &in_one_line(&error)))
        }
        Err(error @ (SlotFilesError::Io { .. } | SlotFilesError::Injected)) => Err(error),
    }
}
