//! An agent that dies before and after each of its steps while a slot is given or taken back, with the
//! host going down at that moment or not: the next agent brings the slot where it should be, and none
//! is free without a receipt.

use berth_agent_host::fakes::{Fuse, GuestBehaviour};
use berth_api::agent::{ObservedState, SignedEnvelope, StoppedReason, TaskAction};
use berth_api::ids::TaskId;
use berth_api::slot::{SlotAction, SlotProblemCode, SlotState};

use super::slot_world::{DRIVE, GPU, SlotWorld, stands, until};
use super::world::{TestAgent, done, is_done, result, state};

/// More steps than any of these has.
const MANY: u32 = 200;

/// What becomes of the host when its agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    GoesOn,
    StartsAnew,
}

/// Kill an agent at each step of what `act` does; `converge` is what the next agent has to come to.
fn at_each_step(
    host: Host,
    prepare: impl Fn(&SlotWorld),
    order: impl Fn(&SlotWorld) -> (TaskId, SignedEnvelope),
    act: impl AsyncFn(&TestAgent, &SlotWorld, TaskId, SignedEnvelope),
    converge: impl AsyncFn(&TestAgent, &SlotWorld, TaskId, SignedEnvelope),
) -> u32 {
    let mut steps = 0;
    for after_effect in [false, true] {
        let survived = (0..MANY).find(|step| {
            let mut world = SlotWorld::new(GuestBehaviour::Obedient);
            prepare(&world);
            let (task_id, envelope) = order(&world);
            let fuse = Fuse::burning_at(*step, after_effect);
            world.world.with_agent(&fuse, async |agent| {
                tokio::select! {
                    () = fuse.burnt() => {}
                    () = act(agent, &world, task_id, envelope.clone()) => {}
                }
            });
            if host == Host::StartsAnew {
                world.world.units.reboot();
                world.world.devices.reboot();
                world.world.boot_id = "boot-2".to_owned();
            }
            world.world.with_agent(&Fuse::whole(), async |agent| {
                converge(agent, &world, task_id, envelope.clone()).await;
            });
            world.assert_sound();
            !fuse.is_burnt()
        });
        steps = survived.expect("it has fewer steps");
    }
    steps
}

fn settled(world: &SlotWorld) {
    world.world.with_agent(&Fuse::whole(), async |agent| {
        stands(agent, world.slot, SlotState::Free).await;
        stands(agent, world.other, SlotState::Free).await;
    });
}

fn in_use(world: &SlotWorld) {
    settled(world);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, world.create_with_slot()).await));
        stands(agent, world.slot, SlotState::InUse).await;
    });
    world.world.devices.write_as_tenant(DRIVE, b"secret");
    world.world.devices.write_as_tenant(GPU, b"secret");
}

/// Do a task, which must succeed.
async fn succeeds(agent: &TestAgent, task: (TaskId, SignedEnvelope)) {
    let outcome = done(agent, task).await;
    assert!(is_done(&outcome), "{outcome:?}");
}

fn delete(world: &SlotWorld) -> (TaskId, SignedEnvelope) {
    world.world.task(9, TaskAction::VmDelete {})
}

/// What is asked of the agent that dies; what it answers is nobody's concern.
async fn create_and_wait(
    agent: &TestAgent,
    world: &SlotWorld,
    task_id: TaskId,
    envelope: SignedEnvelope,
) {
    done(agent, (task_id, envelope)).await;
    stands(agent, world.slot, SlotState::InUse).await;
}

async fn delete_and_wait(
    agent: &TestAgent,
    world: &SlotWorld,
    task_id: TaskId,
    envelope: SignedEnvelope,
) {
    done(agent, (task_id, envelope)).await;
    stands(agent, world.slot, SlotState::Free).await;
}

/// The next agent finishes the deletion, and the slot is free, blank and with its receipt.
async fn freed(agent: &TestAgent, world: &SlotWorld, task_id: TaskId, envelope: SignedEnvelope) {
    succeeds(agent, (task_id, envelope)).await;
    stands(agent, world.slot, SlotState::Free).await;
    assert_eq!(world.world.devices.contents(DRIVE), b"");
    assert_eq!(world.world.devices.contents(GPU), b"");
    assert_eq!(
        world.told(world.slot),
        ["approval", "claim", "release", "wipe"]
    );
}

#[test]
fn a_claim_converges_wherever_its_agent_died() {
    let steps = at_each_step(
        Host::GoesOn,
        settled,
        SlotWorld::create_with_slot,
        create_and_wait,
        async |agent, world, task_id, envelope| {
            succeeds(agent, (task_id, envelope)).await;
            stands(agent, world.slot, SlotState::InUse).await;
            let (task_id, envelope) = delete(world);
            freed(agent, world, task_id, envelope).await;
        },
    );
    // Each journaled step of a claim is among them: eight steps of the plan and four phases.
    assert!(steps >= 12, "only {steps} steps were seen");
}

