//! The host devices of a start message and their descriptors.
//!
//! Owns what can be checked without asking the kernel about a device. Several devices may name one
//! group's descriptor; every other descriptor is named once.

use std::os::fd::OwnedFd;

use berth_api::vmm::{self, FdIndex};
use rustix::fs::FileType;

use super::{Access, Intake, check_access, not_a, status};
use crate::refusal::Refusal;

/// Host devices for the guest.
#[derive(Debug)]
pub struct VfioSpec {
    /// How the host's IOMMU is reached.
    pub iommu: IommuSpec,
    /// The devices in PCI order.
    pub devices: Vec<VfioDeviceSpec>,
    /// Whether the devices may reach each other's memory.
    pub peer_to_peer: bool,
}

/// The host interface behind the devices.
#[derive(Debug)]
pub enum IommuSpec {
    /// A container and the groups that are to join it.
    Type1 {
        /// The open `/dev/vfio/vfio`.
        container: OwnedFd,
        /// The open `/dev/vfio/<group>`s, each once.
        groups: Vec<OwnedFd>,
    },
    /// The open `/dev/iommu` and the open `/dev/vfio/devices/vfio<n>`, one for each device.
    Iommufd {
        /// The IOMMU.
        iommu: OwnedFd,
        /// The devices.
        devices: Vec<OwnedFd>,
    },
}

/// One host device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VfioDeviceSpec {
    /// The host's PCI address as `0000:01:00.0`.
    pub address: String,
    /// Position of its descriptor among the groups or the devices.
    pub descriptor: usize,
}

/// Checks the devices and takes their descriptors.
pub(super) fn check_vfio(intake: &mut Intake, vfio: &vmm::Vfio) -> Result<VfioSpec, Refusal> {
    let count = vfio.devices.len();
    if !(1..=vmm::MAX_PASSTHROUGH).contains(&count) {
        return Err(Refusal::new(
            "vfio.devices",
            format!("{count} is not a number of devices that a machine can have"),
            format!(
                "give 1 to {}, or leave vfio out for none",
                vmm::MAX_PASSTHROUGH
            ),
        ));
    }
    for (position, device) in vfio.devices.iter().enumerate() {
        check_address(vfio, position, &device.address)?;
    }
    let (iommu, descriptors) = match vfio.iommu {
        vmm::Iommu::Type1 { container } => {
            let container = take_device(intake, "vfio.iommu.container", container)?;
            let (groups, positions) = take_groups(intake, vfio)?;
            (IommuSpec::Type1 { container, groups }, positions)
        }
        vmm::Iommu::Iommufd { iommu } => {
            let iommu = take_device(intake, "vfio.iommu.iommu", iommu)?;
            let devices = vfio
                .devices
                .iter()
                .enumerate()
                .map(|(position, device)| take_device(intake, &field(position, "fd"), device.fd))
                .collect::<Result<_, _>>()?;
            (IommuSpec::Iommufd { iommu, devices }, (0..count).collect())
        }
    };
    let devices = vfio.devices.iter().zip(descriptors);
    let devices = devices.map(|(device, descriptor)| VfioDeviceSpec {
        address: device.address.clone(),
        descriptor,
    });
    Ok(VfioSpec {
        iommu,
        devices: devices.collect(),
        peer_to_peer: vfio.peer_to_peer,
    })
}

/// The path of a device's field in the message.
pub(crate) fn field(position: usize, name: &str) -> String {
    format!("vfio.devices[{position}].{name}")
}

fn check_address(vfio: &vmm::Vfio, position: usize, address: &str) -> Result<(), Refusal> {
    if !is_address(address) {
        return Err(Refusal::new(
            field(position, "address"),
            "it is not a PCI address",
            "write it as sysfs does, such as 0000:01:00.0",
        ));
    }
    let earlier = vfio.devices.iter().take(position);
    if earlier.into_iter().any(|other| other.address == address) {
        return Err(Refusal::new(
            field(position, "address"),
            format!("{address} is named twice"),
            "name every device once",
        ));
    }
    Ok(())
}

/// `dddd:bb:dd.f` in lower-case hexadecimal digits, as the kernel writes it.
fn is_address(text: &str) -> bool {
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    match text.as_bytes() {
        [domain @ .., b':', b1, b2, b':', d1, d2, b'.', function] => {
            (4..=8).contains(&domain.len())
                && domain.iter().chain([b1, b2, d1, d2]).all(is_hex)
                && matches!(function, b'0'..=b'7')
        }
        _ => false,
    }
}

