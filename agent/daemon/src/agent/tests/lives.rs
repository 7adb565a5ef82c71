//! The lives of VMs, and tasks that must not be obeyed.

use berth_agent_core::vm_record::Recall;
use berth_agent_host::fakes::{Fuse, GuestBehaviour};
use berth_agent_host::vmm_unit::VmmUnits as _;
use berth_api::agent::{
    FailureCode, ObservedState, RefusalCode, StopMode, StoppedReason, TaskAction, TaskOutcome,
};
use berth_api::ids::{NodeId, VmId};

use super::world::{World, done, is_done, result, spec, state};

fn stopped(reason: StoppedReason) -> ObservedState {
    ObservedState::Stopped { reason }
}

#[track_caller]
fn assert_refused(outcome: &TaskOutcome, expected: RefusalCode) {
    let TaskOutcome::Refused { code, .. } = outcome else {
        panic!("{outcome:?} is no refusal");
    };
    assert_eq!(*code, expected);
}

#[track_caller]
fn assert_failed(outcome: &TaskOutcome, expected: FailureCode, words: &str) {
    let TaskOutcome::Failed { code, message } = outcome else {
        panic!("{outcome:?} is no failure");
    };
    assert_eq!(*code, expected);
    assert!(message.contains(words), "{message}");
}

#[test]
fn a_vm_is_made_stopped_started_and_deleted() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        let TaskOutcome::Done { evidence } = done(agent, world.create()).await else {
            panic!("the VM is made");
        };
        assert_eq!(evidence["pid"], "1");
        let stop = TaskAction::VmStop {
            mode: StopMode::Graceful,
            timeout_s: 30,
        };
        assert!(is_done(&done(agent, world.task(2, stop)).await));
        state(agent, |s| *s == stopped(StoppedReason::Requested)).await;
        assert!(is_done(
            &done(agent, world.task(3, TaskAction::VmStart {})).await
        ));
        state(agent, |s| *s == ObservedState::Running { pid: 2 }).await;
        assert!(is_done(
            &done(agent, world.task(4, TaskAction::VmDelete {})).await
        ));
        assert_eq!(agent.report().vms, []);
    });
    world.assert_nothing_left();
}

#[test]
fn nobody_has_to_wait_for_a_deaf_guest() {
    let world = World::new(GuestBehaviour::Deaf);
    world.with_agent(&Fuse::whole(), async |agent| {
        let slow = |generation| {
            let mode = StopMode::Graceful;
            let timeout_s = 3600;
            world.task(generation, TaskAction::VmStop { mode, timeout_s })
        };
        assert!(is_done(&done(agent, world.create()).await));
        let (first, stop) = slow(2);
        assert_eq!(agent.take(&[stop], &[]).await, 1);
        state(agent, |s| *s == ObservedState::Changing).await;
        let hard = TaskAction::VmStop {
            mode: StopMode::Hard,
            timeout_s: 30,
        };
        assert!(is_done(&done(agent, world.task(3, hard)).await));
        let outcome = result(agent, first).await;
        assert_failed(&outcome, FailureCode::Overtaken, "by a hard stop");
        state(agent, |s| *s == stopped(StoppedReason::Requested)).await;

        assert!(is_done(
            &done(agent, world.task(4, TaskAction::VmStart {})).await
        ));
        let (second, stop) = slow(5);
        assert_eq!(agent.take(std::slice::from_ref(&stop), &[]).await, 1);
        state(agent, |s| *s == ObservedState::Changing).await;
        assert!(is_done(
            &done(agent, world.task(6, TaskAction::VmDelete {})).await
        ));
        let outcome = result(agent, second).await;
        assert_failed(&outcome, FailureCode::Overtaken, "by a deletion");
        // The overtaken stop again is the same answer, and brings nothing back.
        assert_eq!(agent.take(&[stop], &[]).await, 0);
        assert_eq!(result(agent, second).await, outcome);
    });
    world.assert_nothing_left();
}

