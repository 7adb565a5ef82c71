//! A host's devices in memory: drivers, groups, contents, identities, and what goes wrong with them.
//!
//! Owns a world that outlives its agents. It keeps what a host keeps, obeys what it is told, and writes
//! down every breach of what must never happen (see [`FakeSlotDevices::breaches`]), so that a test
//! can ask for that alone. A group that was opened for a guest is held for as long as any copy of its
//! descriptor is open, as a kernel does it.

mod device;
mod wipe;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::snapshot::{Group, HostSnapshot, HostUse, IommuFacts};
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceWipe, SlotProblemCode};

use super::{Fuse, lock};
use crate::slot_devices::{DeviceError, Found, GuestDevices, SlotDevices, VFIO_PCI};

pub use device::{DeviceFault, FakeDevice};

/// The process that holds what was opened for a guest, as [`SlotDevices::users`] tells it.
pub const GUEST_PID: u32 = 4242;

/// One call of [`SlotDevices`], as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceCall {
    /// `snapshot`.
    Snapshot,
    /// `ensure_bound`.
    Bind(PciAddress),
    /// `ensure_unbound`, with the driver.
    Unbind(PciAddress, Option<String>),
    /// `reset`.
    Reset(Vec<PciAddress>),
    /// `identify`.
    Identify(PciAddress),
    /// `users`.
    Users(PciAddress),
    /// `open_for_guest`.
    Open(Vec<PciAddress>),
    /// `wipe`, and whether an earlier run was handed in.
    Wipe(PciAddress, bool),
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<PciAddress, FakeDevice>,
    iommu: IommuFacts,
    held_groups: BTreeMap<u32, UnixStream>,
    calls: Vec<DeviceCall>,
    breaches: Vec<String>,
}

#[derive(Debug, Default)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

/// The fake. [`FakeSlotDevices::for_next_agent`] shares the devices.
#[derive(Debug, Clone)]
pub struct FakeSlotDevices {
    world: Arc<World>,
    fuse: Fuse,
}

impl FakeSlotDevices {
    /// A host with an IOMMU that isolates, and these devices.
    #[must_use]
    pub fn new(devices: impl IntoIterator<Item = FakeDevice>, fuse: Fuse) -> Self {
        let fake = Self {
            world: Arc::default(),
            fuse,
        };
        fake.state(|state| {
            state.iommu = IommuFacts {
                units: vec!["dmar0".to_owned()],
                interrupt_remapping: Some(true),
                unsafe_interrupts_allowed: Some(false),
                no_iommu_mode: Some(false),
                kernel_command_line: vec!["intel_iommu=on".to_owned()],
            };
            for device in devices {
                state.devices.insert(device.function.address, device);
            }
        });
        fake
    }

    /// The same devices for the next agent.
    #[must_use]
    pub fn for_next_agent(&self, fuse: Fuse) -> Self {
        Self {
            world: Arc::clone(&self.world),
            fuse,
        }
    }

    /// Change a device, or look at it. `None` if it is not there.
    pub fn device<T>(
        &self,
        address: PciAddress,
        act: impl FnOnce(&mut FakeDevice) -> T,
    ) -> Option<T> {
        self.state(|state| state.devices.get_mut(&address).map(act))
    }

    /// Let something go wrong with a device from now on.
    pub fn break_device(&self, address: PciAddress, fault: DeviceFault) {
        self.device(address, |device| device.faults.insert(fault));
    }

    /// Let it go right again.
    pub fn mend_device(&self, address: PciAddress, fault: DeviceFault) {
        self.device(address, |device| device.faults.remove(&fault));
    }

    /// Plug a device in; one that was at its address is gone.
    pub fn plug(&self, device: FakeDevice) {
        self.state(|state| state.devices.insert(device.function.address, device));
    }

    /// Pull a device out. It can be plugged in again, with what it holds.
    pub fn unplug(&self, address: PciAddress) -> Option<FakeDevice> {
        self.state(|state| state.devices.remove(&address))
    }

    /// Change what is known of the IOMMU.
    pub fn change_iommu(&self, act: impl FnOnce(&mut IommuFacts)) {
        self.state(|state| act(&mut state.iommu));
    }

    /// What a tenant's guest does to a device that it has.
    pub fn write_as_tenant(&self, address: PciAddress, contents: &[u8]) {
        self.device(address, |device| device.contents = contents.to_vec());
    }

    /// What a device holds; nothing if it is blank or not there.
    #[must_use]
    pub fn contents(&self, address: PciAddress) -> Vec<u8> {
        self.device(address, |device| device.contents.clone())
            .unwrap_or_default()
    }

