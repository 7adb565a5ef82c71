//! One task per slot, the sole writer of its record.
//!
//! It takes messages, finished steps and the words of wipes one after the other. Each becomes a change
//! of the record, which is persisted before anything is done about it; each step is journaled before
//! it is taken. At most one step is under way, and none while a wipe is. An agent that dies anywhere in
//! here is followed by one that begins the phase's plan anew.

mod journal;
mod orders;
mod wiping;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_agent_core::slot::phase::{Event, Phase};
use berth_agent_core::slot::plan::{Step, plan};
use berth_agent_core::slot::record::{SlotRecord, Stamp, StoredApproval};
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::slot_devices::DeviceError;
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::VmmUnits;
use berth_api::ids::ReceiptId;
use berth_api::pci::PciAddress;
use berth_api::slot::{SlotHolder, SlotProblem, SlotProblemCode};
use tokio::sync::mpsc;

use super::lanes::{Lanes, Word};
use super::look::{self, Identified, Verdict, View};
use super::steps::{self, Outcome, Work};
use super::{Answer, SlotMessage, Slots};
use crate::clock;
use crate::host::Host;

/// What is under way.
struct Job {
    kind: JobKind,
    /// The slot's generation when it began: what comes of it counts for that one alone.
    generation: u64,
    work: Work,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JobKind {
    Step(Step),
    Look,
    Seize,
}

pub(crate) struct SlotActor<U, F, S> {
    host: Arc<Host<U, F, S>>,
    slots: Arc<Slots>,
    record: SlotRecord,
    /// How many steps of the phase's plan were taken.
    taken: usize,
    /// The drivers that the devices had at the last look.
    drivers: BTreeMap<PciAddress, Option<String>>,
    /// What the devices said of themselves in this phase.
    identified: Identified,
    job: Option<Job>,
    lanes: Option<Lanes>,
    attempt: u64,
    words: (mpsc::UnboundedSender<Word>, mpsc::UnboundedReceiver<Word>),
    percents: BTreeMap<PciAddress, u8>,
    is_look_wanted: bool,
    claimants: Vec<(SlotHolder, Answer<()>)>,
    /// Why the last claim did not come about.
    refusal: Option<SlotProblem>,
    /// Receipts whose files are written.
    filed: BTreeSet<ReceiptId>,
    /// The generation that was written last; `None` before the first write.
    written: Option<u64>,
}

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> SlotActor<U, F, S> {
    pub(crate) fn new(host: Arc<Host<U, F, S>>, slots: Arc<Slots>, record: SlotRecord) -> Self {
        Self {
            host,
            slots,
            record,
            taken: 0,
            drivers: BTreeMap::new(),
            identified: Identified::new(),
            job: None,
            lanes: None,
            attempt: 0,
            words: mpsc::unbounded_channel(),
            percents: BTreeMap::new(),
            is_look_wanted: true,
            claimants: Vec::new(),
            refusal: None,
            filed: BTreeSet::new(),
            written: None,
        }
    }

    pub(crate) async fn run(mut self, mut messages: mpsc::UnboundedReceiver<SlotMessage>) {
        let stamp = self.stamp();
        self.record.begin_on(&self.host.boot_id, stamp);
        self.persist().await;
        loop {
            self.start_work().await;
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.on_message(message).await,
                    None => return,
                },
                word = self.words.1.recv() => {
                    if let Some(word) = word {
                        self.on_word(word).await;
                    }
                }
                outcome = finish(&mut self.job) => self.on_outcome(outcome).await,
            }
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            node_id: self.host.slots.node_id,
            at_ms: clock::now_ms(),
            receipt_id: ReceiptId::generate(),
        }
    }

    /// Begin what the phase's plan has next; without a plan, look if that is wanted.
    async fn start_work(&mut self) {
        while self.job.is_none() && self.lanes.is_none() {
            let steps = plan(&self.record.phase, &self.record.addresses());
            if let Some(step) = steps.get(self.taken) {
                self.start_step(*step).await;
            } else if let Some(event) = after_plan(&self.record) {
                self.follow(event).await;
            } else {
                if self.is_look_wanted {
                    self.is_look_wanted = false;
                    let work = steps::view(&self.host, &self.record);
                    self.start_job(JobKind::Look, work);
                }
                return;
            }
        }
    }

    fn start_job(&mut self, kind: JobKind, work: Work) {
        let generation = self.record.generation;
        self.job = Some(Job {
            kind,
            generation,
            work,
        });
    }

    async fn start_step(&mut self, step: Step) {
        if let Step::Bind(device) = step {
            let driver = self.drivers.get(&device).cloned().flatten();
            let known = &mut self.record.original_drivers;
            known.entry(device).or_insert(driver);
        }
        self.record.begin(step, clock::now_ms());
        self.persist().await;
        if step == Step::Wipe {
            self.start_lanes().await;
        } else {
            let work = steps::take(&self.host, &self.record, step);
            self.start_job(JobKind::Step(step), work);
        }
    }

    async fn on_outcome(&mut self, outcome: Result<Outcome, DeviceError>) {
        let Some(job) = self.job.take() else {
            return;
        };
        if job.generation != self.record.generation {
            // The phase that wanted it is over.
            self.is_look_wanted = true;
            return;
        }
        match (job.kind, outcome) {
            (JobKind::Step(step), Ok(outcome)) => self.on_step(step, outcome).await,
            (JobKind::Step(_), Err(error)) => self.fail(&error).await,
            (JobKind::Look, Ok(Outcome::Viewed(view))) => self.on_view(*view).await,
            (JobKind::Seize, Ok(Outcome::Holds(found))) => {
                self.log("taken from the host's drivers", &found);
            }
            (JobKind::Look | JobKind::Seize, Ok(_)) => {}
            (JobKind::Look, Err(error)) => self.log("could not look", &error),
            (JobKind::Seize, Err(error)) => {
                self.log("a host's driver has a device with a tenant's data", &error);
            }
        }
    }

    async fn on_step(&mut self, step: Step, outcome: Outcome) {
        let found = match outcome {
            Outcome::Holds(found) => found,
            Outcome::Said(device, said) => {
                let words: Vec<_> = said.iter().map(|(k, v)| format!("{k}={v}")).collect();
                self.identified.insert(device, said);
                words.join(", ")
            }
            Outcome::Viewed(view) => match self.judge_step(step, *view) {
                Ok(found) => found,
                Err(problem) => {
                    let error = DeviceError::new(problem.code, problem.message);
                    return self.fail(&error).await;
                }
            },
        };
        self.record.end(found, clock::now_ms());
        self.taken = self.taken.saturating_add(1);
    }

    /// Judge a look that is a step: all of it for a claim, the devices alone for what follows one.
    fn judge_step(&mut self, step: Step, view: View) -> Result<String, SlotProblem> {
        let (verdict, problems) = self.judge(view);
        let Some(verdict) = verdict else {
            return look::as_one(&problems).map(|()| String::new());
        };
        if step == Step::Locate {
            look::as_one(&verdict.of_devices())?;
        } else {
            look::as_one(&problems)?;
        }
        self.record.devices = verdict.devices;
        self.drivers = verdict.drivers;
        let addresses: Vec<_> = self
            .record
            .addresses()
            .iter()
            .map(PciAddress::to_string)
            .collect();
        let where_they_are = addresses.join(", ");
        Ok(if step == Step::Locate {
            format!("as approved: {where_they_are}")
        } else {
            format!("host and slot are fit: {where_they_are}")
        })
    }

    /// What a look says of this slot: where its devices are, and all that stands against it.
    fn judge(&mut self, view: View) -> (Option<Verdict>, Vec<SlotProblem>) {
        let mut problems = Vec::new();
        let not_approved = |message| SlotProblem {
            code: SlotProblemCode::SlotNotApproved,
            message,
        };
        match view.approval {
            Ok(found) => {
                let found = StoredApproval {
                    approval: found.approval,
                    sha256: found.sha256,
                };
                let stamp = self.stamp();
                self.record.take_approval(&found, stamp);
                if self.record.approval.as_ref() != Some(&found) {
                    problems.push(not_approved(
                        "its approval names other devices than those that are to be wiped: wipe it \
                         with the approval as it was, or approve the others under another name"
                            .to_owned(),
                    ));
                }
            }
            Err(message) => problems.push(not_approved(message)),
        }
        let Some(stored) = self.record.approval.clone() else {
            return (None, problems);
        };
        let approval = &stored.approval;
        if let Some(other) = self.slots.left_behind(self.record.slot_id, approval) {
            problems.push(not_approved(format!(
                "a device of it may hold what a tenant left in the slot {other}: wipe that one first"
            )));
        }
        let verdict = look::judge(&self.record, approval, &view.snapshot, &self.identified);
        problems.extend(verdict.problems.iter().cloned());
        (Some(verdict), problems)
    }

    /// Take in a look that nobody asked for.
    async fn on_view(&mut self, view: View) {
        let before = self.record.clone();
        let (verdict, mut problems) = self.judge(view);
        let mut to_seize = Vec::new();
        if let Some(verdict) = verdict {
            let host_driven = verdict.host_driven();
            let was_ours = !self.record.original_drivers.is_empty();
            if !host_driven.is_empty() && (self.record.phase.may_hold_data() || was_ours) {
                problems.extend(host_driven.iter().map(|(address, driver)| SlotProblem {
                    code: SlotProblemCode::ForeignUser,
                    message: format!(
                        "{address} was taken from vfio-pci, and {driver} has it: wipe the slot to use \
                         it again"
                    ),
                }));
                to_seize.extend(host_driven.into_iter().map(|(address, _)| address));
            }
            self.record.devices = verdict.devices;
            self.drivers = verdict.drivers;
        }
        let stamp = self.stamp();
        self.record
            .follow(Event::Looked(look::as_one(&problems)), stamp);
        if self.record != before {
            self.after_change(before.generation).await;
        }
        if !to_seize.is_empty() && self.record.phase.may_hold_data() {
            let work = steps::seize(&self.host, to_seize);
            self.start_job(JobKind::Seize, work);
        }
    }

    /// A step of the plan failed.
    async fn fail(&mut self, error: &DeviceError) {
        let problem = steps::problem(error);
        self.log("a step failed", error);
        let event = match self.record.phase {
            Phase::Preparing { .. } => {
                self.refusal = Some(problem.clone());
                Event::PrepareFailed {
                    problem,
                    is_device_suspect: error.is_device_suspect,
                }
            }
            Phase::Undoing { .. } => Event::UndoFailed(problem),
            Phase::Releasing { .. } | Phase::Wiping { .. } => Event::ReturnFailed(problem),
            Phase::Verifying { .. } => Event::VerifyFailed(problem),
            Phase::Discovered { .. }
            | Phase::Unapproved { .. }
            | Phase::Free { .. }
            | Phase::Claimed { .. }
            | Phase::InUse { .. }
            | Phase::Quarantined { .. } => return,
        };
        self.follow(event).await;
    }

    /// Take in what happened, write it down, and turn to what the phase wants now.
    async fn follow(&mut self, event: Event) {
        let (stamp, generation) = (self.stamp(), self.record.generation);
        if event == Event::Undone {
            self.record.original_drivers.clear();
        }
        self.record.follow(event, stamp);
        self.after_change(generation).await;
    }

    async fn after_change(&mut self, generation: u64) {
        self.persist().await;
        self.turn_to_phase(generation);
        self.answer_claimants();
    }

    /// Begin a phase's plan at its beginning.
    fn turn_to_phase(&mut self, generation: u64) {
        if self.record.generation == generation {
            return;
        }
        tracing::info!(
            SLOT_ID = %self.record.slot_id, SLOT = self.record.name,
            GENERATION = self.record.generation, "now {}{}", self.record.phase.name(),
            self.record.phase.problem().map_or_else(String::new, |p| format!(": {}", p.message))
        );
        self.taken = 0;
        self.identified.clear();
        self.is_look_wanted = true;
        if !matches!(self.record.phase, Phase::Wiping { .. })
            && let Some(lanes) = &self.lanes
        {
            lanes.cancel();
        }
    }

    fn log(&self, what: &str, why: &dyn std::fmt::Display) {
        tracing::warn!(
            SLOT_ID = %self.record.slot_id, SLOT = self.record.name,
            GENERATION = self.record.generation, "{what}: {why}"
        );
    }
}

/// What follows from a plan that was carried out.
fn after_plan(record: &SlotRecord) -> Option<Event> {
    match record.phase {
        Phase::Preparing { .. } => Some(Event::Prepared),
        Phase::Undoing { .. } => Some(Event::Undone),
        Phase::Releasing { .. } => Some(Event::Returned {
            devices: record.addresses(),
        }),
        Phase::Verifying { .. } => Some(Event::Verified),
        // Its lanes say when it is over.
        Phase::Wiping { .. }
        | Phase::Discovered { .. }
        | Phase::Unapproved { .. }
        | Phase::Free { .. }
        | Phase::Claimed { .. }
        | Phase::InUse { .. }
        | Phase::Quarantined { .. } => None,
    }
}

async fn finish(job: &mut Option<Job>) -> Result<Outcome, DeviceError> {
    match job {
        Some(job) => (&mut job.work).await,
        None => std::future::pending().await,
    }
}
