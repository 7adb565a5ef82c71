//! An agent without a host: it enrols, signs syncs and answers tasks over real HTTP.
//!
//! It speaks the published contract and keeps the promises of an agent (it checks signatures, keeps
//! generations, repeats results until they are acknowledged), but starts nothing. Many of them
//! stand in for a fleet. A test may reach into [`SimulatedAgent`] to make it forget or lie.

mod slots;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use berth_api::agent::{
    Capacity, CheckpointOffer, ENROLL_PAYLOAD_TYPE, EnrollReply, EnrollRequest, FailureCode,
    JOIN_TOKEN_PREFIX, JoinToken, LogReport, ObservedImage, ObservedState, ObservedVm,
    PROTOCOL_VERSION, RefusalCode, SEED_PAYLOAD_TYPE, SYNC_PAYLOAD_TYPE, Seed, SignedEnvelope,
    StopMode, StoppedReason, SyncReply, SyncRequest, TASK_PAYLOAD_TYPE, Task, TaskAction,
    TaskOutcome, TaskResult,
};
use berth_api::ids::{AgentInstanceId, NodeId, TaskId, TenantId, VmId};
use berth_api::slot::{SLOT_TASK_PAYLOAD_TYPE, SlotTask};
use berth_ledger::envelope;
use berth_ledger::keys::{PublicKey, SigningKey};
use tokio::sync::mpsc::UnboundedSender;

pub use slots::{SimulatedSlots, SlotFault};

/// A VM on the host that is not there.
#[derive(Clone, Debug)]
pub struct SimulatedVm {
    /// Its owner.
    pub tenant_id: TenantId,
    /// The newest generation that was seen.
    pub generation: u64,
    /// What it does.
    pub state: ObservedState,
}

/// What an agent says of itself.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What it can give.
    pub capacity: Capacity,
    /// What it can start.
    pub images: Vec<ObservedImage>,
}

impl Host {
    /// A host of 8 CPUs with one image, `debian-12`, of 1 GiB.
    #[must_use]
    pub fn new(name: &str, memory_mib: u64) -> Self {
        Self {
            name: name.to_owned(),
            capacity: Capacity {
                vcpus: 8,
                memory_mib,
                disk_mib: 1 << 20,
                kvm: true,
            },
            images: vec![ObservedImage {
                name: "debian-12".to_owned(),
                digest: "00".repeat(32),
                disk_mib: 1024,
            }],
        }
    }
}

/// An enrolled agent.
#[derive(Debug)]
pub struct SimulatedAgent {
    http: ureq::Agent,
    url: String,
    key: SigningKey,
    task_keys: Vec<PublicKey>,
    /// What it says of itself.
    pub host: Host,
    /// Its id.
    pub node_id: NodeId,
    /// The epoch from enrolment.
    pub node_epoch: u64,
    /// This run.
    pub instance: AgentInstanceId,
    /// This boot of its host.
    pub boot_id: String,
    /// Number of the last sync.
    pub seq: u64,
    /// The slots of its host.
    pub slots: SimulatedSlots,
    /// The VMs on its host.
    pub vms: BTreeMap<VmId, SimulatedVm>,
    /// Results that were not acknowledged.
    pub results: Vec<TaskResult>,
    /// What every console says.
    pub console: Vec<u8>,
    /// The next create or start fails so.
    pub fail_next: Option<FailureCode>,
    /// How often a task was carried out, not counting console reads and repeats.
    pub carried_out: u64,
    /// How it was told to stop VMs, in order.
    pub stops: Vec<(StopMode, u32)>,
    /// Its guests do not hear their power buttons: a graceful stop lasts until it is overtaken.
    pub deaf: bool,
    /// Graceful stops that last, with the time that they began.
    pub at_work: BTreeMap<VmId, (TaskId, i64)>,
    /// Who wants to know of each VM that is to be made, and when that was learned.
    pub tell_creates: Option<UnboundedSender<(VmId, Instant)>>,
    /// What it says that it has seen of the ledger.
    pub log: LogReport,
    /// What the guests on its host were given at their last start, and can still read.
    pub seeds: BTreeMap<VmId, Seed>,
    /// Which media it was told to take away: the run of which VM.
    pub ejections: Vec<(VmId, u64)>,
    /// It does not know how to take a medium away.
    pub is_old: bool,
    /// What it was shown of the ledger last.
    pub shown: Option<CheckpointOffer>,
}

/// A client for this contract: it takes every status as an answer.
#[must_use]
pub fn http_client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// Read a join token as an operator hands it out.
pub fn read_join_token(token: &str) -> anyhow::Result<JoinToken> {
    let text = token
        .strip_prefix(JOIN_TOKEN_PREFIX)
        .context("a join token begins with its prefix")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text)?)?)
}

