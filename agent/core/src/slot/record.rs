//! What an agent knows of one slot, as it is written to `record.json`.
//!
//! The record is persisted before anything is done about it. It outlives the owner's approval: what
//! was on the devices, and the highest fencing epoch, must not be forgotten. Receipts are made here,
//! in the same write as the change that they state, and stay until the controller has them; signing
//! them is the daemon's.

use std::collections::BTreeMap;

use berth_api::agent::{FailureCode, TaskOutcome, TaskResult};
use berth_api::ids::{NodeId, ReceiptId, SlotId, TaskId, VmId};
use berth_api::pci::PciAddress;
use berth_api::slot::{
    Claim, DeviceWipe, ObservedSlot, Receipt, SlotAction, SlotDevice, SlotHolder, SlotProblem,
    SlotProblemCode, SlotState, SlotTask, Statement, StepRecord,
};
use serde::{Deserialize, Serialize};

use crate::slot::approval::Approval;
use crate::slot::phase::{Denied, Effect, Event, Past, Phase, Says, transition};
use crate::slot::plan::Step;
use crate::vm_record::{ActiveTask, Recall, RecordedResult};

/// The version of the record's layout.
pub const SLOT_RECORD_FORMAT: u32 = 1;
/// Results that are kept, so that a task delivered again gets the same answer.
const RESULTS_KEPT: usize = 4;
/// Receipts that are kept for a controller that does not answer. The oldest goes first; its file
/// stays with the host.
const RECEIPTS_KEPT: usize = 128;
/// Steps that one receipt lists.
const STEPS_KEPT: usize = 128;

/// One slot as this host remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotRecord {
    /// [`SLOT_RECORD_FORMAT`].
    pub format: u32,
    /// Which slot.
    pub slot_id: SlotId,
    /// What its owner calls it.
    pub name: String,
    /// What a tenant asks for.
    pub class: String,
    /// The host's boot id when the record was last written.
    pub boot_id: String,
    /// What its owner approved, as it was last taken up; kept after the approval is gone, because a
    /// wipe needs it.
    pub approval: Option<StoredApproval>,
    /// The approval that a receipt has stated.
    pub stated_approval: Option<String>,
    /// Its devices where they were last seen.
    pub devices: Vec<SlotDevice>,
    /// Where it stands.
    pub phase: Phase,
    /// Rises with each change of the phase.
    pub generation: u64,
    /// The highest epoch that came with a signed order.
    pub fencing_epoch: u64,
    /// Who had it last.
    pub last_holder: Option<SlotHolder>,
    /// The driver that each device had before it was bound to `vfio-pci` by us.
    pub original_drivers: BTreeMap<PciAddress, Option<String>>,
    /// The step that is being taken.
    pub doing: Option<Doing>,
    /// The steps that were taken since the last receipt.
    pub steps: Vec<StepRecord>,
    /// Receipts that the controller has not acknowledged, oldest first.
    pub receipts: Vec<Receipt>,
    /// The operator's task at work.
    pub task: Option<ActiveTask>,
    /// How the last tasks ended, oldest first.
    pub results: Vec<RecordedResult>,
}

/// An approval with what it was read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredApproval {
    /// What is approved.
    pub approval: Approval,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

/// A step that was journaled and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doing {
    /// [`Step::name`].
    pub step: String,
    /// The one device that it is about.
    pub address: Option<PciAddress>,
    /// Milliseconds since the epoch.
    pub since_ms: i64,
}

/// When and where something happens, and the id for what is stated about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The host.
    pub node_id: NodeId,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// The id of the receipt, if one is made.
    pub receipt_id: ReceiptId,
}

impl Stamp {
    fn seconds(self) -> i64 {
        self.at_ms.div_euclid(1000)
    }
}

impl SlotRecord {
    /// The record of a slot that is seen for the first time.
    #[must_use]
    pub fn new(slot_id: SlotId, boot_id: &str) -> Self {
        Self {
            format: SLOT_RECORD_FORMAT,
            slot_id,
            name: String::new(),
            class: String::new(),
            boot_id: boot_id.to_owned(),
            approval: None,
            stated_approval: None,
            devices: Vec::new(),
            phase: Phase::Discovered { clean: None },
            generation: 0,
            fencing_epoch: 0,
            last_holder: None,
            original_drivers: BTreeMap::new(),
            doing: None,
            steps: Vec::new(),
            receipts: Vec::new(),
            task: None,
            results: Vec::new(),
        }
    }

