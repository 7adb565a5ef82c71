//! One look at a host: its functions, its groups, its own use of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_agent_core::slot::snapshot::{Function, HostSnapshot};
use berth_api::pci::PciAddress;

use crate::{files, function, iommu, uses};

/// Why a host cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("reading {} failed", path.display())]
pub struct ReadHostError {
    /// What could not be read.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub cause: io::Error,
}

impl ReadHostError {
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |cause| Self { path, cause }
    }
}

/// Look at the host below `root`, which is `/` for this one. What cannot be read of one function is
/// absent from it; a function that goes away meanwhile is absent. Takes as long as sysfs does,
/// which wakes sleeping devices.
///
/// # Errors
/// If the list of functions, or of mounts, cannot be read at all. A host without PCI has an empty list.
pub fn read(root: &Path) -> Result<HostSnapshot, ReadHostError> {
    let folder = root.join("sys/bus/pci/devices");
    let mut functions: BTreeMap<PciAddress, Function> = BTreeMap::new();
    match fs::read_dir(&folder) {
        Ok(_) => {
            for name in files::names(&folder) {
                let found = name
                    .parse()
                    .ok()
                    .and_then(|address| function::read(&folder.join(&name), address));
                functions.extend(found.map(|function| (function.address, function)));
            }
        }
        // Without PCI there is no such folder; without sysfs there is nothing to look at.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && root.join("sys").is_dir() => {}
        Err(cause) => return Err(ReadHostError::at(&folder)(cause)),
    }
    for (address, found) in uses::of_host(root, &functions)? {
        if let Some(function) = functions.get_mut(&address) {
            function.uses.push(found);
        }
    }
    Ok(HostSnapshot {
        functions,
        groups: iommu::groups(root),
        iommu: iommu::facts(root),
    })
}

#[cfg(test)]
mod tests;