    /// The driver that has a device.
    #[must_use]
    pub fn driver(&self, address: PciAddress) -> Option<String> {
        self.device(address, |device| device.function.driver.clone())
            .flatten()
    }

    /// The host starts anew: guests are gone, and each device is with `vfio-pci` if it is bound early,
    /// else with its host driver.
    pub fn reboot(&self) {
        self.state(|state| {
            state.held_groups.clear();
            let mut breaches = Vec::new();
            for device in state.devices.values_mut() {
                device.function.driver_override = None;
                let driver = device.driver_after_boot();
                breaches.extend(device.put_driver(driver.as_deref()));
            }
            state.breaches.extend(breaches);
        });
    }

    /// Every call so far, by all agents, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<DeviceCall> {
        self.state(|state| state.calls.clone())
    }

    /// What was done and must never be: a host driver on a device with a tenant's data, a device with
    /// data opened for the next guest, a reset or a wipe under a guest.
    #[must_use]
    pub fn breaches(&self) -> Vec<String> {
        self.state(|state| state.breaches.clone())
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let done = act(&mut lock(&self.world.state));
        self.world.changed.notify_all();
        done
    }

    /// Looks, which needs no step of the fuse, but an agent that lives.
    fn look<T>(
        &self,
        call: DeviceCall,
        act: impl FnOnce(&mut State) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        if self.fuse.is_burnt() {
            return Err(dead());
        }
        self.state(|state| {
            state.calls.push(call);
            act(state)
        })
    }

    /// One step with an effect.
    fn step<T>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        self.fuse.guard(dead, || self.state(act))
    }
}

fn dead() -> DeviceError {
    DeviceError::new(SlotProblemCode::RecordLost, "the agent is dead")
}

impl State {
    fn device(&mut self, address: PciAddress) -> Result<&mut FakeDevice, DeviceError> {
        self.devices.get_mut(&address).ok_or_else(|| {
            DeviceError::new(
                SlotProblemCode::DeviceMissing,
                format!("{address} is not there"),
            )
            .suspect()
        })
    }

