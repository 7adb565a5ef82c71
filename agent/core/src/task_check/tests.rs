//! One test per reason to refuse.

use super::*;
use berth_api::ids::VmId;
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;

const NOW: i64 = 10_000;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

fn trust() -> Trust {
    Trust {
        node_id: "node_01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        node_epoch: 3,
        task_keys: vec![key(1).public()],
        policy: Policy {
            max_vcpus: 4,
            ..Policy::default()
        },
    }
}

fn spec() -> VmSpec {
    VmSpec {
        name: "web".to_owned(),
        vcpus: 1,
        memory_mib: 128,
        disk_mib: 64,
        image: "debian-12".to_owned(),
    }
}

fn task() -> Task {
    Task {
        task_id: TaskId::generate(),
        node_id: trust().node_id,
        node_epoch: 3,
        vm_id: VmId::generate(),
        tenant_id: "acme".parse().unwrap(),
        generation: 5,
        not_before: NOW,
        expires_at: NOW + 300,
        ledger_index: 0,
        action: TaskAction::VmCreate {
            spec: spec(),
            claims: Vec::new(),
        },
    }
}

fn known(generation: u64) -> KnownVm {
    KnownVm {
        tenant_id: "acme".parse().unwrap(),
        generation,
        claims: Vec::new(),
        spec: None,
    }
}

#[track_caller]
fn refused(code: RefusalCode, known: Option<&KnownVm>, change: impl FnOnce(&mut Task)) {
    let mut task = task();
    change(&mut task);
    assert_eq!(trust().check(&task, known, NOW).unwrap_err().code, code);
}

#[test]
fn a_signed_task_for_this_node_is_obeyed() {
    let task = task();
    let envelope = seal(&key(1), TASK_PAYLOAD_TYPE, &task).unwrap();
    assert_eq!(trust().open(&envelope), Ok(task.clone()));
    assert_eq!(trust().check(&task, None, NOW), Ok(()));
    assert_eq!(trust().check(&task, Some(&known(4)), NOW), Ok(()));
}

#[test]
fn an_untrusted_key_and_a_changed_payload_are_refused_with_the_claimed_id() {
    let task = task();
    let foreign = seal(&key(2), TASK_PAYLOAD_TYPE, &task).unwrap();
    let mut changed = seal(&key(1), TASK_PAYLOAD_TYPE, &task).unwrap();
    changed.payload = foreign.payload.replacen('A', "B", 1);
    for envelope in [&foreign, &changed] {
        assert_eq!(
            trust().open(envelope).unwrap_err().code,
            RefusalCode::BadSignature
        );
    }
    assert_eq!(claimed_task_id(&foreign), Some(task.task_id));
}

#[test]
fn another_payload_and_an_unknown_type_of_task_are_unsupported() {
    let other = seal(&key(1), "application/other", &task()).unwrap();
    let mut unknown = serde_json::to_value(task()).unwrap();
    unknown["action"] = serde_json::json!({"type": "host.run", "command": "id"});
    let unknown = seal(&key(1), TASK_PAYLOAD_TYPE, &unknown).unwrap();
    let mut extra = serde_json::to_value(task()).unwrap();
    extra["action"]["shell"] = serde_json::json!("id");
    let extra = seal(&key(1), TASK_PAYLOAD_TYPE, &extra).unwrap();
    for envelope in [&other, &unknown, &extra] {
        assert_eq!(
            trust().open(envelope).unwrap_err().code,
            RefusalCode::Unsupported
        );
    }
}

#[test]
fn another_node_or_epoch_is_refused() {
    refused(RefusalCode::WrongNode, None, |task| {
        task.node_id = NodeId::generate();
    });
    refused(RefusalCode::OldEpoch, None, |task| task.node_epoch = 2);
    refused(RefusalCode::OldEpoch, None, |task| task.node_epoch = 4);
}

#[test]
fn a_task_outside_its_time_is_refused_beyond_the_tolerated_skew() {
    refused(RefusalCode::ClockSkew, None, |task| {
        task.not_before = NOW + 61;
    });
    refused(RefusalCode::ClockSkew, None, |task| {
        task.expires_at = NOW - 60;
    });
    let mut edge = task();
    edge.not_before = NOW + 60;
    edge.expires_at = NOW - 59;
    assert_eq!(trust().check(&edge, None, NOW), Ok(()));
}

#[test]
fn a_stranger_never_gets_a_known_vm() {
    refused(RefusalCode::WrongOwner, Some(&known(1)), |task| {
        task.tenant_id = "mallory".parse().unwrap();
    });
}

#[test]
fn a_generation_seen_before_is_refused_except_for_reading_and_for_the_seed_of_its_run() {
    refused(RefusalCode::OldGeneration, Some(&known(5)), |_| {});
    refused(RefusalCode::OldGeneration, Some(&known(6)), |_| {});
    let read = TaskAction::VmConsoleRead { tail_bytes: 10 };
    for action in [read, TaskAction::VmEjectSeed {}] {
        let mut task = task();
        task.action = action;
        assert_eq!(trust().check(&task, Some(&known(5)), NOW), Ok(()));
        assert_eq!(
            trust().check(&task, Some(&known(6)), NOW).unwrap_err().code,
            RefusalCode::OldGeneration
        );
    }
}

#[test]
fn an_oversized_vm_is_outside_the_policy() {
    let mut task = task();
    let TaskAction::VmCreate { spec, .. } = &mut task.action else {
        unreachable!("task() creates");
    };
    spec.vcpus = 5;
    assert_eq!(
        trust().check(&task, None, NOW),
        Err(TaskRefused {
            code: RefusalCode::Policy,
            message: "vcpus is 5, this host allows 1 to 4".to_owned(),
        })
    );
}

#[test]
fn a_vm_cannot_be_made_again_as_another() {
    let mut other = known(1);
    other.spec = Some(VmSpec { vcpus: 2, ..spec() });
    refused(RefusalCode::Unsupported, Some(&other), |_| {});
    other.spec = Some(spec());
    assert_eq!(trust().check(&task(), Some(&other), NOW), Ok(()));
}

#[test]
fn no_more_console_is_read_than_the_contract_allows() {
    refused(RefusalCode::Unsupported, None, |task| {
        task.action = TaskAction::VmConsoleRead {
            tail_bytes: MAX_CONSOLE_BYTES + 1,
        };
    });
}
