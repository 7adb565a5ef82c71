//! The devices of a Linux host: sysfs to bind them, VFIO for everything else.
//!
//! Thin: the order of steps is `bind`'s, the choice of resets and of memory is `berth_agent_core`'s, the
//! wiping of drives is `berth_nvme`'s. Paths are below a root that the caller names, `/` in an agent.

mod bind;
mod block_claims;
mod device_registers;
mod disposable;
mod drive;
mod driver_core;
mod host_use;
mod memory_overwrite;
mod nvme_transport;
mod open_slot;
mod reset;
mod users;
mod wipe;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::device_memory::MEMORY_BAR;
use berth_agent_core::slot::snapshot::HostSnapshot;
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceKind, DeviceWipe, SlotProblemCode};

use self::driver_core::Sysfs;
use self::host_use::Looks;
use self::open_slot::{OpenSlot, group_of, is_busy, open_container, open_groups};
use self::wipe::Order;
use super::{DeviceError, Found, GuestDevices, SlotDevices};

/// How long a driver may take to let a device go or to take it. NVMe drives take up to half a minute to
/// shut down when they say so.
pub const DRIVER_LIMIT: Duration = Duration::from_secs(60);

/// A process that has a device and does not show it.
const UNSEEN: u32 = 0;

/// The devices of the host that this runs on.
#[derive(Debug, Clone)]
pub struct LinuxSlotDevices {
    root: PathBuf,
    sysfs: Sysfs,
    looks: Looks,
}

impl LinuxSlotDevices {
    /// Those of the host whose file system has this root. A driver that takes longer than
    /// `driver_limit`, such as [`DRIVER_LIMIT`], is given up.
    #[must_use]
    pub fn new(root: &Path, driver_limit: Duration) -> Self {
        Self {
            root: root.to_owned(),
            sysfs: Sysfs::new(root, driver_limit),
            looks: Looks::new(root),
        }
    }
}

impl SlotDevices for LinuxSlotDevices {
    fn snapshot(&self) -> Result<HostSnapshot, DeviceError> {
        self.looks.look()
    }

    fn ensure_bound(&self, device: PciAddress) -> Result<Found, DeviceError> {
        bind::ensure_bound(&self.sysfs, device, || {
            host_use::refuse_if_used(&self.looks.look()?, device)?;
            block_claims::claim(&self.root, device)
        })
    }

    fn ensure_unbound(
        &self,
        device: PciAddress,
        driver: Option<&str>,
    ) -> Result<Found, DeviceError> {
        // The kernel would keep the writer waiting until they are gone, whatever it is sent.
        let is_held = group_of(&self.root, device).is_ok_and(|group| is_busy(&self.root, group));
        let user = match self.users(device)?.first() {
            Some(&UNSEEN) => "a process that does not show it".to_owned(),
            Some(pid) => format!("process {pid}"),
            None if is_held => "this agent".to_owned(),
            None => return bind::ensure_unbound(&self.sysfs, device, driver),
        };
        let message = format!("{device} is open in {user}");
        Err(DeviceError::new(SlotProblemCode::ForeignUser, message))
    }

    fn reset(&self, devices: &[PciAddress]) -> Result<Found, DeviceError> {
        let before = reset::look(&self.root, devices)?;
        let slot = OpenSlot::open(&self.root, devices)?;
        reset::reset(&self.root, &slot, &before)
    }

    fn identify(
        &self,
        device: &ApprovedDevice,
        at: PciAddress,
    ) -> Result<BTreeMap<String, String>, DeviceError> {
        match device.kind {
            DeviceKind::Nvme => drive::identify(&self.root, at),
            // Not the device's own words, but the owner's: which memory of it is wiped.
            DeviceKind::Gpu | DeviceKind::Network | DeviceKind::Other => {
                let bar = device.settings.get_key_value(MEMORY_BAR);
                Ok(bar
                    .map(|(name, bar)| (name.clone(), bar.clone()))
                    .into_iter()
                    .collect())
            }
        }
    }

    fn users(&self, device: PciAddress) -> Result<Vec<u32>, DeviceError> {
        let Ok(group) = group_of(&self.root, device) else {
            return Ok(Vec::new());
        };
        let files = users::files(&self.root, device, Some(group));
        let all = users::find(&self.root, &files).map_err(|error| {
            let message = format!("{device}: its users cannot be found out: {error}");
            DeviceError::new(SlotProblemCode::ForeignUser, message)
        })?;
        // Whoever ends has closed its files before the kernel has let the group go.
        if all.is_empty() && is_busy(&self.root, group) {
            return Ok(vec![UNSEEN]);
        }
        let own = std::process::id();
        Ok(all.into_iter().filter(|pid| *pid != own).collect())
    }

    fn open_for_guest(&self, devices: &[PciAddress]) -> Result<GuestDevices, DeviceError> {
        let groups = open_groups(&self.root, devices)?;
        let container = open_container(&self.root)?;
        let memory_bytes = devices
            .iter()
            .map(|&device| berth_inventory::memory_bytes(&self.root, device))
            .fold(0, u64::saturating_add);
        let devices = devices.iter().map(|&device| {
            let group = group_of(&self.root, device)?;
            Ok((device, group))
        });
        Ok(GuestDevices {
            container,
            groups,
            devices: devices.collect::<Result<_, DeviceError>>()?,
            memory_bytes,
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
        let order = Order {
            root: &self.root,
            device,
            at,
            policy,
        };
        match device.kind {
            DeviceKind::Nvme => drive::wipe(order, earlier, journal),
            DeviceKind::Gpu | DeviceKind::Network | DeviceKind::Other => wipe::wipe(order, journal),
        }
    }
}
