//! One task per VM, the sole writer of its record.
//!
//! It takes events one after the other: a checked task, a word of the VMM, a change of the unit, a
//! deadline. Each becomes a transition of the record, which is persisted before its effects are
//! carried out. An agent that dies anywhere in here is followed by one that begins with
//! [`VmActor::resume`].

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use berth_agent_core::phase::{Effect, End, Event, Phase};
use berth_agent_core::plan::{Observed, SlotPresence, Step, UnitPresence, Want, plan};
use berth_agent_core::seed::SERIAL;
use berth_agent_core::vm_record::VmRecord;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::vm_files::{VmFiles, VmFilesError};
use berth_agent_host::vmm_socket::{TalkError, VmmSocket};
use berth_agent_host::vmm_unit::{UnitState, VmmUnits, unit_name};
use berth_api::agent::{FailureCode, Task, TaskAction, TaskOutcome};
use berth_api::ids::TaskId;
use berth_api::vmm::{self, Denial};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::clock;
use crate::host::Host;
use crate::launch::{self, StepError, in_one_line};
use crate::registry::{Message, Order, Registry};
use crate::slots::Slots;

/// Longest time from a unit's start, or from the last word that its memory is being prepared, to
/// its guest's first instruction. Building a machine takes milliseconds; a host that swaps takes
/// seconds.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before a record that could not be written is written again.
const PERSIST_RETRY: Duration = Duration::from_secs(1);
/// Longest message of a VMM that is repeated, in characters.
const MAX_VMM_WORDS: usize = 1000;
/// What [`vmm::Request::EjectDisk`] is called where it is denied.
const EJECT_DISK: &str = "eject_disk";

pub(crate) struct VmActor<U, F, S> {
    host: Arc<Host<U, F, S>>,
    registry: Arc<Registry>,
    slots: Arc<Slots>,
    record: VmRecord,
    socket: Option<VmmSocket>,
    /// What the guest of this run is given. Kept by the service manager too, and on no disk.
    seed: Option<File>,
    /// The task by which the VMM was asked to take the medium out of the guest's drive.
    ejecting: Option<TaskId>,
    /// When a launch or a graceful stop has taken too long.
    deadline: Option<Instant>,
    /// It is time to see whether the process ended.
    look: Arc<Notify>,
}

/// What an earlier agent left of a VM that is no file.
#[derive(Default)]
pub(crate) struct Left {
    pub(crate) socket: Option<VmmSocket>,
    pub(crate) seed: Option<File>,
}

