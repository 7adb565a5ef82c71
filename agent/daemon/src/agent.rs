//! The agent without its network: adopts what is there, takes tasks, reports.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_agent_core::console;
use berth_agent_core::log_watch::LogRefusal;
use berth_agent_core::phase::Phase;
use berth_agent_core::seed::{self, MakeMediumError};
use berth_agent_core::task_check::{KnownVm, TaskRefused, Trust, claimed_task_id};
use berth_agent_core::vm_record::{Recall, VmRecord};
use berth_agent_host::sealed_memory::sealed;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::slot_files::SlotFilesError;
use berth_agent_host::vm_files::{VmFiles, VmFilesError};
use berth_agent_host::vmm_socket::VmmSocket;
use berth_agent_host::vmm_unit::{UnitError, VmmUnits};
use berth_api::agent::{
    FailureCode, RefusalCode, Seed, SignedEnvelope, Task, TaskAction, TaskOutcome,
};
use berth_api::ids::{ReceiptId, TaskId, VmId};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use crate::clock;
use crate::host::Host;
use crate::launch::{in_one_line, seed_name, socket_name};
use crate::registry::{Mailbox, Registry};
use crate::slots::Slots;
use crate::vm_actor::{Beginning, Left, VmActor};

pub use crate::registry::Report;

mod slots;

/// One agent on one host.
#[derive(Debug)]
pub struct Agent<U, F, S> {
    host: Arc<Host<U, F, S>>,
    registry: Arc<Registry>,
    slots: Arc<Slots>,
    trust: Trust,
}

