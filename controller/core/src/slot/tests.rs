//! Every host state, and what must hold beside it.

use std::collections::BTreeMap;

use berth_api::ids::{ClaimId, NodeId, ReceiptId, SlotId, TenantId, VmId};
use berth_api::pci::{PciClass, PciId};
use berth_api::slot::{DeviceIdentity, DeviceKind, SlotProblem};

use super::*;

const STATES: [SlotState; 10] = [
    SlotState::Discovered,
    SlotState::Unapproved,
    SlotState::Free,
    SlotState::Claimed,
    SlotState::InUse,
    SlotState::Releasing,
    SlotState::Wiping,
    SlotState::Verifying,
    SlotState::Quarantined,
    SlotState::Retired,
];

fn facts() -> SlotFacts {
    SlotFacts {
        host_state: SlotState::Free,
        problem: None,
        is_reported: true,
        admission: Admission::Holds,
        is_quarantined: false,
        awaits_wipe: false,
        is_claimed: false,
        is_vm_gone: false,
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut SlotFacts), obstacle: &str, shown: SlotState) {
    let mut changed = facts();
    change(&mut changed);
    let found = changed.obstacle().map_or("none", Obstacle::code);
    assert_eq!((found, changed.shown_state()), (obstacle, shown));
}

#[test]
fn only_a_free_admitted_sound_slot_can_be_claimed() {
    check(|_| {}, "none", SlotState::Free);
    check(|f| f.is_claimed = true, "claimed", SlotState::Claimed);
    check(
        |f| (f.is_claimed, f.is_vm_gone) = (true, true),
        "wiping",
        SlotState::Releasing,
    );
    check(|f| f.awaits_wipe = true, "wiping", SlotState::Wiping);
    check(|f| f.is_reported = false, "missing", SlotState::Free);
    check(
        |f| f.is_quarantined = true,
        "quarantined",
        SlotState::Quarantined,
    );
    check(
        |f| f.admission = Admission::None,
        "not_admitted",
        SlotState::Unapproved,
    );
    check(
        |f| f.admission = Admission::Void,
        "device_identity_changed",
        SlotState::Quarantined,
    );
    check(
        |f| f.problem = Some(SlotProblemCode::ResetFailed),
        "quarantined",
        SlotState::Quarantined,
    );
    check(
        |f| {
            f.host_state = SlotState::Unapproved;
            f.problem = Some(SlotProblemCode::IommuGroupUnsafe);
        },
        "iommu_group_unsafe",
        SlotState::Unapproved,
    );
    check(
        |f| {
            f.host_state = SlotState::Quarantined;
            f.problem = Some(SlotProblemCode::DeviceIdentityChanged);
        },
        "device_identity_changed",
        SlotState::Quarantined,
    );
}

#[test]
fn no_host_state_but_free_can_be_claimed_whatever_else_is_well() {
    for host_state in STATES {
        let slot = SlotFacts {
            host_state,
            ..facts()
        };
        assert_eq!(
            slot.obstacle().is_none(),
            host_state == SlotState::Free,
            "{host_state:?}"
        );
        assert_eq!(slot.shown_state(), host_state);
        let closed = SlotFacts {
            is_quarantined: true,
            ..slot
        };
        assert!(closed.obstacle().is_some());
    }
}

fn holder() -> SlotHolder {
    SlotHolder {
        claim: Claim {
            slot_id: SlotId::generate(),
            claim_id: ClaimId::generate(),
            fencing_epoch: 7,
        },
        vm_id: VmId::generate(),
        tenant_id: "acme".parse::<TenantId>().unwrap(),
    }
}

fn live(holder: &SlotHolder) -> LiveClaim {
    LiveClaim {
        holder: holder.clone(),
        seen_generation: Some(10),
        is_wipe_proved: false,
        is_vm_gone: true,
    }
}

fn device() -> SlotDevice {
    SlotDevice {
        kind: DeviceKind::Nvme,
        address: None,
        identity: DeviceIdentity {
            vendor: PciId(0x1b36),
            device: PciId(0x10),
            subsystem_vendor: PciId(0x1af4),
            subsystem: PciId(0x1100),
            class: PciClass::NVME,
            path: "pci0000:00/01.0/00.0".to_owned(),
            serials: BTreeMap::from([("nvme_serial".to_owned(), "a".to_owned())]),
        },
        iommu_group: None,
        numa_node: None,
    }
}

fn wipe_receipt(holder: &SlotHolder, generation: u64) -> Receipt {
    Receipt {
        receipt_id: ReceiptId::generate(),
        node_id: NodeId::generate(),
        slot_id: holder.claim.slot_id,
        slot_name: "nvme-0".to_owned(),
        generation,
        at: 0,
        holder: Some(holder.clone()),
        devices: vec![device()],
        statement: Statement::Wipe {
            devices: Vec::new(),
        },
    }
}

