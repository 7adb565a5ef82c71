//! Fencing, receipts and the memory of a slot.

use berth_api::ids::ClaimId;
use berth_api::slot::{DeviceIdentity, DeviceKind, SlotState, WipeMethod};

use super::*;
use crate::slot::approval::ApprovedDevice;
use crate::slot::wipe::WipePolicy;

fn stamp(at_s: i64) -> Stamp {
    Stamp {
        node_id: "node_00000000000000000000000001".parse().unwrap(),
        at_ms: at_s * 1000,
        receipt_id: ReceiptId::generate(),
    }
}

fn identity(serial: &str) -> DeviceIdentity {
    DeviceIdentity {
        vendor: "1b36".parse().unwrap(),
        device: "0010".parse().unwrap(),
        subsystem_vendor: "1af4".parse().unwrap(),
        subsystem: "1100".parse().unwrap(),
        class: berth_api::pci::PciClass::NVME,
        path: "pci0000:00/01.0/00.0".to_owned(),
        serials: BTreeMap::from([("nvme_serial".to_owned(), serial.to_owned())]),
    }
}

fn address() -> PciAddress {
    "0000:01:00.0".parse().unwrap()
}

fn approval(slot_id: SlotId, serial: &str, sha256: &str) -> StoredApproval {
    StoredApproval {
        approval: Approval {
            slot_id,
            name: "a".to_owned(),
            class: "nvme".to_owned(),
            approved_at: "2026-01-01T00:00:00Z".to_owned(),
            wipe: WipePolicy::default(),
            devices: vec![ApprovedDevice {
                kind: DeviceKind::Nvme,
                address: address(),
                identity: identity(serial),
                settings: BTreeMap::new(),
            }],
        },
        sha256: sha256.to_owned(),
    }
}

fn free() -> SlotRecord {
    let slot_id = SlotId::generate();
    let mut record = SlotRecord::new(slot_id, "boot");
    record.take_approval(&approval(slot_id, "S1", "aa"), stamp(1));
    record.devices = vec![SlotDevice {
        kind: DeviceKind::Nvme,
        address: Some(address()),
        identity: identity("S1"),
        iommu_group: Some(7),
        numa_node: None,
    }];
    record.follow(Event::Looked(Ok(())), stamp(2));
    record
}

fn holder(record: &SlotRecord, epoch: u64) -> SlotHolder {
    SlotHolder {
        claim: Claim {
            slot_id: record.slot_id,
            claim_id: ClaimId::generate(),
            fencing_epoch: epoch,
        },
        vm_id: VmId::generate(),
        tenant_id: "acme".parse().unwrap(),
    }
}

fn code(denied: Result<(), Denied>) -> SlotProblemCode {
    denied.unwrap_err().0.code
}

fn kinds(record: &SlotRecord) -> Vec<&'static str> {
    let kind = |receipt: &Receipt| match &receipt.statement {
        Statement::Approval { .. } => "approval",
        Statement::Claim { .. } => "claim",
        Statement::Release { .. } => "release",
        Statement::Wipe { .. } => "wipe",
        Statement::Quarantine { .. } => "quarantine",
    };
    record.receipts.iter().map(kind).collect()
}

fn wipe_of(record: &SlotRecord) -> DeviceWipe {
    DeviceWipe {
        address: address(),
        identity: record.devices[0].identity.clone(),
        method: WipeMethod::NvmeFormatUserData,
        started_at_ms: 1,
        ended_at_ms: 2,
        completion: BTreeMap::new(),
        restored: Vec::new(),
        read_back: berth_api::slot::ReadBack {
            sample: "edges".to_owned(),
            bytes_total: 512,
            bytes_read: 512,
            bytes_wrong: 0,
            expected: "zeroes".to_owned(),
            sha256: String::new(),
        },
        not_proved: Vec::new(),
    }
}

#[test]
fn a_record_survives_its_json_and_no_stranger_is_read() {
    let mut record = free();
    record.claim(holder(&record, 1), stamp(3)).unwrap();
    record.begin(Step::Bind(address()), 3000);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<SlotRecord>(&text).unwrap(), record);
    let foreign = text.replacen('{', "{\"surprise\":1,", 1);
    serde_json::from_str::<SlotRecord>(&foreign).unwrap_err();
}

