//! The lives of slots: given, kept, taken back, wiped, refused.

use berth_agent_host::fakes::{DeviceCall, DeviceFault, FakeDevice, Fuse, GuestBehaviour};
use berth_api::agent::{
    FailureCode, ObservedState, RefusalCode, SignedEnvelope, StopMode, StoppedReason, TaskAction,
    TaskOutcome,
};
use berth_api::ids::{NodeId, SlotId, TaskId, VmId};
use berth_api::slot::{Claim, SlotAction, SlotProblemCode, SlotState};

use super::slot_world::{DRIVE, GPU, OTHER_DRIVE, SlotWorld, kind, opened, slot, stands, until};
use super::world::{TestAgent, done, is_done, result, spec, state};

#[track_caller]
fn assert_unusable(outcome: &TaskOutcome, words: &str) {
    let TaskOutcome::Failed { code, message } = outcome else {
        panic!("{outcome:?} is no failure");
    };
    assert_eq!(*code, FailureCode::SlotUnusable, "{message}");
    assert!(message.contains(words), "{message}");
}

#[track_caller]
fn assert_refused(outcome: &TaskOutcome, expected: RefusalCode) {
    let TaskOutcome::Refused { code, .. } = outcome else {
        panic!("{outcome:?} is no refusal");
    };
    assert_eq!(*code, expected);
}

/// Both slots are free.
async fn free(agent: &TestAgent, world: &SlotWorld) {
    stands(agent, world.slot, SlotState::Free).await;
    stands(agent, world.other, SlotState::Free).await;
}

async fn succeeds(agent: &TestAgent, task: (TaskId, SignedEnvelope)) {
    let outcome = done(agent, task).await;
    assert!(is_done(&outcome), "{outcome:?}");
}

/// The creation of another tenant's VM.
fn another_vm(world: &SlotWorld, claims: Vec<Claim>) -> (TaskId, SignedEnvelope) {
    let spec = spec();
    let create = TaskAction::VmCreate { spec, claims };
    world.world.task_with(1, create, |task| {
        task.vm_id = VmId::generate();
        task.tenant_id = "other".parse().unwrap();
    })
}

async fn order(agent: &TestAgent, (task_id, task): (TaskId, SignedEnvelope)) -> TaskOutcome {
    agent.take_slot_tasks(&[task]);
    result(agent, task_id).await
}

fn quarantine() -> SlotAction {
    SlotAction::Quarantine {
        reason: "it is loud".to_owned(),
    }
}

#[test]
fn a_slot_is_given_used_taken_back_wiped_and_given_to_the_next() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let used = stands(agent, world.slot, SlotState::InUse).await;
        assert_eq!(used.holder.unwrap().vm_id, world.world.vm_id);
        assert_eq!(used.fencing_epoch, 1);
        world.world.devices.write_as_tenant(DRIVE, b"secret");
        world.world.devices.write_as_tenant(GPU, b"secret");

        succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
        let freed = stands(agent, world.slot, SlotState::Free).await;
        assert_eq!((freed.holder, freed.problem), (None, None));
        assert_eq!(world.world.devices.contents(DRIVE), b"");
        assert_eq!(world.world.devices.contents(GPU), b"");

        let next = another_vm(&world, vec![world.claim(world.slot, 2)]);
        succeeds(agent, next).await;
        stands(agent, world.slot, SlotState::InUse).await;
    });
    assert_eq!(
        world.told(world.slot),
        ["approval", "claim", "release", "wipe", "claim"]
    );
    world.assert_sound();
}

