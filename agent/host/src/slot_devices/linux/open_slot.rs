//! A slot's devices opened through VFIO by the agent itself: to reset, ask or wipe them.
//!
//! Owns the container, the groups and the devices, and closes them in the kernel's order. The opening
//! of a group is the proof that nobody else has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_api::pci::PciAddress;
use berth_api::slot::SlotProblemCode;
use berth_vfio::{Type1, VfioDevice};

use super::users;
use crate::slot_devices::{DeviceError, VFIO_PCI};

/// One open device.
#[derive(Debug)]
pub(super) struct OpenDevice {
    pub(super) address: PciAddress,
    pub(super) device: VfioDevice,
}

/// Open devices with all that they need. Fields are dropped in this order.
#[derive(Debug)]
pub(super) struct OpenSlot {
    pub(super) devices: Vec<OpenDevice>,
    groups: BTreeMap<u32, OwnedFd>,
    pub(super) iommu: Type1,
}

impl OpenSlot {
    /// Open devices that are with `vfio-pci` and that nobody has.
    pub(super) fn open(root: &Path, addresses: &[PciAddress]) -> Result<Self, DeviceError> {
        let groups = open_groups(root, addresses)?;
        let container = open_container(root)?;
        let failed = |what: &str, error: &io::Error| {
            DeviceError::new(
                SlotProblemCode::IommuGroupUnsafe,
                format!("{}: {what}: {error}", list(addresses)),
            )
        };
        let iommu = Type1::new(container)
            .map_err(|error| failed("the kernel's VFIO has no type 1 IOMMU", &error))?;
        for group in groups.values() {
            iommu
                .add_group(group.as_fd())
                .map_err(|error| failed("its group cannot be used", &error))?;
        }
        iommu.start().map_err(|error| {
            failed(
                "the IOMMU cannot be turned on for it (interrupt remapping must be on)",
                &error,
            )
        })?;
        let mut devices = Vec::new();
        for &address in addresses {
            let group = group_of(root, address)?;
            let group = groups.get(&group).ok_or_else(|| {
                let message = format!("{address} changed its group");
                DeviceError::new(SlotProblemCode::IommuGroupUnsafe, message).suspect()
            })?;
            let device = iommu
                .open_device(group.as_fd(), &address.to_string())
                .map_err(|error| {
                    let message = format!("{address} cannot be opened: {error}");
                    // The kernel resets it first, and gives up if that has to be tried again.
                    DeviceError::new(SlotProblemCode::ResetFailed, message).suspect()
                })?;
            devices.push(OpenDevice { address, device });
        }
        Ok(Self {
            devices,
            groups,
            iommu,
        })
    }

    /// The open ones of these groups. The kernel takes no more groups than a reset hits devices.
    pub(super) fn groups(&self, wanted: &BTreeSet<u32>) -> Vec<BorrowedFd<'_>> {
        let groups = self.groups.iter();
        groups
            .filter(|(group, _)| wanted.contains(group))
            .map(|(_, descriptor)| descriptor.as_fd())
            .collect()
    }
}

/// Open `/dev/vfio/vfio`.
pub(super) fn open_container(root: &Path) -> Result<OwnedFd, DeviceError> {
    let path = root.join("dev/vfio/vfio");
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(DeviceError::new(
            SlotProblemCode::BindFailed,
            format!(
                "{} cannot be opened: {error}; load vfio_iommu_type1",
                path.display()
            ),
        )),
    }
}

/// Open the groups of devices that are with `vfio-pci`, each once.
pub(super) fn open_groups(
    root: &Path,
    addresses: &[PciAddress],
) -> Result<BTreeMap<u32, OwnedFd>, DeviceError> {
    let mut groups = BTreeMap::new();
    for &address in addresses {
        check_driver(root, address)?;
        let group = group_of(root, address)?;
        if groups.contains_key(&group) {
            continue;
        }
        let file = open_group(root, address, group)?;
        let viable = Type1::is_viable(file.as_fd()).map_err(|error| {
            let message = format!("{address}: the state of group {group}: {error}");
            DeviceError::new(SlotProblemCode::IommuGroupUnsafe, message)
        })?;
        if !viable {
            return Err(not_viable(root, address, group));
        }
        groups.insert(group, file);
    }
    Ok(groups)
}

fn open_group(root: &Path, address: PciAddress, group: u32) -> Result<OwnedFd, DeviceError> {
    let path = root.join(format!("dev/vfio/{group}"));
    let error = match File::options().read(true).write(true).open(&path) {
        Ok(file) => return Ok(file.into()),
        Err(error) => error,
    };
    if error.kind() != io::ErrorKind::ResourceBusy {
        let message = format!("{address}: {} cannot be opened: {error}", path.display());
        return Err(DeviceError::new(SlotProblemCode::BindFailed, message));
    }
    let files = users::files(root, address, Some(group));
    let who = match users::find(root, &files).unwrap_or_default().as_slice() {
        [] => "a process that does not show it".to_owned(),
        pids => format!("process {}", list(pids)),
    };
    let message = format!("{address}: {who} has its IOMMU group {group}");
    Err(DeviceError::new(SlotProblemCode::ForeignUser, message))
}

