//! What approves a slot and what does not.

use super::*;
use crate::slot::judge::tests::{Host, address, drive};

fn wish(name: &str) -> Wish {
    Wish {
        slot_id: SlotId::generate(),
        name: name.to_owned(),
        class: "nvme".to_owned(),
        approved_at: "2026-01-02T03:04:05Z".to_owned(),
    }
}

fn two_drives() -> HostSnapshot {
    Host::default()
        .with(drive("0000:01:00.0", "S1").below("0000:00:01.0"))
        .with(drive("0000:02:00.0", "S2").below("0000:00:02.0"))
        .snapshot()
}

fn approval(name: &str, at: &str) -> Approval {
    propose(&two_drives(), &[address(at)], wish(name)).unwrap()
}

fn file(approval: &Approval) -> ApprovalFile {
    ApprovalFile {
        file: format!("{}.toml", approval.name),
        text: approval.render().unwrap(),
        sha256: "00".repeat(32),
        uid: 0,
        mode: 0o100_644,
    }
}

#[test]
fn a_written_approval_is_read_as_it_was() {
    let approval = approval("disk-1", "0000:01:00.0");
    assert_eq!(Approval::read(&file(&approval), 0).unwrap(), approval);
}

#[test]
fn an_approval_that_others_can_write_is_refused() {
    for (uid, mode) in [(0, 0o664), (0, 0o646), (1000, 0o644)] {
        let file = ApprovalFile {
            uid,
            mode,
            ..file(&approval("disk-1", "0000:01:00.0"))
        };
        assert!(
            matches!(
                Approval::read(&file, 0),
                Err(ReadApprovalError::WritableByOthers { .. })
            ),
            "{uid} {mode:o}"
        );
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Approval, &mut ApprovalFile), reason: &str) {
    let mut approval = approval("disk-1", "0000:01:00.0");
    let mut file = file(&approval);
    change(&mut approval, &mut file);
    let file = ApprovalFile {
        text: if file.text.is_empty() {
            String::new()
        } else {
            approval.render().unwrap()
        },
        ..file
    };
    let approvals = settle(&[file], 0);
    assert_eq!(approvals.approved, []);
    assert_eq!(approvals.refused.len(), 1);
    let found = &approvals.refused[0].reason;
    assert!(found.contains(reason), "{found}");
}

#[test]
fn what_is_no_whole_approval_is_refused_with_a_reason() {
    refused(|_, file| file.text.clear(), "missing field");
    refused(|_, file| file.file = "other.toml".to_owned(), "named after");
    refused(|_, file| file.file = "disk-1".to_owned(), "named after");
    refused(
        |approval, _| approval.name = "../up".to_owned(),
        "lower-case letters",
    );
    refused(|approval, _| approval.class = String::new(), "class");
    refused(|approval, _| approval.devices.clear(), "0 devices");
    refused(|approval, _| approval.wipe.methods.clear(), "wipe.methods");
    refused(
        |approval, _| approval.devices.push(approval.devices[0].clone()),
        "twice",
    );
}

#[test]
fn an_unknown_key_is_refused() {
    let mut file = file(&approval("disk-1", "0000:01:00.0"));
    file.text = file.text.replacen("name =", "also = 1\nname =", 1);
    assert!(matches!(
        Approval::read(&file, 0),
        Err(ReadApprovalError::Invalid(_))
    ));
}

#[test]
fn of_two_files_that_name_one_device_neither_is_taken() {
    let files = [
        file(&approval("disk-1", "0000:01:00.0")),
        file(&approval("disk-2", "0000:01:00.0")),
        file(&approval("disk-3", "0000:02:00.0")),
    ];
    let approvals = settle(&files, 0);
    let names: Vec<&str> = approvals
        .approved
        .iter()
        .map(|slot| slot.approval.name.as_str())
        .collect();
    assert_eq!(names, ["disk-3"]);
    assert!(approvals.refused[0].reason.contains("disk-2.toml"));
    assert!(approvals.refused[1].reason.contains("disk-1.toml"));
}

#[test]
fn one_drive_approved_in_two_places_is_taken_in_neither() {
    let one = approval("disk-1", "0000:01:00.0");
    let mut two = approval("disk-2", "0000:02:00.0");
    two.devices[0].identity.serials = one.devices[0].identity.serials.clone();
    assert_eq!(settle(&[file(&one), file(&two)], 0).approved, []);
}

#[test]
fn of_two_files_with_one_slot_id_neither_is_taken() {
    let one = approval("disk-1", "0000:01:00.0");
    let mut two = approval("disk-2", "0000:02:00.0");
    two.slot_id = one.slot_id;
    let approvals = settle(&[file(&one), file(&two)], 0);
    assert_eq!(approvals.approved, []);
    assert_eq!(approvals.refused.len(), 2);
}

#[test]
fn a_proposal_says_what_cannot_be() {
    let snapshot = two_drives();
    let one = address("0000:01:00.0");
    let error = |addresses: &[PciAddress], name: &str| {
        propose(&snapshot, addresses, wish(name))
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[one], "Disk").contains("lower-case"));
    assert!(error(&[], "disk").contains("1 to 64"));
    assert!(error(&[one, one], "disk").contains("different"));
    assert!(error(&[address("0000:09:00.0")], "disk").contains("0000:09:00.0"));
}