#[test]
fn a_stopped_vm_keeps_its_slot_which_is_reset_before_the_next_start() {
    let mut world = SlotWorld::new(GuestBehaviour::Obedient);
    let resets = |world: &SlotWorld| world.world.devices.device(DRIVE, |d| d.resets).unwrap();
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let before = resets(&world);
        let mode = StopMode::Hard;
        let stop = world
            .world
            .task(2, TaskAction::VmStop { mode, timeout_s: 1 });
        succeeds(agent, stop).await;
        stands(agent, world.slot, SlotState::Claimed).await;
        succeeds(agent, world.world.task(3, TaskAction::VmStart {})).await;
        stands(agent, world.slot, SlotState::InUse).await;
        assert!(resets(&world) > before);
    });
    world.world.units.reboot();
    world.world.devices.reboot();
    world.world.boot_id = "boot-2".to_owned();
    world.world.with_agent(&Fuse::whole(), async |agent| {
        let stopped = ObservedState::Stopped {
            reason: StoppedReason::HostReboot,
        };
        state(agent, |s| *s == stopped).await;
        stands(agent, world.slot, SlotState::Claimed).await;
        succeeds(agent, world.world.task(4, TaskAction::VmStart {})).await;
        stands(agent, world.slot, SlotState::InUse).await;
    });
    assert_eq!(world.told(world.slot), ["approval", "claim"]);
    world.assert_sound();
}

#[test]
fn nothing_is_done_to_a_device_while_a_process_has_it() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    let devices = &world.world.devices;
    let looked_for_users = || {
        let calls = devices.calls();
        let users = calls.iter().filter(|c| **c == DeviceCall::Users(DRIVE));
        users.count()
    };
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        devices.device(DRIVE, |device| device.foreign_users.push(77));
        let before = looked_for_users();
        succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
        until(|| looked_for_users() > before + 1).await;
        stands(agent, world.slot, SlotState::Releasing).await;
        devices.device(DRIVE, |device| device.foreign_users.clear());
        stands(agent, world.slot, SlotState::Free).await;
    });
    world.assert_sound();
}

#[test]
fn what_no_approval_names_is_refused_and_never_touched() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        let foreign = world.create(vec![world.claim(SlotId::generate(), 1)]);
        assert_refused(&done(agent, foreign).await, RefusalCode::Policy);
        let claim = world.claim(world.slot, 1);
        let twice = world.create(vec![claim.clone(), claim]);
        assert_refused(&done(agent, twice).await, RefusalCode::Policy);

        world.withdraw(world.slot);
        agent.look_at_slots().await;
        let withdrawn = stands(agent, world.slot, SlotState::Unapproved).await;
        assert_eq!(
            withdrawn.problem.unwrap().code,
            SlotProblemCode::SlotNotApproved
        );
        let outcome = done(agent, world.create_with_slot()).await;
        assert_unusable(&outcome, "slot_not_approved");
        world.approve(world.slot, "first", &[DRIVE, GPU]);
        agent.look_at_slots().await;
        stands(agent, world.slot, SlotState::Free).await;
    });
    assert_eq!(world.told(world.slot), ["approval"]);
    let calls = world.world.devices.calls();
    let touches = calls.iter().any(|call| {
        matches!(
            call,
            DeviceCall::Bind(_) | DeviceCall::Reset(_) | DeviceCall::Open(_)
        )
    });
    assert!(!touches, "{calls:?}");
}

#[test]
fn a_claim_that_is_old_or_of_a_slot_that_is_held_fails_and_disturbs_nobody() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create(vec![world.claim(world.slot, 5)])).await;
        let stale = another_vm(&world, vec![world.claim(world.slot, 5)]);
        assert_unusable(&done(agent, stale).await, "stale_claim");
        // The other slot of this VM is taken and given back, through a wipe.
        let claims = vec![world.claim(world.other, 1), world.claim(world.slot, 6)];
        let busy = another_vm(&world, claims);
        assert_unusable(&done(agent, busy).await, "slot_busy");
        stands(agent, world.other, SlotState::Free).await;
        let held = stands(agent, world.slot, SlotState::InUse).await;
        assert_eq!(held.holder.unwrap().vm_id, world.world.vm_id);
    });
    assert_eq!(world.told(world.slot), ["approval", "claim"]);
    assert_eq!(
        world.told(world.other),
        ["approval", "claim", "release", "wipe"]
    );
    world.assert_sound();
}