#[test]
fn a_claim_is_fenced_by_the_highest_epoch_ever_seen() {
    let mut record = free();
    let first = holder(&record, 5);
    record.claim(first.clone(), stamp(3)).unwrap();
    record
        .claim(first.clone(), stamp(3))
        .expect("the same claim again is the same claim");
    let late = holder(&record, 4);
    assert_eq!(
        code(record.claim(late, stamp(3))),
        SlotProblemCode::StaleClaim
    );
    let twin = holder(&record, 5);
    assert_eq!(
        code(record.claim(twin, stamp(3))),
        SlotProblemCode::StaleClaim
    );
    let newer = holder(&record, 7);
    assert_eq!(
        code(record.claim(newer, stamp(3))),
        SlotProblemCode::SlotBusy
    );
    assert_eq!(record.fencing_epoch, 7, "what was seen is remembered");
    record
        .claim(first.clone(), stamp(3))
        .expect("its holder keeps it");
    record.follow(Event::Release, stamp(4));
    record.follow(Event::Undone, stamp(4));
    assert_eq!(
        code(record.claim(first, stamp(5))),
        SlotProblemCode::StaleClaim
    );
}

#[test]
fn receipts_tell_the_life_of_a_slot_with_rising_generations() {
    let mut record = free();
    let tenant = holder(&record, 1);
    record.claim(tenant.clone(), stamp(3)).unwrap();
    record.begin(Step::Look, 3000);
    record.end("fit".to_owned(), 3010);
    record.begin(Step::Look, 3020);
    record.end("fit".to_owned(), 3030);
    record.follow(Event::Prepared, stamp(4));
    record.follow(Event::Open, stamp(4));
    record.follow(Event::Release, stamp(5));
    record.begin(Step::Reset, 5000);
    record.end("flr".to_owned(), 5100);
    let devices = record.addresses();
    record.follow(Event::Returned { devices }, stamp(6));
    let result = Ok(Box::new(wipe_of(&record)));
    let device = address();
    record.follow(Event::WipeEnded { device, result }, stamp(7));
    record.follow(Event::Verified, stamp(8));
    record.follow(Event::Looked(Ok(())), stamp(9));
    assert_eq!(kinds(&record), ["approval", "claim", "release", "wipe"]);
    let generations: Vec<_> = record.receipts.iter().map(|r| r.generation).collect();
    assert!(
        generations.is_sorted_by(|a, b| a < b),
        "they rise: {generations:?}"
    );
    let [_, claim, release, wipe] = &record.receipts[..] else {
        unreachable!("four were counted");
    };
    let Statement::Claim { steps } = &claim.statement else {
        unreachable!("its kind was seen");
    };
    assert_eq!(steps.len(), 1, "a step taken again is noted once");
    assert_eq!((steps[0].took_ms, steps[0].ended_at_ms), (10, 3030));
    assert!(matches!(&release.statement, Statement::Release { steps } if steps.len() == 1));
    assert_eq!(wipe.holder.as_ref(), Some(&tenant));
    assert_eq!(record.observed(None).state, SlotState::Free);
    let ids: Vec<_> = record.receipts.iter().map(|r| r.receipt_id).collect();
    assert!(record.acknowledge_receipts(&ids[..3]));
    assert!(!record.acknowledge_receipts(&ids[..3]));
    assert_eq!(kinds(&record), ["wipe"]);
}

#[test]
fn other_devices_are_taken_up_only_where_nothing_can_be_left_behind() {
    let mut record = free();
    let other = approval(record.slot_id, "S2", "bb");
    let mut held = record.clone();
    record.take_approval(&other, stamp(3));
    assert_eq!(record.approval.as_ref(), Some(&other));
    assert_eq!(record.phase.state(), SlotState::Discovered);
    record.follow(Event::Looked(Ok(())), stamp(4));
    assert_eq!(kinds(&record), ["approval", "approval"]);

    held.claim(holder(&held, 1), stamp(3)).unwrap();
    held.follow(Event::Prepared, stamp(3));
    held.take_approval(&other, stamp(4));
    assert_ne!(held.approval.as_ref(), Some(&other));
    held.follow(Event::Release, stamp(5));
    let problem = SlotProblem {
        code: SlotProblemCode::ResetFailed,
        message: "dead".to_owned(),
    };
    held.follow(Event::ReturnFailed(problem), stamp(6));
    held.take_approval(&other, stamp(7));
    assert_ne!(held.approval.as_ref(), Some(&other));
}

