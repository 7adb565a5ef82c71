//! A node that does every task at once, in memory: it keeps to the agents' protocol and runs no VM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::agent::{
    Capacity, ENROLL_PAYLOAD_TYPE, EnrollReply, EnrollRequest, JOIN_TOKEN_PREFIX, JoinToken,
    ObservedImage, ObservedState, ObservedVm, PROTOCOL_VERSION, SYNC_PAYLOAD_TYPE, StoppedReason,
    SyncReply, SyncRequest, TASK_PAYLOAD_TYPE, Task, TaskAction, TaskOutcome, TaskResult,
};
use berth_api::ids::{AgentInstanceId, VmId};
use berth_ledger::envelope::{open, seal};
use berth_ledger::keys::{PublicKey, SigningKey};

use crate::bench::Bench;

pub(crate) const IMAGE: &str = "debian-12";
/// What every guest has written to its console.
pub(crate) const CONSOLE: &str = "one\ntwo\nthree\n";
const BOOT_ID: &str = "6b1f7a2e-8a55-4a40-9a56-0a4e0d7d5a11";

/// Runs until dropped.
pub(crate) struct Node {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Everything that a node knows.
struct State {
    key: SigningKey,
    enrolled: EnrollReply,
    instance: AgentInstanceId,
    seq: u64,
    results: Vec<TaskResult>,
    vms: BTreeMap<VmId, ObservedVm>,
}

impl Node {
    /// Join and go on syncing.
    pub(crate) fn join(bench: &Arc<Bench>) -> Self {
        let mut state = enrol(bench);
        state.sync(bench, 0);
        let stop = Arc::new(AtomicBool::new(false));
        let (bench, stopped) = (Arc::clone(bench), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                state.sync(&bench, 1);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn enrol(bench: &Bench) -> State {
    let joined = bench.berthctl(&["node", "join-token", "--ttl", "10m", "--json"]);
    let token = joined.expect(0).json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let token = token.strip_prefix(JOIN_TOKEN_PREFIX).unwrap();
    let token: JoinToken = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).unwrap()).unwrap();
    let key = SigningKey::generate().unwrap();
    let request = EnrollRequest {
        protocol_version: PROTOCOL_VERSION,
        secret: token.secret,
        node_name: "rack1-3".to_owned(),
        node_public_key: key.public().to_base64(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        boot_id: BOOT_ID.to_owned(),
        agent_version: "0.1.0".to_owned(),
        capacity: capacity(),
    };
    let envelope = seal(&key, ENROLL_PAYLOAD_TYPE, &request).unwrap();
    let reply = bench.post(
        "/v1/agent/enroll",
        &serde_json::to_string(&envelope).unwrap(),
    );
    State {
        key,
        enrolled: serde_json::from_value(reply.expect(0).json()).unwrap(),
        instance: AgentInstanceId::generate(),
        seq: 0,
        results: Vec::new(),
        vms: BTreeMap::new(),
    }
}

fn capacity() -> Capacity {
    Capacity {
        vcpus: 8,
        memory_mib: 16_384,
        disk_mib: 1_048_576,
        kvm: true,
    }
}

fn clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

impl State {
    fn sync(&mut self, bench: &Bench, wait_seconds: u64) {
        self.seq += 1;
        let request = SyncRequest {
            protocol_version: PROTOCOL_VERSION,
            node_id: self.enrolled.node_id,
            node_epoch: self.enrolled.node_epoch,
            agent_instance_id: self.instance,
            boot_id: BOOT_ID.to_owned(),
            seq: self.seq,
            agent_version: "0.1.0".to_owned(),
            clock: clock(),
            wait_seconds: if self.results.is_empty() {
                wait_seconds
            } else {
                0
            },
            results: self.results.clone(),
            vms: self.vms.values().cloned().collect(),
            slots: Vec::new(),
            receipts: Vec::new(),
            log: berth_api::agent::LogReport::default(),
            images: vec![ObservedImage {
                name: IMAGE.to_owned(),
                digest: "0".repeat(64),
                disk_mib: 1024,
            }],
            capacity: capacity(),
        };
        let envelope = seal(&self.key, SYNC_PAYLOAD_TYPE, &request).unwrap();
        let reply = bench.post("/v1/agent/sync", &serde_json::to_string(&envelope).unwrap());
        if reply.code != Some(0) {
            // The controller is away; everything is said again next time.
            return;
        }
        let reply: SyncReply = serde_json::from_value(reply.json()).unwrap();
        self.results
            .retain(|result| !reply.acknowledged.contains(&result.task_id));
        let keys: Vec<PublicKey> = self
            .enrolled
            .task_public_keys
            .iter()
            .map(|key| PublicKey::from_base64(key).unwrap())
            .collect();
        for envelope in &reply.tasks {
            let task: Task = open(&keys, TASK_PAYLOAD_TYPE, envelope).unwrap();
            if self
                .results
                .iter()
                .all(|result| result.task_id != task.task_id)
            {
                let result = self.perform(&task);
                self.results.push(result);
            }
        }
    }

    fn perform(&mut self, task: &Task) -> TaskResult {
        let mut outcome = TaskOutcome::Done {
            evidence: BTreeMap::new(),
        };
        let state = match task.action {
            TaskAction::VmCreate { .. } | TaskAction::VmStart {} => {
                Some(ObservedState::Running { pid: 4711 })
            }
            TaskAction::VmStop { .. } => Some(ObservedState::Stopped {
                reason: StoppedReason::Requested,
            }),
            TaskAction::VmDelete {} => None,
            TaskAction::VmEjectSeed {} => self.vms.get(&task.vm_id).map(|vm| vm.state.clone()),
            TaskAction::VmConsoleRead { .. } => {
                outcome = TaskOutcome::Console {
                    offset: 0,
                    data: STANDARD.encode(CONSOLE),
                };
                self.vms.get(&task.vm_id).map(|vm| vm.state.clone())
            }
        };
        match state {
            None => drop(self.vms.remove(&task.vm_id)),
            Some(state) => {
                let vm = ObservedVm {
                    vm_id: task.vm_id,
                    tenant_id: task.tenant_id.clone(),
                    generation: task.generation,
                    state,
                    resets: 0,
                };
                self.vms.insert(task.vm_id, vm);
            }
        }
        TaskResult {
            task_id: task.task_id,
            outcome,
            started_at: clock(),
            ended_at: clock(),
        }
    }
}
