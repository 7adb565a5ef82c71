//! What guests are given: on which drive, for how long, and where it must not be found.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use berth_agent_core::seed::SERIAL;
use berth_agent_host::fakes::{Fuse, GuestBehaviour};
use berth_api::agent::{
    FailureCode, ObservedState, RefusalCode, SignedEnvelope, StopMode, StoppedReason, TaskAction,
    TaskOutcome,
};
use berth_api::ids::{TaskId, VmId};
use berth_ledger::keys::SigningKey;

use super::world::{TestAgent, World, done, is_done, result, seed_of, state};

const USER_DATA: &str = "#!/bin/sh\ntouch /seeded\n";

/// Take a task with its guest's seed, and wait for its result.
async fn given(world: &World, agent: &TestAgent, (task_id, envelope): (TaskId, SignedEnvelope)) {
    let seed = seed_of(world, &envelope, USER_DATA);
    agent.take(&[envelope], &[seed]).await;
    assert!(is_done(&result(agent, task_id).await));
}

fn drive_holds(world: &World, text: &str) -> bool {
    let Some((disk, bytes)) = world.units.drive(world.vm_id, SERIAL) else {
        return false;
    };
    assert!(disk.read_only, "a guest must not write on it");
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

fn hard_stop() -> TaskAction {
    TaskAction::VmStop {
        mode: StopMode::Hard,
        timeout_s: 1,
    }
}

#[test]
fn a_guest_reads_what_it_is_given_on_a_drive_of_its_own_and_only_in_the_run_that_it_is_for() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
        assert!(drive_holds(&world, USER_DATA));
        assert!(drive_holds(&world, "v4.public.1"));

        assert!(is_done(&done(agent, world.task(2, hard_stop())).await));
        let stopped = ObservedState::Stopped {
            reason: StoppedReason::Requested,
        };
        state(agent, |s| *s == stopped).await;
        assert_eq!(world.store.names(), Vec::<String>::new());

        // Without anything to give there is no drive.
        assert!(is_done(
            &done(agent, world.task(3, TaskAction::VmStart {})).await
        ));
        assert_eq!(world.units.drive(world.vm_id, SERIAL), None);
        assert!(world.units.drive(world.vm_id, "root").is_some());

        assert!(is_done(
            &done(agent, world.task(4, TaskAction::VmDelete {})).await
        ));
    });
    world.assert_nothing_left();
}

#[test]
fn what_a_guest_is_given_is_in_no_file_of_the_host() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
        assert!(drive_holds(&world, "v4.public.1"));
    });
    let mut folders = vec![world.path("")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let content = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            for secret in ["v4.public", "/seeded"] {
                assert!(!content.contains(secret), "{}", path.display());
            }
        }
    }
    assert!(files > 0, "the host has files");
}

#[test]
fn a_guest_that_resets_under_the_next_agent_is_given_the_same_again() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
    });
    world.with_agent(&Fuse::whole(), async |agent| {
        world.units.reset(world.vm_id);
        state(agent, |s| *s == ObservedState::Running { pid: 2 }).await;
        assert!(drive_holds(&world, "v4.public.1"));
    });
}

#[test]
fn a_seed_that_the_controller_did_not_sign_or_that_is_another_tasks_is_given_to_nobody() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        let (create, envelope) = world.create();
        let mut forged = seed_of(&world, &envelope, USER_DATA);
        let thief = SigningKey::from_seed(&[66; 32]).unwrap();
        forged.signatures[0].keyid = thief.public().to_base64();
        let (_, other) = world.create();
        let others = seed_of(&world, &other, USER_DATA);
        agent.take(&[envelope], &[forged, others]).await;
        assert!(is_done(&result(agent, create).await));
        assert_eq!(world.units.drive(world.vm_id, SERIAL), None);
    });
}