    /// The record of a slot whose own record cannot be read: it may have held anything.
    #[must_use]
    pub fn lost(slot_id: SlotId, boot_id: &str, why: &str) -> Self {
        let problem = SlotProblem {
            code: SlotProblemCode::RecordLost,
            message: format!(
                "the host's record of the slot was lost ({why}): wipe it to use it again"
            ),
        };
        let phase = Phase::Quarantined {
            problem,
            holder: None,
            past: Past::Dirty,
        };
        Self {
            phase,
            ..Self::new(slot_id, boot_id)
        }
    }

    /// An agent begins on this record. After a start of the host no guest is left, and drivers are
    /// where the host put them.
    pub fn begin_on(&mut self, boot_id: &str, stamp: Stamp) {
        if self.boot_id != boot_id {
            boot_id.clone_into(&mut self.boot_id);
            self.follow(Event::GuestGone, stamp);
            // Wiped devices are nothing that has to be kept from the host's drivers.
            let is_wiped = matches!(self.phase, Phase::Verifying { .. });
            let is_clean = !self.phase.may_hold_data() || is_wiped;
            if is_clean && !matches!(self.phase, Phase::Undoing { .. }) {
                self.original_drivers.clear();
            }
        }
        self.doing = None;
    }

    /// The devices' addresses, in the order of the approval.
    #[must_use]
    pub fn addresses(&self) -> Vec<PciAddress> {
        self.devices.iter().filter_map(|d| d.address).collect()
    }

    /// Take up what the owner approves now. Nothing changes while somebody has the slot or may have
    /// left something on it: what was claimed is what is wiped.
    pub fn take_approval(&mut self, found: &StoredApproval, stamp: Stamp) {
        if self.approval.as_ref() == Some(found) {
            return;
        }
        let is_settled = self.phase.right_holder().is_none() && !self.phase.may_hold_data();
        let fits = self
            .approval
            .as_ref()
            .is_none_or(|stored| names_same_devices(&stored.approval, &found.approval));
        let is_busy = matches!(self.phase, Phase::Preparing { .. } | Phase::Undoing { .. });
        if !fits && (!is_settled || is_busy) {
            return;
        }
        if !fits {
            self.original_drivers.clear();
            self.follow(Event::DevicesReplaced, stamp);
            if !matches!(self.phase, Phase::Discovered { .. }) {
                return;
            }
        }
        self.name.clone_from(&found.approval.name);
        self.class.clone_from(&found.approval.class);
        self.approval = Some(found.clone());
    }

    /// Take up a claim whose order was checked. The record must be persisted before the claim is
    /// acted upon.
    ///
    /// # Errors
    /// If the claim is older than one that was seen, or the slot cannot be had. A higher epoch has
    /// been noted even then.
    pub fn claim(&mut self, holder: SlotHolder, stamp: Stamp) -> Result<(), Denied> {
        let epoch = holder.claim.fencing_epoch;
        let is_holders = self.phase.right_holder() == Some(&holder);
        if !is_holders {
            self.fence(&holder.claim)?;
        }
        self.fencing_epoch = self.fencing_epoch.max(epoch);
        self.apply(Event::Claim(holder), stamp)
    }

    fn fence(&self, claim: &Claim) -> Result<(), Denied> {
        if claim.fencing_epoch > self.fencing_epoch {
            return Ok(());
        }
        Err(Denied(SlotProblem {
            code: SlotProblemCode::StaleClaim,
            message: format!(
                "the claim has epoch {}, this host has seen {} of the slot",
                claim.fencing_epoch, self.fencing_epoch
            ),
        }))
    }

    /// Take up an operator's task that was checked. The record must be persisted before it is acted
    /// upon.
    pub fn order(&mut self, task: &SlotTask, stamp: Stamp) {
        self.fencing_epoch = self.fencing_epoch.max(task.fencing_epoch);
        let now = stamp.seconds();
        let active = ActiveTask {
            task_id: task.task_id,
            started_at: now,
        };
        let event = match &task.action {
            SlotAction::Wipe {} if self.task.is_some() => {
                let why = Err("another task is at work on the slot".to_owned());
                self.answer(&active, why, now);
                return;
            }
            SlotAction::Wipe {} => Event::Wipe,
            SlotAction::Quarantine { reason } => {
                self.finish(Err("overtaken by a quarantine".to_owned()), now);
                Event::Quarantine(SlotProblem {
                    code: SlotProblemCode::OperatorRequest,
                    message: format!("an operator wanted it: {reason}"),
                })
            }
        };
        self.task = Some(active);
        if let Err(Denied(problem)) = self.apply(event, stamp) {
            self.finish(Err(problem.message), now);
        }
    }