#[test]
fn a_claim_that_fails_before_anybody_had_the_devices_is_undone() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world
        .world
        .devices
        .device(DRIVE, |d| d.function.driver = Some("nvme".to_owned()));
    world
        .world
        .devices
        .break_device(GPU, DeviceFault::BindFails);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        let outcome = done(agent, world.create_with_slot()).await;
        assert_unusable(&outcome, "bind_failed");
        stands(agent, world.slot, SlotState::Free).await;
        assert_eq!(world.world.devices.driver(DRIVE).as_deref(), Some("nvme"));
        world.world.devices.mend_device(GPU, DeviceFault::BindFails);
        let again = another_vm(&world, vec![world.claim(world.slot, 2)]);
        succeeds(agent, again).await;
    });
    assert_eq!(world.told(world.slot), ["approval", "claim"]);
    world.assert_sound();
}

#[test]
fn a_device_that_no_reset_brings_back_is_given_to_nobody() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world
        .world
        .devices
        .break_device(DRIVE, DeviceFault::ResetFails);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        let outcome = done(agent, world.create_with_slot()).await;
        assert_unusable(&outcome, "reset_failed");
        let lost = stands(agent, world.slot, SlotState::Quarantined).await;
        assert_eq!(lost.problem.unwrap().code, SlotProblemCode::ResetFailed);
        assert_eq!(lost.holder, None);
    });
    world.world.with_agent(&Fuse::whole(), async |agent| {
        stands(agent, world.slot, SlotState::Quarantined).await;
    });
    world.assert_sound();
}

#[test]
fn another_drive_in_the_place_of_the_approved_one_is_not_given_away() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        // Nothing but the drive itself tells its serial number once vfio-pci has it.
        world.world.devices.plug(FakeDevice::nvme(DRIVE, 1, "S9"));
        let outcome = done(agent, world.create_with_slot()).await;
        assert_unusable(&outcome, "device_identity_changed");
        stands(agent, world.slot, SlotState::Quarantined).await;
    });
    world.assert_sound();
}

#[test]
fn a_drive_that_is_not_the_one_that_was_claimed_is_not_wiped_in_its_place() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let mut other = FakeDevice::nvme(DRIVE, 1, "S9");
        other.function.driver = Some("vfio-pci".to_owned());
        other.contents = b"somebody else's".to_vec();
        world.world.devices.plug(other);
        succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
        let lost = stands(agent, world.slot, SlotState::Quarantined).await;
        assert_eq!(
            lost.problem.unwrap().code,
            SlotProblemCode::DeviceIdentityChanged
        );
        assert_eq!(world.world.devices.contents(DRIVE), b"somebody else's");
    });
    world.assert_sound();
}

#[test]
fn a_wipe_that_fails_or_lies_frees_nothing_until_one_is_proved() {
    for fault in [DeviceFault::WipeFails, DeviceFault::WipeLies] {
        let world = SlotWorld::new(GuestBehaviour::Obedient);
        world.world.with_agent(&Fuse::whole(), async |agent| {
            free(agent, &world).await;
            succeeds(agent, world.create_with_slot()).await;
            world.world.devices.write_as_tenant(DRIVE, b"secret");
            world.world.devices.break_device(DRIVE, fault);
            succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
            let dirty = stands(agent, world.slot, SlotState::Quarantined).await;
            assert_eq!(dirty.problem.unwrap().code, SlotProblemCode::WipeFailed);
            let next = another_vm(&world, vec![world.claim(world.slot, 2)]);
            assert_unusable(&done(agent, next).await, "wipe_failed");

            let wipe = || world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
            assert_unusable(&order(agent, wipe()).await, "");
            world.world.devices.mend_device(DRIVE, fault);
            assert!(is_done(&order(agent, wipe()).await));
            stands(agent, world.slot, SlotState::Free).await;
            assert_eq!(world.world.devices.contents(DRIVE), b"");
        });
        world.assert_sound();
    }
}

