//! The real agent, on a host whose devices and units are not real, with the real controller: both
//! must mean the same by a slot's life.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_agent::agent::Agent;
use berth_agent::controller::{Controller as ControllerClient, ControllerUrl};
use berth_agent::host::Host;
use berth_agent::log_memory::LogMemory;
use berth_agent::node::Node;
use berth_agent::slots::{ReadApprovals, SlotHost};
use berth_agent::sync_loop::SyncLoop;
use berth_agent_core::policy::Policy;
use berth_agent_core::slot::approval::{Approval, Approvals, ApprovedSlot};
use berth_agent_core::slot::wipe::WipePolicy;
use berth_agent_core::task_check::Trust;
use berth_agent_host::fakes::{
    FakeDescriptorStore, FakeDevice, FakeSlotDevices, FakeUnits, Fuse, GuestBehaviour,
};
use berth_agent_host::images::{Blob, ImageManifest, Images};
use berth_agent_host::slot_files::LinuxSlotFiles;
use berth_agent_host::vm_files::LinuxVmFiles;
use berth_api::agent::{ENROLL_PAYLOAD_TYPE, EnrollReply, SignedEnvelope};
use berth_api::ids::SlotId;
use berth_api::pci::PciAddress;
use berth_ledger::envelope;
use berth_ledger::keys::{PublicKey, SigningKey};
use berth_ledger::receipt::{check_chain, verify};
use berth_tests::simulated_agent::{Host as Described, enroll_request, read_join_token};
use serde_json::{Value, json};

use crate::harness::{Client, Controller, tenant_body};

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);
const DRIVE: PciAddress = PciAddress {
    domain: 0,
    bus: 1,
    device: 0,
    function: 0,
};

#[derive(Debug, Clone, Default)]
struct FakeApprovals(Arc<Mutex<Approvals>>);

impl ReadApprovals for FakeApprovals {
    fn read(&self) -> Approvals {
        self.0.lock().unwrap().clone()
    }
}

/// A controller, and a host with one approved drive that outlives its agents.
struct Site {
    controller: Controller,
    folder: tempfile::TempDir,
    units: FakeUnits,
    store: FakeDescriptorStore,
    devices: FakeSlotDevices,
    approvals: FakeApprovals,
    seed: [u8; 32],
    node: Node,
    slot: SlotId,
}

impl Site {
    fn new() -> Self {
        let controller = Controller::start();
        // Whether this machine has KVM says nothing here: no guest is run.
        controller
            .database()
            .run_as(
                "CREATE TRIGGER kvm AFTER UPDATE OF kvm ON node WHEN NEW.kvm = 0
                 BEGIN UPDATE node SET kvm = 1 WHERE node_id = NEW.node_id; END",
                "CREATE FUNCTION kvm() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN NEW.kvm = 1; RETURN NEW; END $$;
                 CREATE TRIGGER kvm BEFORE UPDATE OF kvm ON node
                   FOR EACH ROW EXECUTE FUNCTION kvm()",
            )
            .unwrap();
        let seed = [9; 32];
        let key = SigningKey::from_seed(&seed).unwrap();
        let token = read_join_token(&controller.join_token()).unwrap();
        let request = enroll_request(&token, &key, &Described::new("node-1", 4096));
        let sealed = envelope::seal(&key, ENROLL_PAYLOAD_TYPE, &request).unwrap();
        let sealed = serde_json::to_value(sealed).unwrap();
        let reply = controller.stranger().post("/v1/agent/enroll", &sealed);
        let reply: EnrollReply = serde_json::from_str(&reply.expect(201).text).unwrap();
        let site = Self {
            node: Node::new(reply, "node-1".to_owned(), controller.url()),
            controller,
            folder: tempfile::tempdir().unwrap(),
            units: FakeUnits::new(GuestBehaviour::Obedient, Fuse::whole()),
            store: FakeDescriptorStore::new(Fuse::whole()),
            devices: FakeSlotDevices::new([FakeDevice::nvme(DRIVE, 1, "S1")], Fuse::whole()),
            approvals: FakeApprovals::default(),
            seed,
            slot: SlotId::generate(),
        };
        site.make_image();
        site.approve();
        site
    }

