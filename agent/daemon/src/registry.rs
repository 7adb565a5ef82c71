//! What the daemon's tasks share: each VM's last persisted record, the way to its task, and results
//! that belong to no record.
//!
//! The map is locked for moments only and never across an await. A VM's record is written by its
//! own task alone; everybody else reads the copy here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_agent_core::vm_record::{Recall, VmRecord};
use berth_api::agent::{ObservedVm, SignedEnvelope, Task, TaskOutcome, TaskResult};
use berth_api::ids::{TaskId, VmId};
use berth_api::slot::ObservedSlot;
use tokio::sync::{Notify, mpsc, watch};

use crate::slots::SlotReport;

/// Results without a record that are kept until they are acknowledged. A controller that sends
/// more nonsense than this loses the oldest answers.
const MAX_LOOSE_RESULTS: usize = 256;
/// Console bytes (as base64) that one report carries; what is left goes with the next one.
const MAX_REPORT_CONSOLE_BYTES: usize = 512 * 1024;

/// A task, and the medium for the guest that it starts, if that gets one.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) task: Task,
    pub(crate) seed: Option<File>,
}

/// What a VM's task is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Do this; it was checked.
    Task(Box<Order>),
    /// The guest of the run of this generation needs its medium no more.
    EjectSeed {
        /// Which task says so.
        task_id: TaskId,
        /// The run.
        generation: u64,
    },
    /// The controller stored the result of this task.
    Acknowledged(TaskId),
    /// The controller asks for the result of this task again.
    SendAgain(TaskId),
}

/// The way to a VM's task.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    /// Messages; few, as one task at a time is handed over.
    pub(crate) messages: mpsc::UnboundedSender<Message>,
    /// Rung when the VM's unit changed.
    pub(crate) look: Arc<Notify>,
}

#[derive(Debug)]
struct Entry {
    record: VmRecord,
    /// A task that was handed over and is not in the record yet.
    pending: Option<TaskId>,
    mailbox: Mailbox,
}

#[derive(Debug, Default)]
struct State {
    vms: BTreeMap<VmId, Entry>,
    loose: VecDeque<TaskResult>,
    reading: BTreeSet<TaskId>,
}

/// What goes into the next sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Results that the controller has not acknowledged.
    pub results: Vec<TaskResult>,
    /// All VMs.
    pub vms: Vec<ObservedVm>,
    /// All slots.
    pub slots: Vec<ObservedSlot>,
    /// Receipts that the controller has not acknowledged, oldest first; not all if they are many.
    pub receipts: Vec<SignedEnvelope>,
}

#[derive(Debug)]
pub(crate) struct Registry {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// The report differs from the last one by something that is not a VM.
    pub(crate) fn host_changed(&self) {
        self.changed();
    }