#[test]
fn a_wipe_that_stalls_holds_up_nobody_else() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        world
            .world
            .devices
            .break_device(DRIVE, DeviceFault::WipeStalls);
        succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
        let wiping = stands(agent, world.slot, SlotState::Wiping).await;
        assert!(wiping.progress_percent.is_some());
        let other = another_vm(&world, vec![world.claim(world.other, 1)]);
        succeeds(agent, other).await;
        stands(agent, world.other, SlotState::InUse).await;
        stands(agent, world.slot, SlotState::Wiping).await;
        world
            .world
            .devices
            .mend_device(DRIVE, DeviceFault::WipeStalls);
        stands(agent, world.slot, SlotState::Free).await;
    });
    world.assert_sound();
}

#[test]
fn a_host_that_isolates_no_more_offers_nothing_and_comes_back_by_itself() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        world
            .world
            .devices
            .change_iommu(|iommu| iommu.unsafe_interrupts_allowed = Some(true));
        agent.look_at_slots().await;
        let unsafe_now = stands(agent, world.other, SlotState::Quarantined).await;
        assert_eq!(
            unsafe_now.problem.unwrap().code,
            SlotProblemCode::IommuGroupUnsafe
        );
        stands(agent, world.slot, SlotState::InUse).await;
        let next = another_vm(&world, vec![world.claim(world.other, 1)]);
        assert_unusable(&done(agent, next).await, "iommu_group_unsafe");
        // Who stops now does not start again on such a host, and keeps what is his.
        let mode = StopMode::Hard;
        let stop = world
            .world
            .task(2, TaskAction::VmStop { mode, timeout_s: 1 });
        succeeds(agent, stop).await;
        let start = world.world.task(3, TaskAction::VmStart {});
        assert_unusable(&done(agent, start).await, "iommu_group_unsafe");
        let kept = stands(agent, world.slot, SlotState::Quarantined).await;
        assert_eq!(kept.holder.unwrap().vm_id, world.world.vm_id);

        world
            .world
            .devices
            .change_iommu(|iommu| iommu.unsafe_interrupts_allowed = Some(false));
        agent.look_at_slots().await;
        stands(agent, world.other, SlotState::Free).await;
        stands(agent, world.slot, SlotState::Claimed).await;
        succeeds(agent, world.world.task(4, TaskAction::VmStart {})).await;
    });
    world.assert_sound();
}

#[test]
fn a_dirty_device_that_vfio_does_not_take_is_left_without_a_driver() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let mode = StopMode::Hard;
        let stop = world
            .world
            .task(2, TaskAction::VmStop { mode, timeout_s: 1 });
        succeeds(agent, stop).await;
        stands(agent, world.slot, SlotState::Claimed).await;
        let devices = &world.world.devices;
        devices.write_as_tenant(DRIVE, b"secret");
        devices.break_device(DRIVE, DeviceFault::BindFails);
        devices.device(DRIVE, |device| {
            device.function.driver_override = None;
            device.function.driver = Some("nvme".to_owned());
        });
        agent.look_at_slots().await;
        stands(agent, world.slot, SlotState::Quarantined).await;
        let left = DeviceCall::Unbind(DRIVE, None);
        until(|| devices.calls().contains(&left) && devices.driver(DRIVE).is_none()).await;
    });
    world.assert_sound();
}