/// How a VM's task begins.
pub(crate) enum Beginning {
    /// With a task that comes as the first message.
    Fresh,
    /// With what an earlier agent left.
    Adopted,
}

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> VmActor<U, F, S> {
    pub(crate) fn new(
        host: Arc<Host<U, F, S>>,
        registry: Arc<Registry>,
        slots: Arc<Slots>,
        record: VmRecord,
        left: Left,
        look: Arc<Notify>,
    ) -> Self {
        Self {
            host,
            registry,
            slots,
            record,
            socket: left.socket,
            seed: left.seed,
            ejecting: None,
            deadline: None,
            look,
        }
    }

    pub(crate) async fn run(
        mut self,
        beginning: Beginning,
        mut messages: mpsc::UnboundedReceiver<Message>,
    ) {
        match beginning {
            Beginning::Fresh => {}
            Beginning::Adopted => self.resume().await,
        }
        loop {
            if self.registry.retire(&self.record) {
                return;
            }
            let deadline = self.deadline;
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.on_message(message).await,
                    None => return,
                },
                word = hear(self.socket.as_ref()) => self.on_word(word).await,
                () = self.look.notified() => self.look().await,
                () = wait_until(deadline) => self.on_deadline().await,
            }
        }
    }

    /// Take up what an earlier agent left.
    async fn resume(&mut self) {
        let runs = match self.host.units.state(self.record.vm_id).await {
            Ok(state) => matches!(state, UnitState::Running { .. }),
            Err(error) => {
                self.log_failure("could not look at the unit", &error);
                true
            }
        };
        if self.record.boot_id != self.host.boot_id && !runs {
            self.step(Event::HostRebooted).await;
            return;
        }
        let effects = self.record.phase.resume();
        if let Phase::Creating | Phase::Starting = self.record.phase {
            self.deadline = Some(Instant::now() + LAUNCH_TIMEOUT);
        }
        self.carry_out(effects).await;
        self.ask_whether_guest_runs();
        self.look().await;
    }

    /// An earlier agent may have heard that the guest runs, and have died before it wrote it down.
    /// The VMM says it once, but answers whenever it is asked for anything.
    fn ask_whether_guest_runs(&self) {
        let (Phase::Creating | Phase::Starting, Some(socket)) = (&self.record.phase, &self.socket)
        else {
            return;
        };
        if let Err(error) = socket.send(&vmm::Request::Statistics) {
            self.log_failure("could not ask the VMM", &error);
        }
    }

    async fn on_message(&mut self, message: Message) {
        match message {
            Message::Task(order) => self.on_task(*order).await,
            Message::EjectSeed {
                task_id,
                generation,
            } => self.on_eject_seed(task_id, generation).await,
            Message::Acknowledged(task_id) => {
                if self.record.acknowledge(task_id) {
                    self.persist().await;
                }
            }
            Message::SendAgain(task_id) => {
                self.record.send_again(task_id);
                self.registry.publish(&self.record);
            }
        }
    }

    async fn on_task(&mut self, order: Order) {
        let Order { task, seed } = order;
        let before = self.record.clone();
        let now = clock::now();
        let Ok(effects) = self.record.accept(&task, now) else {
            // It comes again until it is answered.
            self.registry.drop_pending(self.record.vm_id);
            return;
        };
        tracing::info!(
            VM_ID = %task.vm_id, TENANT_ID = %task.tenant_id, TASK_ID = %task.task_id,
            GENERATION = task.generation, "task accepted: {}", self.record.phase_name()
        );
        let effects = self.settle(effects).await;
        if let Err(error) = self.write_down(&task, seed).await {
            // Nothing was done yet, so nothing has to be undone.
            self.record = before;
            self.end_seed().await;
            self.registry.drop_pending(self.record.vm_id);
            let outcome = TaskOutcome::Failed {
                code: error.code(),
                message: in_one_line(&error),
            };
            self.registry
                .add_loose(task.task_id, outcome, now, clock::now());
            return;
        }
        self.carry_out(effects).await;
    }

    /// Take a task into the record, once what its guest is given would survive this agent.
    async fn write_down(&mut self, task: &Task, seed: Option<File>) -> Result<(), StepError> {
        if let TaskAction::VmCreate { .. } | TaskAction::VmStart {} = task.action {
            self.forget_seed().await?;
            if let Some(seed) = seed {
                let kept = launch::keep_seed(&self.host, self.record.vm_id, seed).await?;
                self.seed = Some(kept);
            }
        }
        Ok(self.try_persist().await?)
    }

    async fn forget_seed(&mut self) -> Result<(), StepError> {
        if self.seed.take().is_some() {
            launch::forget_seed(&self.host, self.record.vm_id).await?;
        }
        Ok(())
    }

    /// Nobody is given anything after the run that it was for. What the service manager does not forget
    /// now is forgotten when the VM starts again, or by the next agent.
    async fn end_seed(&mut self) {
        if self.record.phase.may_launch() {
            return;
        }
        if let Err(error) = self.forget_seed().await {
            self.log_failure("the guest's seed stays in memory", &error);
        }
    }

    /// The guest of a run is set up: see to it that nobody reads any more what it was given. What cannot
    /// be done now is not answered: the task comes again until it is, and each step can be repeated.
    async fn on_eject_seed(&mut self, task_id: TaskId, generation: u64) {
        // The start of that run comes before it, and its medium with it.
        if generation > self.record.generation {
            return;
        }
        if generation < self.record.generation {
            return self.answer_ejection(task_id, Ok(()));
        }
        // First what this host has, so that no reset from here on gives the guest a medium. The service
        // manager may have one whose agent died while it forgot it.
        self.seed = None;
        if let Err(error) = launch::forget_seed(&self.host, self.record.vm_id).await {
            self.log_failure("the guest's seed stays in memory", &error);
            return;
        }
        if !self.record.phase.may_launch() {
            return self.answer_ejection(task_id, Ok(()));
        }
        let Some(socket) = &self.socket else {
            let why = "no agent has the VMM's control socket any more";
            return self.answer_ejection(task_id, Err((FailureCode::Internal, why)));
        };
        let serial = SERIAL.to_owned();
        match socket.send(&vmm::Request::EjectDisk { serial }) {
            Ok(()) => self.ejecting = Some(task_id),
            Err(error) => self.log_failure("could not ask the VMM to take the seed away", &error),
        }
    }

    /// What the VMM says of the guest's drive.
    fn on_ejection(&mut self, result: Result<(), Denial>) {
        let Some(task_id) = self.ejecting.take() else {
            return;
        };
        let result = match result {
            // Without a drive there is nothing to read either: the guest has reset itself meanwhile.
            Ok(()) | Err(Denial::NoDevice) => Ok(()),
            // The task comes again, and finds the guest running, or gone.
            Err(Denial::Preparing | Denial::Ending) => return,
            Err(Denial::Malformed) => Err("the VMM is of a release that does not know how"),
            Err(
                Denial::AlreadyPaused | Denial::NotPaused | Denial::OutOfRange | Denial::TimedOut,
            ) => Err("the VMM would not"),
        };
        self.answer_ejection(
            task_id,
            result.map_err(|why| (FailureCode::VmmRefused, why)),
        );
    }

    fn answer_ejection(&self, task_id: TaskId, result: Result<(), (FailureCode, &str)>) {
        let outcome = match result {
            Ok(()) => {
                tracing::info!(
                    VM_ID = %self.record.vm_id, TENANT_ID = %self.record.tenant_id,
                    TASK_ID = %task_id, GENERATION = self.record.generation,
                    "nothing is left of what the guest was given"
                );
                TaskOutcome::Done {
                    evidence: BTreeMap::new(),
                }
            }
            Err((code, why)) => {
                tracing::warn!(
                    VM_ID = %self.record.vm_id, TENANT_ID = %self.record.tenant_id,
                    TASK_ID = %task_id, GENERATION = self.record.generation,
                    "the guest keeps what it was given until its run ends: {why}"
                );
                TaskOutcome::Failed {
                    code,
                    message: why.to_owned(),
                }
            }
        };
        let now = clock::now();
        self.registry.add_loose(task_id, outcome, now, now);
    }

    async fn on_word(&mut self, word: Result<Option<vmm::Event>, TalkError>) {
        match word {
            Ok(Some(vmm::Event::Running { pid })) => self.on_running(pid).await,
            Ok(Some(vmm::Event::Refused {
                field,
                problem,
                remedy,
            })) => {
                let message = clean(&format!("{field}: {problem}; {remedy}"));
                self.step(Event::LaunchFailed {
                    code: FailureCode::VmmRefused,
                    message,
                })
                .await;
            }
            // It counts, so it runs.
            Ok(Some(vmm::Event::Statistics { .. })) => self.on_running(0).await,
            // A large guest takes its time; it is late only if nothing is heard of it.
            Ok(Some(vmm::Event::Preparing { .. })) => {
                if self.deadline.is_some()
                    && matches!(self.record.phase, Phase::Creating | Phase::Starting)
                {
                    self.deadline = Some(Instant::now() + LAUNCH_TIMEOUT);
                }
            }
            Ok(Some(vmm::Event::DiskEjected { serial })) if serial == SERIAL => {
                self.on_ejection(Ok(()));
            }
            // A VMM of an earlier release does not know by which name it was asked.
            Ok(Some(vmm::Event::Denied {
                request, reason, ..
            })) if request == EJECT_DISK || reason == Denial::Malformed => {
                self.on_ejection(Err(reason));
            }
            // The guest runs, and nobody here asks for what these answer.
            Ok(Some(
                vmm::Event::Paused
                | vmm::Event::Resumed
                | vmm::Event::DiskEjected { .. }
                | vmm::Event::Denied { .. },
            )) => {}
            Ok(Some(vmm::Event::Warning { about })) => {
                tracing::warn!(vm_id = %self.record.vm_id, ?about, "the VMM warns");
            }
            // Its exit status says the same, and is systemd's word instead of the VMM's.
            Ok(Some(vmm::Event::Exited { .. })) => {}
            Ok(None) => self.hang_up(None).await,
            Err(error) => self.hang_up(Some(error)).await,
        }
    }

    async fn on_running(&mut self, claimed_pid: u32) {
        let pid = match self.host.units.state(self.record.vm_id).await {
            Ok(UnitState::Running { pid, .. }) if pid != 0 => pid,
            Ok(_) | Err(_) => claimed_pid,
        };
        self.step(Event::GuestRuns { pid }).await;
        self.look().await;
    }

    /// Stop listening to a VMM that has closed its socket or talks nonsense.
    async fn hang_up(&mut self, error: Option<TalkError>) {
        if let Some(error) = error {
            self.log_failure("the VMM is not listened to any more", &error);
        }
        self.socket = None;
        if let Err(error) = launch::forget_socket(&self.host, self.record.vm_id).await {
            self.log_failure("could not forget the control socket", &error);
        }
        self.look().await;
    }

    /// See whether the process ended, if all that it said was heard: its last words say more of why.
    async fn look(&mut self) {
        let expects_process = match self.record.phase {
            Phase::Creating | Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } => {
                true
            }
            Phase::Undoing { .. }
            | Phase::Halting
            | Phase::Stopped { .. }
            | Phase::Failed { .. }
            | Phase::Deleting
            | Phase::Deleted => false,
        };
        if !expects_process {
            return;
        }
        let end = match self.host.units.state(self.record.vm_id).await {
            Ok(UnitState::Running { .. } | UnitState::Ending) => return,
            Ok(UnitState::Absent | UnitState::Ended(_)) if self.has_unheard_words() => {
                self.look.notify_one();
                // Else this could go on before the socket was seen to be readable.
                tokio::task::yield_now().await;
                return;
            }
            Ok(UnitState::Absent) => End::Stopped,
            Ok(UnitState::Ended(end)) => end.status.meaning(&end.result),
            Err(error) => {
                self.log_failure("could not look at the unit", &error);
                return;
            }
        };
        let event = if end != End::PowerOff && self.host_goes_down().await {
            Event::HostRebooted
        } else {
            Event::Ended(end)
        };
        self.step(event).await;
    }

    /// Nobody adds to them once the process has ended.
    fn has_unheard_words(&self) -> bool {
        self.socket.as_ref().is_some_and(VmmSocket::is_readable)
    }

    /// Whether processes end because the host does.
    async fn host_goes_down(&self) -> bool {
        match self.host.units.host_is_stopping().await {
            Ok(stopping) => stopping,
            Err(error) => {
                self.log_failure("could not ask for the host's state", &error);
                false
            }
        }
    }

    async fn on_deadline(&mut self) {
        self.deadline = None;
        let event = match self.record.phase {
            Phase::Stopping { .. } => Event::DeadlinePassed,
            Phase::Creating | Phase::Starting => Event::LaunchFailed {
                code: FailureCode::UnitFailed,
                message: "the VMM reported no running guest within 30 s".to_owned(),
            },
            Phase::Undoing { .. }
            | Phase::Running { .. }
            | Phase::Halting
            | Phase::Stopped { .. }
            | Phase::Failed { .. }
            | Phase::Deleting
            | Phase::Deleted => return,
        };
        self.step(event).await;
    }

    /// Take in an event, and all events that its effects bring.
    async fn step(&mut self, event: Event) {
        let effects = self.take_in(event).await;
        self.carry_out(effects).await;
    }

    /// Change the record and persist it. Returns the effects that are to be carried out.
    async fn take_in(&mut self, event: Event) -> Vec<Effect> {
        let before = self.record.phase.clone();
        let effects = self.record.apply(event, clock::now());
        let effects = self.settle(effects).await;
        self.persist().await;
        if self.record.phase != before {
            tracing::info!(
                VM_ID = %self.record.vm_id, TENANT_ID = %self.record.tenant_id,
                GENERATION = self.record.generation, "now {}", self.record.phase_name()
            );
        }
        effects
    }

    /// Put the end of a task into the record, so that it is persisted with the phase that it
    /// belongs to. Returns the effects that are left.
    async fn settle(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut left = Vec::new();
        for effect in effects {
            match effect {
                Effect::Finish(verdict) => {
                    let evidence = self.evidence().await;
                    self.record.finish(verdict.outcome(evidence), clock::now());
                }
                Effect::Converge
                | Effect::PressPowerButton
                | Effect::CountReset
                | Effect::Overtake(_) => left.push(effect),
            }
        }
        left
    }

    async fn evidence(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::from([("unit".to_owned(), unit_name(self.record.vm_id))]);
        let digest = self
            .record
            .definition
            .as_ref()
            .and_then(|definition| definition.image_digest.clone());
        facts.extend(digest.map(|digest| ("image_digest".to_owned(), digest)));
        if let Ok(UnitState::Running { pid, invocation_id }) =
            self.host.units.state(self.record.vm_id).await
        {
            facts.insert("pid".to_owned(), pid.to_string());
            facts.insert("invocation_id".to_owned(), invocation_id);
        }
        facts
    }

    /// Carry out effects; what they bring is taken in, in turn.
    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let event = match effect {
                Effect::Converge => self.converge().await,
                Effect::PressPowerButton => self.press_power_button(),
                // The record has taken them in already.
                Effect::CountReset | Effect::Finish(_) | Effect::Overtake(_) => None,
            };
            if let Some(event) = event {
                effects.extend(self.take_in(event).await);
            }
        }
    }

    fn press_power_button(&mut self) -> Option<Event> {
        let Phase::Stopping { deadline } = self.record.phase else {
            return None;
        };
        let pressed = self
            .socket
            .as_ref()
            .map(|socket| socket.send(&vmm::Request::PowerButton));
        match pressed {
            Some(Ok(())) => {
                let left = u64::try_from(deadline.saturating_sub(clock::now())).unwrap_or(0);
                self.deadline = Some(Instant::now() + Duration::from_secs(left));
                None
            }
            Some(Err(error)) => {
                self.log_failure("could not press the power button", &error);
                Some(Event::DeadlinePassed)
            }
            // No agent has this VMM's socket any more, so its guest cannot be asked.
            None => Some(Event::DeadlinePassed),
        }
    }

    /// Bring the host to what the phase wants. Returns what came of it.
    async fn converge(&mut self) -> Option<Event> {
        self.end_seed().await;
        let want = self.record.phase.want();
        match self.follow_plan(want).await {
            Ok(()) => match want {
                Want::NoGuest | Want::Nothing => Some(Event::Cleared),
                Want::NewGuest | Want::Guest | Want::AsItIs => None,
            },
            Err(error) => {
                self.log_failure("could not do what is wanted", &error);
                let message = in_one_line(&error);
                match want {
                    Want::NewGuest | Want::Guest => Some(Event::LaunchFailed {
                        code: error.code(),
                        message,
                    }),
                    Want::NoGuest | Want::Nothing => Some(Event::ClearFailed { message }),
                    Want::AsItIs => None,
                }
            }
        }
    }

    async fn follow_plan(&mut self, want: Want) -> Result<(), StepError> {
        let observed = self.observe().await?;
        if observed.unit == UnitPresence::Absent && self.socket.take().is_some() {
            // An earlier agent died between the end of the unit and that of its socket.
            launch::forget_socket(&self.host, self.record.vm_id).await?;
        }
        for step in plan(want, observed)? {
            match step {
                Step::EnsureUnitGone => {
                    launch::ensure_unit_gone(&self.host, self.record.vm_id).await?;
                    self.socket = None;
                }
                Step::EnsureDisk => self.ensure_disk().await?,
                Step::EnsureSlotsReady => {
                    let (vm_id, tenant_id) = (self.record.vm_id, &self.record.tenant_id);
                    let claims = self.record.claims();
                    self.slots.ensure_ready(vm_id, tenant_id, claims).await?;
                }
                Step::EnsureUnit => {
                    let seed = self.seed.as_ref();
                    let started = launch::start_unit(&self.host, &self.slots, &self.record, seed);
                    self.socket = Some(started.await?);
                    self.deadline = Some(Instant::now() + LAUNCH_TIMEOUT);
                }
                Step::EnsureSlotsIdle => self.slots.guest_gone(self.record.vm_id).await?,
                Step::EnsureSlotsReleased => self.slots.release(self.record.vm_id).await?,
                Step::EnsureFilesGone => {
                    let vm_id = self.record.vm_id;
                    self.host
                        .on_files(move |files| files.ensure_gone(vm_id))
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn observe(&self) -> Result<Observed, StepError> {
        let vm_id = self.record.vm_id;
        let files = self
            .host
            .on_files(move |files| files.presence(vm_id))
            .await?;
        let unit = match self.host.units.state(vm_id).await? {
            UnitState::Absent => UnitPresence::Absent,
            UnitState::Running { .. } if self.socket.is_some() => UnitPresence::Reachable,
            UnitState::Running { .. } => UnitPresence::Unreachable,
            UnitState::Ending | UnitState::Ended(_) => UnitPresence::Ending,
        };
        Ok(Observed {
            disk: files.disk,
            files: files.any,
            unit,
            slots: SlotPresence {
                wanted: !self.record.claims().is_empty(),
                held: self.slots.held_by(vm_id),
            },
        })
    }

    async fn ensure_disk(&mut self) -> Result<(), StepError> {
        let image = launch::open_image(&self.host, &self.record).await?;
        if let Some(definition) = &mut self.record.definition {
            definition.image_digest = Some(image.digest.clone());
        }
        self.try_persist().await?;
        launch::ensure_disk(&self.host, &self.record, image).await
    }

    async fn try_persist(&mut self) -> Result<(), VmFilesError> {
        self.record.boot_id.clone_from(&self.host.boot_id);
        let record = self.record.clone();
        self.host
            .on_files(move |files| files.write_record(&record))
            .await?;
        self.registry.publish(&self.record);
        Ok(())
    }

    /// Write the record, however long it takes: what happened cannot be refused, and nothing may be
    /// done about it before it is on the disk.
    async fn persist(&mut self) {
        while let Err(error) = self.try_persist().await {
            self.log_failure("could not write the record, trying again", &error);
            tokio::time::sleep(PERSIST_RETRY).await;
        }
    }

    fn log_failure(&self, what: &str, error: &dyn std::error::Error) {
        tracing::warn!(
            VM_ID = %self.record.vm_id, TENANT_ID = %self.record.tenant_id,
            GENERATION = self.record.generation, "{what}: {}", in_one_line(error)
        );
    }
}

async fn hear(socket: Option<&VmmSocket>) -> Result<Option<vmm::Event>, TalkError> {
    match socket {
        Some(socket) => socket.receive().await,
        None => std::future::pending().await,
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A hostile process's words, made fit for a log line and a report.
fn clean(words: &str) -> String {
    words
        .chars()
        .take(MAX_VMM_WORDS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