/// Whether opening a group fails because somebody has it.
pub(super) fn is_busy(root: &Path, group: u32) -> bool {
    let path = root.join(format!("dev/vfio/{group}"));
    let opened = File::options().read(true).write(true).open(path);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

fn check_driver(root: &Path, address: PciAddress) -> Result<(), DeviceError> {
    let folder = function(root, address);
    if !folder.exists() {
        let message = format!("{address} is not there");
        return Err(DeviceError::new(SlotProblemCode::DeviceMissing, message).suspect());
    }
    match driver(&folder).as_deref() {
        Some(VFIO_PCI) => Ok(()),
        driver => Err(DeviceError::new(
            SlotProblemCode::BindFailed,
            format!(
                "{address} is with {}, not with {VFIO_PCI}",
                driver.unwrap_or("no driver")
            ),
        )),
    }
}

fn not_viable(root: &Path, address: PciAddress, group: u32) -> DeviceError {
    let others = members(root, group)
        .into_iter()
        .filter(|&member| member != address)
        .filter_map(|member| {
            let driver = driver(&function(root, member))?;
            (driver != VFIO_PCI).then(|| format!("{member} with {driver}"))
        })
        .collect::<Vec<_>>();
    let message = format!(
        "{address}: its IOMMU group {group} is shared with {}",
        list(&others)
    );
    DeviceError::new(SlotProblemCode::IommuGroupUnsafe, message)
}

/// A device's IOMMU group.
pub(super) fn group_of(root: &Path, address: PciAddress) -> Result<u32, DeviceError> {
    let link = std::fs::read_link(function(root, address).join("iommu_group"));
    let number = link
        .ok()
        .and_then(|link| link.file_name()?.to_str()?.parse().ok());
    number.ok_or_else(|| {
        let message = format!("{address} is in no IOMMU group; is the IOMMU on?");
        DeviceError::new(SlotProblemCode::IommuGroupUnsafe, message)
    })
}

/// The members of a device's group that are with `vfio-pci`, itself among them if it is.
pub(super) fn owned_in_group(
    root: &Path,
    address: PciAddress,
) -> Result<BTreeSet<PciAddress>, DeviceError> {
    let group = group_of(root, address)?;
    Ok(members(root, group)
        .into_iter()
        .filter(|&member| driver(&function(root, member)).as_deref() == Some(VFIO_PCI))
        .collect())
}

fn members(root: &Path, group: u32) -> Vec<PciAddress> {
    let folder = root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn driver(function: &Path) -> Option<String> {
    let link = std::fs::read_link(function.join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// A function's folder in sysfs.
pub(super) fn function(root: &Path, address: PciAddress) -> PathBuf {
    root.join("sys/bus/pci/devices").join(address.to_string())
}

/// Things with commas.
pub(super) fn list<T: ToString>(things: &[T]) -> String {
    let texts: Vec<_> = things.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn at(function: u8) -> PciAddress {
        format!("0000:01:00.{function}").parse().unwrap()
    }

    /// Two functions in group 7.
    fn host(drivers: [Option<&str>; 2]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let members = root.path().join("sys/kernel/iommu_groups/7/devices");
        std::fs::create_dir_all(&members).unwrap();
        std::fs::create_dir_all(root.path().join("dev/vfio")).unwrap();
        for (number, driver) in (0..).zip(drivers) {
            let folder = function(root.path(), at(number));
            std::fs::create_dir_all(&folder).unwrap();
            symlink("../iommu_groups/7", folder.join("iommu_group")).unwrap();
            std::fs::write(members.join(at(number).to_string()), "").unwrap();
            if let Some(driver) = driver {
                symlink(format!("../drivers/{driver}"), folder.join("driver")).unwrap();
            }
        }
        root
    }

    #[track_caller]
    fn code(root: &tempfile::TempDir, addresses: &[PciAddress]) -> SlotProblemCode {
        OpenSlot::open(root.path(), addresses).unwrap_err().code
    }

    #[test]
    fn only_devices_with_vfio_are_opened() {
        let root = host([Some("nvme"), None]);
        assert_eq!(code(&root, &[at(0)]), SlotProblemCode::BindFailed);
        assert_eq!(code(&root, &[at(1)]), SlotProblemCode::BindFailed);
        assert_eq!(code(&root, &[at(2)]), SlotProblemCode::DeviceMissing);
    }

    #[test]
    fn a_device_outside_all_groups_is_unsafe() {
        let root = host([Some(VFIO_PCI), None]);
        let link = function(root.path(), at(0)).join("iommu_group");
        std::fs::remove_file(link).unwrap();
        assert_eq!(code(&root, &[at(0)]), SlotProblemCode::IommuGroupUnsafe);
    }

    #[test]
    fn a_group_file_that_is_none_is_refused() {
        let root = host([Some(VFIO_PCI), None]);
        assert_eq!(code(&root, &[at(0)]), SlotProblemCode::BindFailed);
        std::fs::write(root.path().join("dev/vfio/7"), "").unwrap();
        assert_eq!(code(&root, &[at(0)]), SlotProblemCode::IommuGroupUnsafe);
    }

    #[test]
    fn the_members_that_are_ours_and_those_that_are_not_are_told_apart() {
        let root = host([Some(VFIO_PCI), Some("snd_hda_intel")]);
        let owned = owned_in_group(root.path(), at(0)).unwrap();
        assert_eq!(owned, BTreeSet::from([at(0)]));
        let error = not_viable(root.path(), at(0), 7);
        assert!(
            error.message.contains("0000:01:00.1 with snd_hda_intel"),
            "{error}"
        );
        let root = host([Some(VFIO_PCI), Some(VFIO_PCI)]);
        assert_eq!(owned_in_group(root.path(), at(0)).unwrap().len(), 2);
    }
}
