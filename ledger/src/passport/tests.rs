//! Tests of `passport`: what its own file promises, on its public calls.

use std::collections::BTreeMap;

use berth_api::ids::ClaimId;
use berth_api::pci::{PciAddress, PciClass};
use berth_api::slot::{Claim, DeviceIdentity, DeviceKind, SlotDevice, StepRecord};
use serde_json::json;

use super::*;
use crate::keys::SigningKey;
use crate::model::ModelLog;
use crate::receipt::seal_receipt;

const ORIGIN: &str = "ledger.example/d/e1";

/// What happened to one slot of a VM, in this order.
struct Story {
    log: ModelLog,
    slot_id: SlotId,
    node_id: NodeId,
    vm_id: VmId,
}

impl Story {
    fn new() -> Self {
        let mut log = ModelLog::new(ORIGIN, 1);
        log.append_event(Some("other"), json!({ "event_type": "VM_STARTED" }));
        Self {
            log,
            slot_id: SlotId::generate(),
            node_id: NodeId::generate(),
            vm_id: VmId::generate(),
        }
    }

    fn event(&mut self, event_type: &str, mut detail: Value, tenant: Option<&str>) -> ProvenEntry {
        detail["slot_id"] = json!(self.slot_id);
        let vm_id = tenant.map(|_| self.vm_id);
        let host = host_key(7).public().to_base64();
        self.log.append_event(
            tenant,
            json!({
                "event_type": event_type, "node_id": self.node_id, "vm_id": vm_id,
                "actor": { "kind": "node", "token_id": null, "subject_key": host },
                "detail": detail,
            }),
        )
    }

    /// What the host states when it gives the slot to the VM.
    fn receipt(&self, epoch: u64) -> Receipt {
        let address: PciAddress = "0000:01:00.0".parse().unwrap();
        let step = |name: &str| StepRecord {
            step: name.to_owned(),
            address: Some(address),
            ended_at_ms: 1,
            took_ms: 1,
            found: "as it should be".to_owned(),
        };
        Receipt {
            receipt_id: ReceiptId::generate(),
            node_id: self.node_id,
            slot_id: self.slot_id,
            slot_name: "bay1".to_owned(),
            generation: 5,
            at: 100,
            holder: Some(SlotHolder {
                claim: Claim {
                    slot_id: self.slot_id,
                    claim_id: ClaimId::generate(),
                    fencing_epoch: epoch,
                },
                vm_id: self.vm_id,
                tenant_id: "acme".parse().unwrap(),
            }),
            devices: vec![SlotDevice {
                kind: DeviceKind::Nvme,
                address: Some(address),
                identity: DeviceIdentity {
                    vendor: "1b36".parse().unwrap(),
                    device: "0010".parse().unwrap(),
                    subsystem_vendor: "1af4".parse().unwrap(),
                    subsystem: "1100".parse().unwrap(),
                    class: PciClass::NVME,
                    path: "pci0000:00/01.0/00.0".to_owned(),
                    serials: BTreeMap::new(),
                },
                iommu_group: Some(1),
                numa_node: None,
            }],
            statement: Statement::Claim {
                steps: ["look", "bind", "reset"].map(step).to_vec(),
            },
        }
    }

    /// The entry of a receipt, signed by the host of this key.
    fn stored(
        &mut self,
        seed: u8,
        kind: &str,
        receipt: &Receipt,
        tenant: Option<&str>,
    ) -> ProvenEntry {
        let envelope = seal_receipt(&host_key(seed), receipt).unwrap();
        let sha256 = payload_sha256(&envelope);
        let detail = json!({ "kind": kind, "sha256": sha256, "envelope": envelope });
        self.event("SLOT_RECEIPT_STORED", detail, tenant)
    }

    fn with_launch(&self, mut passport: Passport, launch: &ProvenEntry) -> Passport {
        let size = self.log.size();
        passport.slots[0].launch = Some(self.log.prove(launch, size));
        passport
    }

    fn wipe(&mut self, epoch: u64) -> ProvenEntry {
        let detail = json!({ "kind": "wipe", "fencing_epoch": epoch, "sha256": "ab" });
        self.event("SLOT_WIPED", detail, None)
    }

    fn approval(&mut self) -> ProvenEntry {
        let detail = json!({ "kind": "approval", "sha256": "cd" });
        self.event("SLOT_RECEIPT_STORED", detail, None)
    }

    fn unheard(&mut self, epoch: u64) -> ProvenEntry {
        let detail = json!({ "fencing_epoch": epoch, "because": NEVER_HEARD });
        self.event("SLOT_RELEASED", detail, None)
    }

    fn claim(&mut self, epoch: u64) -> ProvenEntry {
        let detail = json!({ "fencing_epoch": epoch });
        self.event("SLOT_CLAIMED", detail, Some("acme"))
    }

