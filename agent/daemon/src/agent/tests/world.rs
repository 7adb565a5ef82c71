//! A host that outlives its agents, and a controller's hand to write tasks.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_agent_core::policy::Policy;
use berth_agent_core::slot::approval::{Approvals, ApprovedSlot};
use berth_agent_core::task_check::Trust;
use berth_agent_core::vm_record::VmRecord;
use berth_agent_host::fakes::{
    FakeDescriptorStore, FakeDevice, FakeSlotDevices, FakeUnits, FaultySlotFiles, FaultyVmFiles,
    Fuse, GuestBehaviour,
};
use berth_agent_host::images::{Blob, ImageManifest, Images};
use berth_agent_host::slot_files::LinuxSlotFiles;
use berth_agent_host::vm_files::{LinuxVmFiles, VmFiles};
use berth_agent_host::vmm_unit::VmmUnits;
use berth_api::agent::{
    GuestAccess, ObservedState, SEED_PAYLOAD_TYPE, Seed, SignedEnvelope, TASK_PAYLOAD_TYPE, Task,
    TaskAction, TaskOutcome, VmSpec,
};
use berth_api::ids::{NodeId, TaskId, VmId};
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;

use crate::agent::Agent;
use crate::host::Host;
use crate::log_memory::LogMemory;
use crate::slots::{ReadApprovals, SlotHost};

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) type TestAgent = Agent<FakeUnits, FaultyVmFiles, FakeDescriptorStore>;

pub(super) struct World {
    folder: tempfile::TempDir,
    pub(super) units: FakeUnits,
    pub(super) store: FakeDescriptorStore,
    pub(super) devices: FakeSlotDevices,
    pub(super) approvals: FakeApprovals,
    pub(super) key: SigningKey,
    pub(super) node_id: NodeId,
    pub(super) vm_id: VmId,
    pub(super) boot_id: String,
}

pub(super) fn spec() -> VmSpec {
    VmSpec {
        name: "web".to_owned(),
        vcpus: 1,
        memory_mib: 64,
        disk_mib: 2,
        image: "tiny".to_owned(),
    }
}

/// The owner's approvals, kept in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct FakeApprovals(Arc<Mutex<Approvals>>);

impl FakeApprovals {
    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<ApprovedSlot>)) {
        change(&mut self.0.lock().unwrap().approved);
    }
}

impl ReadApprovals for FakeApprovals {
    fn read(&self) -> Approvals {
        self.0.lock().unwrap().clone()
    }
}

impl World {
    pub(super) fn new(behaviour: GuestBehaviour) -> Self {
        Self::with_devices(behaviour, [])
    }

    pub(super) fn with_devices(
        behaviour: GuestBehaviour,
        devices: impl IntoIterator<Item = FakeDevice>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self {
            units: FakeUnits::new(behaviour, Fuse::whole()),
            store: FakeDescriptorStore::new(Fuse::whole()),
            devices: FakeSlotDevices::new(devices, Fuse::whole()),
            approvals: FakeApprovals::default(),
            key: SigningKey::from_seed(&[7; 32]).unwrap(),
            node_id: NodeId::generate(),
            vm_id: VmId::generate(),
            boot_id: "boot-1".to_owned(),
            folder,
        };
        world.make_image();
        world
    }

