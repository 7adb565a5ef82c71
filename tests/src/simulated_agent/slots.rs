//! The slots of a host that is not there: claimed, released, wiped, and told to fail.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use berth_api::agent::{FailureCode, SignedEnvelope, TaskOutcome};
use berth_api::ids::{NodeId, ReceiptId, SlotId, TenantId, VmId};
use berth_api::pci::{PciAddress, PciClass, PciId};
use berth_api::slot::{
    Claim, DeviceIdentity, DeviceKind, DeviceWipe, ObservedSlot, RECEIPT_PAYLOAD_TYPE, ReadBack,
    Receipt, SlotAction, SlotDevice, SlotHolder, SlotProblem, SlotProblemCode, SlotState, SlotTask,
    Statement, StepRecord, WipeMethod,
};
use berth_ledger::envelope;
use berth_ledger::keys::SigningKey;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlotFault {
    /// Nothing.
    #[default]
    None,
    /// The next claim finds this.
    Claim(SlotProblemCode),
    /// Wipes begin and do not end until [`SimulatedSlots::finish_wipes`].
    WipesLast,
    /// Wipes fail.
    WipesFail,
    /// Slots are free again without a wipe.
    WipesAreSkipped,
}

/// A host's slots.
#[derive(Debug)]
pub struct SimulatedSlots {
    key: SigningKey,
    node_id: NodeId,
    /// As the host sees them.
    pub slots: BTreeMap<SlotId, ObservedSlot>,
    /// Receipts that were not acknowledged.
    pub receipts: Vec<SignedEnvelope>,
    /// What goes wrong.
    pub fault: SlotFault,
    /// Orders about slots that were carried out.
    pub orders: Vec<SlotAction>,
}

impl SimulatedSlots {
    /// No slots yet.
    #[must_use]
    pub fn new(key: SigningKey, node_id: NodeId) -> Self {
        Self {
            key,
            node_id,
            slots: BTreeMap::new(),
            receipts: Vec::new(),
            fault: SlotFault::None,
            orders: Vec::new(),
        }
    }

    /// One more slot with one drive, approved and free.
    pub fn add(&mut self, class: &str) -> SlotId {
        let slot_id = SlotId::generate();
        let number = u8::try_from(self.slots.len()).unwrap_or(u8::MAX);
        let address = PciAddress {
            domain: 0,
            bus: number,
            device: 0,
            function: 0,
        };
        let identity = DeviceIdentity {
            vendor: PciId(0x1b36),
            device: PciId(0x10),
            subsystem_vendor: PciId(0x1af4),
            subsystem: PciId(0x1100),
            class: PciClass::NVME,
            path: format!("pci0000:00/{number:02x}.0/00.0"),
            serials: BTreeMap::from([("nvme_serial".to_owned(), slot_id.bare())]),
        };
        let device = SlotDevice {
            kind: DeviceKind::Nvme,
            address: Some(address),
            identity,
            iommu_group: Some(number.into()),
            numa_node: None,
        };
        let slot = ObservedSlot {
            slot_id,
            name: format!("slot-{number}"),
            class: class.to_owned(),
            state: SlotState::Free,
            problem: None,
            holder: None,
            generation: 1,
            fencing_epoch: 0,
            progress_percent: None,
            devices: vec![device],
        };
        self.slots.insert(slot_id, slot);
        let approval_sha256 = "00".repeat(32);
        self.state(slot_id, None, Statement::Approval { approval_sha256 });
        slot_id
    }

    /// Move a slot on.
    pub fn enter(&mut self, slot_id: SlotId, state: SlotState, problem: Option<SlotProblemCode>) {
        if let Some(slot) = self.slots.get_mut(&slot_id) {
            slot.state = state;
            slot.generation += 1;
            slot.problem = problem.map(problem_of);
        }
    }

