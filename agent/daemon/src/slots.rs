//! The slots of this host: what their tasks share, and how everybody else reaches them.
//!
//! Each slot has one task ([`actor`]), the sole writer of its record. The map here holds the last
//! persisted record of each and the way to its task; it is locked for moments only and never across
//! an await.

mod actor;
mod fail_point;
mod lanes;
mod look;
mod steps;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_agent_core::plan::HeldSlots;
use berth_agent_core::slot::approval::{Approval, Approvals};
use berth_agent_core::slot::record::SlotRecord;
use berth_agent_core::vm_record::Recall;
use berth_agent_host::slot_devices::SlotDevices;
use berth_agent_host::slot_files::SlotFiles;
use berth_api::agent::{SignedEnvelope, TaskResult};
use berth_api::ids::{NodeId, ReceiptId, SlotId, TaskId, TenantId, VmId};
use berth_api::pci::PciAddress;
use berth_api::slot::{
    Claim, ObservedSlot, Receipt, SlotHolder, SlotProblem, SlotProblemCode, SlotTask, serial_kind,
};
use berth_ledger::keys::SigningKey;
use berth_ledger::receipt::seal_receipt;
use tokio::sync::{mpsc, oneshot};

use crate::registry::Registry;

pub(crate) use actor::SlotActor;

/// Receipts that one sync carries.
const RECEIPTS_PER_REPORT: usize = 64;

/// What the host's owner approved. Read anew whenever it counts.
pub trait ReadApprovals: Send + Sync + 'static {
    /// All approvals that are there now. Blocks.
    fn read(&self) -> Approvals;
}

/// Everything that slots need of the host.
#[derive(Clone)]
pub struct SlotHost {
    /// The devices.
    pub devices: Arc<dyn SlotDevices>,
    /// The slots' files.
    pub files: Arc<dyn SlotFiles>,
    /// The owner's approvals.
    pub approvals: Arc<dyn ReadApprovals>,
    /// This node.
    pub node_id: NodeId,
    /// Its key, which signs receipts.
    pub key: Arc<SigningKey>,
}

impl fmt::Debug for SlotHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotHost")
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}

/// A slot cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{slot_id} cannot be used ({}): {}", code_name(problem.code), problem.message)]
pub(crate) struct SlotUnusable {
    pub(crate) slot_id: SlotId,
    pub(crate) problem: SlotProblem,
}

/// A code as it is written in the contract.
fn code_name(code: SlotProblemCode) -> String {
    serde_json::to_value(code)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

type Answer<T> = oneshot::Sender<Result<T, SlotProblem>>;

/// What a slot's task is told.
#[derive(Debug)]
pub(crate) enum SlotMessage {
    /// Make it ready for this holder's next guest.
    Claim(SlotHolder, Answer<()>),
    /// The holder's guest is about to get the devices, which are told.
    Open(VmId, Answer<Vec<PciAddress>>),
    /// The VM's process is gone; it keeps the slot.
    GuestGone(VmId, Answer<()>),
    /// The VM wants it no more. Answered when that is on the disk.
    Release(VmId, Answer<()>),
    /// An operator's task; it was checked.
    Task(Box<SlotTask>),
    /// Something of the host may have changed.
    Look,
    /// The controller stored these receipts.
    ReceiptsStored(Vec<ReceiptId>),
    /// The controller stored these results.
    ResultsStored(Vec<TaskId>),
    /// The controller asks for a result again.
    SendAgain(TaskId),
}

#[derive(Debug)]
struct Entry {
    record: SlotRecord,
    progress_percent: Option<u8>,
    messages: mpsc::UnboundedSender<SlotMessage>,
}

/// All slots that have a task.
#[derive(Debug)]
pub(crate) struct Slots {
    entries: Mutex<BTreeMap<SlotId, Entry>>,
    registry: Arc<Registry>,
}

/// What a sync tells of slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SlotReport {
    pub(crate) slots: Vec<ObservedSlot>,
    pub(crate) receipts: Vec<SignedEnvelope>,
    pub(crate) results: Vec<TaskResult>,
}