    fn make_image(&self) {
        let image = self.path("images/tiny");
        std::fs::create_dir_all(&image).unwrap();
        let manifest = ImageManifest {
            format: 1,
            name: "tiny".to_owned(),
            kernel: Blob {
                sha256: String::new(),
                bytes: 6,
            },
            initrd: None,
            disk_bytes: 512,
            cmdline: String::new(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        std::fs::write(image.join("image.json"), manifest).unwrap();
        std::fs::write(image.join("kernel"), "kernel").unwrap();
        std::fs::write(image.join("disk.raw"), [1; 512]).unwrap();
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub(super) fn files(&self) -> LinuxVmFiles {
        LinuxVmFiles::new(self.path("vms")).unwrap()
    }

    pub(super) fn slot_files(&self) -> LinuxSlotFiles {
        LinuxSlotFiles::new(self.path("slots")).unwrap()
    }

    /// What this host has seen of the ledger of key 5.
    pub(super) fn log(&self) -> LogMemory {
        let key = SigningKey::from_seed(&[9; 32]).unwrap();
        let ledger = SigningKey::from_seed(&[5; 32]).unwrap().public();
        LogMemory::open(self.folder.path(), (self.node_id, &key), ledger).unwrap()
    }

    pub(super) fn record(&self) -> Option<VmRecord> {
        self.files().read_record(self.vm_id).unwrap()
    }

    /// Run one agent until `act` is over; then it is killed.
    pub(super) fn with_agent<T>(&self, fuse: &Fuse, act: impl AsyncFnOnce(&TestAgent) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (store, inherited) = self.store.for_next_agent(fuse.clone());
            let host = Host {
                units: self.units.for_next_agent(fuse.clone()),
                files: Arc::new(FaultyVmFiles::new(self.files(), fuse.clone())),
                store: Arc::new(store),
                slots: SlotHost {
                    devices: Arc::new(self.devices.for_next_agent(fuse.clone())),
                    files: Arc::new(FaultySlotFiles::new(self.slot_files(), fuse.clone())),
                    approvals: Arc::new(self.approvals.clone()),
                    node_id: self.node_id,
                    key: Arc::new(SigningKey::from_seed(&[9; 32]).unwrap()),
                },
                images: Images::new(self.path("images")).unwrap(),
                vmm: PathBuf::from("/nonexistent/berth-vmm"),
                kvm: PathBuf::from("/dev/null"),
                host_facts: std::sync::OnceLock::new(),
                boot_id: self.boot_id.clone(),
                log: Arc::new(self.log()),
            };
            let trust = Trust {
                node_id: self.node_id,
                node_epoch: 1,
                task_keys: vec![self.key.public()],
                policy: Policy::default(),
            };
            let agent = Agent::adopt(host, trust, inherited).await.unwrap();
            act(&agent).await
        })
    }

    pub(super) fn task(&self, generation: u64, action: TaskAction) -> (TaskId, SignedEnvelope) {
        self.task_with(generation, action, |_| {})
    }

    pub(super) fn task_with(
        &self,
        generation: u64,
        action: TaskAction,
        change: impl FnOnce(&mut Task),
    ) -> (TaskId, SignedEnvelope) {
        let now = crate::clock::now();
        let mut task = Task {
            task_id: TaskId::generate(),
            node_id: self.node_id,
            node_epoch: 1,
            vm_id: self.vm_id,
            tenant_id: "acme-corp".parse().unwrap(),
            generation,
            not_before: now,
            expires_at: now + 300,
            ledger_index: 0,
            action,
        };
        change(&mut task);
        let envelope = seal(&self.key, TASK_PAYLOAD_TYPE, &task).unwrap();
        (task.task_id, envelope)
    }

    pub(super) fn create(&self) -> (TaskId, SignedEnvelope) {
        self.task(
            1,
            TaskAction::VmCreate {
                spec: spec(),
                claims: Vec::new(),
            },
        )
    }

    /// Neither process nor socket nor file, but for the tombstone.
    #[track_caller]
    pub(super) fn assert_nothing_left(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(runtime.block_on(self.units.list()).unwrap(), []);
        assert_eq!(self.store.names(), Vec::<String>::new());
        let left: Vec<_> = std::fs::read_dir(self.path("vms").join(self.vm_id.bare()))
            .map(|folder| folder.map(|e| e.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert_eq!(left, ["record.json"]);
    }
}

/// What the guest of a task is given, as its controller would send it.
pub(super) fn seed_of(world: &World, envelope: &SignedEnvelope, user_data: &str) -> SignedEnvelope {
    let trusted = [world.key.public()];
    let task: Task = berth_ledger::envelope::open(&trusted, TASK_PAYLOAD_TYPE, envelope).unwrap();
    let seed = Seed {
        task_id: task.task_id,
        node_id: task.node_id,
        vm_id: task.vm_id,
        generation: task.generation,
        name: "web".to_owned(),
        ssh_keys: Vec::new(),
        user_data: Some(user_data.to_owned()),
        guest_access: Some(GuestAccess {
            controller_url: "http://127.0.0.1:9221".to_owned(),
            token: format!("v4.public.{}", task.generation),
        }),
    };
    seal(&world.key, SEED_PAYLOAD_TYPE, &seed).unwrap()
}

/// Wait for a task's result, which must come.
pub(super) async fn result(agent: &TestAgent, task_id: TaskId) -> TaskOutcome {
    let mut news = agent.news();
    let wait = async {
        loop {
            news.mark_unchanged();
            let report = agent.report();
            if let Some(result) = report.results.iter().find(|r| r.task_id == task_id) {
                return result.outcome.clone();
            }
            news.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("a result comes")
}

/// Wait until the one VM is in a state that `wanted` knows.
pub(super) async fn state(
    agent: &TestAgent,
    wanted: impl Fn(&ObservedState) -> bool,
) -> ObservedState {
    let mut news = agent.news();
    let wait = async {
        loop {
            news.mark_unchanged();
            let report = agent.report();
            if let Some(vm) = report.vms.iter().find(|vm| wanted(&vm.state)) {
                return vm.state.clone();
            }
            news.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the state comes")
}

/// Take a task and wait for its result.
pub(super) async fn done(
    agent: &TestAgent,
    (task_id, envelope): (TaskId, SignedEnvelope),
) -> TaskOutcome {
    agent.take(&[envelope], &[]).await;
    result(agent, task_id).await
}

pub(super) fn is_done(outcome: &TaskOutcome) -> bool {
    matches!(outcome, TaskOutcome::Done { .. })
}
