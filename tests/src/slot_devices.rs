//! What every implementation of `SlotDevices` must do: one suite for the fake and for real devices on a
//! lab node.
//!
//! Owns the cases. Whether the host saw a device, or what is left in a drive's file, is looked at from
//! outside, by those who made the device.

use std::cell::Cell;
use std::io;

use anyhow::{Context as _, Result, bail, ensure};
use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_agent_host::slot_devices::{DeviceError, SlotDevices, VFIO_PCI};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceKind, SlotProblemCode, serial_kind};

/// The devices that take part: all of one slot, each where it was approved.
#[derive(Debug, Clone)]
pub struct Cast {
    /// The slot's devices.
    pub devices: Vec<ApprovedDevice>,
    /// Where no device is.
    pub absent: PciAddress,
}

impl Cast {
    fn addresses(&self) -> Vec<PciAddress> {
        self.devices.iter().map(|device| device.address).collect()
    }
}

/// One thing that an implementation must do.
#[derive(Debug)]
pub struct Case {
    /// What, as a sentence.
    pub name: &'static str,
    run: fn(&dyn SlotDevices, &Cast) -> Result<String>,
}

impl Case {
    /// Look whether it does; returns what was found, in words.
    ///
    /// # Errors
    /// If it does not.
    pub fn run(&self, devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
        (self.run)(devices, cast).context(self.name)
    }
}

/// Cases that leave the devices' contents alone. They begin with binding.
pub const HARMLESS: &[Case] = &[
    Case {
        name: "a device that is not there is missing",
        run: absent,
    },
    Case {
        name: "binding is told and can be repeated",
        run: binding,
    },
    Case {
        name: "a drive says who it is",
        run: identity,
    },
    Case {
        name: "a slot is reset as a whole and device by device",
        run: resets,
    },
    Case {
        name: "an open slot is nobody else's until it is closed",
        run: exclusion,
    },
    Case {
        name: "a wipe that is not allowed, not noted or not wanted any more does nothing",
        run: refused_wipes,
    },
];

/// Cases that wipe the devices.
pub const WIPING: &[Case] = &[
    Case {
        name: "a wipe is noted first and proves itself, also after an earlier one",
        run: wipes,
    },
    Case {
        name: "a device can be left without a driver and bound again",
        run: driverless,
    },
];

/// A journal that keeps what it is told.
#[derive(Debug, Default)]
pub struct Journal {
    /// The runs.
    pub notes: Vec<WipeRun>,
    /// The percentages.
    pub progress: Vec<u8>,
    /// Whether nothing can be noted.
    pub is_full: bool,
    /// After how many questions the agent is about to end.
    pub cancel_after: Option<u32>,
    asked: Cell<u32>,
}

impl WipeJournal for Journal {
    fn note(&mut self, run: &WipeRun) -> io::Result<()> {
        if self.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.notes.push(run.clone());
        Ok(())
    }

    fn progress(&mut self, percent: u8, _: Option<u64>) {
        self.progress.push(percent);
    }

    fn is_cancelled(&self) -> bool {
        let asked = self.asked.get();
        self.asked.set(asked.saturating_add(1));
        self.cancel_after.is_some_and(|after| asked >= after)
    }
}

fn refused<T: std::fmt::Debug>(
    what: &str,
    answer: Result<T, DeviceError>,
    code: SlotProblemCode,
) -> Result<DeviceError> {
    match answer {
        Ok(done) => bail!("{what} was done: {done:?}"),
        Err(error) if error.code == code => Ok(error),
        Err(error) => bail!("{what}: {:?}, not {code:?}: {error}", error.code),
    }
}

fn absent(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let missing = SlotProblemCode::DeviceMissing;
    let error = refused("binding", devices.ensure_bound(cast.absent), missing)?;
    refused("reset", devices.reset(&[cast.absent]), missing)?;
    Ok(error.message)
}

fn binding(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let mut told = Vec::new();
    for at in cast.addresses() {
        let found = devices.ensure_bound(at)?;
        ensure!(found.ends_with(VFIO_PCI), "{at} was bound as `{found}`");
        let again = devices.ensure_bound(at)?;
        ensure!(again == VFIO_PCI, "{at} was bound again as `{again}`");
        told.push(format!("{at}: {found}"));
    }
    Ok(told.join("; "))
}

fn identity(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let mut told = Vec::new();
    for device in &cast.devices {
        let said = devices.identify(device, device.address)?;
        if device.kind == DeviceKind::Nvme {
            for name in [serial_kind::NVME_SERIAL, serial_kind::NVME_MODEL] {
                let approved = device.identity.serials.get(name);
                ensure!(
                    approved.is_some() && said.get(name) == approved,
                    "{}: {name} is {:?}, approved is {approved:?}",
                    device.address,
                    said.get(name)
                );
            }
        }
        told.push(format!("{}: {said:?}", device.address));
    }
    Ok(told.join("; "))
}

fn resets(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let all = devices.reset(&cast.addresses())?;
    for at in cast.addresses() {
        devices.reset(&[at])?;
    }
    Ok(all)
}