#[test]
fn a_device_that_is_enumerated_anew_is_taken_from_the_host_at_once() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let mode = StopMode::Hard;
        let stop = world
            .world
            .task(2, TaskAction::VmStop { mode, timeout_s: 1 });
        succeeds(agent, stop).await;
        stands(agent, world.slot, SlotState::Claimed).await;
        world.world.devices.write_as_tenant(DRIVE, b"secret");
        world.world.devices.device(DRIVE, |device| {
            device.function.driver_override = None;
            device.function.driver = Some("nvme".to_owned());
        });
        agent.look_at_slots().await;
        let lost = stands(agent, world.slot, SlotState::Quarantined).await;
        assert_eq!(lost.problem.unwrap().code, SlotProblemCode::ForeignUser);
        until(|| world.world.devices.driver(DRIVE).as_deref() == Some("vfio-pci")).await;
        let start = world.world.task(3, TaskAction::VmStart {});
        assert_unusable(&done(agent, start).await, "foreign_user");
        succeeds(agent, world.world.task(4, TaskAction::VmDelete {})).await;
        slot(agent, world.slot, |slot| slot.holder.is_none()).await;
        let wipe = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        assert!(is_done(&order(agent, wipe).await));
        assert_eq!(world.world.devices.contents(DRIVE), b"");
    });
    world.assert_sound();
}

#[test]
fn a_free_slot_whose_device_vanishes_or_is_open_elsewhere_needs_a_wipe() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        let pulled = world.world.devices.unplug(DRIVE).unwrap();
        world
            .world
            .devices
            .device(OTHER_DRIVE, |d| d.foreign_users.push(77));
        agent.look_at_slots().await;
        let missing = stands(agent, world.slot, SlotState::Quarantined).await;
        assert_eq!(
            missing.problem.unwrap().code,
            SlotProblemCode::DeviceMissing
        );
        let foreign = stands(agent, world.other, SlotState::Quarantined).await;
        assert_eq!(foreign.problem.unwrap().code, SlotProblemCode::ForeignUser);
        world.world.devices.plug(pulled);
        agent.look_at_slots().await;
        let wipe = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        assert!(is_done(&order(agent, wipe).await));
        stands(agent, world.slot, SlotState::Free).await;
    });
    assert_eq!(world.told(world.slot), ["approval", "quarantine", "wipe"]);
    world.assert_sound();
}

#[test]
fn a_slot_in_use_is_never_wiped_and_goes_to_nobody_after_a_quarantine() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let wipe = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        assert_unusable(&order(agent, wipe).await, "a claim has the slot");
        let quarantine = world.slot_task(world.slot, quarantine(), |_| {});
        assert!(is_done(&order(agent, quarantine).await));
        stands(agent, world.slot, SlotState::Quarantined).await;
        state(agent, |s| matches!(s, ObservedState::Running { .. })).await;
        let wipe = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        assert_unusable(&order(agent, wipe).await, "delete the VM first");
        succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
        slot(agent, world.slot, |slot| slot.holder.is_none()).await;
        stands(agent, world.slot, SlotState::Quarantined).await;
        let wipe = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        assert!(is_done(&order(agent, wipe).await));
    });
    world.assert_sound();
}

#[test]
fn orders_that_must_not_be_obeyed_are_refused_and_change_nothing() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        let before = world.record(world.slot);
        let elsewhere =
            world.slot_task(world.slot, quarantine(), |t| t.node_id = NodeId::generate());
        assert_refused(&order(agent, elsewhere).await, RefusalCode::WrongNode);
        let late = world.slot_task(world.slot, quarantine(), |t| t.expires_at = 1);
        assert_refused(&order(agent, late).await, RefusalCode::ClockSkew);
        let fenced = world.slot_task(world.slot, quarantine(), |t| t.fencing_epoch = 0);
        assert_refused(&order(agent, fenced).await, RefusalCode::OldEpoch);
        let (task_id, mut forged) = world.slot_task(world.slot, quarantine(), |_| {});
        forged.signatures[0].sig = forged.signatures[0].keyid.clone();
        assert_refused(
            &order(agent, (task_id, forged)).await,
            RefusalCode::BadSignature,
        );
        let nowhere = world.slot_task(SlotId::generate(), quarantine(), |_| {});
        assert_unusable(&order(agent, nowhere).await, "is not on this host");
        assert_eq!(world.record(world.slot), before);
    });
}