    /// Sign a statement about a slot and keep it for the next sync.
    pub fn state(&mut self, slot_id: SlotId, holder: Option<SlotHolder>, statement: Statement) {
        let Some(slot) = self.slots.get(&slot_id) else {
            return;
        };
        let receipt = Receipt {
            receipt_id: ReceiptId::generate(),
            node_id: self.node_id,
            slot_id,
            slot_name: slot.name.clone(),
            generation: slot.generation,
            at: now_s(),
            holder,
            devices: slot.devices.clone(),
            statement,
        };
        let sealed = self.seal(&receipt);
        self.receipts.push(sealed);
    }

    /// Sign any receipt with the node's key.
    #[must_use]
    pub fn seal(&self, receipt: &Receipt) -> SignedEnvelope {
        envelope::seal(&self.key, RECEIPT_PAYLOAD_TYPE, receipt)
            .expect("a receipt is plain data that JSON can hold")
    }

    /// The receipts that wait, opened.
    #[must_use]
    pub fn waiting(&self) -> Vec<Receipt> {
        self.receipts
            .iter()
            .filter_map(envelope::read_unverified)
            .collect()
    }

    /// Steps as a host takes them, each with the slot's first device.
    #[must_use]
    pub fn steps(&self, slot_id: SlotId, names: &[&str]) -> Vec<StepRecord> {
        let slot = self.slots.get(&slot_id);
        let address = slot.and_then(|slot| slot.devices.first()?.address);
        names
            .iter()
            .map(|name| StepRecord {
                step: (*name).to_owned(),
                address,
                ended_at_ms: now_s() * 1000,
                took_ms: 1,
                found: "as it should be".to_owned(),
            })
            .collect()
    }

    pub(super) fn acknowledge(&mut self, ids: &[ReceiptId]) {
        self.receipts.retain(|sealed| {
            envelope::read_unverified::<Receipt>(sealed)
                .is_none_or(|receipt| !ids.contains(&receipt.receipt_id))
        });
    }

    /// Claim slots for a VM, or say why not and leave nothing behind.
    pub(super) fn claim(
        &mut self,
        vm_id: VmId,
        tenant_id: &TenantId,
        claims: &[Claim],
    ) -> Result<(), TaskOutcome> {
        for claim in claims {
            if let SlotFault::Claim(code) = self.fault {
                self.fault = SlotFault::None;
                // A claim that comes late is not the slot's own fault.
                if code != SlotProblemCode::StaleClaim {
                    self.enter(claim.slot_id, SlotState::Unapproved, Some(code));
                }
                return Err(unusable(code));
            }
            let holder = SlotHolder {
                claim: claim.clone(),
                vm_id,
                tenant_id: tenant_id.clone(),
            };
            let Some(slot) = self.slots.get_mut(&claim.slot_id) else {
                return Err(unusable(SlotProblemCode::SlotNotApproved));
            };
            if claim.fencing_epoch <= slot.fencing_epoch {
                return Err(unusable(SlotProblemCode::StaleClaim));
            }
            if slot.state != SlotState::Free {
                return Err(unusable(SlotProblemCode::DeviceInUse));
            }
            slot.fencing_epoch = claim.fencing_epoch;
            slot.holder = Some(holder.clone());
            self.enter(claim.slot_id, SlotState::InUse, None);
            let steps = self.steps(claim.slot_id, &["look", "bind", "reset"]);
            self.state(claim.slot_id, Some(holder), Statement::Claim { steps });
        }
        Ok(())
    }

    /// Take back what a VM had, and wipe it.
    pub(super) fn release(&mut self, vm_id: VmId) {
        let held: Vec<(SlotId, SlotHolder)> = self
            .slots
            .values()
            .filter_map(|slot| Some((slot.slot_id, slot.holder.clone()?)))
            .filter(|(_, holder)| holder.vm_id == vm_id)
            .collect();
        for (slot_id, holder) in held {
            self.enter(slot_id, SlotState::Releasing, None);
            let steps = self.steps(slot_id, &["locate", "vacate", "reset"]);
            self.state(slot_id, Some(holder), Statement::Release { steps });
            self.enter(slot_id, SlotState::Wiping, None);
            self.wipe(slot_id);
        }
    }