    /// Take in what happened; nothing of it can be denied.
    pub fn follow(&mut self, event: Event, stamp: Stamp) {
        // Orders alone are denied, and those come through `claim` and `order`.
        let _denied = self.apply(event, stamp).is_err();
    }

    fn apply(&mut self, event: Event, stamp: Stamp) -> Result<(), Denied> {
        let next = self.generation.saturating_add(1);
        let (phase, effects) = transition(self.phase.clone(), event, next)?;
        let wiped = self.phase.wiped().to_vec();
        let left = std::mem::replace(&mut self.phase, phase);
        if is_another(&left, &self.phase) {
            self.generation = next;
            self.doing = None;
        }
        let begins = left.name() != self.phase.name();
        if begins
            && matches!(
                self.phase,
                Phase::Preparing { .. } | Phase::Releasing { .. }
            )
        {
            self.steps.clear();
        }
        if let Some(holder) = self.phase.holder().or(left.holder()) {
            self.last_holder = Some(holder.clone());
        }
        for effect in effects {
            match effect {
                Effect::State(says) => self.state(says, &wiped, stamp),
                Effect::TaskDone => self.finish(Ok(()), stamp.seconds()),
                Effect::TaskFailed => {
                    let why = self.phase.problem().map(|p| p.message.clone());
                    self.finish(Err(why.unwrap_or_default()), stamp.seconds());
                }
            }
        }
        self.state_changed_approval(stamp);
        Ok(())
    }

    /// A free slot's receipts name the approval that it stands on.
    fn state_changed_approval(&mut self, stamp: Stamp) {
        let stands_on = self.approval.as_ref().map(|stored| stored.sha256.clone());
        if matches!(self.phase, Phase::Free { .. }) && stands_on != self.stated_approval {
            self.state(Says::Approval, &[], stamp);
        }
    }

    fn state(&mut self, says: Says, wiped: &[DeviceWipe], stamp: Stamp) {
        let statement = match says {
            Says::Approval => {
                let sha256 = self.approval.as_ref().map(|stored| stored.sha256.clone());
                self.stated_approval.clone_from(&sha256);
                Statement::Approval {
                    approval_sha256: sha256.unwrap_or_default(),
                }
            }
            Says::Claim => Statement::Claim {
                steps: std::mem::take(&mut self.steps),
            },
            Says::Release => Statement::Release {
                steps: std::mem::take(&mut self.steps),
            },
            Says::Wipe => Statement::Wipe {
                devices: wiped.to_vec(),
            },
            Says::Quarantine => match self.phase.problem() {
                Some(problem) => Statement::Quarantine {
                    problem: problem.clone(),
                },
                None => return,
            },
        };
        self.receipts.push(Receipt {
            receipt_id: stamp.receipt_id,
            node_id: stamp.node_id,
            slot_id: self.slot_id,
            slot_name: self.name.clone(),
            generation: self.generation,
            at: stamp.seconds(),
            holder: self.phase.holder().or(self.last_holder.as_ref()).cloned(),
            devices: self.devices.clone(),
            statement,
        });
        if self.receipts.len() > RECEIPTS_KEPT {
            self.receipts.remove(0);
        }
    }

    /// Journal a step. The record must be persisted before it is taken.
    pub fn begin(&mut self, step: Step, now_ms: i64) {
        self.doing = Some(Doing {
            step: step.name().to_owned(),
            address: step.device(),
            since_ms: now_ms,
        });
    }

    /// Note how the journaled step ended; taken again after a crash, it is noted once.
    pub fn end(&mut self, found: String, now_ms: i64) {
        let Some(doing) = self.doing.take() else {
            return;
        };
        self.steps
            .retain(|step| step.step != doing.step || step.address != doing.address);
        if self.steps.len() >= STEPS_KEPT {
            self.steps.remove(0);
        }
        self.steps.push(StepRecord {
            step: doing.step,
            address: doing.address,
            ended_at_ms: now_ms,
            took_ms: u64::try_from(now_ms.saturating_sub(doing.since_ms)).unwrap_or(0),
            found,
        });
    }

