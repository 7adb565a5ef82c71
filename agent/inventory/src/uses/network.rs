//! Network interfaces that the host's network is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use berth_agent_core::slot::snapshot::{Function, HostUse};
use berth_api::pci::PciAddress;

use super::Use;
use crate::files::{device_path, function_of, names, text};

/// Told for an interface that another network namespace has.
const ELSEWHERE: &str = "an interface in another network namespace";

/// Interfaces that have a route, or are part of one that stands on them, such as a bridge or a bond.
pub(super) fn uses(root: &Path, functions: &BTreeMap<PciAddress, Function>) -> Vec<Use> {
    let class = root.join("sys/class/net");
    let routed = routed(root);
    let here = names(&class).into_iter().filter_map(|interface| {
        let folder = device_path(&class.join(&interface))?;
        let owner = function_of(&folder)?;
        let has_upper = names(&folder)
            .iter()
            .any(|name| name.starts_with("upper_") || name == "master");
        (has_upper || routed.contains(&interface)).then_some((owner, HostUse::Route { interface }))
    });
    let devices = root.join("sys/bus/pci/devices");
    let elsewhere = functions
        .keys()
        .filter(|address| {
            let device = devices.join(address.to_string());
            let virtio = names(&device)
                .into_iter()
                .filter(|name| name.starts_with("virtio"));
            virtio
                .map(|name| device.join(name).join("net"))
                .chain([device.join("net")])
                .any(|net| net.is_dir() && names(&net).is_empty())
        })
        .map(|address| {
            let interface = ELSEWHERE.to_owned();
            (*address, HostUse::Route { interface })
        });
    here.chain(elsewhere).collect()
}

fn routed(root: &Path) -> BTreeSet<String> {
    let read = |path: &str| text(&root.join(path)).unwrap_or_default();
    let (four, six) = (read("proc/net/route"), read("proc/net/ipv6_route"));
    let of_four = four
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    let of_six = six
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    of_four.chain(of_six).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    const NIC: &str = "sys/devices/pci0000:00/0000:00:03.0";

    fn host() -> Tree {
        let tree = Tree::new();
        tree.link("sys/class/net/eth0", &format!("{NIC}/net/eth0"));
        tree.folder(&format!("{NIC}/net/eth0"));
        tree
    }

    #[track_caller]
    fn found(tree: &Tree, expected: &[&str]) {
        let uses: Vec<String> = uses(tree.root(), &tree.functions())
            .into_iter()
            .map(|(at, used)| {
                let HostUse::Route { interface } = used else {
                    panic!("{used:?}");
                };
                format!("{at} {interface}")
            })
            .collect();
        assert_eq!(uses, expected);
    }

    #[test]
    fn an_interface_without_a_route_is_free() {
        found(&host(), &[]);
    }

    #[test]
    fn an_interface_with_a_route_is_used() {
        let tree = host();
        tree.file("proc/net/route", "Iface\tDestination\neth0\t00000000\n");
        found(&tree, &["0000:00:03.0 eth0"]);

        let tree = host();
        tree.file(
            "proc/net/ipv6_route",
            "fe800000000000000000000000000000 40 00 00 00 00000100 00000001 00000000 00000001 eth0\n",
        );
        found(&tree, &["0000:00:03.0 eth0"]);
    }

    #[test]
    fn a_port_of_a_bridge_is_used() {
        let tree = host();
        tree.folder(&format!("{NIC}/net/eth0/upper_br0"));
        found(&tree, &["0000:00:03.0 eth0"]);
    }

    #[test]
    fn an_interface_that_a_container_has_is_used() {
        let tree = Tree::new();
        tree.pci("pci0000:00/0000:00:03.0");
        tree.folder(&format!("{NIC}/net"));
        found(&tree, &[&format!("0000:00:03.0 {ELSEWHERE}")]);
    }
}
