//! What a receipt must not be able to say.

use std::collections::BTreeMap;

use berth_api::ids::{ClaimId, ReceiptId, VmId};
use berth_api::pci::PciClass;
use berth_api::slot::{Claim, ReadBack, SlotHolder, SlotProblem, SlotProblemCode};

use super::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

fn device(bus: u8, kind: DeviceKind) -> SlotDevice {
    SlotDevice {
        kind,
        address: Some(format!("0000:0{bus}:00.0").parse().unwrap()),
        identity: DeviceIdentity {
            vendor: "1b36".parse().unwrap(),
            device: "0010".parse().unwrap(),
            subsystem_vendor: "1af4".parse().unwrap(),
            subsystem: "1100".parse().unwrap(),
            class: PciClass::NVME,
            path: format!("pci0000:00/0{bus}.0/00.0"),
            serials: BTreeMap::from([("nvme_serial".to_owned(), format!("S{bus}"))]),
        },
        iommu_group: Some(bus.into()),
        numa_node: None,
    }
}

fn wiped(device: &SlotDevice) -> DeviceWipe {
    let is_drive = device.kind == DeviceKind::Nvme;
    DeviceWipe {
        address: device.address.unwrap(),
        identity: device.identity.clone(),
        method: if is_drive {
            WipeMethod::NvmeSanitizeBlock
        } else {
            WipeMethod::Reset
        },
        started_at_ms: 10,
        ended_at_ms: 20,
        completion: BTreeMap::from([("sstat".to_owned(), "1".to_owned())]),
        restored: Vec::new(),
        read_back: ReadBack {
            sample: "edges".to_owned(),
            bytes_total: 4096,
            bytes_read: 512,
            bytes_wrong: 0,
            expected: "zeroes".to_owned(),
            sha256: "0".repeat(64),
        },
        not_proved: Vec::new(),
    }
}

fn receipt(generation: u64, statement: Statement) -> Receipt {
    let slot_id: SlotId = "slot_00000000000000000000000001".parse().unwrap();
    Receipt {
        receipt_id: ReceiptId::generate(),
        node_id: "node_00000000000000000000000001".parse().unwrap(),
        slot_id,
        slot_name: "a".to_owned(),
        generation,
        at: 100,
        holder: Some(holder(slot_id, generation)),
        devices: vec![device(1, DeviceKind::Nvme), device(2, DeviceKind::Network)],
        statement,
    }
}

fn holder(slot_id: SlotId, epoch: u64) -> SlotHolder {
    SlotHolder {
        claim: Claim {
            slot_id,
            claim_id: ClaimId::generate(),
            fencing_epoch: epoch,
        },
        vm_id: VmId::generate(),
        tenant_id: "acme".parse().unwrap(),
    }
}

fn wipe(generation: u64) -> Receipt {
    let devices = [device(1, DeviceKind::Nvme), device(2, DeviceKind::Network)];
    let devices = devices.iter().map(wiped).collect();
    receipt(generation, Statement::Wipe { devices })
}

fn step(name: &str, bus: Option<u8>) -> StepRecord {
    StepRecord {
        step: name.to_owned(),
        address: bus.map(|bus| format!("0000:0{bus}:00.0").parse().unwrap()),
        ended_at_ms: 1,
        took_ms: 1,
        found: "fit".to_owned(),
    }
}

fn claim(generation: u64) -> Receipt {
    let steps = vec![
        step("look", None),
        step("bind", Some(1)),
        step("bind", Some(2)),
        step("reset", None),
    ];
    receipt(generation, Statement::Claim { steps })
}

fn approval(generation: u64) -> Receipt {
    let approval_sha256 = "ab".repeat(32);
    receipt(generation, Statement::Approval { approval_sha256 })
}

fn change_wipe(receipt: &mut Receipt, change: impl FnOnce(&mut Vec<DeviceWipe>)) {
    let Statement::Wipe { devices } = &mut receipt.statement else {
        unreachable!("it was made as a wipe");
    };
    change(devices);
}

#[track_caller]
fn wipe_fault(change: impl FnOnce(&mut Vec<DeviceWipe>), words: &str) {
    let mut receipt = wipe(1);
    change_wipe(&mut receipt, change);
    let fault = check(&receipt).unwrap_err();
    assert!(matches!(fault, StatementFault::Wipe(_)), "{fault:?}");
    assert!(fault.to_string().contains(words), "{fault}");
}

#[test]
fn a_receipt_opens_with_its_hosts_key_alone_and_not_after_a_change() {
    let envelope = seal_receipt(&key(1), &wipe(1)).unwrap();
    let (signer, opened) = verify(&envelope, None).unwrap();
    assert_eq!((signer, opened.generation), (key(1).public(), 1));
    verify(&envelope, Some(&key(1).public())).unwrap();
    assert!(matches!(
        verify(&envelope, Some(&key(2).public())),
        Err(ReceiptError::Envelope(OpenError::UnknownKey))
    ));
    let mut forged = envelope;
    forged.payload = seal_receipt(&key(1), &wipe(2)).unwrap().payload;
    assert!(matches!(
        verify(&forged, None),
        Err(ReceiptError::Envelope(OpenError::BadSignature))
    ));
}