    /// End the wipes that last.
    pub fn finish_wipes(&mut self) {
        self.fault = SlotFault::None;
        let wiping: Vec<SlotId> = self
            .slots
            .values()
            .filter(|slot| slot.state == SlotState::Wiping)
            .map(|slot| slot.slot_id)
            .collect();
        for slot_id in wiping {
            self.wipe(slot_id);
        }
    }

    fn wipe(&mut self, slot_id: SlotId) {
        let Some(slot) = self.slots.get_mut(&slot_id) else {
            return;
        };
        match self.fault {
            SlotFault::WipesLast => slot.progress_percent = Some(40),
            SlotFault::WipesFail => {
                let holder = slot.holder.clone();
                let code = SlotProblemCode::WipeFailed;
                self.enter(slot_id, SlotState::Quarantined, Some(code));
                let problem = problem_of(code);
                self.state(slot_id, holder, Statement::Quarantine { problem });
            }
            SlotFault::WipesAreSkipped => {
                slot.holder = None;
                self.enter(slot_id, SlotState::Free, None);
            }
            SlotFault::None | SlotFault::Claim(_) => {
                slot.progress_percent = None;
                let holder = slot.holder.take();
                let devices = slot.devices.iter().filter_map(wipe_of).collect();
                self.enter(slot_id, SlotState::Verifying, None);
                self.state(slot_id, holder, Statement::Wipe { devices });
                self.enter(slot_id, SlotState::Free, None);
            }
        }
    }

    /// Carry out an order about a slot.
    pub(super) fn act(&mut self, task: &SlotTask) -> TaskOutcome {
        let slot_id = task.slot_id;
        let Some(slot) = self.slots.get(&slot_id) else {
            return unusable(SlotProblemCode::SlotNotApproved);
        };
        let (state, holder) = (slot.state, slot.holder.clone());
        if task.fencing_epoch < slot.fencing_epoch {
            return unusable(SlotProblemCode::StaleClaim);
        }
        match &task.action {
            SlotAction::Quarantine { .. } => {
                let problem = problem_of(SlotProblemCode::OperatorRequest);
                self.enter(slot_id, SlotState::Quarantined, Some(problem.code));
                self.state(slot_id, holder, Statement::Quarantine { problem });
            }
            SlotAction::Wipe {} if matches!(state, SlotState::Free | SlotState::Quarantined) => {
                self.enter(slot_id, SlotState::Wiping, None);
                self.wipe(slot_id);
            }
            SlotAction::Wipe {} => return unusable(SlotProblemCode::DeviceInUse),
        }
        self.orders.push(task.action.clone());
        TaskOutcome::Done {
            evidence: BTreeMap::new(),
        }
    }
}

fn unusable(code: SlotProblemCode) -> TaskOutcome {
    TaskOutcome::Failed {
        code: FailureCode::SlotUnusable,
        message: format!("a slot cannot be used ({}): {code:?}", wire(code)),
    }
}

fn wire(code: SlotProblemCode) -> String {
    serde_json::to_value(code)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn problem_of(code: SlotProblemCode) -> SlotProblem {
    SlotProblem {
        code,
        message: format!("simulated: {code:?}"),
    }
}

fn wipe_of(device: &SlotDevice) -> Option<DeviceWipe> {
    Some(DeviceWipe {
        address: device.address?,
        identity: device.identity.clone(),
        method: WipeMethod::NvmeSanitizeBlock,
        started_at_ms: now_s() * 1000,
        ended_at_ms: now_s() * 1000,
        completion: BTreeMap::from([("sstat".to_owned(), "0101".to_owned())]),
        restored: Vec::new(),
        read_back: ReadBack {
            sample: "edges and 1024 random blocks".to_owned(),
            bytes_total: 1 << 30,
            bytes_read: 1 << 22,
            bytes_wrong: 0,
            expected: "zeroes".to_owned(),
            sha256: "00".repeat(32),
        },
        not_proved: Vec::new(),
    })
}

fn now_s() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