    fn make_image(&self) {
        let image = self.folder.path().join("images/tiny");
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

    fn approve(&self) {
        let device = self.devices.device(DRIVE, |device| device.approved());
        let approval = Approval {
            slot_id: self.slot,
            name: "disk-1".to_owned(),
            class: "nvme".to_owned(),
            approved_at: "2026-01-01T00:00:00Z".to_owned(),
            wipe: WipePolicy::default(),
            devices: vec![device.unwrap()],
        };
        let sha256 = "a".repeat(64);
        let approved = ApprovedSlot { approval, sha256 };
        self.approvals.0.lock().unwrap().approved.push(approved);
    }

    fn host(
        &self,
    ) -> (
        Host<FakeUnits, LinuxVmFiles, FakeDescriptorStore>,
        Inherited,
    ) {
        let (store, inherited) = self.store.for_next_agent(Fuse::whole());
        let below = |name: &str| self.folder.path().join(name);
        let host = Host {
            units: self.units.for_next_agent(Fuse::whole()),
            files: Arc::new(LinuxVmFiles::new(below("vms")).unwrap()),
            store: Arc::new(store),
            slots: SlotHost {
                devices: Arc::new(self.devices.for_next_agent(Fuse::whole())),
                files: Arc::new(LinuxSlotFiles::new(below("slots")).unwrap()),
                approvals: Arc::new(self.approvals.clone()),
                node_id: self.node.node_id,
                key: Arc::new(SigningKey::from_seed(&self.seed).unwrap()),
            },
            images: Images::new(below("images")).unwrap(),
            vmm: PathBuf::from("/nonexistent/berth-vmm"),
            kvm: PathBuf::from("/dev/null"),
            host_facts: std::sync::OnceLock::new(),
            boot_id: "first-boot".to_owned(),
            log: Arc::new(self.log()),
        };
        (host, inherited)
    }

    fn log(&self) -> LogMemory {
        let key = SigningKey::from_seed(&self.seed).unwrap();
        let ledger = self.node.ledger_key().unwrap();
        LogMemory::open(self.folder.path(), (self.node.node_id, &key), ledger).unwrap()
    }

    /// Run one agent while `act` looks at the controller; then it is killed.
    fn with_agent(&self, act: impl FnOnce()) {
        let (host, inherited) = self.host();
        let trust = Trust {
            node_id: self.node.node_id,
            node_epoch: self.node.node_epoch,
            task_keys: self.node.task_keys().unwrap(),
            policy: Policy::default(),
        };
        let sync = SyncLoop {
            controller: ControllerClient::new(
                ControllerUrl::parse(&self.controller.url()).unwrap(),
                None,
            )
            .unwrap(),
            node: self.node.clone(),
            key: Arc::new(SigningKey::from_seed(&self.seed).unwrap()),
            agent_version: "0.1.0".to_owned(),
            state_dir: self.folder.path().to_owned(),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let agent = Agent::adopt(host, trust, inherited).await.unwrap();
                tokio::select! {
                    () = sync.run(&agent) => {}
                    _ = stopped => {}
                }
            });
        });
        act();
        drop(stop);
        thread.join().unwrap();
    }

    fn tenant(&self, id: &str) -> Client {
        let mut record = tenant_body(id, 10);
        record["slot_limits"] = json!({ "nvme": 1 });
        let admin = self.controller.admin();
        admin.post("/v1/tenants", &record).expect(201);
        self.controller.token(id, "service:tenant-admin")
    }

    fn order(&self, verb: &str, body: &Value) {
        let path = format!("/v1/slots/{}/{verb}", self.slot);
        let reply = self.controller.admin().post(&path, body);
        assert!(matches!(reply.status, 200 | 202), "{}", reply.text);
    }

    /// Wait until the slot is shown as `wanted` says.
    #[track_caller]
    fn shows(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let reply = self
                .controller
                .admin()
                .get(&format!("/v1/slots/{}", self.slot));
            if reply.status == 200 && wanted(&reply.json()) {
                return reply.json();
            }
            assert!(begun.elapsed() < PATIENCE, "it stays {}", reply.text);
        }
    }

    fn receipts(&self) -> Vec<berth_api::slot::Receipt> {
        let slot = self.shows(|_| true);
        let receipts = slot["receipts"].as_array().unwrap();
        let opened = receipts.iter().rev().map(|stored| {
            let key = PublicKey::from_base64(stored["node_public_key"].as_str().unwrap()).unwrap();
            let sealed: SignedEnvelope =
                serde_json::from_value(stored["envelope"].clone()).unwrap();
            verify(&sealed, Some(&key)).unwrap().1
        });
        opened.collect()
    }
}

