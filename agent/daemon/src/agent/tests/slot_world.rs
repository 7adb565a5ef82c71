//! A host with devices, an owner who approves them, and what is asked of their slots.

use std::time::Duration;

use berth_agent_core::slot::approval::{Approval, ApprovedSlot};
use berth_agent_core::slot::record::SlotRecord;
use berth_agent_core::slot::wipe::WipePolicy;
use berth_agent_host::fakes::{FakeDevice, GuestBehaviour};
use berth_agent_host::slot_files::SlotFiles as _;
use berth_api::agent::{SignedEnvelope, TaskAction};
use berth_api::ids::{ClaimId, SlotId, TaskId};
use berth_api::pci::PciAddress;
use berth_api::slot::{
    Claim, ObservedSlot, Receipt, SLOT_TASK_PAYLOAD_TYPE, SlotAction, SlotState, SlotTask,
    Statement,
};
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;
use berth_ledger::receipt::{check_chain, verify};

use super::world::{TestAgent, World, spec};

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) const DRIVE: PciAddress = address(1);
pub(super) const GPU: PciAddress = address(2);
pub(super) const OTHER_DRIVE: PciAddress = address(3);

const fn address(bus: u8) -> PciAddress {
    PciAddress {
        domain: 0,
        bus,
        device: 0,
        function: 0,
    }
}

/// A world with two slots: one of a drive and a display adapter, one of another drive.
pub(super) struct SlotWorld {
    pub(super) world: World,
    pub(super) slot: SlotId,
    pub(super) other: SlotId,
}

impl SlotWorld {
    pub(super) fn new(behaviour: GuestBehaviour) -> Self {
        let devices = [
            FakeDevice::nvme(DRIVE, 1, "S1"),
            FakeDevice::gpu(GPU, 2),
            FakeDevice::nvme(OTHER_DRIVE, 3, "S3"),
        ];
        let world = World::with_devices(behaviour, devices);
        let (slot, other) = (SlotId::generate(), SlotId::generate());
        let this = Self { world, slot, other };
        this.approve(slot, "first", &[DRIVE, GPU]);
        this.approve(other, "second", &[OTHER_DRIVE]);
        this
    }

    /// Write an approval of devices as they are, in the place of one with the same id.
    pub(super) fn approve(&self, slot_id: SlotId, name: &str, devices: &[PciAddress]) {
        let approved = devices.iter().map(|address| {
            let fake = &self.world.devices;
            fake.device(*address, |device| device.approved()).unwrap()
        });
        let approval = Approval {
            slot_id,
            name: name.to_owned(),
            class: "test".to_owned(),
            approved_at: "2026-01-01T00:00:00Z".to_owned(),
            wipe: WipePolicy::default(),
            devices: approved.collect(),
        };
        let letter = char::from(b'a' + u8::try_from(devices.len()).unwrap());
        let sha256 = letter.to_string().repeat(64);
        self.world.approvals.change(|approvals| {
            approvals.retain(|other| other.approval.slot_id != slot_id);
            approvals.push(ApprovedSlot { approval, sha256 });
        });
    }

    pub(super) fn withdraw(&self, slot_id: SlotId) {
        self.world
            .approvals
            .change(|approvals| approvals.retain(|other| other.approval.slot_id != slot_id));
    }

    pub(super) fn claim(&self, slot_id: SlotId, fencing_epoch: u64) -> Claim {
        Claim {
            slot_id,
            claim_id: ClaimId::generate(),
            fencing_epoch,
        }
    }

    pub(super) fn create(&self, claims: Vec<Claim>) -> (TaskId, SignedEnvelope) {
        let spec = spec();
        self.world.task(1, TaskAction::VmCreate { spec, claims })
    }

    /// Create the VM with the first slot.
    pub(super) fn create_with_slot(&self) -> (TaskId, SignedEnvelope) {
        self.create(vec![self.claim(self.slot, 1)])
    }

    pub(super) fn record(&self, slot_id: SlotId) -> SlotRecord {
        self.world
            .slot_files()
            .read_record(slot_id)
            .unwrap()
            .unwrap()
    }