impl Slots {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            entries: Mutex::default(),
            registry,
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<SlotId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, record: SlotRecord, messages: mpsc::UnboundedSender<SlotMessage>) {
        let entry = Entry {
            record: record.clone(),
            progress_percent: None,
            messages,
        };
        self.entries().insert(record.slot_id, entry);
        self.registry.host_changed();
    }

    /// A slot's record as it was last persisted.
    pub(crate) fn record(&self, slot_id: SlotId) -> Option<SlotRecord> {
        let entries = self.entries();
        entries.get(&slot_id).map(|entry| entry.record.clone())
    }

    /// Show a record that was persisted.
    fn publish(&self, record: &SlotRecord) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&record.slot_id) else {
            return;
        };
        let told = |record: &SlotRecord| {
            let results: Vec<_> = unacknowledged(record)
                .map(|result| result.task_id)
                .collect();
            (record.observed(None), record.receipts.len(), results)
        };
        let news = told(&entry.record) != told(record);
        entry.record = record.clone();
        drop(entries);
        if news {
            self.registry.host_changed();
        }
    }

    fn publish_progress(&self, slot_id: SlotId, percent: Option<u8>) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&slot_id) else {
            return;
        };
        let news = entry.progress_percent != percent;
        entry.progress_percent = percent;
        drop(entries);
        if news {
            self.registry.host_changed();
        }
    }

    fn send(&self, slot_id: SlotId, message: SlotMessage) -> bool {
        let entries = self.entries();
        let entry = entries.get(&slot_id);
        entry.is_some_and(|entry| entry.messages.send(message).is_ok())
    }

    /// Let every slot look at the host.
    pub(crate) fn look(&self) {
        for entry in self.entries().values() {
            // A task that has ended looks at nothing any more.
            drop(entry.messages.send(SlotMessage::Look));
        }
    }

    /// Another slot that has one of these devices and may have left something on it.
    fn left_behind(&self, slot_id: SlotId, approval: &Approval) -> Option<String> {
        let entries = self.entries();
        let mut others = entries.values().map(|entry| &entry.record);
        let other = others.find(|other| {
            other.slot_id != slot_id
                && (other.phase.may_hold_data() || other.phase.right_holder().is_some())
                && shares_device(other, approval)
        });
        other.map(|other| format!("{} ({})", other.name, other.slot_id))
    }

    /// Whether a VM has a right to any slot, and whether a guest of it may have the devices.
    pub(crate) fn held_by(&self, vm_id: VmId) -> HeldSlots {
        let entries = self.entries();
        let held: Vec<_> = entries
            .values()
            .filter(|entry| entry.record.held_by() == Some(vm_id))
            .map(|entry| entry.record.phase.name())
            .collect();
        match held.as_slice() {
            [] => HeldSlots::None,
            names if names.contains(&"in_use") => HeldSlots::InUse,
            _idle => HeldSlots::Idle,
        }
    }

    /// All holders, to be compared with the VMs.
    pub(crate) fn holders(&self) -> Vec<SlotHolder> {
        let entries = self.entries();
        let holders = entries
            .values()
            .filter_map(|e| e.record.phase.right_holder());
        holders.cloned().collect()
    }

    /// Ensure that a VM's slots are ready for its next guest.
    pub(crate) async fn ensure_ready(
        &self,
        vm_id: VmId,
        tenant_id: &TenantId,
        claims: &[Claim],
    ) -> Result<(), SlotUnusable> {
        let mut waiting = Vec::new();
        for claim in claims {
            let holder = SlotHolder {
                claim: claim.clone(),
                vm_id,
                tenant_id: tenant_id.clone(),
            };
            let (answer, answered) = oneshot::channel();
            self.send(claim.slot_id, SlotMessage::Claim(holder, answer));
            waiting.push((claim.slot_id, answered));
        }
        // Each is waited for, so that none is being made ready when the others are given back.
        let mut first_problem = None;
        for (slot_id, answered) in waiting {
            let problem = answered
                .await
                .unwrap_or_else(|_| Err(unknown(slot_id)))
                .err();
            first_problem =
                first_problem.or(problem.map(|problem| SlotUnusable { slot_id, problem }));
        }
        first_problem.map_or(Ok(()), Err)
    }

    /// Note that a VM's guest is about to get the devices of its slots, and tell which they are.
    pub(crate) async fn open(
        &self,
        vm_id: VmId,
        claims: &[Claim],
    ) -> Result<Vec<PciAddress>, SlotUnusable> {
        let mut devices = Vec::new();
        for claim in claims {
            let slot_id = claim.slot_id;
            let opened = self
                .ask(slot_id, |answer| SlotMessage::Open(vm_id, answer))
                .await;
            devices.extend(opened.map_err(|problem| SlotUnusable { slot_id, problem })?);
        }
        Ok(devices)
    }

    /// Note that a VM's process is gone.
    pub(crate) async fn guest_gone(&self, vm_id: VmId) -> Result<(), SlotUnusable> {
        for slot_id in self.slots_of(vm_id) {
            self.ask(slot_id, |answer| SlotMessage::GuestGone(vm_id, answer))
                .await
                .map_err(|problem| SlotUnusable { slot_id, problem })?;
        }
        Ok(())
    }

    /// Take a VM's slots from it. Returns when that is on the disk; wiping them takes its time.
    pub(crate) async fn release(&self, vm_id: VmId) -> Result<(), SlotUnusable> {
        for slot_id in self.slots_of(vm_id) {
            self.release_one(slot_id, vm_id).await?;
        }
        Ok(())
    }

    /// Take one slot from a VM.
    pub(crate) async fn release_one(
        &self,
        slot_id: SlotId,
        vm_id: VmId,
    ) -> Result<(), SlotUnusable> {
        self.ask(slot_id, |answer| SlotMessage::Release(vm_id, answer))
            .await
            .map_err(|problem| SlotUnusable { slot_id, problem })
    }

    fn slots_of(&self, vm_id: VmId) -> Vec<SlotId> {
        let entries = self.entries();
        let held = entries
            .values()
            .filter(|e| e.record.held_by() == Some(vm_id));
        held.map(|entry| entry.record.slot_id).collect()
    }

    async fn ask<T>(
        &self,
        slot_id: SlotId,
        message: impl FnOnce(Answer<T>) -> SlotMessage,
    ) -> Result<T, SlotProblem> {
        let (answer, answered) = oneshot::channel();
        self.send(slot_id, message(answer));
        answered.await.unwrap_or_else(|_| Err(unknown(slot_id)))
    }

    /// What is known of a slot's task: nothing, that it is at work, or that it has ended; the last one
    /// is told again. Returns whether it need not be taken up.
    pub(crate) fn knows(&self, task: &SlotTask) -> bool {
        let entries = self.entries();
        let Some(entry) = entries.get(&task.slot_id) else {
            return false;
        };
        match entry.record.recall(task.task_id) {
            Recall::Unknown => false,
            Recall::AtWork => true,
            Recall::Ended(_) => {
                drop(entry.messages.send(SlotMessage::SendAgain(task.task_id)));
                true
            }
        }
    }

    /// Hand an operator's task over. Returns whether the slot is there.
    pub(crate) fn hand_over(&self, task: SlotTask) -> bool {
        self.send(task.slot_id, SlotMessage::Task(Box::new(task)))
    }

    pub(crate) fn acknowledge(&self, results: &[TaskId], receipts: &[ReceiptId]) {
        for entry in self.entries().values() {
            let of_results = entry.record.results.iter().any(|recorded| {
                !recorded.acknowledged && results.contains(&recorded.result.task_id)
            });
            if of_results {
                let message = SlotMessage::ResultsStored(results.to_vec());
                drop(entry.messages.send(message));
            }
            let mut kept = entry.record.receipts.iter();
            if kept.any(|receipt| receipts.contains(&receipt.receipt_id)) {
                let message = SlotMessage::ReceiptsStored(receipts.to_vec());
                drop(entry.messages.send(message));
            }
        }
    }

    pub(crate) fn report(&self, key: &SigningKey) -> SlotReport {
        let entries = self.entries();
        let records: Vec<_> = entries.values().map(|entry| &entry.record).collect();
        SlotReport {
            slots: entries
                .values()
                .map(|entry| entry.record.observed(entry.progress_percent))
                .collect(),
            // A receipt that does not become JSON has no other way out either; it stays in the record.
            receipts: in_turns(records.iter().map(|record| record.receipts.as_slice()))
                .filter_map(|receipt| seal_receipt(key, receipt).ok())
                .collect(),
            results: records
                .iter()
                .flat_map(|record| unacknowledged(record).cloned())
                .collect(),
        }
    }
}