#[test]
fn the_same_task_twice_is_done_once() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        let (task_id, envelope) = world.create();
        let twice = [envelope.clone(), envelope.clone()];
        assert_eq!(agent.take(&twice, &[]).await, 1);
        let first = result(agent, task_id).await;
        agent.acknowledge(&[task_id], &[]);
        assert_eq!(agent.take(&[envelope], &[]).await, 0);
        assert_eq!(result(agent, task_id).await, first);
    });
    assert_eq!(world.units.launches(), 1);
}

#[test]
fn a_refused_machine_leaves_nothing_and_says_why() {
    // Its words and its end are there at one moment: which of them is seen first is chance.
    for _ in 0..16 {
        let world = World::new(GuestBehaviour::Refused);
        world.with_agent(&Fuse::whole(), async |agent| {
            let outcome = done(agent, world.create()).await;
            assert_failed(
                &outcome,
                FailureCode::VmmRefused,
                "memory_mib: too much; ask for less",
            );
        });
        world.assert_nothing_left();
    }
}

#[test]
fn an_unknown_and_a_damaged_image_are_told_apart() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        let mut unknown = spec();
        unknown.image = "other".to_owned();
        let create = world.task(
            1,
            TaskAction::VmCreate {
                spec: unknown,
                claims: Vec::new(),
            },
        );
        let outcome = done(agent, create).await;
        assert_failed(&outcome, FailureCode::ImageUnknown, "no image named other");
        std::fs::write(world.path("images/tiny/disk.raw"), [0; 100]).unwrap();
        let create = world.task(
            2,
            TaskAction::VmCreate {
                spec: spec(),
                claims: Vec::new(),
            },
        );
        let outcome = done(agent, create).await;
        assert_failed(
            &outcome,
            FailureCode::ImageInvalid,
            "disk.raw has 100 bytes",
        );
    });
    world.assert_nothing_left();
}

#[test]
fn a_guest_that_powers_off_is_stopped_and_not_restarted() {
    let world = World::new(GuestBehaviour::PowersOff);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
        state(agent, |s| *s == stopped(StoppedReason::GuestShutdown)).await;
    });
    assert_eq!(world.units.launches(), 1);
}

#[test]
fn a_guest_that_resets_itself_is_restarted_ten_times_and_then_failed() {
    let world = World::new(GuestBehaviour::Resets);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
        let failed = state(agent, |s| matches!(s, ObservedState::Failed { .. })).await;
        let ObservedState::Failed { message } = failed else {
            unreachable!("it was waited for");
        };
        assert!(message.contains("10 times in 60 s"), "{message}");
        assert_eq!(agent.report().vms[0].resets, 10);
    });
    assert_eq!(world.units.launches(), 11);
}

#[test]
fn a_vmm_that_dies_is_a_failure_with_its_signal() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
        world.units.kill(world.vm_id, 9);
        let failed = state(agent, |s| matches!(s, ObservedState::Failed { .. })).await;
        let ObservedState::Failed { message } = failed else {
            unreachable!("it was waited for");
        };
        assert!(message.contains("signal 9"), "{message}");
    });
}

#[test]
fn a_running_vm_survives_its_agent_and_hears_the_next_one() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
    });
    world.with_agent(&Fuse::whole(), async |agent| {
        state(agent, |s| *s == ObservedState::Running { pid: 1 }).await;
        let stop = TaskAction::VmStop {
            mode: StopMode::Graceful,
            timeout_s: 600,
        };
        assert!(is_done(&done(agent, world.task(2, stop)).await));
    });
    assert_eq!(world.units.launches(), 1);
}

#[test]
fn what_ended_while_no_agent_was_there_is_seen_by_the_next() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
    });
    world.units.kill(world.vm_id, 11);
    world.with_agent(&Fuse::whole(), async |agent| {
        state(agent, |s| matches!(s, ObservedState::Failed { .. })).await;
    });
}

#[test]
fn a_host_reboot_stops_its_vms() {
    let mut world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
    });
    world.units.reboot();
    world.boot_id = "boot-2".to_owned();
    world.with_agent(&Fuse::whole(), async |agent| {
        state(agent, |s| *s == stopped(StoppedReason::HostReboot)).await;
        assert!(is_done(
            &done(agent, world.task(2, TaskAction::VmStart {})).await
        ));
    });
}