    pub(super) fn slot_task(
        &self,
        slot_id: SlotId,
        action: SlotAction,
        change: impl FnOnce(&mut SlotTask),
    ) -> (TaskId, SignedEnvelope) {
        let now = crate::clock::now();
        let mut task = SlotTask {
            task_id: TaskId::generate(),
            node_id: self.world.node_id,
            node_epoch: 1,
            slot_id,
            fencing_epoch: 100,
            not_before: now,
            expires_at: now + 300,
            ledger_index: 0,
            action,
        };
        change(&mut task);
        let envelope = seal(&self.world.key, SLOT_TASK_PAYLOAD_TYPE, &task).unwrap();
        (task.task_id, envelope)
    }

    /// Nothing that must never happen has happened, and all receipts on the disk hang together.
    #[track_caller]
    pub(super) fn assert_sound(&self) {
        assert_eq!(self.world.devices.breaches(), Vec::<String>::new());
        let receipts = self.receipts_on_disk();
        check_chain(&receipts).unwrap();
    }

    /// All receipts that the host keeps, each verified with the host's key.
    #[track_caller]
    pub(super) fn receipts_on_disk(&self) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for slot_id in [self.slot, self.other] {
            let folder = self
                .world
                .path("slots")
                .join(slot_id.bare())
                .join("receipts");
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            for entry in entries {
                let text = std::fs::read(entry.unwrap().path()).unwrap();
                receipts.push(opened(&serde_json::from_slice(&text).unwrap()));
            }
        }
        receipts.sort_by_key(|receipt| (receipt.slot_id, receipt.generation));
        receipts
    }

    /// Whether a slot has the file of a receipt, whole.
    pub(super) fn has_receipt_file(&self, slot_id: SlotId) -> bool {
        let folder = self.world.path("slots").join(slot_id.bare());
        std::fs::read_dir(folder.join("receipts")).is_ok_and(|files| {
            files.flatten().any(|file| {
                let path = file.path();
                path.extension().is_some_and(|ending| ending == "json")
            })
        })
    }

    /// The kinds of a slot's receipts, oldest first.
    #[track_caller]
    pub(super) fn told(&self, slot_id: SlotId) -> Vec<&'static str> {
        let receipts = self.receipts_on_disk();
        let of_slot = receipts.iter().filter(|receipt| receipt.slot_id == slot_id);
        of_slot.map(kind).collect()
    }
}

#[track_caller]
pub(super) fn opened(envelope: &SignedEnvelope) -> Receipt {
    let key = SigningKey::from_seed(&[9; 32]).unwrap().public();
    verify(envelope, Some(&key)).unwrap().1
}

pub(super) fn kind(receipt: &Receipt) -> &'static str {
    match receipt.statement {
        Statement::Approval { .. } => "approval",
        Statement::Claim { .. } => "claim",
        Statement::Release { .. } => "release",
        Statement::Wipe { .. } => "wipe",
        Statement::Quarantine { .. } => "quarantine",
    }
}

/// Wait until a slot is as `wanted` says.
pub(super) async fn slot(
    agent: &TestAgent,
    slot_id: SlotId,
    wanted: impl Fn(&ObservedSlot) -> bool,
) -> ObservedSlot {
    let mut news = agent.news();
    let wait = async {
        loop {
            news.mark_unchanged();
            let report = agent.report();
            let mut slots = report.slots.into_iter();
            if let Some(slot) = slots.find(|slot| slot.slot_id == slot_id && wanted(slot)) {
                return slot;
            }
            news.changed().await.unwrap();
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(slot) => slot,
        Err(_) => panic!("it does not come, it is {:?}", agent.report().slots),
    }
}

/// Wait until something holds of which nobody tells.
pub(super) async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.expect("it comes to hold");
}

/// Wait until a slot stands somewhere.
pub(super) async fn stands(agent: &TestAgent, slot_id: SlotId, state: SlotState) -> ObservedSlot {
    slot(agent, slot_id, |slot| slot.state == state).await
}