/// The receipts of one report: each slot's in the order in which they were made, and the oldest of
/// every slot before the second of any, so that none waits for another's.
fn in_turns<'a>(slots: impl Iterator<Item = &'a [Receipt]>) -> impl Iterator<Item = &'a Receipt> {
    let mut receipts: Vec<_> = slots.flat_map(|kept| kept.iter().enumerate()).collect();
    receipts.sort_by_key(|(place, _)| *place);
    let of_report = receipts.into_iter().take(RECEIPTS_PER_REPORT);
    of_report.map(|(_, receipt)| receipt)
}

fn unknown(slot_id: SlotId) -> SlotProblem {
    SlotProblem {
        code: SlotProblemCode::SlotNotApproved,
        message: format!("no file of this host's owner approves {slot_id}"),
    }
}

fn unacknowledged(record: &SlotRecord) -> impl Iterator<Item = &TaskResult> {
    record
        .results
        .iter()
        .filter(|recorded| !recorded.acknowledged)
        .map(|recorded| &recorded.result)
}

/// Whether a record's slot has a device that an approval names: the same place, or the same drive.
fn shares_device(record: &SlotRecord, approval: &Approval) -> bool {
    let serial = |identity: &berth_api::slot::DeviceIdentity| {
        identity.serials.get(serial_kind::NVME_SERIAL).cloned()
    };
    let known = record
        .approval
        .iter()
        .flat_map(|stored| &stored.approval.devices);
    known.map(|device| &device.identity).any(|known| {
        approval.devices.iter().any(|device| {
            known.path == device.identity.path
                || serial(known).is_some() && serial(known) == serial(&device.identity)
        })
    })
}