#[test]
fn a_wipe_counts_for_a_claim_that_it_names_or_that_the_host_knew_before() {
    let owner = holder();
    let claim = live(&owner);
    assert!(claim.is_wiped_by(&wipe_receipt(&owner, 3)));
    let of_other = SlotHolder {
        claim: Claim {
            claim_id: ClaimId::generate(),
            ..owner.claim.clone()
        },
        ..owner.clone()
    };
    assert!(!claim.is_wiped_by(&wipe_receipt(&of_other, 10)));
    assert!(claim.is_wiped_by(&wipe_receipt(&of_other, 11)));
    let unseen = LiveClaim {
        seen_generation: None,
        ..claim.clone()
    };
    assert!(!unseen.is_wiped_by(&wipe_receipt(&of_other, 11)));
    let elsewhere = wipe_receipt(&holder(), 11);
    assert!(!claim.is_wiped_by(&elsewhere));
    let mut release = wipe_receipt(&owner, 11);
    release.statement = Statement::Release { steps: Vec::new() };
    assert!(!claim.is_wiped_by(&release));
}

#[test]
fn a_claim_ends_free_and_proved_or_free_and_unheard_and_in_no_other_way() {
    let owner = holder();
    for state in STATES {
        for (proved, gone, seen, epoch) in [
            (false, false, None, 6),
            (false, false, Some(1), 7),
            (false, true, None, 6),
            (false, true, None, 7),
            (false, true, Some(1), 6),
            (true, false, Some(1), 7),
            (true, true, Some(1), 7),
        ] {
            let claim = LiveClaim {
                holder: owner.clone(),
                seen_generation: seen,
                is_wipe_proved: proved,
                is_vm_gone: gone,
            };
            let expected = if state != SlotState::Free {
                ClaimStep::Keep
            } else if proved {
                ClaimStep::EndProved
            } else if !gone {
                ClaimStep::Keep
            } else if seen.is_none() && epoch < 7 {
                ClaimStep::EndUnheard
            } else {
                ClaimStep::OrderWipe
            };
            assert_eq!(
                claim.judge(state, epoch),
                expected,
                "{state:?} {proved} {gone}"
            );
        }
    }
}

#[test]
fn a_slot_in_use_by_another_than_its_claims_holder_is_held_by_a_stranger() {
    let owner = holder();
    let claim = live(&owner);
    let other = holder();
    for state in STATES {
        let busy = matches!(state, SlotState::Claimed | SlotState::InUse);
        assert!(!is_held_by_stranger(state, Some(&owner), Some(&claim)));
        for (found, known) in [
            (Some(&other), Some(&claim)),
            (Some(&owner), None),
            (None, Some(&claim)),
            (None, None),
        ] {
            assert_eq!(is_held_by_stranger(state, found, known), busy, "{state:?}");
        }
    }
}

#[test]
fn an_older_report_may_only_close_the_slot() {
    let mut report = ObservedSlot {
        slot_id: SlotId::generate(),
        name: "nvme-0".to_owned(),
        class: "nvme".to_owned(),
        state: SlotState::Free,
        problem: Some(SlotProblem {
            code: SlotProblemCode::RecordLost,
            message: String::new(),
        }),
        holder: None,
        generation: 4,
        fencing_epoch: 0,
        progress_percent: None,
        devices: Vec::new(),
    };
    assert!(is_newer(4, &report));
    assert!(!is_newer(5, &report));
    report.state = SlotState::Quarantined;
    assert!(is_newer(5, &report));
}

#[test]
fn a_report_with_impossible_numbers_or_names_is_not_believed() {
    let owner = holder();
    let sound = ObservedSlot {
        slot_id: owner.claim.slot_id,
        name: "nvme-0".to_owned(),
        class: "gpu.h100".to_owned(),
        state: SlotState::Free,
        problem: None,
        holder: Some(owner),
        generation: MAX_COUNT,
        fencing_epoch: MAX_COUNT,
        progress_percent: Some(100),
        devices: Vec::new(),
    };
    assert!(is_believable(&sound));
    let with = |change: &dyn Fn(&mut ObservedSlot)| {
        let mut changed = sound.clone();
        change(&mut changed);
        is_believable(&changed)
    };
    assert!(!with(&|slot| slot.generation = u64::MAX));
    assert!(!with(&|slot| slot.fencing_epoch = MAX_COUNT + 1));
    assert!(!with(&|slot| slot.progress_percent = Some(101)));
    assert!(!with(&|slot| slot.class = "GPU H100".to_owned()));
    assert!(!with(&|slot| slot.name = "../x".to_owned()));
    assert!(!with(&|slot| slot.slot_id = SlotId::generate()));
    assert!(with(&|slot| slot.devices = vec![device(); 64]));
    assert!(!with(&|slot| slot.devices = vec![device(); 65]));
    assert!(!with(&|slot| {
        let mut long = device();
        long.identity.path = "x".repeat(257);
        slot.devices.push(long);
    }));
}