/// Why an agent could not take up what is on its host.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The VMs' folder could not be read.
    #[error(transparent)]
    Files(#[from] VmFilesError),
    /// The slots' folder could not be read.
    #[error(transparent)]
    SlotFiles(#[from] SlotFilesError),
    /// systemd could not be asked.
    #[error(transparent)]
    Units(#[from] UnitError),
}

/// Why a guest's medium was not made.
#[derive(Debug, thiserror::Error)]
enum MakeSeedError {
    #[error(transparent)]
    Medium(#[from] MakeMediumError),
    #[error("no memory for the guest's seed")]
    Memory(#[from] io::Error),
}

impl<U: VmmUnits, F: VmFiles, S: DescriptorStore> Agent<U, F, S> {
    /// Take up every VM that has a record: reattach its socket if an earlier agent left one, and
    /// continue where that agent stopped. Must be called within a tokio runtime, whose end ends the
    /// agent's tasks and no VM.
    pub async fn adopt(
        host: Host<U, F, S>,
        trust: Trust,
        inherited: Vec<(String, OwnedFd)>,
    ) -> Result<Self, AdoptError> {
        let host = Arc::new(host);
        let registry = Arc::new(Registry::new());
        let agent = Self {
            slots: Arc::new(Slots::new(Arc::clone(&registry))),
            registry,
            host: Arc::clone(&host),
            trust,
        };
        // Listened to before the first look, so that no change falls in between.
        tokio::spawn(forward_changes(
            host.units.changes(),
            Arc::clone(&agent.registry),
        ));
        agent.adopt_slots().await?;
        // Of a VM whose record cannot be read nobody knows what it has.
        let mut unreadable = Vec::new();
        let mut claims = Vec::new();
        let mut sockets: BTreeMap<String, OwnedFd> = inherited.into_iter().collect();
        let mut orphans = host.units.list().await?;
        for vm_id in host.on_files(VmFiles::list).await? {
            let read = host.on_files(move |files| files.read_record(vm_id)).await;
            let record = match read {
                Ok(Some(record)) => record,
                // A folder without a record was never written down: nothing was done for it.
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(VM_ID = %vm_id, "VM left alone: {}", in_one_line(&error));
                    orphans.retain(|unit| unit.vm_id != Some(vm_id));
                    unreadable.push(vm_id);
                    continue;
                }
            };
            claims.extend(record.claims().iter().map(|claim| (vm_id, claim.clone())));
            let has_unit = orphans.iter().any(|unit| unit.vm_id == Some(vm_id));
            orphans.retain(|unit| unit.vm_id != Some(vm_id));
            let socket = sockets.remove(&socket_name(vm_id));
            if record.phase == Phase::Deleted && !has_unit && all_acknowledged(&record) {
                continue;
            }
            let left = Left {
                socket: take_up(vm_id, socket),
                seed: sockets.remove(&seed_name(vm_id)).map(File::from),
            };
            agent.spawn(record, left, Beginning::Adopted);
        }
        agent.release_orphans(&unreadable, &claims).await;
        for unit in orphans {
            tracing::error!(
                UNIT_NAME = unit.unit,
                "a VMM without a record runs; it is left alone, an operator has to decide"
            );
        }
        for (name, socket) in sockets {
            drop(socket);
            let store = Arc::clone(&host.store);
            if let Err(error) = crate::host::blocking(move || store.forget(&name)).await {
                tracing::warn!("a stale descriptor stays: {}", in_one_line(&error));
            }
        }
        Ok(agent)
    }

    fn spawn(&self, record: VmRecord, left: Left, beginning: Beginning) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let look = Arc::new(Notify::new());
        let mailbox = Mailbox {
            messages,
            look: Arc::clone(&look),
        };
        self.registry.add(record.clone(), mailbox);
        let actor = VmActor::new(
            Arc::clone(&self.host),
            Arc::clone(&self.registry),
            Arc::clone(&self.slots),
            record,
            left,
            look,
        );
        tokio::spawn(actor.run(beginning, inbox));
    }

    /// Hear when [`Agent::report`] has something new.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.registry.subscribe()
    }

    /// Something outside of the VMs changed that the report tells.
    pub fn host_changed(&self) {
        self.registry.host_changed();
    }

    /// What the controller is to be told.
    #[must_use]
    pub fn report(&self) -> Report {
        self.registry
            .report(self.slots.report(&self.host.slots.key))
    }

    /// The host that this agent works on.
    #[must_use]
    pub fn host(&self) -> &Host<U, F, S> {
        &self.host
    }

    /// The controller stored these results and receipts.
    pub fn acknowledge(&self, results: &[TaskId], receipts: &[ReceiptId]) {
        self.registry.acknowledge(results);
        self.slots.acknowledge(results, receipts);
    }

    /// Take tasks as they come from the controller, with the seeds of the guests that they start. Returns
    /// how many of them were news.
    pub async fn take(&self, envelopes: &[SignedEnvelope], seeds: &[SignedEnvelope]) -> usize {
        let seeds = self.open_seeds(seeds);
        let mut news = 0_usize;
        for envelope in envelopes {
            if self.take_one(envelope, &seeds).await {
                news = news.saturating_add(1);
            }
        }
        news
    }

    /// A seed that nobody signed is given to nobody.
    fn open_seeds(&self, envelopes: &[SignedEnvelope]) -> Vec<Seed> {
        let open = |envelope| match self.trust.open_seed(envelope) {
            Ok(seed) => Some(seed),
            Err(refused) => {
                tracing::warn!("a seed was refused ({:?})", refused.code);
                None
            }
        };
        envelopes.iter().filter_map(open).collect()
    }

    async fn take_one(&self, envelope: &SignedEnvelope, seeds: &[Seed]) -> bool {
        let now = clock::now();
        let task = match self.trust.open(envelope) {
            Ok(task) => task,
            Err(refused) => {
                let Some(task_id) = claimed_task_id(envelope) else {
                    tracing::warn!("an unreadable task came: {refused}");
                    return false;
                };
                return self.refuse(task_id, refused, now);
            }
        };
        if self.registry.knows(&task) {
            return false;
        }
        let known = match self.known(task.vm_id).await {
            Ok(known) => known,
            Err(error) => {
                let failed = failed(FailureCode::Internal, in_one_line(&error));
                self.registry.add_loose(task.task_id, failed, now, now);
                return true;
            }
        };
        if let Some(record) = &known
            && let Recall::Ended(result) = record.recall(task.task_id)
        {
            let outcome = result.outcome.clone();
            self.registry.add_loose(task.task_id, outcome, now, now);
            return true;
        }
        if let Err(refused) = self
            .trust
            .check(&task, known.as_ref().map(known_vm).as_ref(), now)
        {
            return self.refuse(task.task_id, refused, now);
        }
        if let Err(refused) = self.host.log.check(&task.action) {
            return self.refuse(task.task_id, frozen(&refused), now);
        }
        if let Err(refused) = self.check_slots(&task) {
            return self.refuse(task.task_id, refused, now);
        }
        let seed = match seed_for(&task, seeds) {
            Ok(seed) => seed,
            Err(error) => {
                let failed = failed(FailureCode::Internal, in_one_line(&error));
                self.registry.add_loose(task.task_id, failed, now, now);
                return true;
            }
        };
        self.begin(task, seed, known, now)
    }

    /// What is remembered of a VM: by its task, or else by its tombstone.
    async fn known(&self, vm_id: VmId) -> Result<Option<VmRecord>, VmFilesError> {
        match self.registry.record(vm_id) {
            Some(record) => Ok(Some(record)),
            None => {
                self.host
                    .on_files(move |files| files.read_record(vm_id))
                    .await
            }
        }
    }

    fn begin(&self, task: Task, seed: Option<File>, known: Option<VmRecord>, now: i64) -> bool {
        let is_here = known
            .as_ref()
            .is_some_and(|record| record.phase != Phase::Deleted);
        match &task.action {
            TaskAction::VmConsoleRead { tail_bytes } if is_here => {
                return self.read_console(&task, *tail_bytes, now);
            }
            TaskAction::VmEjectSeed {} if is_here => return self.registry.eject_seed(&task),
            TaskAction::VmConsoleRead { .. }
            | TaskAction::VmEjectSeed {}
            | TaskAction::VmStart {}
            | TaskAction::VmStop { .. }
                if !is_here =>
            {
                let outcome = failed(
                    FailureCode::VmUnknown,
                    format!("{} is not on this host", task.vm_id),
                );
                self.registry.add_loose(task.task_id, outcome, now, now);
                return true;
            }
            TaskAction::VmConsoleRead { .. }
            | TaskAction::VmEjectSeed {}
            | TaskAction::VmCreate { .. }
            | TaskAction::VmStart {}
            | TaskAction::VmStop { .. }
            | TaskAction::VmDelete {} => {}
        }
        if self.registry.record(task.vm_id).is_none() {
            let record = known.unwrap_or_else(|| VmRecord::new(&task, &self.host.boot_id));
            self.spawn(record, Left::default(), Beginning::Fresh);
        }
        self.registry.hand_over(task, seed)
    }

    fn refuse(&self, task_id: TaskId, refused: TaskRefused, now: i64) -> bool {
        if self.registry.has_loose(task_id) {
            return false;
        }
        tracing::warn!(TASK_ID = %task_id, "task refused ({:?}): {refused}", refused.code);
        let outcome = TaskOutcome::Refused {
            code: refused.code,
            message: refused.message,
        };
        self.registry.add_loose(task_id, outcome, now, now);
        true
    }

    fn read_console(&self, task: &Task, tail_bytes: u64, now: i64) -> bool {
        if !self.registry.begin_reading(task.task_id) {
            return false;
        }
        let (host, registry) = (Arc::clone(&self.host), Arc::clone(&self.registry));
        let (task_id, vm_id) = (task.task_id, task.vm_id);
        // The check has bounded it to what a result carries.
        let tail_bytes = usize::try_from(tail_bytes).unwrap_or(0);
        tokio::spawn(async move {
            let read = host
                .on_files(move |files| {
                    let segments = files.read_consoles(vm_id)?;
                    Ok(console::tail([&segments[0], &segments[1]], tail_bytes))
                })
                .await;
            let outcome = match read {
                Ok(tail) => TaskOutcome::Console {
                    offset: tail.offset,
                    data: STANDARD.encode(&tail.bytes),
                },
                Err(error) => failed(FailureCode::Internal, in_one_line(&error)),
            };
            registry.add_loose(task_id, outcome, now, clock::now());
        });
        true
    }
}

/// The medium for the guest that a task starts; `None` if it gets none.
fn seed_for(task: &Task, seeds: &[Seed]) -> Result<Option<File>, MakeSeedError> {
    let starts = matches!(
        task.action,
        TaskAction::VmCreate { .. } | TaskAction::VmStart {}
    );
    match seeds.iter().find(|given| seed::is_for(given, task)) {
        Some(given) if starts => Ok(Some(sealed("berth-seed", &seed::medium(given)?)?)),
        Some(_) | None => Ok(None),
    }
}

fn failed(code: FailureCode, message: String) -> TaskOutcome {
    TaskOutcome::Failed { code, message }
}

fn frozen(refusal: &LogRefusal) -> TaskRefused {
    TaskRefused {
        code: RefusalCode::LogFrozen,
        message: refusal.to_string(),
    }
}

fn known_vm(record: &VmRecord) -> KnownVm {
    let spec = match record.phase {
        Phase::Deleted => None,
        Phase::Creating
        | Phase::Undoing { .. }
        | Phase::Starting
        | Phase::Running { .. }
        | Phase::Stopping { .. }
        | Phase::Halting
        | Phase::Stopped { .. }
        | Phase::Failed { .. }
        | Phase::Deleting => record.definition.as_ref().map(|d| d.spec.clone()),
    };
    KnownVm {
        tenant_id: record.tenant_id.clone(),
        generation: record.generation,
        spec,
        claims: record.claims().to_vec(),
    }
}

fn all_acknowledged(record: &VmRecord) -> bool {
    record.results.iter().all(|recorded| recorded.acknowledged)
}

fn take_up(vm_id: VmId, socket: Option<OwnedFd>) -> Option<VmmSocket> {
    match VmmSocket::new(socket?) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(VM_ID = %vm_id, "control socket lost: {}", in_one_line(&error));
            None
        }
    }
}

async fn forward_changes(mut changes: broadcast::Receiver<VmId>, registry: Arc<Registry>) {
    loop {
        match changes.recv().await {
            Ok(vm_id) => registry.look_at(vm_id),
            Err(broadcast::error::RecvError::Lagged(_)) => registry.look_at_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests;