fn exclusion(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let addresses = cast.addresses();
    let opened = devices.open_for_guest(&addresses)?;
    ensure!(
        opened.devices.len() == addresses.len(),
        "{} devices were opened",
        opened.devices.len()
    );
    for (address, group) in &opened.devices {
        ensure!(
            opened.groups.contains_key(group),
            "{address} is in group {group}, which is not there"
        );
    }
    let foreign = SlotProblemCode::ForeignUser;
    refused(
        "a second opening",
        devices.open_for_guest(&addresses),
        foreign,
    )?;
    let error = refused("a reset", devices.reset(&addresses), foreign)?;
    for device in &cast.devices {
        let unbound = devices.ensure_unbound(device.address, None);
        refused("taking it from vfio-pci", unbound, foreign)?;
        let policy = WipePolicy::default();
        let mut journal = Journal::default();
        let wiped = devices.wipe(device, device.address, &policy, None, &mut journal);
        refused("a wipe", wiped, foreign)?;
        ensure!(
            journal.notes.is_empty(),
            "a wipe of an open device was noted"
        );
    }
    drop(opened);
    for &address in &addresses {
        let users = devices.users(address)?;
        ensure!(users.is_empty(), "{address} still has {users:?}");
    }
    devices.reset(&addresses)?;
    Ok(error.message)
}

fn refused_wipes(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let mut told = Vec::new();
    for device in &cast.devices {
        let at = device.address;
        let failed = SlotProblemCode::WipeFailed;
        let mut journal = Journal::default();
        let nothing = WipePolicy {
            methods: Vec::new(),
            ..WipePolicy::default()
        };
        let wiped = devices.wipe(device, at, &nothing, None, &mut journal);
        let error = refused("a wipe by no method", wiped, failed)?;
        ensure!(journal.notes.is_empty(), "a wipe by no method was noted");
        told.push(error.message);
        let policy = WipePolicy::default();
        journal.is_full = true;
        let wiped = devices.wipe(device, at, &policy, None, &mut journal);
        let error = refused("a wipe that cannot be noted", wiped, failed)?;
        ensure!(
            !error.is_device_suspect,
            "a full journal is not {at}'s fault"
        );
        journal.is_full = false;
        journal.cancel_after = Some(0);
        if has_long_wipe(device.kind) {
            let wiped = devices.wipe(device, at, &policy, None, &mut journal);
            let error = refused("a wipe that is not wanted", wiped, failed)?;
            ensure!(!error.is_device_suspect, "an end is not {at}'s fault");
        }
    }
    Ok(told.join("; "))
}

/// Whether a wipe takes long enough to be given up before its first effect.
fn has_long_wipe(kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::Nvme => true,
        DeviceKind::Gpu | DeviceKind::Network | DeviceKind::Other => false,
    }
}

fn wipes(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let mut told = Vec::new();
    for device in &cast.devices {
        let at = device.address;
        let policy = WipePolicy::default();
        let mut journal = Journal::default();
        for _ in 0..2 {
            let earlier = journal.notes.last().cloned();
            let wiped = devices.wipe(device, at, &policy, earlier.as_ref(), &mut journal)?;
            let first = journal.notes.first().context("no wipe was noted")?;
            ensure!(first.method == wiped.method, "noted was {:?}", first.method);
            ensure!(
                wiped.address == at && wiped.ended_at_ms >= wiped.started_at_ms,
                "it was {wiped:?}"
            );
            let read = &wiped.read_back;
            ensure!(
                read.bytes_wrong == 0 && read.bytes_read <= read.bytes_total,
                "read back was {read:?}"
            );
            ensure!(
                device.kind != DeviceKind::Nvme || read.bytes_read > 0,
                "nothing of the drive was read"
            );
            ensure!(read.sha256.len() == 64, "the digest is {}", read.sha256);
            told.push(serde_json::to_string(&wiped)?);
        }
        ensure!(
            journal.progress.iter().all(|percent| *percent <= 100),
            "progress was {:?}",
            journal.progress
        );
    }
    Ok(told.join("\n"))
}

fn driverless(devices: &dyn SlotDevices, cast: &Cast) -> Result<String> {
    let mut told = Vec::new();
    for at in cast.addresses() {
        let off = devices.ensure_unbound(at, None)?;
        let on = devices.ensure_bound(at)?;
        let wanted = (format!("{VFIO_PCI} -> none"), format!("none -> {VFIO_PCI}"));
        ensure!((&off, &on) == (&wanted.0, &wanted.1), "{at}: {off}, {on}");
        told.push(format!("{at}: {off}, {on}"));
    }
    Ok(told.join("; "))
}

#[cfg(test)]
mod tests {
    use berth_agent_host::fakes::{FakeDevice, FakeSlotDevices, Fuse};

    use super::*;

    #[test]
    fn the_fake_does_what_real_devices_do() {
        let at = |bus: u8| PciAddress {
            domain: 0,
            bus,
            device: 0,
            function: 0,
        };
        let host = [
            FakeDevice::nvme(at(1), 7, "S1"),
            FakeDevice::gpu(at(2), 8),
            FakeDevice::network(at(3), 9),
        ];
        let cast = Cast {
            devices: host.iter().map(FakeDevice::approved).collect(),
            absent: at(0x20),
        };
        let fake = FakeSlotDevices::new(host, Fuse::whole());
        fake.write_as_tenant(at(1), b"secret");
        for case in HARMLESS {
            case.run(&fake, &cast).unwrap();
        }
        assert_eq!(fake.contents(at(1)), b"secret");
        for case in WIPING {
            case.run(&fake, &cast).unwrap();
        }
        assert_eq!(fake.contents(at(1)), b"");
    }
}
