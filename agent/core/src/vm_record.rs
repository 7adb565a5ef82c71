//! What an agent knows of one VM, as it is written to `record.json`.
//!
//! The record is persisted before anything is done about it, and it outlives the VM as a tombstone:
//! owner and generation stay, so that an old task cannot bring the VM back or hand it to a stranger.
//! Writing it is `berth-agent-host`'s.

use std::collections::BTreeMap;

use berth_api::agent::{
    ObservedState, ObservedVm, StopMode, Task, TaskAction, TaskOutcome, TaskResult, VmSpec,
};
use berth_api::ids::{TaskId, TenantId, VmId};
use berth_api::slot::Claim;
use serde::{Deserialize, Serialize};

use crate::phase::{Busy, Effect, End, Event, Phase, Verdict, transition};

/// The version of the record's layout.
pub const RECORD_FORMAT: u32 = 1;
/// Resets that a guest may do within [`RESET_WINDOW_SECONDS`].
const MAX_RESETS: usize = 10;
/// The window for [`MAX_RESETS`].
const RESET_WINDOW_SECONDS: i64 = 60;
/// Results that are kept, so that a task delivered again gets the same answer.
const RESULTS_KEPT: usize = 4;

/// One VM as this host remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// Which VM.
    pub vm_id: VmId,
    /// Whose. Never changes.
    pub tenant_id: TenantId,
    /// The highest generation of a task that was accepted.
    pub generation: u64,
    /// The host's boot id when the record was last written.
    pub boot_id: String,
    /// What it is made of; `None` for the tombstone of a VM that never was here.
    pub definition: Option<Definition>,
    /// Where it stands.
    pub phase: Phase,
    /// How often its guest reset itself.
    pub resets: u64,
    /// When it did so lately, seconds since the epoch.
    pub recent_resets: Vec<i64>,
    /// The task at work.
    pub task: Option<ActiveTask>,
    /// How the last tasks ended, oldest first.
    pub results: Vec<RecordedResult>,
}

/// What a VM is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The task's specification.
    pub spec: VmSpec,
    /// The slots whose devices its guest gets.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// The image's digest when the disk was made; `None` until then.
    pub image_digest: Option<String>,
}

/// A task that was accepted and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveTask {
    /// Which.
    pub task_id: TaskId,
    /// When work on it began, seconds since the epoch.
    pub started_at: i64,
}

/// A result, and whether the controller has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedResult {
    /// How the task ended.
    pub result: TaskResult,
    /// Whether the controller said that it stored it.
    pub acknowledged: bool,
}

impl VmRecord {
    /// The record of a VM that a task speaks of for the first time.
    #[must_use]
    pub fn new(task: &Task, boot_id: &str) -> Self {
        Self {
            format: RECORD_FORMAT,
            vm_id: task.vm_id,
            tenant_id: task.tenant_id.clone(),
            generation: 0,
            boot_id: boot_id.to_owned(),
            definition: None,
            phase: Phase::Deleted,
            resets: 0,
            recent_resets: Vec::new(),
            task: None,
            results: Vec::new(),
        }
    }