    /// What a record that is being written says last: its phase, and the step if it journals one.
    #[must_use]
    pub fn journal_point(&self) -> String {
        match &self.doing {
            Some(doing) => format!("{}.{}", self.phase.name(), doing.step),
            None => self.phase.name().to_owned(),
        }
    }

    /// The VM that has a right to the slot.
    #[must_use]
    pub fn held_by(&self) -> Option<VmId> {
        self.phase.right_holder().map(|holder| holder.vm_id)
    }

    fn finish(&mut self, result: Result<(), String>, now: i64) {
        if let Some(task) = self.task.take() {
            self.answer(&task, result, now);
        }
    }

    fn answer(&mut self, task: &ActiveTask, result: Result<(), String>, now: i64) {
        let outcome = match result {
            Ok(()) => TaskOutcome::Done {
                evidence: BTreeMap::from([
                    ("state".to_owned(), self.phase.name().to_owned()),
                    ("generation".to_owned(), self.generation.to_string()),
                ]),
            },
            Err(message) => TaskOutcome::Failed {
                code: FailureCode::SlotUnusable,
                message,
            },
        };
        self.results.push(RecordedResult {
            result: TaskResult {
                task_id: task.task_id,
                outcome,
                started_at: task.started_at,
                ended_at: now,
            },
            acknowledged: false,
        });
        if self.results.len() > RESULTS_KEPT {
            self.results.remove(0);
        }
    }

    /// What is known of a task.
    #[must_use]
    pub fn recall(&self, task_id: TaskId) -> Recall<'_> {
        if self.task.as_ref().is_some_and(|t| t.task_id == task_id) {
            return Recall::AtWork;
        }
        self.results
            .iter()
            .find(|recorded| recorded.result.task_id == task_id)
            .map_or(Recall::Unknown, |recorded| Recall::Ended(&recorded.result))
    }

    /// The controller stored these results. Returns whether that is news.
    pub fn acknowledge_results(&mut self, task_ids: &[TaskId]) -> bool {
        let mut news = false;
        for recorded in &mut self.results {
            if task_ids.contains(&recorded.result.task_id) && !recorded.acknowledged {
                recorded.acknowledged = true;
                news = true;
            }
        }
        news
    }

    /// Let a result be sent again: the controller asks for a task that has ended.
    pub fn send_again(&mut self, task_id: TaskId) {
        for recorded in &mut self.results {
            if recorded.result.task_id == task_id {
                recorded.acknowledged = false;
            }
        }
    }

    /// The controller stored these receipts. Returns whether that is news.
    pub fn acknowledge_receipts(&mut self, receipt_ids: &[ReceiptId]) -> bool {
        let before = self.receipts.len();
        self.receipts
            .retain(|receipt| !receipt_ids.contains(&receipt.receipt_id));
        self.receipts.len() != before
    }

    /// The slot as the controller is told. `progress_percent` is what the wipes at work say.
    #[must_use]
    pub fn observed(&self, progress_percent: Option<u8>) -> ObservedSlot {
        let is_wiped = self.phase.state() == SlotState::Wiping;
        ObservedSlot {
            slot_id: self.slot_id,
            name: self.name.clone(),
            class: self.class.clone(),
            state: self.phase.state(),
            problem: self.phase.problem().cloned(),
            holder: self.phase.holder().cloned(),
            generation: self.generation,
            fencing_epoch: self.fencing_epoch,
            progress_percent: is_wiped.then(|| progress_percent.unwrap_or(0)),
            devices: self.devices.clone(),
        }
    }
}

/// Whether two approvals name the same devices, whatever else they say.
fn names_same_devices(one: &Approval, other: &Approval) -> bool {
    let identities = |approval: &Approval| -> Vec<_> {
        let devices = approval.devices.iter();
        devices.map(|device| device.identity.clone()).collect()
    };
    identities(one) == identities(other)
}

/// Whether everybody has to hear of the change.
fn is_another(before: &Phase, after: &Phase) -> bool {
    before.name() != after.name()
        || before.holder() != after.holder()
        || before.problem() != after.problem()
}

#[cfg(test)]
mod tests;
