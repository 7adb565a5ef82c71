//! F1: an agent killed before and after each of its steps, for each kind of task. Whatever the step
//! was, the next agent brings the task to its one result and leaves nothing behind.

use std::cell::Cell;

use berth_agent_core::phase::Phase;
use berth_agent_host::fakes::{Fuse, GuestBehaviour};
use berth_api::agent::{
    FailureCode, ObservedState, SignedEnvelope, StopMode, TaskAction, TaskOutcome,
};
use berth_api::ids::TaskId;

use super::world::{World, done, is_done, result, state};

/// More steps than any task has.
const MANY: u32 = 60;

/// Kill an agent at each step of a task. `prepare` brings the host into the state before it, `check`
/// sees its outcome and the host after it.
fn at_each_step(
    behaviour: GuestBehaviour,
    prepare: impl Fn(&World),
    task: impl Fn(&World) -> (TaskId, SignedEnvelope),
    check: impl Fn(&World, &TaskOutcome),
) {
    for after_effect in [false, true] {
        let survived = (0..MANY).find(|step| {
            let world = World::new(behaviour);
            prepare(&world);
            let (task_id, envelope) = task(&world);
            let fuse = Fuse::burning_at(*step, after_effect);
            world.with_agent(&fuse, async |agent| {
                tokio::select! {
                    () = fuse.burnt() => {}
                    _ = done(agent, (task_id, envelope.clone())) => {}
                }
            });
            // The controller has no answer and sends the task again, or asks for the answer.
            let outcome = world.with_agent(&Fuse::whole(), async |agent| {
                done(agent, (task_id, envelope.clone())).await
            });
            check(&world, &outcome);
            let again = world.with_agent(&Fuse::whole(), async |agent| {
                agent.take(std::slice::from_ref(&envelope), &[]).await;
                result(agent, task_id).await
            });
            assert_eq!(again, outcome, "the same task has one result");
            !fuse.is_burnt()
        });
        let steps = survived.expect("a task has fewer steps");
        // Acceptance and end are written down at least; the task may be over before its last effects.
        assert!(steps >= 2, "only {steps} steps were seen");
    }
}

fn running(world: &World) {
    let outcome = world.with_agent(&Fuse::whole(), async |agent| {
        done(agent, world.create()).await
    });
    assert!(is_done(&outcome), "{outcome:?}");
}

fn deleted(world: &World, generation: u64) {
    let delete = world.task(generation, TaskAction::VmDelete {});
    let outcome = world.with_agent(&Fuse::whole(), async |agent| done(agent, delete).await);
    assert!(is_done(&outcome), "{outcome:?}");
    world.assert_nothing_left();
}

#[test]
fn a_create_converges_wherever_its_agent_died() {
    at_each_step(
        GuestBehaviour::Obedient,
        |_| {},
        World::create,
        |world, outcome| {
            assert!(is_done(outcome), "{outcome:?}");
            deleted(world, 9);
        },
    );
}

#[test]
fn a_refused_create_is_undone_wherever_its_agent_died() {
    at_each_step(
        GuestBehaviour::Refused,
        |_| {},
        World::create,
        |world, outcome| {
            let TaskOutcome::Failed { code, .. } = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(*code, FailureCode::VmmRefused);
            world.assert_nothing_left();
        },
    );
}

#[test]
fn a_delete_converges_wherever_its_agent_died() {
    at_each_step(
        GuestBehaviour::Deaf,
        running,
        |world| world.task(2, TaskAction::VmDelete {}),
        |world, outcome| {
            assert!(is_done(outcome), "{outcome:?}");
            world.assert_nothing_left();
        },
    );
}

#[test]
fn a_stop_converges_wherever_its_agent_died() {
    for (behaviour, mode) in [
        (GuestBehaviour::Obedient, StopMode::Graceful),
        (GuestBehaviour::Deaf, StopMode::Graceful),
        (GuestBehaviour::Deaf, StopMode::Hard),
    ] {
        let timeout_s = if behaviour == GuestBehaviour::Deaf {
            0
        } else {
            30
        };
        at_each_step(
            behaviour,
            running,
            |world| world.task(2, TaskAction::VmStop { mode, timeout_s }),
            |world, outcome| {
                assert!(is_done(outcome), "{outcome:?}");
                deleted(world, 9);
            },
        );
    }
}

#[test]
fn a_start_converges_wherever_its_agent_died() {
    at_each_step(
        GuestBehaviour::Deaf,
        |world| {
            running(world);
            let mode = StopMode::Hard;
            let stop = world.task(2, TaskAction::VmStop { mode, timeout_s: 0 });
            let outcome = world.with_agent(&Fuse::whole(), async |agent| done(agent, stop).await);
            assert!(is_done(&outcome), "{outcome:?}");
        },
        |world| world.task(3, TaskAction::VmStart {}),
        |world, outcome| {
            assert!(is_done(outcome), "{outcome:?}");
            deleted(world, 9);
        },
    );
}

/// Bring a deaf guest into a graceful stop that lasts; the task that waits for it.
fn stopping(world: &World) -> TaskId {
    running(world);
    let mode = StopMode::Graceful;
    let (task_id, envelope) = world.task(
        2,
        TaskAction::VmStop {
            mode,
            timeout_s: 3600,
        },
    );
    world.with_agent(&Fuse::whole(), async |agent| {
        agent.take(&[envelope], &[]).await;
        state(agent, |state| *state == ObservedState::Changing).await;
    });
    task_id
}

#[track_caller]
fn assert_overtaken_once(world: &World, task_id: TaskId) {
    let record = world.record().unwrap();
    let ends: Vec<_> = record
        .results
        .iter()
        .filter(|recorded| recorded.result.task_id == task_id)
        .map(|recorded| &recorded.result.outcome)
        .collect();
    assert!(
        matches!(
            ends[..],
            [TaskOutcome::Failed {
                code: FailureCode::Overtaken,
                ..
            }]
        ),
        "{ends:?}"
    );
}

#[test]
fn a_slow_stop_is_overtaken_once_wherever_its_agent_died() {
    let slow = Cell::new(TaskId::generate());
    let hard = TaskAction::VmStop {
        mode: StopMode::Hard,
        timeout_s: 30,
    };
    for action in [hard, TaskAction::VmDelete {}] {
        at_each_step(
            GuestBehaviour::Deaf,
            |world| slow.set(stopping(world)),
            |world| world.task(3, action.clone()),
            |world, outcome| {
                assert!(is_done(outcome), "{outcome:?}");
                assert_overtaken_once(world, slow.get());
                if action != (TaskAction::VmDelete {}) {
                    let phase = world.record().unwrap().phase;
                    assert!(matches!(phase, Phase::Stopped { .. }), "{phase:?}");
                    deleted(world, 9);
                }
                world.assert_nothing_left();
            },
        );
    }
}