    /// Hear when the next report differs from the last.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn add(&self, record: VmRecord, mailbox: Mailbox) {
        self.state().vms.insert(
            record.vm_id,
            Entry {
                record,
                pending: None,
                mailbox,
            },
        );
    }

    /// A VM's record as it was last persisted; `None` where no task runs for it.
    pub(crate) fn record(&self, vm_id: VmId) -> Option<VmRecord> {
        self.state().vms.get(&vm_id).map(|e| e.record.clone())
    }

    /// Show a record that was persisted. Whatever was handed over has been dealt with.
    pub(crate) fn publish(&self, record: &VmRecord) {
        let mut state = self.state();
        let Some(entry) = state.vms.get_mut(&record.vm_id) else {
            return;
        };
        let news = entry.record.observed() != record.observed()
            || unacknowledged(&entry.record).ne(unacknowledged(record));
        entry.record = record.clone();
        entry.pending = None;
        drop(state);
        if news {
            self.changed();
        }
    }

    /// The task that was handed over was not taken up.
    pub(crate) fn drop_pending(&self, vm_id: VmId) {
        if let Some(entry) = self.state().vms.get_mut(&vm_id) {
            entry.pending = None;
        }
    }

    /// Hand a task over, unless it has to wait for the one at work. Returns whether it was handed
    /// over.
    pub(crate) fn hand_over(&self, task: Task, seed: Option<File>) -> bool {
        let mut state = self.state();
        let Some(entry) = state.vms.get_mut(&task.vm_id) else {
            return false;
        };
        if entry.pending.is_some() || !entry.record.has_room_for(&task) {
            return false;
        }
        let task_id = task.task_id;
        let message = Message::Task(Box::new(Order { task, seed }));
        let handed_over = entry.mailbox.messages.send(message).is_ok();
        entry.pending = handed_over.then_some(task_id);
        handed_over
    }

    /// Tell a VM's task that its guest needs its medium no more. Whatever is at work on the VM, this
    /// need not wait for it. Returns whether there is somebody to tell.
    pub(crate) fn eject_seed(&self, task: &Task) -> bool {
        let message = Message::EjectSeed {
            task_id: task.task_id,
            generation: task.generation,
        };
        let state = self.state();
        let entry = state.vms.get(&task.vm_id);
        entry.is_some_and(|entry| entry.mailbox.messages.send(message).is_ok())
    }

    /// Forget a tombstone whose last result is with the controller: its record on the disk is all
    /// that is needed. Returns whether it was forgotten.
    pub(crate) fn retire(&self, record: &VmRecord) -> bool {
        let finished = record.observed().is_none()
            && record.task.is_none()
            && unacknowledged(record).next().is_none();
        let mut state = self.state();
        let idle = state
            .vms
            .get(&record.vm_id)
            .is_some_and(|entry| entry.pending.is_none());
        let retires = finished && idle;
        if retires {
            state.vms.remove(&record.vm_id);
        }
        retires
    }

    pub(crate) fn look_at(&self, vm_id: VmId) {
        if let Some(entry) = self.state().vms.get(&vm_id) {
            entry.mailbox.look.notify_one();
        }
    }

    pub(crate) fn look_at_all(&self) {
        for entry in self.state().vms.values() {
            entry.mailbox.look.notify_one();
        }
    }

    /// Whether the task is handed over, at work, being read for, or answered; an answered one is
    /// sent again.
    pub(crate) fn knows(&self, task: &Task) -> bool {
        let mut state = self.state();
        let loose = state.reading.contains(&task.task_id)
            || state.loose.iter().any(|r| r.task_id == task.task_id);
        if loose {
            return true;
        }
        let Some(entry) = state.vms.get_mut(&task.vm_id) else {
            return false;
        };
        if entry.pending == Some(task.task_id) {
            return true;
        }
        match entry.record.recall(task.task_id) {
            Recall::Unknown => false,
            Recall::AtWork => true,
            Recall::Ended(_) => {
                // Only a task that has stopped cannot be told, and then nothing is to be sent.
                drop(
                    entry
                        .mailbox
                        .messages
                        .send(Message::SendAgain(task.task_id)),
                );
                true
            }
        }
    }

    /// A result that belongs to no record: a refusal, a reading, an unknown VM.
    pub(crate) fn add_loose(&self, task_id: TaskId, outcome: TaskOutcome, began: i64, now: i64) {
        let mut state = self.state();
        state.reading.remove(&task_id);
        if state.loose.iter().any(|result| result.task_id == task_id) {
            return;
        }
        if state.loose.len() >= MAX_LOOSE_RESULTS {
            state.loose.pop_front();
        }
        state.loose.push_back(TaskResult {
            task_id,
            outcome,
            started_at: began,
            ended_at: now,
        });
        drop(state);
        self.changed();
    }

    /// Note that a reading is at work. Returns whether that is news.
    pub(crate) fn begin_reading(&self, task_id: TaskId) -> bool {
        self.state().reading.insert(task_id)
    }

    pub(crate) fn has_loose(&self, task_id: TaskId) -> bool {
        self.state().loose.iter().any(|r| r.task_id == task_id)
    }

    /// The controller stored these results.
    pub(crate) fn acknowledge(&self, acknowledged: &[TaskId]) {
        let mut state = self.state();
        state
            .loose
            .retain(|result| !acknowledged.contains(&result.task_id));
        for entry in state.vms.values() {
            let ended: Vec<TaskId> = unacknowledged(&entry.record).map(|r| r.task_id).collect();
            for task_id in ended.into_iter().filter(|id| acknowledged.contains(id)) {
                // Only a task that has stopped cannot be told, and then nothing is left to note.
                drop(entry.mailbox.messages.send(Message::Acknowledged(task_id)));
            }
        }
    }

    pub(crate) fn report(&self, slots: SlotReport) -> Report {
        let state = self.state();
        let mut results: Vec<TaskResult> = state
            .vms
            .values()
            .flat_map(|entry| unacknowledged(&entry.record).cloned())
            .collect();
        let mut console_bytes = 0_usize;
        results.extend(
            state
                .loose
                .iter()
                .take_while(|result| {
                    let first = console_bytes == 0;
                    console_bytes = console_bytes.saturating_add(console_length(result));
                    first || console_bytes <= MAX_REPORT_CONSOLE_BYTES
                })
                .cloned(),
        );
        results.extend(slots.results);
        Report {
            slots: slots.slots,
            receipts: slots.receipts,
            results,
            vms: state
                .vms
                .values()
                .filter_map(|entry| entry.record.observed())
                .collect(),
        }
    }
}

fn console_length(result: &TaskResult) -> usize {
    match &result.outcome {
        TaskOutcome::Console { data, .. } => data.len(),
        TaskOutcome::Done { .. } | TaskOutcome::Refused { .. } | TaskOutcome::Failed { .. } => 0,
    }
}

fn unacknowledged(record: &VmRecord) -> impl Iterator<Item = &TaskResult> {
    record
        .results
        .iter()
        .filter(|recorded| !recorded.acknowledged)
        .map(|recorded| &recorded.result)
}