    /// Whether a guest still has a copy of the group's descriptor.
    fn is_held(&mut self, group: Option<u32>) -> bool {
        let Some(mut held) = group.and_then(|group| self.held_groups.get(&group)) else {
            return false;
        };
        matches!(held.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Processes that have a device.
    fn users(&mut self, address: PciAddress) -> Result<Vec<u32>, DeviceError> {
        let device = self.device(address)?;
        let group = device.function.iommu_group;
        let mut users = device.foreign_users.clone();
        if self.is_held(group) {
            users.push(GUEST_PID);
        }
        Ok(users)
    }

    /// A device that nobody has and `vfio-pci` does.
    fn own(&mut self, address: PciAddress, what: &str) -> Result<&mut FakeDevice, DeviceError> {
        let users = self.users(address)?;
        if let Some(pid) = users.first() {
            if users.contains(&GUEST_PID) {
                self.breaches
                    .push(format!("{what} of {address} under a guest"));
            }
            let message = format!("{address} is open in process {pid}");
            return Err(DeviceError::new(SlotProblemCode::ForeignUser, message));
        }
        let device = self.device(address)?;
        match device.function.driver.as_deref() {
            Some(VFIO_PCI) => Ok(device),
            driver => {
                let driver = driver.unwrap_or("no driver");
                let message = format!("{address} is with {driver}, not with {VFIO_PCI}");
                Err(DeviceError::new(SlotProblemCode::BindFailed, message))
            }
        }
    }

    fn snapshot(&mut self) -> HostSnapshot {
        let mut snapshot = HostSnapshot {
            iommu: self.iommu.clone(),
            ..HostSnapshot::default()
        };
        let addresses: Vec<_> = self.devices.keys().copied().collect();
        for address in addresses {
            let users = self.users(address).unwrap_or_default();
            let Ok(device) = self.device(address) else {
                continue;
            };
            let mut function = device.function.clone();
            let users = users.into_iter().map(|pid| HostUse::VfioUser { pid });
            function.uses.extend(users);
            if let Some(group) = function.iommu_group {
                let group: &mut Group = snapshot.groups.entry(group).or_default();
                group.members.insert(address);
            }
            snapshot.functions.insert(address, function);
        }
        snapshot
    }
}

impl SlotDevices for FakeSlotDevices {
    fn snapshot(&self) -> Result<HostSnapshot, DeviceError> {
        self.look(DeviceCall::Snapshot, |state| Ok(state.snapshot()))
    }

    fn ensure_bound(&self, address: PciAddress) -> Result<Found, DeviceError> {
        let before = self.look(DeviceCall::Bind(address), |state| {
            let device = state.device(address)?;
            device.refuse_if_used()?;
            Ok(device.function.driver.clone())
        })?;
        if before.as_deref() == Some(VFIO_PCI) {
            return Ok(VFIO_PCI.to_owned());
        }
        self.step(|state| {
            let function = &mut state.device(address)?.function;
            function.driver_override = Some(VFIO_PCI.to_owned());
            Ok(())
        })?;
        self.step(|state| state.device(address)?.unbind())?;
        self.step(|state| state.device(address)?.bind(before.as_deref()))?;
        Ok(format!(
            "{} -> {VFIO_PCI}",
            before.as_deref().unwrap_or("none")
        ))
    }

    fn ensure_unbound(
        &self,
        address: PciAddress,
        driver: Option<&str>,
    ) -> Result<Found, DeviceError> {
        let call = DeviceCall::Unbind(address, driver.map(str::to_owned));
        self.look(call, |state| match state.users(address)?.first() {
            None => Ok(()),
            Some(pid) => Err(DeviceError::new(
                SlotProblemCode::ForeignUser,
                format!("{address} is open in process {pid}"),
            )),
        })?;
        self.step(|state| {
            let device = state.device(address)?;
            device.function.driver_override = None;
            let before = device.function.driver.clone();
            let breach = device.put_driver(driver);
            state.breaches.extend(breach);
            let before = before.as_deref().unwrap_or("none");
            Ok(format!("{before} -> {}", driver.unwrap_or("none")))
        })
    }

    fn reset(&self, devices: &[PciAddress]) -> Result<Found, DeviceError> {
        self.look(DeviceCall::Reset(devices.to_vec()), |_| Ok(()))?;
        self.step(|state| {
            for &address in devices {
                state.own(address, "reset")?.reset()?;
            }
            Ok("reset by function reset; answers".to_owned())
        })
    }

    fn identify(
        &self,
        _: &ApprovedDevice,
        at: PciAddress,
    ) -> Result<BTreeMap<String, String>, DeviceError> {
        self.look(DeviceCall::Identify(at), |state| {
            state.own(at, "identification")?.identify()
        })
    }

    fn users(&self, address: PciAddress) -> Result<Vec<u32>, DeviceError> {
        self.look(DeviceCall::Users(address), |state| state.users(address))
    }

    fn open_for_guest(&self, devices: &[PciAddress]) -> Result<GuestDevices, DeviceError> {
        self.look(DeviceCall::Open(devices.to_vec()), |_| Ok(()))?;
        self.step(|state| {
            let mut opened = BTreeSet::new();
            for &address in devices {
                let device = state.own(address, "second opening")?;
                let group = device.function.iommu_group.ok_or_else(|| {
                    let message = format!("{address} is in no IOMMU group");
                    DeviceError::new(SlotProblemCode::IommuGroupUnsafe, message)
                })?;
                opened.insert((address, group));
                if !device.contents.is_empty() {
                    state
                        .breaches
                        .push(format!("{address} opened for a guest with data on it"));
                }
            }
            hold(state, &opened)
        })
    }

    fn wipe(
        &self,
        device: &ApprovedDevice,
        at: PciAddress,
        policy: &WipePolicy,
        earlier: Option<&WipeRun>,
        journal: &mut dyn WipeJournal,
    ) -> Result<DeviceWipe, DeviceError> {
        self.look(DeviceCall::Wipe(at, earlier.is_some()), |state| {
            state.own(at, "wipe").map(|_| ())
        })?;
        self.run_wipe(device, at, policy, earlier, journal)
    }
}

fn hold(
    state: &mut State,
    opened: &BTreeSet<(PciAddress, u32)>,
) -> Result<GuestDevices, DeviceError> {
    let failed = |error| {
        DeviceError::new(
            SlotProblemCode::ForeignUser,
            format!("the fake could not be opened: {error}"),
        )
    };
    let mut groups = BTreeMap::new();
    for &(_, group) in opened {
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        state.held_groups.insert(group, ours);
        groups.insert(group, theirs.into());
    }
    Ok(GuestDevices {
        container: File::open("/dev/null").map_err(failed)?.into(),
        groups,
        devices: opened.iter().copied().collect(),
        memory_bytes: 0,
    })
}

#[cfg(test)]
mod tests;