type Inherited = Vec<(String, std::os::fd::OwnedFd)>;

fn vm(name: &str) -> Value {
    json!({ "name": name, "image": "tiny", "memory_mb": 128, "disk_gb": 1,
        "slots": [{ "class": "nvme" }] })
}

fn is_claimable(slot: &Value) -> bool {
    slot["claimable"] == true
}

#[test]
fn agent_and_controller_agree_on_the_life_of_a_slot_from_one_tenant_to_the_next() {
    let site = Site::new();
    let (acme, other) = (site.tenant("acme"), site.tenant("other"));
    let create = "/v1/vms?wait=running&timeout=60";
    site.with_agent(|| {
        site.shows(|slot| slot["host_state"] == "free");
        site.order("approve", &json!({}));
        let made = acme.post(create, &vm("web")).expect(201).json();
        assert_eq!(made["state"], "running", "{made}");
        site.shows(|slot| slot["host_state"] == "in_use");
    });
    site.devices.write_as_tenant(DRIVE, b"acme's secret");
    // Another run of the agent finds it all as it was.
    site.with_agent(|| {
        let gone = acme
            .delete("/v1/vms/web?wait=deleted&timeout=60")
            .expect(202);
        assert_eq!(gone.json()["state"], "done", "{}", gone.text);
        let slot = site.shows(is_claimable);
        assert_eq!(slot["claim"], Value::Null);
        assert_ne!(site.devices.contents(DRIVE), b"acme's secret");
        let made = other.post(create, &vm("db")).expect(201).json();
        assert_eq!(made["state"], "running", "{made}");
        let slot = site.shows(|slot| slot["host_state"] == "in_use");
        assert_eq!(slot["fencing_epoch"], 2, "{slot}");
        site.shows(|slot| slot["receipts"].as_array().unwrap().len() == 5);
    });
    check_chain(&site.receipts()).unwrap();
    assert_eq!(site.devices.breaches(), Vec::<String>::new());
    site.controller.assert_sound();
}

#[test]
fn agent_and_controller_agree_on_quarantine_and_on_why_a_slot_is_refused() {
    let site = Site::new();
    let acme = site.tenant("acme");
    site.with_agent(|| {
        site.shows(|slot| slot["host_state"] == "free");
        site.order("approve", &json!({}));
        site.order("quarantine", &json!({ "reason": "smells of smoke" }));
        site.shows(|slot| slot["host_state"] == "quarantined" && slot["pending_task"].is_null());
        site.order("release-quarantine", &json!({}));
        let slot = site.shows(is_claimable);
        assert_eq!(slot["receipts"][0]["kind"], "wipe", "{slot}");
        // Somebody swaps the drive; nobody has looked yet.
        drop(site.devices.unplug(DRIVE));
        site.devices.plug(FakeDevice::nvme(DRIVE, 1, "S2"));
        let made = acme
            .post("/v1/vms?wait=running&timeout=60", &vm("web"))
            .expect(201)
            .json();
        assert_eq!(
            (&made["state"], &made["state_reason"]["code"]),
            (&json!("failed"), &json!("device_identity_changed")),
            "{made}"
        );
    });
    assert_eq!(site.devices.breaches(), Vec::<String>::new());
    site.controller.assert_sound();
}