    fn passport(&self, before: Before, unused: &[ProvenEntry], claim: &ProvenEntry) -> Passport {
        let size = self.log.size();
        let prove = |entry: &ProvenEntry| self.log.prove(entry, size);
        let before = match before {
            Before::Wiped { event } => Before::Wiped {
                event: prove(&event),
            },
            Before::Approved { event } => Before::Approved {
                event: prove(&event),
            },
        };
        Passport {
            format: FORMAT.to_owned(),
            checkpoint: self.log.note(size).to_string(),
            log_keys: vec![self.log.vkey().to_string()],
            vm_id: self.vm_id,
            slots: vec![SlotPassage {
                slot_id: self.slot_id,
                claim: prove(claim),
                before,
                unused: unused.iter().map(prove).collect(),
                launch: None,
            }],
        }
    }

    fn verify(&self, passport: &Passport) -> Result<PassportReport, VerifyPassportError> {
        passport.verify(&[self.log.vkey()])
    }
}

fn host_key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

#[track_caller]
fn check_refused(result: Result<PassportReport, VerifyPassportError>, expected: &str) {
    let error = format!("{:?}", result.unwrap_err());
    assert!(error.contains(expected), "{error} has no {expected}");
}

#[test]
fn a_passport_shows_the_wipe_after_the_last_tenant_and_names_nobody() {
    let mut story = Story::new();
    let (wipe, unused) = (story.wipe(3), story.unheard(4));
    let claim = story.claim(5);
    let passport = story.passport(
        Before::Wiped {
            event: wipe.clone(),
        },
        &[unused],
        &claim,
    );
    let text = serde_json::to_string(&passport).unwrap();
    assert!(!text.contains("other"));
    let read: Passport = serde_json::from_str(&text).unwrap();
    let report = story.verify(&read).unwrap();
    assert_eq!(
        report.slots,
        [ShownPassage {
            slot_id: story.slot_id,
            node_id: story.node_id,
            was_wiped: true,
            before_index: wipe.index,
            receipt_sha256: "ab".to_owned(),
            claim_index: claim.index,
            launch: None,
        }]
    );
}

#[test]
fn a_slot_that_nobody_had_stands_on_its_approval() {
    let mut story = Story::new();
    let (approval, claim) = (story.approval(), story.claim(1));
    let passport = story.passport(Before::Approved { event: approval }, &[], &claim);
    assert!(!story.verify(&passport).unwrap().slots[0].was_wiped);
    // Not if somebody had it in between.
    let mut story = Story::new();
    let (approval, claim) = (story.approval(), story.claim(2));
    let passport = story.passport(Before::Approved { event: approval }, &[], &claim);
    check_refused(story.verify(&passport), "Epoch { found: 2, expected: 1 }");
}

#[test]
fn a_claim_that_is_not_accounted_for_is_found() {
    let mut story = Story::new();
    let (wipe, unused, claim) = (story.wipe(3), story.unheard(5), story.claim(6));
    let before = || Before::Wiped {
        event: wipe.clone(),
    };
    check_refused(
        story.verify(&story.passport(before(), &[], &claim)),
        "Epoch { found: 6, expected: 4 }",
    );
    check_refused(
        story.verify(&story.passport(before(), &[unused], &claim)),
        "Epoch { found: 5, expected: 4 }",
    );
}

#[test]
fn events_of_another_kind_place_slot_or_holder_are_refused() {
    let mut story = Story::new();
    let (early_claim, wipe) = (story.claim(4), story.wipe(3));
    let claim = story.claim(4);
    let before = |event: &ProvenEntry| Before::Wiped {
        event: event.clone(),
    };
    story
        .verify(&story.passport(before(&wipe), &[], &claim))
        .unwrap();
    check_refused(
        story.verify(&story.passport(before(&wipe), &[], &early_claim)),
        "Order",
    );
    check_refused(
        story.verify(&story.passport(before(&claim), &[], &claim)),
        "event_type",
    );
    check_refused(
        story.verify(&story.passport(before(&wipe), &[], &wipe)),
        "event_type",
    );
    check_refused(
        story.verify(&story.passport(before(&wipe), std::slice::from_ref(&wipe), &claim)),
        "event_type",
    );
    // A wipe that names its last tenant, at any depth.
    let detail = json!({
        "kind": "wipe", "fencing_epoch": 3, "sha256": "ab",
        "steps": [{ "holder": { "tenant_id": "other" } }],
    });
    let naming = story.event("SLOT_WIPED", detail, None);
    let later = story.claim(4);
    check_refused(
        story.verify(&story.passport(before(&naming), &[], &later)),
        "NamesSomebody",
    );
    let mut of_another_vm = story.passport(before(&wipe), &[], &claim);
    of_another_vm.vm_id = VmId::generate();
    check_refused(story.verify(&of_another_vm), "vm_id");
    let mut of_another_slot = story.passport(before(&wipe), &[], &claim);
    of_another_slot.slots[0].slot_id = SlotId::generate();
    check_refused(story.verify(&of_another_slot), "detail.slot_id");
}

