//! What guests are given: on which drive, for how long, and where it must not be found.

use berth_agent_core::seed::SERIAL;
use berth_agent_host::fakes::{Fuse, GuestBehaviour};
use berth_api::agent::{ObservedState, SignedEnvelope, StopMode, StoppedReason, TaskAction};
use berth_api::ids::TaskId;
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