    /// The claims of the VM's guest; none for a tombstone.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        match (&self.phase, &self.definition) {
            (Phase::Deleted, _) | (_, None) => &[],
            (_, Some(definition)) => &definition.claims,
        }
    }

    /// Whether a task can be taken up now, or has to wait for the one at work.
    #[must_use]
    pub fn has_room_for(&self, task: &Task) -> bool {
        self.next(&task.action, 0).is_ok()
    }

    /// Where a task leads; nowhere if it changes nothing.
    fn next(&self, action: &TaskAction, now: i64) -> Result<Option<(Phase, Vec<Effect>)>, Busy> {
        let step = event_of(action, now)
            .map(|event| transition(self.phase.clone(), event))
            .transpose()?;
        let overtakes = step.iter().any(|(_, effects)| {
            let mut effects = effects.iter();
            effects.any(|effect| matches!(effect, Effect::Overtake(_)))
        });
        if self.task.is_some() && !overtakes {
            return Err(Busy);
        }
        Ok(step)
    }

    /// Take up a task that passed `task_check`, and end the one that it overtakes. The record must
    /// be persisted before the effects.
    pub fn accept(&mut self, task: &Task, now: i64) -> Result<Vec<Effect>, Busy> {
        let Some((phase, effects)) = self.next(&task.action, now)? else {
            return Ok(Vec::new());
        };
        let mut left = Vec::new();
        for effect in effects {
            match effect {
                Effect::Overtake(verdict) => self.finish(verdict.outcome(BTreeMap::new()), now),
                Effect::Converge
                | Effect::PressPowerButton
                | Effect::CountReset
                | Effect::Finish(_) => left.push(effect),
            }
        }
        if let TaskAction::VmCreate { spec, claims } = &task.action
            && self.phase == Phase::Deleted
        {
            self.resets = 0;
            self.recent_resets.clear();
            self.definition = Some(Definition {
                spec: spec.clone(),
                claims: claims.clone(),
                image_digest: None,
            });
        }
        self.phase = phase;
        self.generation = self.generation.max(task.generation);
        self.task = Some(ActiveTask {
            task_id: task.task_id,
            started_at: now,
        });
        Ok(left)
    }

    /// Take in what happened. The record must be persisted before the effects.
    #[must_use]
    pub fn apply(&mut self, event: Event, now: i64) -> Vec<Effect> {
        let event = if event == Event::Ended(End::Reset) && self.resets_too_often(now) {
            Event::Ended(End::ResetLoop)
        } else {
            event
        };
        let Ok((phase, mut effects)) = transition(self.phase.clone(), event) else {
            // Only a task's event is denied, and those come through `accept`.
            return Vec::new();
        };
        self.phase = phase;
        if effects.contains(&Effect::CountReset) {
            self.resets = self.resets.saturating_add(1);
            self.recent_resets.push(now);
            effects.retain(|effect| *effect != Effect::CountReset);
        }
        effects
    }

    fn resets_too_often(&mut self, now: i64) -> bool {
        // A clock that was set back must not keep old resets in the window for ever.
        self.recent_resets
            .retain(|at| (0..RESET_WINDOW_SECONDS).contains(&now.saturating_sub(*at)));
        self.recent_resets.len() >= MAX_RESETS
    }

    /// End the task at work, if there is one.
    pub fn finish(&mut self, outcome: TaskOutcome, now: i64) {
        let Some(task) = self.task.take() else {
            return;
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

    /// The controller stored a result. Returns whether that is news.
    pub fn acknowledge(&mut self, task_id: TaskId) -> bool {
        let mut news = false;
        for recorded in &mut self.results {
            if recorded.result.task_id == task_id && !recorded.acknowledged {
                recorded.acknowledged = true;
                news = true;
            }
        }
        news
    }

    /// What is known of a task: nothing, that it is at work, or how it ended.
    #[must_use]
    pub fn recall(&self, task_id: TaskId) -> Recall<'_> {
        if self
            .task
            .as_ref()
            .is_some_and(|task| task.task_id == task_id)
        {
            return Recall::AtWork;
        }
        self.results
            .iter()
            .find(|recorded| recorded.result.task_id == task_id)
            .map_or(Recall::Unknown, |recorded| Recall::Ended(&recorded.result))
    }

    /// Let a result be sent again: the controller asks for a task that has ended.
    pub fn send_again(&mut self, task_id: TaskId) {
        for recorded in &mut self.results {
            if recorded.result.task_id == task_id {
                recorded.acknowledged = false;
            }
        }
    }

    /// The phase as one word, for logs.
    #[must_use]
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Creating => "creating",
            Phase::Undoing { .. } => "undoing",
            Phase::Starting => "starting",
            Phase::Running { .. } => "running",
            Phase::Stopping { .. } => "stopping",
            Phase::Halting => "halting",
            Phase::Stopped { .. } => "stopped",
            Phase::Failed { .. } => "failed",
            Phase::Deleting => "deleting",
            Phase::Deleted => "deleted",
        }
    }

    /// The VM as the controller is told; `None` for a tombstone.
    #[must_use]
    pub fn observed(&self) -> Option<ObservedVm> {
        let state = match &self.phase {
            Phase::Deleted => return None,
            Phase::Creating
            | Phase::Undoing { .. }
            | Phase::Starting
            | Phase::Stopping { .. }
            | Phase::Halting
            | Phase::Deleting => ObservedState::Changing,
            Phase::Running { pid } => ObservedState::Running { pid: *pid },
            Phase::Stopped { reason } => ObservedState::Stopped { reason: *reason },
            Phase::Failed { message } => ObservedState::Failed {
                message: message.clone(),
            },
        };
        Some(ObservedVm {
            vm_id: self.vm_id,
            tenant_id: self.tenant_id.clone(),
            generation: self.generation,
            state,
            resets: self.resets,
        })
    }
}