#[test]
fn an_agent_that_dies_at_any_step_of_a_start_leaves_no_seed_behind_a_stopped_vm() {
    for step in 0..12 {
        for after_effect in [false, true] {
            let world = World::new(GuestBehaviour::Obedient);
            let (task_id, envelope) = world.create();
            let seed = seed_of(&world, &envelope, USER_DATA);
            let fuse = Fuse::burning_at(step, after_effect);
            world.with_agent(&fuse, async |agent| {
                agent
                    .take(std::slice::from_ref(&envelope), std::slice::from_ref(&seed))
                    .await;
                tokio::select! {
                    _ = result(agent, task_id) => {}
                    () = fuse.burnt() => {}
                }
            });
            world.with_agent(&Fuse::whole(), async |agent| {
                agent.take(&[envelope], &[seed]).await;
                assert!(is_done(&result(agent, task_id).await), "step {step}");
                assert!(drive_holds(&world, "v4.public.1"), "step {step}");
                assert!(is_done(
                    &done(agent, world.task(2, TaskAction::VmDelete {})).await
                ));
            });
            world.assert_nothing_left();
        }
    }
}

const EJECT: TaskAction = TaskAction::VmEjectSeed {};

/// How many descriptors of this process are of the medium of the one VM's guest.
fn holders(medium: &std::fs::Metadata) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_same = |path| {
        std::fs::metadata(path).is_ok_and(|it| (it.dev(), it.ino()) == (medium.dev(), medium.ino()))
    };
    open.filter(|entry| entry.as_ref().is_ok_and(|entry| is_same(entry.path())))
        .count()
}

/// Wait until the VMM was asked so often to take the medium out.
async fn asked(world: &World, times: u32) {
    while world.units.ejections(world.vm_id) < times {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world.units.ejections(world.vm_id), times);
}

fn runs(agent: &TestAgent) -> bool {
    matches!(agent.report().vms[0].state, ObservedState::Running { .. })
}

#[test]
fn a_guest_that_is_set_up_has_its_drive_taken_away_and_no_reset_brings_it_back() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
        let medium = world.units.medium(world.vm_id, SERIAL).unwrap();
        // The agent's, the service manager's and the VMM's.
        assert_eq!(holders(&medium), 3);
        let eject = world.task(1, EJECT);
        assert!(is_done(&done(agent, eject.clone()).await));
        assert_eq!(world.units.drive(world.vm_id, SERIAL), None);
        assert_eq!(holders(&medium), 0, "somebody still has it");
        assert!(runs(agent) && world.units.launches() == 1);
        assert_eq!(world.store.names().len(), 1, "but for the socket");

        // Told again, by the same task or by another one.
        agent.acknowledge(&[eject.0], &[]);
        assert!(is_done(&done(agent, eject).await));
        assert!(is_done(&done(agent, world.task(1, EJECT)).await));
        asked(&world, 3).await;

        world.units.reset(world.vm_id);
        state(agent, |s| *s == ObservedState::Running { pid: 2 }).await;
        assert_eq!(world.units.drive(world.vm_id, SERIAL), None);
        // The VMM has no such drive any more, which is as good.
        assert!(is_done(&done(agent, world.task(1, EJECT)).await));
        assert!(runs(agent));
    });
    world.with_agent(&Fuse::whole(), async |agent| {
        world.units.reset(world.vm_id);
        state(agent, |s| *s == ObservedState::Running { pid: 3 }).await;
        assert_eq!(world.units.drive(world.vm_id, SERIAL), None);
        assert!(is_done(
            &done(agent, world.task(2, TaskAction::VmDelete {})).await
        ));
    });
    world.assert_nothing_left();
}