#[test]
fn the_same_order_twice_has_one_result() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        let (task_id, task) = world.slot_task(world.slot, SlotAction::Wipe {}, |_| {});
        let first = order(agent, (task_id, task.clone())).await;
        agent.acknowledge(&[task_id], &[]);
        assert_eq!(order(agent, (task_id, task)).await, first);
    });
    assert_eq!(world.told(world.slot), ["approval", "wipe"]);
}

#[test]
fn receipts_are_reported_until_the_controller_has_them() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    let kinds = |agent: &TestAgent| -> Vec<_> {
        let report = agent.report();
        let receipts: Vec<_> = report.receipts.iter().map(opened).collect();
        receipts
            .iter()
            .filter(|receipt| receipt.slot_id == world.slot)
            .map(|receipt| (kind(receipt), receipt.receipt_id))
            .collect()
    };
    let ids = world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        kinds(agent)
    });
    world.world.with_agent(&Fuse::whole(), async |agent| {
        assert_eq!(kinds(agent), ids, "a new agent sends the very same");
        assert_eq!(ids.len(), 2);
        agent.acknowledge(&[], &[ids[0].1]);
        let mut news = agent.news();
        while kinds(agent).len() != 1 {
            news.changed().await.unwrap();
        }
        assert_eq!(kinds(agent), ids[1..]);
    });
    assert_eq!(world.told(world.slot), ["approval", "claim"]);
}

#[test]
fn a_device_that_was_left_dirty_is_not_freed_by_another_name() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    let renamed = SlotId::generate();
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        world.world.devices.write_as_tenant(DRIVE, b"secret");
        world
            .world
            .devices
            .break_device(DRIVE, DeviceFault::WipeFails);
        succeeds(agent, world.world.task(2, TaskAction::VmDelete {})).await;
        stands(agent, world.slot, SlotState::Quarantined).await;
        world.withdraw(world.slot);
        world.approve(renamed, "renamed", &[DRIVE]);
        agent.look_at_slots().await;
        let refused = stands(agent, renamed, SlotState::Unapproved).await;
        let message = refused.problem.unwrap().message;
        assert!(message.contains("wipe that one first"), "{message}");
    });
    world.assert_sound();
}

#[test]
fn a_slot_whose_vm_is_gone_is_taken_back_by_the_next_agent() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        succeeds(agent, world.create_with_slot()).await;
        world.world.devices.write_as_tenant(DRIVE, b"secret");
    });
    world.world.units.reboot();
    std::fs::remove_dir_all(world.world.path("vms")).unwrap();
    world.world.with_agent(&Fuse::whole(), async |agent| {
        stands(agent, world.slot, SlotState::Free).await;
    });
    assert_eq!(world.world.devices.contents(DRIVE), b"");
    world.assert_sound();
}

#[test]
fn all_slots_of_a_host_are_wiped_side_by_side() {
    let world = SlotWorld::new(GuestBehaviour::Obedient);
    world.world.with_agent(&Fuse::whole(), async |agent| {
        free(agent, &world).await;
        let all = [DRIVE, GPU, OTHER_DRIVE];
        for device in all {
            let devices = &world.world.devices;
            devices.break_device(device, DeviceFault::WipeStalls);
        }
        for slot_id in [world.slot, world.other] {
            let (_, wipe) = world.slot_task(slot_id, SlotAction::Wipe {}, |_| {});
            assert_eq!(agent.take_slot_tasks(&[wipe]), 1);
        }
        let is_wiped = |at| world.world.devices.device(at, |d| d.unfinished_wipe);
        until(|| all.iter().all(|device| is_wiped(*device) == Some(true))).await;
        for device in all {
            let devices = &world.world.devices;
            devices.mend_device(device, DeviceFault::WipeStalls);
        }
        free(agent, &world).await;
    });
    world.assert_sound();
}