#[test]
fn a_claim_converges_wherever_its_host_went_down() {
    at_each_step(
        Host::StartsAnew,
        settled,
        SlotWorld::create_with_slot,
        create_and_wait,
        async |agent, world, task_id, envelope| {
            succeeds(agent, (task_id, envelope)).await;
            let settled = state(agent, |s| *s != ObservedState::Changing).await;
            if let ObservedState::Stopped { reason } = settled {
                assert_eq!(reason, StoppedReason::HostReboot);
                stands(agent, world.slot, SlotState::Claimed).await;
            }
            let (task_id, envelope) = delete(world);
            freed(agent, world, task_id, envelope).await;
        },
    );
}

#[test]
fn a_release_converges_wherever_its_agent_died() {
    let steps = at_each_step(Host::GoesOn, in_use, delete, delete_and_wait, freed);
    // Release, wipe and verification: fifteen steps of their plans, two notes, five phases.
    assert!(steps >= 22, "only {steps} steps were seen");
}

#[test]
fn a_release_converges_wherever_its_host_went_down() {
    at_each_step(Host::StartsAnew, in_use, delete, delete_and_wait, freed);
}

#[test]
fn a_wipe_that_an_operator_wants_has_one_result_wherever_its_agent_died() {
    let wipe = |world: &SlotWorld| world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
    let ordered = async |agent: &TestAgent, world: &SlotWorld, task_id, envelope| {
        agent.take_slot_tasks(&[envelope]);
        result(agent, task_id).await;
        stands(agent, world.slot, SlotState::Free).await;
    };
    let has_one_result = async |agent: &TestAgent, world: &SlotWorld, task_id, envelope| {
        agent.take_slot_tasks(&[envelope]);
        assert!(is_done(&result(agent, task_id).await));
        stands(agent, world.slot, SlotState::Free).await;
        assert_eq!(world.told(world.slot), ["approval", "wipe"]);
    };
    at_each_step(Host::GoesOn, settled, wipe, ordered, has_one_result);
}

#[test]
fn an_approval_is_stated_wherever_the_first_agent_died() {
    for after_effect in [false, true] {
        let survived = (0..MANY).find(|step| {
            let world = SlotWorld::new(GuestBehaviour::Obedient);
            let fuse = Fuse::burning_at(*step, after_effect);
            world.world.with_agent(&fuse, async |agent| {
                tokio::select! {
                    () = fuse.burnt() => {}
                    _ = stands(agent, world.slot, SlotState::Free) => {}
                }
            });
            world.world.with_agent(&Fuse::whole(), async |agent| {
                stands(agent, world.slot, SlotState::Free).await;
                // The record that says so holds the receipt; its file may have been left to this agent.
                until(|| world.has_receipt_file(world.slot)).await;
            });
            assert_eq!(world.told(world.slot), ["approval"]);
            !fuse.is_burnt()
        });
        assert!(survived.expect("it has fewer steps") >= 2);
    }
}

#[test]
fn a_wipe_that_was_cut_off_is_continued_by_what_was_noted() {
    use berth_agent_host::fakes::{DeviceCall, DeviceFault};
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    in_use(&world);
    world
        .world
        .devices
        .break_device(DRIVE, DeviceFault::WipeStalls);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, delete(&world)).await));
        stands(agent, world.slot, SlotState::Wiping).await;
        let begun = || {
            let stalls = |d: &mut berth_agent_host::fakes::FakeDevice| d.unfinished_wipe;
            world.world.devices.device(DRIVE, stalls) == Some(true)
        };
        until(begun).await;
    });
    world
        .world
        .devices
        .mend_device(DRIVE, DeviceFault::WipeStalls);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        stands(agent, world.slot, SlotState::Free).await;
    });
    let calls = world.world.devices.calls();
    assert!(calls.contains(&DeviceCall::Wipe(DRIVE, true)), "{calls:?}");
    world.assert_sound();
}

#[test]
fn a_record_that_is_lost_frees_nothing_by_itself() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    in_use(&world);
    let record = world.world.path("slots").join(world.slot.bare());
    std::fs::write(record.join("record.json"), b"{").unwrap();
    for _ in 0..2 {
        world.world.with_agent(&Fuse::whole(), async |agent| {
            let lost = stands(agent, world.slot, SlotState::Quarantined).await;
            assert_eq!(lost.problem.unwrap().code, SlotProblemCode::RecordLost);
        });
    }
    world.world.with_agent(&Fuse::whole(), async |agent| {
        assert!(is_done(&done(agent, delete(&world)).await));
        let (task_id, wipe) = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        agent.take_slot_tasks(&[wipe]);
        assert!(is_done(&result(agent, task_id).await));
    });
    assert_eq!(world.world.devices.contents(DRIVE), b"");
    assert_eq!(world.world.devices.breaches(), Vec::<String>::new());
}