/// What a host sends to enrol.
#[must_use]
pub fn enroll_request(token: &JoinToken, key: &SigningKey, host: &Host) -> EnrollRequest {
    EnrollRequest {
        protocol_version: PROTOCOL_VERSION,
        secret: token.secret.clone(),
        node_name: host.name.clone(),
        node_public_key: key.public().to_base64(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: "first-boot".to_owned(),
        agent_version: "0.1.0".to_owned(),
        capacity: host.capacity.clone(),
    }
}

impl SimulatedAgent {
    /// Enrol a host with a join token.
    pub fn enroll(join_token: &str, host: Host) -> anyhow::Result<Self> {
        let token = read_join_token(join_token)?;
        let key = SigningKey::generate()?;
        let request = enroll_request(&token, &key, &host);
        let sealed = envelope::seal(&key, ENROLL_PAYLOAD_TYPE, &request)?;
        let http = http_client();
        let url = token.controller_url;
        let mut answer = http
            .post(format!("{url}/v1/agent/enroll"))
            .send_json(&sealed)?;
        ensure!(
            answer.status() == 201,
            "enrolment: {}",
            answer.body_mut().read_to_string()?
        );
        let reply: EnrollReply = answer.body_mut().read_json()?;
        let task_keys = reply
            .task_public_keys
            .iter()
            .map(|text| PublicKey::from_base64(text))
            .collect::<Result<_, _>>()?;
        let slots = SimulatedSlots::new(SigningKey::from_seed(key.seed())?, reply.node_id);
        Ok(Self {
            http,
            url,
            key,
            task_keys,
            host,
            node_id: reply.node_id,
            node_epoch: reply.node_epoch,
            instance: AgentInstanceId::generate(),
            boot_id: "first-boot".to_owned(),
            seq: 0,
            slots,
            vms: BTreeMap::new(),
            results: Vec::new(),
            console: b"Welcome to a simulated guest\n".to_vec(),
            fail_next: None,
            carried_out: 0,
            stops: Vec::new(),
            deaf: false,
            at_work: BTreeMap::new(),
            tell_creates: None,
            log: LogReport::default(),
            seeds: BTreeMap::new(),
            ejections: Vec::new(),
            is_old: false,
            shown: None,
        })
    }

    /// The next sync as it would be sent.
    pub fn next_sync(&mut self, wait_seconds: u64) -> SyncRequest {
        self.seq += 1;
        SyncRequest {
            protocol_version: PROTOCOL_VERSION,
            node_id: self.node_id,
            node_epoch: self.node_epoch,
            agent_instance_id: self.instance,
            boot_id: self.boot_id.clone(),
            seq: self.seq,
            agent_version: "0.1.0".to_owned(),
            clock: now_s(),
            wait_seconds,
            results: self.results.clone(),
            slots: self.slots.slots.values().cloned().collect(),
            receipts: self.slots.receipts.clone(),
            vms: self
                .vms
                .iter()
                .map(|(vm_id, vm)| ObservedVm {
                    vm_id: *vm_id,
                    tenant_id: vm.tenant_id.clone(),
                    generation: vm.generation,
                    state: vm.state.clone(),
                    resets: 0,
                })
                .collect(),
            images: self.host.images.clone(),
            capacity: self.host.capacity.clone(),
            log: self.log.clone(),
        }
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Sign a sync with the node's key.
    pub fn seal(&self, request: &SyncRequest) -> anyhow::Result<SignedEnvelope> {
        Ok(envelope::seal(&self.key, SYNC_PAYLOAD_TYPE, request)?)
    }

    /// Send an envelope as a sync and turn away from it, as an agent does that has news.
    pub fn abandon(&self, sealed: &SignedEnvelope, after: Duration) {
        let impatient: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(after))
            .build()
            .into();
        let url = format!("{}/v1/agent/sync", self.url);
        // It is to be cut off; an answer before that would be no harm.
        drop(impatient.post(url).send_json(sealed));
    }

    /// Send an envelope as a sync; status and body.
    pub fn send(&self, sealed: &SignedEnvelope) -> anyhow::Result<(u16, String)> {
        let mut answer = self
            .http
            .post(format!("{}/v1/agent/sync", self.url))
            .send_json(sealed)?;
        let status = answer.status().as_u16();
        Ok((status, answer.body_mut().read_to_string()?))
    }

    /// One sync, and everything that it brings.
    pub fn sync(&mut self, wait_seconds: u64) -> anyhow::Result<usize> {
        let request = self.next_sync(wait_seconds);
        let (status, body) = self.send(&self.seal(&request)?)?;
        if status != 200 {
            bail!("sync: {status} {body}");
        }
        let reply: SyncReply = serde_json::from_str(&body)?;
        self.shown.clone_from(&reply.checkpoint);
        self.results
            .retain(|result| !reply.acknowledged.contains(&result.task_id));
        self.slots.acknowledge(&reply.acknowledged_receipts);
        let mut seeds = self.seeds_of(&reply)?;
        for sealed in &reply.tasks {
            self.take_seed(sealed, &mut seeds)?;
            self.carry_out(sealed)?;
        }
        for sealed in &reply.slot_tasks {
            self.carry_out_for_slot(sealed)?;
        }
        Ok(reply.tasks.len() + reply.slot_tasks.len())
    }

    /// Sync until there is nothing to do and nothing to tell.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        while self.sync(0)? > 0 || !self.results.is_empty() || !self.slots.receipts.is_empty() {}
        Ok(())
    }

    /// What guests are given by an answer, by the tasks that start them.
    pub fn seeds_of(&self, reply: &SyncReply) -> anyhow::Result<BTreeMap<TaskId, Seed>> {
        let open = |sealed| -> anyhow::Result<(TaskId, Seed)> {
            let seed: Seed = envelope::open(&self.task_keys, SEED_PAYLOAD_TYPE, sealed)?;
            Ok((seed.task_id, seed))
        };
        reply.seeds.iter().map(open).collect()
    }

    fn take_seed(
        &mut self,
        sealed: &SignedEnvelope,
        seeds: &mut BTreeMap<TaskId, Seed>,
    ) -> anyhow::Result<()> {
        let task: Task = envelope::open(&self.task_keys, TASK_PAYLOAD_TYPE, sealed)?;
        if let TaskAction::VmCreate { .. } | TaskAction::VmStart {} = task.action {
            self.seeds.remove(&task.vm_id);
            if let Some(seed) = seeds.remove(&task.task_id) {
                self.seeds.insert(task.vm_id, seed);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, sealed: &SignedEnvelope) -> anyhow::Result<()> {
        let arrived = Instant::now();
        let task: Task = envelope::open(&self.task_keys, TASK_PAYLOAD_TYPE, sealed)?;
        if let (Some(tell), TaskAction::VmCreate { .. }) = (&self.tell_creates, &task.action) {
            // Whoever asked may have heard enough.
            tell.send((task.vm_id, arrived)).ok();
        }
        if self
            .results
            .iter()
            .any(|result| result.task_id == task.task_id)
        {
            return Ok(());
        }
        let started_at = now_s();
        if self.has_to_wait(&task) {
            return Ok(());
        }
        let outcome = match self.refusal(&task) {
            Some((code, message)) => TaskOutcome::Refused {
                code,
                message: message.to_owned(),
            },
            None if self.deaf && is_stop(&task, StopMode::Graceful) => {
                self.press_power_button(&task, started_at);
                return Ok(());
            }
            None => {
                self.overtake(&task);
                self.act(&task)
            }
        };
        self.end(task.task_id, outcome, started_at);
        Ok(())
    }

    fn carry_out_for_slot(&mut self, sealed: &SignedEnvelope) -> anyhow::Result<()> {
        let task: SlotTask = envelope::open(&self.task_keys, SLOT_TASK_PAYLOAD_TYPE, sealed)?;
        ensure!(task.node_id == self.node_id, "a slot task for another node");
        let known = |result: &TaskResult| result.task_id == task.task_id;
        if !self.results.iter().any(known) {
            let started_at = now_s();
            let outcome = self.slots.act(&task);
            self.end(task.task_id, outcome, started_at);
        }
        Ok(())
    }

    fn end(&mut self, task_id: TaskId, outcome: TaskOutcome, started_at: i64) {
        self.results.push(TaskResult {
            task_id,
            outcome,
            started_at,
            ended_at: now_s(),
        });
    }

    /// Whether a graceful stop is at work: that one itself, or one that the task cannot overtake.
    fn has_to_wait(&self, task: &Task) -> bool {
        let reads = changes_nothing(task);
        self.at_work
            .get(&task.vm_id)
            .is_some_and(|(at_work, _)| *at_work == task.task_id || !(reads || overtakes(task)))
    }

    /// Nobody hears it.
    fn press_power_button(&mut self, task: &Task, now: i64) {
        if let (TaskAction::VmStop { mode, timeout_s }, Some(vm)) =
            (&task.action, self.vms.get_mut(&task.vm_id))
        {
            self.stops.push((*mode, *timeout_s));
            self.at_work.insert(task.vm_id, (task.task_id, now));
            vm.generation = task.generation;
            vm.state = ObservedState::Changing;
        }
    }

    fn overtake(&mut self, task: &Task) {
        if overtakes(task)
            && let Some((overtaken, started_at)) = self.at_work.remove(&task.vm_id)
        {
            let outcome = TaskOutcome::Failed {
                code: FailureCode::Overtaken,
                message: "overtaken".to_owned(),
            };
            self.end(overtaken, outcome, started_at);
        }
    }

    fn refusal(&self, task: &Task) -> Option<(RefusalCode, &'static str)> {
        if task.node_id != self.node_id {
            return Some((RefusalCode::WrongNode, "for another node"));
        }
        let known = self.vms.get(&task.vm_id)?;
        if known.tenant_id != task.tenant_id {
            return Some((RefusalCode::WrongOwner, "of another tenant"));
        }
        let reads = changes_nothing(task);
        (!reads && task.generation <= known.generation)
            .then_some((RefusalCode::OldGeneration, "seen before"))
    }

    fn act(&mut self, task: &Task) -> TaskOutcome {
        let state = match &task.action {
            TaskAction::VmConsoleRead { tail_bytes } => return self.read_console(*tail_bytes),
            TaskAction::VmEjectSeed {} => return self.eject_seed(task),
            TaskAction::VmStart {} if !self.vms.contains_key(&task.vm_id) => {
                return TaskOutcome::Failed {
                    code: FailureCode::VmUnknown,
                    message: "not on this host".to_owned(),
                };
            }
            TaskAction::VmCreate { .. } | TaskAction::VmStart {} => {
                if let Some(code) = self.fail_next.take() {
                    return TaskOutcome::Failed {
                        code,
                        message: "told to fail".to_owned(),
                    };
                }
                if let TaskAction::VmCreate { claims, .. } = &task.action
                    && let Err(failed) = self.slots.claim(task.vm_id, &task.tenant_id, claims)
                {
                    return failed;
                }
                Some(ObservedState::Running { pid: 4242 })
            }
            TaskAction::VmStop { mode, timeout_s } => {
                self.stops.push((*mode, *timeout_s));
                Some(ObservedState::Stopped {
                    reason: StoppedReason::Requested,
                })
            }
            TaskAction::VmDelete {} => {
                self.slots.release(task.vm_id);
                None
            }
        };
        self.carried_out += 1;
        match state {
            Some(state) => drop(self.vms.insert(
                task.vm_id,
                SimulatedVm {
                    tenant_id: task.tenant_id.clone(),
                    generation: task.generation,
                    state,
                },
            )),
            None => drop(self.vms.remove(&task.vm_id)),
        }
        TaskOutcome::Done {
            evidence: BTreeMap::new(),
        }
    }

    fn eject_seed(&mut self, task: &Task) -> TaskOutcome {
        self.ejections.push((task.vm_id, task.generation));
        if self.is_old {
            return TaskOutcome::Refused {
                code: RefusalCode::Unsupported,
                message: "no task of this contract".to_owned(),
            };
        }
        self.seeds.remove(&task.vm_id);
        TaskOutcome::Done {
            evidence: BTreeMap::new(),
        }
    }

    fn read_console(&self, tail_bytes: u64) -> TaskOutcome {
        let tail = usize::try_from(tail_bytes).unwrap_or(usize::MAX);
        let start = self.console.len().saturating_sub(tail);
        TaskOutcome::Console {
            offset: u64::try_from(start).unwrap_or(u64::MAX),
            data: STANDARD.encode(self.console.get(start..).unwrap_or_default()),
        }
    }

    /// Go on syncing in a thread until the handle is stopped. Failed syncs are tried again, as the
    /// controller may be restarting.
    #[must_use]
    pub fn run(mut self) -> RunningAgent {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                if self.sync(1).is_err() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            self
        });
        RunningAgent { stop, thread }
    }
}

/// An agent that syncs by itself.
#[derive(Debug)]
pub struct RunningAgent {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<SimulatedAgent>,
}

impl RunningAgent {
    /// Stop it, and have it back.
    pub fn stop(self) -> anyhow::Result<SimulatedAgent> {
        self.stop.store(true, Ordering::Release);
        match self.thread.join() {
            Ok(agent) => Ok(agent),
            Err(_) => bail!("the simulated agent panicked"),
        }
    }
}

fn is_stop(task: &Task, wanted: StopMode) -> bool {
    matches!(task.action, TaskAction::VmStop { mode, .. } if mode == wanted)
}

/// Whether the VM is as before, so that the task's generation may repeat.
fn changes_nothing(task: &Task) -> bool {
    matches!(
        task.action,
        TaskAction::VmConsoleRead { .. } | TaskAction::VmEjectSeed {}
    )
}

fn overtakes(task: &Task) -> bool {
    is_stop(task, StopMode::Hard) || task.action == TaskAction::VmDelete {}
}

fn now_s() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