#[test]
fn an_edited_approval_of_the_same_devices_is_stated_anew() {
    let mut record = free();
    let edited = approval(record.slot_id, "S1", "cc");
    record.take_approval(&edited, stamp(3));
    record.follow(Event::Looked(Ok(())), stamp(3));
    assert_eq!(kinds(&record), ["approval", "approval"]);
    assert!(matches!(&record.phase, Phase::Free { clean } if clean.since() == 1));
}

#[test]
fn a_start_of_the_host_ends_every_use_and_no_right() {
    let mut record = free();
    let tenant = holder(&record, 1);
    record.claim(tenant.clone(), stamp(3)).unwrap();
    record.follow(Event::Prepared, stamp(3));
    record.follow(Event::Open, stamp(3));
    record.begin_on("boot", stamp(4));
    assert_eq!(record.phase.state(), SlotState::InUse);
    record.begin_on("another boot", stamp(5));
    assert_eq!(
        record.phase,
        Phase::Claimed {
            holder: tenant,
            is_ready: false
        }
    );
}

#[test]
fn after_a_start_of_the_host_a_wiped_slot_may_have_the_hosts_drivers_and_a_dirty_one_not() {
    for (is_wiped, expected) in [(true, 0), (false, 1)] {
        let mut record = free();
        let tenant = holder(&record, 1);
        record.claim(tenant, stamp(3)).unwrap();
        let driver = Some("nvme".to_owned());
        record.original_drivers.insert(address(), driver);
        let devices = vec![address()];
        let wipe = Event::WipeEnded {
            device: address(),
            result: Ok(Box::new(wipe_of(&record))),
        };
        let way = [Event::Prepared, Event::Release, Event::Returned { devices }];
        for event in way.into_iter().chain(is_wiped.then_some(wipe)) {
            record.follow(event, stamp(4));
        }
        assert_eq!(matches!(record.phase, Phase::Verifying { .. }), is_wiped);
        record.begin_on("another boot", stamp(5));
        assert_eq!(record.original_drivers.len(), expected, "{is_wiped}");
    }
}

fn task(record: &SlotRecord, action: SlotAction) -> SlotTask {
    SlotTask {
        task_id: TaskId::generate(),
        node_id: stamp(0).node_id,
        node_epoch: 1,
        slot_id: record.slot_id,
        fencing_epoch: 0,
        not_before: 0,
        expires_at: 100,
        ledger_index: 0,
        action,
    }
}

#[test]
fn an_operators_task_has_one_result_and_is_answered_where_it_cannot_be_done() {
    let mut record = free();
    let why = SlotAction::Quarantine {
        reason: "noise".to_owned(),
    };
    let quarantine = task(&record, why);
    record.order(&quarantine, stamp(3));
    let Recall::Ended(result) = record.recall(quarantine.task_id) else {
        panic!("it is done at once");
    };
    assert!(matches!(result.outcome, TaskOutcome::Done { .. }));
    assert!(record.acknowledge_results(&[quarantine.task_id]));

    let wipe = task(&record, SlotAction::Wipe {});
    record.order(&wipe, stamp(4));
    assert_eq!(record.recall(wipe.task_id), Recall::AtWork);
    let again = task(&record, SlotAction::Wipe {});
    record.order(&again, stamp(5));
    let Recall::Ended(result) = record.recall(again.task_id) else {
        panic!("it is refused at once");
    };
    assert_eq!(record.recall(wipe.task_id), Recall::AtWork);
    assert!(matches!(
        result.outcome,
        TaskOutcome::Failed {
            code: FailureCode::SlotUnusable,
            ..
        }
    ));
}

#[test]
fn a_lost_record_is_dirty_and_fits_the_approval_that_wipes_it() {
    let slot_id = SlotId::generate();
    let mut record = SlotRecord::lost(slot_id, "boot", "bad JSON");
    record.take_approval(&approval(slot_id, "S1", "aa"), stamp(1));
    assert!(record.approval.is_some() && record.phase.may_hold_data());
    record.follow(Event::Looked(Ok(())), stamp(2));
    assert_eq!(record.phase.state(), SlotState::Quarantined);
}