#[test]
fn a_changed_or_foreign_passport_is_refused() {
    let mut story = Story::new();
    let (wipe, claim) = (story.wipe(3), story.claim(4));
    let sound = story.passport(Before::Wiped { event: wipe }, &[], &claim);
    let check = |change: &dyn Fn(&mut Passport), expected: &str| {
        let mut changed = sound.clone();
        change(&mut changed);
        check_refused(story.verify(&changed), expected);
    };
    check(&|passport| passport.format.push('x'), "Format");
    check(&|passport| passport.slots.clear(), "Slots");
    check(
        &|passport| passport.slots.push(passport.slots[0].clone()),
        "Slots",
    );
    check(
        &|passport| passport.slots[0].claim.proof.clear(),
        "Inclusion",
    );
    check(
        &|passport| {
            let body = &mut passport.slots[0].claim.body;
            *body = body.replace(":4", ":9");
        },
        "Commitment",
    );
    let stranger = ModelLog::new(ORIGIN, 2).vkey();
    check_refused(sound.verify(std::slice::from_ref(&stranger)), "Keys");
    let mut vouching = sound.clone();
    vouching.log_keys = vec![stranger.to_string()];
    check_refused(vouching.verify(&[stranger]), "Checkpoint");
}

#[test]
fn a_launch_is_what_the_host_signed_for_this_very_claim() {
    let mut story = Story::new();
    let (wipe, claim) = (story.wipe(3), story.claim(4));
    let receipt = story.receipt(4);
    let launch = story.stored(7, "claim", &receipt, Some("acme"));
    let before = |event: &ProvenEntry| Before::Wiped {
        event: event.clone(),
    };
    let bare = story.passport(before(&wipe), &[], &claim);
    let report = story.verify(&story.with_launch(bare, &launch)).unwrap();
    assert_eq!(
        report.slots[0].launch,
        Some(ShownLaunch {
            index: launch.index,
            receipt_id: receipt.receipt_id,
            host_key: host_key(7).public().to_base64(),
        })
    );
    let check = |story: &mut Story, seed: u8, receipt: &Receipt, expected: &str| {
        let launch = story.stored(seed, "claim", receipt, Some("acme"));
        let bare = story.passport(before(&wipe), &[], &claim);
        check_refused(story.verify(&story.with_launch(bare, &launch)), expected);
    };
    check(&mut story, 8, &receipt, "actor.subject_key");
    let of_an_older_claim = story.receipt(3);
    check(&mut story, 7, &of_an_older_claim, "vm_id");
    let mut of_another_vm = receipt.clone();
    of_another_vm.holder.as_mut().unwrap().vm_id = VmId::generate();
    check(&mut story, 7, &of_another_vm, "vm_id");
    let mut of_another_host = receipt.clone();
    of_another_host.node_id = NodeId::generate();
    check(&mut story, 7, &of_another_host, "detail.envelope");
    let mut of_a_release = receipt.clone();
    if let Statement::Claim { steps } = &receipt.statement {
        let mut steps = steps.clone();
        for (step, name) in steps.iter_mut().zip(["locate", "vacate", "reset"]) {
            step.step = name.to_owned();
        }
        of_a_release.statement = Statement::Release { steps };
    }
    check(&mut story, 7, &of_a_release, "detail.kind");
    let mut without_a_reset = receipt.clone();
    without_a_reset.statement = Statement::Claim { steps: Vec::new() };
    check(&mut story, 7, &without_a_reset, "MissingStep");
    // One that stands before the claim is of another one.
    let later = story.claim(4);
    let bare = story.passport(before(&wipe), &[], &later);
    check_refused(story.verify(&story.with_launch(bare, &launch)), "Order");
}

#[test]
fn what_a_host_signed_before_the_claim_names_nobody_either() {
    let mut story = Story::new();
    let mut receipt = story.receipt(0);
    receipt.statement = Statement::Approval {
        approval_sha256: "00".repeat(32),
    };
    let naming = story.stored(7, "approval", &receipt, None);
    receipt.holder = None;
    let (sound, claim) = (story.stored(7, "approval", &receipt, None), story.claim(1));
    let approved = |event: &ProvenEntry| Before::Approved {
        event: event.clone(),
    };
    story
        .verify(&story.passport(approved(&sound), &[], &claim))
        .unwrap();
    check_refused(
        story.verify(&story.passport(approved(&naming), &[], &claim)),
        "NamesSomebody",
    );
}

#[test]
fn no_byte_of_a_passport_can_be_changed_unseen() {
    let mut story = Story::new();
    let (wipe, unused, claim) = (story.wipe(3), story.unheard(4), story.claim(5));
    let receipt = story.receipt(5);
    let launch = story.stored(7, "claim", &receipt, Some("acme"));
    let bare = story.passport(Before::Wiped { event: wipe }, &[unused], &claim);
    let sound = story.with_launch(bare, &launch);
    let text = serde_json::to_vec(&sound).unwrap();
    for place in 0..text.len() {
        let mut changed = text.clone();
        changed[place] ^= 1;
        let Ok(read) = serde_json::from_slice::<Passport>(&changed) else {
            continue;
        };
        assert!(
            story.verify(&read).is_err(),
            "byte {place}: {}",
            String::from_utf8_lossy(&changed)
        );
    }
}
