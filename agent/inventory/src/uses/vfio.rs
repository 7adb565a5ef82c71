//! Processes that have a function open through VFIO.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use berth_agent_core::slot::snapshot::{Function, HostUse};
use berth_api::pci::PciAddress;

use super::Use;
use crate::files::names;

/// Who has the group of a function open, or its device below `/dev/vfio/devices`. Only root sees what
/// other users' processes have open. A group that was closed while its device stays open does not
/// show; opening it tells.
pub(super) fn uses(root: &Path, functions: &BTreeMap<PciAddress, Function>) -> Vec<Use> {
    let open = open_nodes(&root.join("proc"));
    if open.is_empty() {
        return Vec::new();
    }
    let devices = root.join("sys/bus/pci/devices");
    let mut uses = Vec::new();
    for function in functions.values() {
        let group = function.iommu_group.map(|group| group.to_string());
        let own = names(&devices.join(function.address.to_string()).join("vfio-dev"))
            .into_iter()
            .map(|name| format!("devices/{name}"));
        let pids: BTreeSet<u32> = group
            .into_iter()
            .chain(own)
            .filter_map(|node| open.get(&node))
            .flatten()
            .copied()
            .collect();
        uses.extend(
            pids.into_iter()
                .map(|pid| (function.address, HostUse::VfioUser { pid })),
        );
    }
    uses
}

/// Nodes below `/dev/vfio` but for the container's, with the processes that have them open.
fn open_nodes(proc: &Path) -> BTreeMap<String, BTreeSet<u32>> {
    let mut open: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for name in names(proc) {
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        let folder = proc.join(&name).join("fd");
        for descriptor in names(&folder) {
            let target = fs::read_link(folder.join(descriptor)).ok();
            let node = target
                .as_deref()
                .and_then(|target| target.strip_prefix("/dev/vfio").ok())
                .and_then(Path::to_str)
                .filter(|node| *node != "vfio");
            if let Some(node) = node {
                open.entry(node.to_owned()).or_default().insert(pid);
            }
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn openers_of_groups_and_devices_are_found_and_of_containers_are_not() {
        let tree = Tree::new();
        for (address, group) in [("0000:00:03.0", "3"), ("0000:00:04.0", "4")] {
            let folder = tree.pci(&format!("pci0000:00/{address}"));
            tree.link(
                &format!("{folder}/iommu_group"),
                &format!("sys/kernel/iommu_groups/{group}"),
            );
            tree.folder(&format!("{folder}/vfio-dev/vfio{group}"));
        }
        for (path, target) in [
            ("proc/70/fd/5", "/dev/vfio/3"),
            ("proc/70/fd/6", "/dev/vfio/3"),
            ("proc/71/fd/5", "/dev/vfio/vfio"),
            ("proc/72/fd/5", "/dev/vfio/devices/vfio4"),
            ("proc/73/fd/5", "/dev/null"),
        ] {
            tree.link_to(path, target);
        }
        let uses: Vec<(String, HostUse)> = uses(tree.root(), &tree.functions())
            .into_iter()
            .map(|(at, used)| (at.to_string(), used))
            .collect();
        assert_eq!(
            uses,
            [
                ("0000:00:03.0".to_owned(), HostUse::VfioUser { pid: 70 }),
                ("0000:00:04.0".to_owned(), HostUse::VfioUser { pid: 72 }),
            ]
        );
    }
}