/// The groups, each once, and every device's position among them.
fn take_groups(
    intake: &mut Intake,
    vfio: &vmm::Vfio,
) -> Result<(Vec<OwnedFd>, Vec<usize>), Refusal> {
    let mut indices: Vec<FdIndex> = Vec::new();
    let mut groups = Vec::new();
    let mut positions = Vec::new();
    for (position, device) in vfio.devices.iter().enumerate() {
        let known = indices.iter().position(|index| *index == device.fd);
        if known.is_none() {
            groups.push(take_device(intake, &field(position, "fd"), device.fd)?);
            indices.push(device.fd);
        }
        positions.push(known.unwrap_or(groups.len() - 1));
    }
    Ok((groups, positions))
}

fn take_device(intake: &mut Intake, field: &str, index: FdIndex) -> Result<OwnedFd, Refusal> {
    let descriptor = intake.take(field, index)?;
    let stat = status(field, &descriptor)?;
    if !FileType::from_raw_mode(stat.st_mode).is_char_device() {
        return Err(not_a(
            field,
            "a device node",
            "open the node below /dev that the contract names",
        ));
    }
    check_access(field, &descriptor, Access::ReadWrite)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use berth_api::vmm::{Iommu, Vfio, VfioDevice};

    use super::*;

    fn device(address: &str, fd: u32) -> VfioDevice {
        VfioDevice {
            address: address.to_owned(),
            fd: FdIndex(fd),
        }
    }

    fn vfio(devices: Vec<VfioDevice>) -> Vfio {
        Vfio {
            iommu: Iommu::Type1 {
                container: FdIndex(0),
            },
            devices,
            peer_to_peer: false,
        }
    }

    /// `/dev/null` as often as wanted: a device node, which is all that is looked at here.
    fn intake(count: usize) -> Intake {
        let null = || File::options().read(true).write(true).open("/dev/null");
        let descriptors = (0..count).map(|_| null().unwrap().into()).collect();
        Intake::new(descriptors).unwrap()
    }

    #[track_caller]
    fn refused(vfio: &Vfio, wanted: &str) {
        let refusal = check_vfio(&mut intake(8), vfio).unwrap_err();
        assert_eq!(refusal.field, wanted, "{refusal}");
    }

    #[test]
    fn devices_of_one_group_share_its_descriptor() {
        let vfio = vfio(vec![
            device("0000:01:00.0", 1),
            device("0000:02:00.0", 2),
            device("0000:01:00.1", 1),
        ]);
        let mut intake = intake(3);
        let spec = check_vfio(&mut intake, &vfio).unwrap();
        intake.finish().unwrap();
        let positions: Vec<_> = spec
            .devices
            .iter()
            .map(|device| device.descriptor)
            .collect();
        assert_eq!(positions, [0, 1, 0]);
        let IommuSpec::Type1 { groups, .. } = spec.iommu else {
            panic!("a container was given");
        };
        assert_eq!(groups.len(), 2);
    }

    #[test]
    fn an_iommufd_device_brings_its_own_descriptor() {
        let mut twice = vfio(vec![device("0000:01:00.0", 1), device("0000:02:00.0", 1)]);
        twice.iommu = Iommu::Iommufd { iommu: FdIndex(0) };
        refused(&twice, "vfio.devices[1].fd");
    }

    #[test]
    fn what_is_no_address_or_named_twice_is_refused() {
        for bad in [
            "",
            "01:00.0",
            "0000:01:00.8",
            "0000:0g:00.0",
            "0000:01:00",
            "../../x:00:00.0",
        ] {
            refused(&vfio(vec![device(bad, 1)]), "vfio.devices[0].address");
        }
        let one = device("0000:01:00.0", 1);
        refused(&vfio(vec![one.clone(), one]), "vfio.devices[1].address");
    }

    #[test]
    fn no_device_and_too_many_are_refused() {
        refused(&vfio(Vec::new()), "vfio.devices");
        let many = (0..17).map(|number| device(&format!("0000:{number:02x}:00.0"), 1));
        refused(&vfio(many.collect()), "vfio.devices");
    }

    #[test]
    fn a_regular_file_is_no_device() {
        let vfio = vfio(vec![device("0000:01:00.0", 1)]);
        let file = File::open("/proc/self/exe").unwrap();
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let mut intake = Intake::new(vec![null.into(), file.into()]).unwrap();
        let refusal = check_vfio(&mut intake, &vfio).unwrap_err();
        assert_eq!(refusal.field, "vfio.devices[0].fd");
    }
}