/// What a record knows of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recall<'a> {
    /// Nothing.
    Unknown,
    /// It was accepted and has not ended.
    AtWork,
    /// It ended so.
    Ended(&'a TaskResult),
}

/// The state machine's event for a task; `None` for one that changes nothing.
fn event_of(action: &TaskAction, now: i64) -> Option<Event> {
    match action {
        TaskAction::VmCreate { .. } => Some(Event::Create),
        TaskAction::VmStart {} => Some(Event::Start),
        TaskAction::VmStop {
            mode: StopMode::Graceful,
            timeout_s,
        } => Some(Event::StopGracefully {
            deadline: now.saturating_add(i64::from(*timeout_s)),
        }),
        TaskAction::VmStop {
            mode: StopMode::Hard,
            ..
        } => Some(Event::StopHard),
        TaskAction::VmDelete {} => Some(Event::Delete),
        TaskAction::VmConsoleRead { .. } | TaskAction::VmEjectSeed {} => None,
    }
}

impl Verdict {
    /// The outcome that is reported, with facts for the record where it went well.
    #[must_use]
    pub fn outcome(self, evidence: BTreeMap<String, String>) -> TaskOutcome {
        match self {
            Self::Done => TaskOutcome::Done { evidence },
            Self::Failed { code, message } => TaskOutcome::Failed { code, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::agent::FailureCode;

    fn task(action: TaskAction, generation: u64) -> Task {
        Task {
            task_id: TaskId::generate(),
            node_id: berth_api::ids::NodeId::generate(),
            node_epoch: 1,
            vm_id: VmId::generate(),
            tenant_id: "acme".parse().unwrap(),
            generation,
            not_before: 0,
            expires_at: 1000,
            ledger_index: 0,
            action,
        }
    }

    fn create() -> Task {
        let spec = VmSpec {
            name: "web".to_owned(),
            vcpus: 1,
            memory_mib: 128,
            disk_mib: 64,
            image: "debian-12".to_owned(),
        };
        task(
            TaskAction::VmCreate {
                spec,
                claims: Vec::new(),
            },
            1,
        )
    }

    fn running() -> VmRecord {
        let task = create();
        let mut record = VmRecord::new(&task, "boot");
        record.accept(&task, 100).unwrap();
        assert_eq!(
            record.apply(Event::GuestRuns { pid: 4 }, 101),
            [Effect::Finish(Verdict::Done)]
        );
        record.finish(Verdict::Done.outcome(BTreeMap::new()), 101);
        record
    }

    #[test]
    fn a_record_survives_its_json() {
        let record = running();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<VmRecord>(&text).unwrap(), record);
        let foreign = text.replacen('{', "{\"surprise\":1,", 1);
        serde_json::from_str::<VmRecord>(&foreign).unwrap_err();
    }

    #[test]
    fn a_second_task_waits_for_the_first() {
        let first = create();
        let mut record = VmRecord::new(&first, "boot");
        record.accept(&first, 100).unwrap();
        let before = record.clone();
        assert_eq!(
            record.accept(&task(TaskAction::VmDelete {}, 2), 100),
            Err(Busy)
        );
        assert_eq!(record, before);
        assert_eq!(record.recall(first.task_id), Recall::AtWork);
    }

    #[test]
    fn a_graceful_stop_is_overtaken_by_a_hard_one_and_by_a_deletion_alone() {
        let stop = |mode| TaskAction::VmStop {
            mode,
            timeout_s: 3600,
        };
        let mut stopping = running();
        let slow = task(stop(StopMode::Graceful), 2);
        stopping.accept(&slow, 200).unwrap();
        for action in [stop(StopMode::Graceful), TaskAction::VmStart {}] {
            let next = task(action, 3);
            assert!(!stopping.has_room_for(&next));
            assert_eq!(stopping.clone().accept(&next, 201), Err(Busy));
        }
        for (action, phase, words) in [
            (stop(StopMode::Hard), Phase::Halting, "a hard stop"),
            (TaskAction::VmDelete {}, Phase::Deleting, "a deletion"),
        ] {
            let mut record = stopping.clone();
            let next = task(action, 3);
            assert!(record.has_room_for(&next));
            assert_eq!(record.accept(&next, 201), Ok(vec![Effect::Converge]));
            assert_eq!((&record.phase, record.generation), (&phase, 3));
            assert_eq!(record.recall(next.task_id), Recall::AtWork);
            let Recall::Ended(overtaken) = record.recall(slow.task_id) else {
                panic!("the overtaken task has ended");
            };
            assert_eq!(
                overtaken.outcome,
                TaskOutcome::Failed {
                    code: FailureCode::Overtaken,
                    message: format!("overtaken by {words}"),
                }
            );
            assert_eq!((overtaken.started_at, overtaken.ended_at), (200, 201));
            let later = task(TaskAction::VmDelete {}, 4);
            assert_eq!(record.accept(&later, 202), Err(Busy));
        }
    }

    #[test]
    fn a_result_is_kept_until_later_ones_push_it_out() {
        let mut record = running();
        let first = record.results[0].result.task_id;
        assert!(record.acknowledge(first));
        assert!(!record.acknowledge(first));
        for generation in 2..5 {
            let start = task(TaskAction::VmStart {}, generation);
            record.accept(&start, 200).unwrap();
            record.finish(Verdict::Done.outcome(BTreeMap::new()), 201);
        }
        assert!(matches!(record.recall(first), Recall::Ended(_)));
        record
            .accept(&task(TaskAction::VmStart {}, 5), 200)
            .unwrap();
        record.finish(Verdict::Done.outcome(BTreeMap::new()), 201);
        assert_eq!(record.recall(first), Recall::Unknown);
        assert_eq!(record.generation, 5);
    }

    #[test]
    fn the_eleventh_reset_in_a_minute_ends_the_guest() {
        let mut record = running();
        for second in 0..10 {
            assert_eq!(
                record.apply(Event::Ended(End::Reset), 1000 + second),
                [Effect::Converge]
            );
            let _done = record.apply(Event::GuestRuns { pid: 5 }, 1000 + second);
        }
        assert_eq!(record.resets, 10);
        let mut slower = record.clone();
        let _effects = record.apply(Event::Ended(End::Reset), 1059);
        assert!(matches!(record.phase, Phase::Failed { .. }));
        assert_eq!(record.resets, 10);
        let _effects = slower.apply(Event::Ended(End::Reset), 1060);
        assert_eq!(slower.phase, Phase::Starting);
    }

    #[test]
    fn a_tombstone_keeps_owner_and_generation_and_is_not_reported() {
        let mut record = running();
        record
            .accept(&task(TaskAction::VmDelete {}, 9), 300)
            .unwrap();
        assert_eq!(record.observed().unwrap().state, ObservedState::Changing);
        let _done = record.apply(Event::Cleared, 301);
        assert_eq!((record.generation, record.observed()), (9, None));
    }
}