#[test]
fn a_signed_statement_that_shows_nothing_is_refused() {
    let mut empty = wipe(1);
    change_wipe(&mut empty, Vec::clear);
    let envelope = seal_receipt(&key(1), &empty).unwrap();
    assert!(matches!(
        verify(&envelope, None),
        Err(ReceiptError::Statement(_))
    ));
}

#[test]
fn a_wipe_names_each_device_of_the_slot_once_and_no_other() {
    wipe_fault(|wipes| drop(wipes.pop()), "was not wiped");
    wipe_fault(|wipes| wipes.extend_from_within(..1), "there twice");
    wipe_fault(
        |wipes| {
            wipes[0]
                .identity
                .serials
                .insert("nvme_serial".to_owned(), "S9".to_owned());
        },
        "is not the slot's",
    );
    let mut elsewhere = wipe(1);
    elsewhere.devices[0].address = None;
    check(&elsewhere).unwrap_err();
}

#[test]
fn a_wipe_that_found_something_read_nothing_or_cannot_be_one_is_none() {
    wipe_fault(|wipes| wipes[0].read_back.bytes_wrong = 1, "1 bytes at");
    wipe_fault(|wipes| wipes[0].read_back.bytes_read = 0, "shows nothing");
    wipe_fault(
        |wipes| wipes[0].read_back.bytes_read = 5000,
        "shows nothing",
    );
    wipe_fault(
        |wipes| wipes[0].method = WipeMethod::Reset,
        "does not wipe the device",
    );
    wipe_fault(|wipes| wipes[0].completion.clear(), "did not say");
    wipe_fault(|wipes| wipes[0].ended_at_ms = 9, "before it began");
}

#[test]
fn what_a_drive_says_beyond_its_approval_is_no_fault() {
    let mut receipt = wipe(1);
    change_wipe(&mut receipt, |wipes| {
        wipes[0]
            .identity
            .serials
            .insert("nvme_model".to_owned(), "M".to_owned());
    });
    check(&receipt).unwrap();
}

#[test]
fn a_claim_lists_its_steps_for_each_device_and_its_holder() {
    check(&claim(1)).unwrap();
    let mut unbound = claim(1);
    unbound.devices.push(device(3, DeviceKind::Gpu));
    let fault = check(&unbound).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "it does not list the step `bind` of 0000:03:00.0"
    );
    let mut nobodys = claim(1);
    nobodys.holder = None;
    assert_eq!(check(&nobodys), Err(StatementFault::NoHolder));
    let mut strangers = claim(1);
    strangers.holder = Some(holder(SlotId::generate(), 1));
    assert_eq!(check(&strangers), Err(StatementFault::NoHolder));
}

#[test]
fn approvals_and_quarantines_say_what_they_stand_on() {
    check(&approval(1)).unwrap();
    let approval_sha256 = "AB".repeat(32);
    check(&receipt(1, Statement::Approval { approval_sha256 })).unwrap_err();
    let problem = SlotProblem {
        code: SlotProblemCode::ResetFailed,
        message: " ".to_owned(),
    };
    check(&receipt(1, Statement::Quarantine { problem })).unwrap_err();
}

#[test]
fn each_claim_comes_after_a_wipe_or_the_first_approval() {
    check_chain(&[approval(1), claim(2), wipe(3), claim(4)]).unwrap();
    check_chain(&[claim(4), wipe(3)]).expect("their order in the call does not matter");
    for (chain, fault) in [
        (vec![approval(1), claim(2), claim(4)], "without a wipe"),
        (
            vec![approval(1), claim(2), approval(3), claim(4)],
            "without a wipe",
        ),
        (vec![claim(2)], "without a wipe"),
        (vec![wipe(3), claim(3)], "different receipts"),
    ] {
        let found = check_chain(&chain).unwrap_err().to_string();
        assert!(found.contains(fault), "{found}");
    }
}

#[test]
fn a_claim_with_an_epoch_that_was_there_before_is_a_contradiction() {
    let mut late = claim(4);
    late.holder = Some(holder(late.slot_id, 2));
    let found = check_chain(&[approval(1), claim(2), wipe(3), late]).unwrap_err();
    assert!(
        matches!(found, ChainFault::Stale { epoch: 2, .. }),
        "{found}"
    );
}

#[test]
fn chains_of_different_slots_do_not_mix() {
    let mut other = claim(5);
    other.slot_id = SlotId::generate();
    let found = check_chain(&[approval(1), wipe(3), other]).unwrap_err();
    assert!(matches!(found, ChainFault::NotWiped { .. }), "{found}");
}
