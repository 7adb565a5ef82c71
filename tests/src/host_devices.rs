//! Opens host devices for a machine as their owner would: the container, and each group once.
//!
//! Owns the way from a PCI address to `/dev/vfio/<group>`. Binding the devices to `vfio-pci` is the
//! caller's business.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context as _, Result};
use berth_api::vmm::{FdIndex, Iommu, Vfio, VfioDevice};

use crate::launch::Descriptors;

/// Opens the devices at `addresses`, each as `0000:01:00.0`; `None` for none.
///
/// # Errors
/// If a device has no group, or a node cannot be opened.
pub fn open(
    addresses: &[String],
    peer_to_peer: bool,
    descriptors: &mut Descriptors,
) -> Result<Option<Vfio>> {
    if addresses.is_empty() {
        return Ok(None);
    }
    let container = descriptors.add(node("vfio")?);
    let mut groups: BTreeMap<String, FdIndex> = BTreeMap::new();
    let mut devices = Vec::new();
    for address in addresses {
        let group = group_of(address)?;
        let fd = match groups.get(&group) {
            Some(fd) => *fd,
            None => descriptors.add(node(&group)?),
        };
        groups.insert(group, fd);
        devices.push(VfioDevice {
            address: address.clone(),
            fd,
        });
    }
    Ok(Some(Vfio {
        iommu: Iommu::Type1 { container },
        devices,
        peer_to_peer,
    }))
}

fn group_of(address: &str) -> Result<String> {
    let link = format!("/sys/bus/pci/devices/{address}/iommu_group");
    let group = std::fs::read_link(&link).with_context(|| format!("reading {link}"))?;
    let number = group.file_name().and_then(|name| name.to_str());
    Ok(number.context("a group without a number")?.to_owned())
}

fn node(name: &str) -> Result<File> {
    let path = Path::new("/dev/vfio").join(name);
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    opened.with_context(|| format!("opening {}", path.display()))
}