#[test]
fn only_the_run_that_was_set_up_loses_its_drive() {
    let world = World::new(GuestBehaviour::Obedient);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
        assert!(is_done(&done(agent, world.task(2, hard_stop())).await));
        given(&world, agent, world.task(3, TaskAction::VmStart {})).await;
        let refused = done(agent, world.task(1, EJECT)).await;
        let TaskOutcome::Refused { code, .. } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(code, RefusalCode::OldGeneration);
        // Of a run whose start has not come yet nothing can be said: the task will come again.
        let (early, envelope) = world.task(5, EJECT);
        agent.take(&[envelope], &[]).await;
        // A stranger's VM is nobody's business.
        let (_, theirs) = world.task_with(3, EJECT, |task| {
            task.tenant_id = "mallory".parse().unwrap();
        });
        agent.take(&[theirs], &[]).await;
        let console = TaskAction::VmConsoleRead { tail_bytes: 1 };
        done(agent, world.task(3, console)).await;
        let report = agent.report();
        assert!(report.results.iter().all(|it| it.task_id != early));
        assert!(drive_holds(&world, "v4.public.3"));
        asked(&world, 0).await;
    });
}

#[test]
fn an_agent_that_dies_at_any_step_of_taking_a_drive_away_is_followed_by_one_that_does_it() {
    for step in 0..4 {
        for after_effect in [false, true] {
            for resets in [false, true] {
                let world = World::new(GuestBehaviour::Obedient);
                world.with_agent(&Fuse::whole(), async |agent| {
                    given(&world, agent, world.create()).await;
                });
                let medium = world.units.medium(world.vm_id, SERIAL).unwrap();
                let (task_id, envelope) = world.task(1, EJECT);
                let fuse = Fuse::burning_at(step, after_effect);
                world.with_agent(&fuse, async |agent| {
                    agent.take(std::slice::from_ref(&envelope), &[]).await;
                    tokio::select! {
                        _ = result(agent, task_id) => {}
                        () = fuse.burnt() => {}
                    }
                });
                if resets {
                    world.units.reset(world.vm_id);
                }
                world.with_agent(&Fuse::whole(), async |agent| {
                    let pid = if resets { 2 } else { 1 };
                    state(agent, |s| *s == ObservedState::Running { pid }).await;
                    agent.take(&[envelope], &[]).await;
                    assert!(is_done(&result(agent, task_id).await), "step {step}");
                    assert_eq!(world.units.drive(world.vm_id, SERIAL), None);
                    assert_eq!(holders(&medium), 0, "step {step}");
                    assert!(runs(agent));
                });
            }
        }
    }
}

#[test]
fn a_vmm_that_does_not_know_how_keeps_the_drive_and_the_vm_goes_on() {
    let world = World::new(GuestBehaviour::UnderOldVmm);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
        let kept = done(agent, world.task(1, EJECT)).await;
        let TaskOutcome::Failed { code, message } = kept else {
            panic!("{kept:?}");
        };
        assert_eq!(code, FailureCode::VmmRefused);
        assert!(message.contains("release"), "{message}");
        assert!(runs(agent) && drive_holds(&world, "v4.public.1"));
        // It is spoken to as before.
        let graceful = TaskAction::VmStop {
            mode: StopMode::Graceful,
            timeout_s: 20,
        };
        assert!(is_done(&done(agent, world.task(2, graceful)).await));
    });
}

#[test]
fn a_vmm_that_does_not_answer_is_asked_again_until_its_run_is_over() {
    let world = World::new(GuestBehaviour::UnderSilentVmm);
    world.with_agent(&Fuse::whole(), async |agent| {
        given(&world, agent, world.create()).await;
        let (task_id, envelope) = world.task(1, EJECT);
        for times in 1..3 {
            agent.take(std::slice::from_ref(&envelope), &[]).await;
            asked(&world, times).await;
        }
        let report = agent.report();
        assert!(report.results.iter().all(|it| it.task_id != task_id));
        world.units.kill(world.vm_id, 9);
        state(agent, |s| matches!(s, ObservedState::Failed { .. })).await;
        agent.take(&[envelope], &[]).await;
        assert!(is_done(&result(agent, task_id).await));

        let (task_id, envelope) = world.task_with(1, EJECT, |task| task.vm_id = VmId::generate());
        agent.take(&[envelope], &[]).await;
        let unknown = result(agent, task_id).await;
        assert!(
            matches!(
                unknown,
                TaskOutcome::Failed {
                    code: FailureCode::VmUnknown,
                    ..
                }
            ),
            "{unknown:?}"
        );
    });
}
