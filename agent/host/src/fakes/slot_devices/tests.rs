//! The fake host: what its devices keep, refuse, and write down.

use std::cell::Cell;
use std::io;

use berth_agent_core::slot::snapshot::HostUse;

use super::*;

const DRIVE: PciAddress = PciAddress {
    domain: 0,
    bus: 1,
    device: 0,
    function: 0,
};

#[derive(Default)]
struct Journal {
    notes: Vec<WipeRun>,
    cancel_after: Option<u32>,
    asked: Cell<u32>,
}

impl WipeJournal for Journal {
    fn note(&mut self, run: &WipeRun) -> io::Result<()> {
        self.notes.push(run.clone());
        Ok(())
    }

    fn progress(&mut self, _: u8, _: Option<u64>) {}

    fn is_cancelled(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.cancel_after
            .is_some_and(|after| self.asked.get() > after)
    }
}

fn host(fuse: Fuse) -> FakeSlotDevices {
    FakeSlotDevices::new([FakeDevice::nvme(DRIVE, 7, "S1")], fuse)
}

fn wipe(
    fake: &FakeSlotDevices,
    earlier: Option<&WipeRun>,
    journal: &mut Journal,
) -> Result<DeviceWipe, DeviceError> {
    let approved = FakeDevice::nvme(DRIVE, 7, "S1").approved();
    fake.wipe(&approved, DRIVE, &WipePolicy::default(), earlier, journal)
}

#[test]
fn a_drive_is_bound_opened_wiped_and_found_blank() {
    let fake = host(Fuse::whole());
    assert_eq!(fake.ensure_bound(DRIVE).unwrap(), "nvme -> vfio-pci");
    assert_eq!(fake.ensure_bound(DRIVE).unwrap(), "vfio-pci");
    fake.reset(&[DRIVE]).unwrap();
    let opened = fake.open_for_guest(&[DRIVE]).unwrap();
    assert_eq!(fake.users(DRIVE).unwrap(), [GUEST_PID]);
    fake.write_as_tenant(DRIVE, b"secret");
    drop(opened);
    assert_eq!(fake.users(DRIVE).unwrap(), Vec::<u32>::new());
    let mut journal = Journal::default();
    let wiped = wipe(&fake, None, &mut journal).unwrap();
    assert_eq!(wiped.method, journal.notes[0].method);
    assert_eq!(fake.contents(DRIVE), b"");
    assert_eq!(fake.breaches(), Vec::<String>::new());
}

#[test]
fn what_must_never_be_is_written_down() {
    let fake = host(Fuse::whole());
    fake.ensure_bound(DRIVE).unwrap();
    let opened = fake.open_for_guest(&[DRIVE]).unwrap();
    fake.reset(&[DRIVE]).unwrap_err();
    drop(opened);
    fake.write_as_tenant(DRIVE, b"secret");
    drop(fake.open_for_guest(&[DRIVE]).unwrap());
    fake.ensure_unbound(DRIVE, Some("nvme")).unwrap();
    assert_eq!(fake.breaches().len(), 3, "{:?}", fake.breaches());
}

#[test]
fn faults_have_their_codes_and_leave_nothing_half_done() {
    let fake = host(Fuse::whole());
    fake.device(DRIVE, |d| {
        d.function.uses.push(HostUse::Block {
            device: "nvme0n1".to_owned(),
            how: "mounted on /srv".to_owned(),
        });
    });
    let used = fake.ensure_bound(DRIVE).unwrap_err();
    assert_eq!(used.code, SlotProblemCode::DeviceInUse);
    fake.device(DRIVE, |d| d.function.uses.clear());
    fake.break_device(DRIVE, DeviceFault::BindFails);
    let refused = fake.ensure_bound(DRIVE).unwrap_err();
    assert_eq!(refused.code, SlotProblemCode::BindFailed);
    assert_eq!(fake.driver(DRIVE).as_deref(), Some("nvme"));
    fake.mend_device(DRIVE, DeviceFault::BindFails);
    fake.ensure_bound(DRIVE).unwrap();
    fake.break_device(DRIVE, DeviceFault::ResetFails);
    assert!(fake.reset(&[DRIVE]).unwrap_err().is_device_suspect);
    fake.unplug(DRIVE);
    let gone = fake.users(DRIVE).unwrap_err();
    assert_eq!(gone.code, SlotProblemCode::DeviceMissing);
}

#[test]
fn a_wipe_that_fails_lies_or_is_left_proves_nothing() {
    for fault in [
        DeviceFault::WipeFails,
        DeviceFault::WipeLies,
        DeviceFault::WipeStalls,
    ] {
        let fake = host(Fuse::whole());
        fake.ensure_bound(DRIVE).unwrap();
        fake.write_as_tenant(DRIVE, b"secret");
        fake.break_device(DRIVE, fault);
        let mut journal = Journal {
            cancel_after: Some(2),
            ..Journal::default()
        };
        let error = wipe(&fake, None, &mut journal).unwrap_err();
        assert_eq!(error.code, SlotProblemCode::WipeFailed);
        assert_eq!(error.is_device_suspect, fault != DeviceFault::WipeStalls);
        assert_eq!(fake.contents(DRIVE), b"secret", "{fault:?}");
    }
}

#[test]
fn an_agent_that_dies_anywhere_leaves_what_the_next_one_completes() {
    // Binding takes three steps and wiping two.
    for step in 0..5 {
        for after_effect in [false, true] {
            let fake = host(Fuse::burning_at(step, after_effect));
            let mut journal = Journal::default();
            let died = fake.ensure_bound(DRIVE).and_then(|_| {
                fake.write_as_tenant(DRIVE, b"secret");
                wipe(&fake, None, &mut journal)
            });
            died.unwrap_err();
            let next = fake.for_next_agent(Fuse::whole());
            next.ensure_bound(DRIVE).unwrap();
            let earlier = journal.notes.pop();
            wipe(&next, earlier.as_ref(), &mut journal).unwrap();
            assert_eq!(next.contents(DRIVE), b"");
        }
    }
}

#[test]
fn a_start_of_the_host_gives_early_bound_devices_to_vfio() {
    let fake = host(Fuse::whole());
    fake.ensure_bound(DRIVE).unwrap();
    fake.write_as_tenant(DRIVE, b"secret");
    fake.reboot();
    assert_eq!(fake.driver(DRIVE).as_deref(), Some(VFIO_PCI));
    assert_eq!(fake.breaches(), Vec::<String>::new());
    fake.device(DRIVE, |d| d.is_bound_early = false);
    fake.reboot();
    assert_eq!(fake.breaches().len(), 1);
}