#[test]
fn a_vmm_without_a_record_is_left_alone() {
    let world = World::new(GuestBehaviour::Obedient);
    let orphan = VmId::generate();
    world.units.plant(orphan);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
        assert!(is_done(
            &done(agent, world.task(2, TaskAction::VmDelete {})).await
        ));
        let left = world.units.list().await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].vm_id, Some(orphan));
    });
}

#[test]
fn tasks_that_must_not_be_obeyed_are_refused_and_change_nothing() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        let create = || TaskAction::VmCreate {
            spec: spec(),
            claims: Vec::new(),
        };
        let elsewhere = world.task_with(1, create(), |t| t.node_id = NodeId::generate());
        assert_refused(&done(agent, elsewhere).await, RefusalCode::WrongNode);
        let expired = world.task_with(1, create(), |t| t.expires_at = 1);
        assert_refused(&done(agent, expired).await, RefusalCode::ClockSkew);
        let (task_id, mut forged) = world.create();
        forged.signatures[0].sig = forged.signatures[0].keyid.clone();
        let outcome = done(agent, (task_id, forged)).await;
        assert_refused(&outcome, RefusalCode::BadSignature);
        assert_eq!(agent.report().vms, []);
    });
    assert_eq!((world.units.launches(), world.record()), (0, None));
}

#[test]
fn a_replay_after_deletion_cannot_bring_a_vm_back_or_hand_it_on() {
    let world = World::new(GuestBehaviour::Obedient);
    let old = world.create();
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, old.clone()).await));
        assert!(is_done(
            &done(agent, world.task(7, TaskAction::VmDelete {})).await
        ));
    });
    world.with_agent(&Fuse::whole(), async |agent| {
        let replayed = world.task(
            6,
            TaskAction::VmCreate {
                spec: spec(),
                claims: Vec::new(),
            },
        );
        assert_refused(&done(agent, replayed).await, RefusalCode::OldGeneration);
        let stolen = world.task_with(
            8,
            TaskAction::VmCreate {
                spec: spec(),
                claims: Vec::new(),
            },
            |task| {
                task.tenant_id = "mallory".parse().unwrap();
            },
        );
        assert_refused(&done(agent, stolen).await, RefusalCode::WrongOwner);
    });
    let record = world.record().unwrap();
    assert!(matches!(record.recall(old.0), Recall::Ended(_)));
    world.assert_nothing_left();
}

#[test]
fn a_vm_that_is_not_here_is_unknown_and_its_deletion_leaves_a_tombstone() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        for action in [
            TaskAction::VmStart {},
            TaskAction::VmConsoleRead { tail_bytes: 10 },
        ] {
            let outcome = done(agent, world.task(1, action)).await;
            assert_failed(&outcome, FailureCode::VmUnknown, "is not on this host");
        }
        assert!(is_done(
            &done(agent, world.task(5, TaskAction::VmDelete {})).await
        ));
        let late = world.task(
            4,
            TaskAction::VmCreate {
                spec: spec(),
                claims: Vec::new(),
            },
        );
        assert_refused(&done(agent, late).await, RefusalCode::OldGeneration);
    });
    world.assert_nothing_left();
}

#[test]
fn the_console_is_read_without_touching_the_vm() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create()).await));
        let segment = [b"BERTHCN1".as_slice(), &5_u64.to_le_bytes(), b"hello"].concat();
        let path = world.path("vms").join(world.vm_id.bare()).join("console.0");
        std::fs::write(path, segment).unwrap();
        for _ in 0..2 {
            let read = world.task(1, TaskAction::VmConsoleRead { tail_bytes: 3 });
            assert_eq!(
                done(agent, read).await,
                TaskOutcome::Console {
                    offset: 7,
                    data: "bGxv".to_owned(),
                }
            );
        }
    });
    assert_eq!(world.record().unwrap().generation, 1);
}
