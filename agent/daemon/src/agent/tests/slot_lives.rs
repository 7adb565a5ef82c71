//! The lives of slots: given, kept, taken back, wiped, refused.

use std::sync::Arc;

use berth_agent_host::fakes::{DeviceCall, DeviceFault, FakeDevice, Fuse, GuestBehaviour};
use berth_api::agent::{
    FailureCode, ObservedState, RefusalCode, StopMode, StoppedReason, TaskAction, TaskOutcome,
};
use berth_api::ids::{NodeId, SlotId};
use berth_api::slot::{SlotAction, SlotProblemCode, SlotState, Statement};

use super::slot_world::{DRIVE, GPU, OTHER_DRIVE, SlotWorld, opened, slot, stands};
use super::world::{TestAgent, done, is_done, result, state};

#[track_caller]
fn assert_unusable(outcome: &TaskOutcome, words: &str) {
    let TaskOutcome::Failed { code, message } = outcome else {
        panic!("{outcome:?} is no failure");
    };
    assert_eq!(*code, FailureCode::SlotUnusable, "{message}");
    assert!(message.contains(words), "{message}");
}

async fn free(agent: &TestAgent, world: &SlotWorld) {
    stands(agent, world.slot, SlotState::Free).await;
    stands(agent, world.other, SlotState::Free).await;
}

#[test]
fn a_slot_is_given_used_taken_back_wiped_and_given_to_the_next() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        assert!(is_done(&done(agent, world.create_with_slot()).await));
        let used = stands(agent, world.slot, SlotState::InUse).await;
        assert_eq!(used.holder.unwrap().vm_id, world.world.vm_id);
        assert_eq!(used.fencing_epoch, 1);
        world.world.devices.write_as_tenant(DRIVE, b"secret");
        world.world.devices.write_as_tenant(GPU, b"secret");

        let delete = world.world.task(2, TaskAction::VmDelete {});
        assert!(is_done(&done(agent, delete).await));
        let freed = stands(agent, world.slot, SlotState::Free).await;
        assert_eq!((freed.holder, freed.problem), (None, None));
        assert_eq!(world.world.devices.contents(DRIVE), b"");
        assert_eq!(world.world.devices.contents(GPU), b"");

        let next = world.create(vec![world.claim(world.slot, 2)]);
        let next = world.world.task_with(
            1,
            TaskAction::VmCreate {
                spec: super::world::spec(),
                claims: vec![world.claim(world.slot, 2)],
            },
            |task| {
                let _unused = next;
                task.vm_id = berth_api::ids::VmId::generate();
                task.tenant_id = "other".parse().unwrap();
            },
        );
        assert!(is_done(&done(agent, next).await));
        stands(agent, world.slot, SlotState::InUse).await;
    });
    assert_eq!(
        world.told(world.slot),
        ["approval", "claim", "release", "wipe", "claim"]
    );
    world.assert_sound();
}
