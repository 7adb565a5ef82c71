//! The host's management controller: what it shows of itself on the PCI bus.

use std::collections::BTreeMap;

use berth_agent_core::slot::snapshot::{Function, HostUse};
use berth_api::pci::{PciAddress, PciId};

use super::Use;

/// Class and subclass of IPMI interfaces.
const IPMI: u32 = 0x0c_07;
/// Maker of management controllers and of nothing else.
const ASPEED: PciId = PciId(0x1a03);
/// Maker of the display cores in other management controllers.
const MATROX: PciId = PciId(0x102b);
/// Hewlett Packard's number for its own chips; iLO shows functions from 3300 to 330f.
const HP: PciId = PciId(0x103c);

/// Functions of management controllers, with all that are on the same device.
pub(super) fn uses(functions: &BTreeMap<PciAddress, Function>) -> Vec<Use> {
    let device = |at: &PciAddress| (at.domain, at.bus, at.device);
    let controllers: Vec<_> = functions
        .values()
        .filter(|function| is_controller(function))
        .map(|function| device(&function.address))
        .collect();
    functions
        .keys()
        .filter(|address| controllers.contains(&device(address)))
        .map(|address| (*address, HostUse::ManagementController))
        .collect()
}

fn is_controller(function: &Function) -> bool {
    let identity = &function.identity;
    let is_display = identity.class.base() == 0x03;
    identity.class.0 >> 8 == IPMI
        || identity.vendor == ASPEED
        || identity.vendor == MATROX && is_display
        || identity.vendor == HP && (0x3300..=0x330f).contains(&identity.device.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[track_caller]
    fn is_used(vendor: &str, device: &str, class: &str, expected: bool) {
        let tree = Tree::new();
        tree.pci("pci0000:00/0000:00:1c.0/0000:05:00.1");
        let folder = tree.pci("pci0000:00/0000:00:1c.0/0000:05:00.0");
        tree.file(&format!("{folder}/vendor"), vendor);
        tree.file(&format!("{folder}/device"), device);
        tree.file(&format!("{folder}/class"), class);
        let at: Vec<String> = uses(&tree.functions())
            .iter()
            .map(|(at, _)| at.to_string())
            .collect();
        let both = ["0000:05:00.0", "0000:05:00.1"];
        assert_eq!(at, if expected { &both[..] } else { &[] });
    }

    #[test]
    fn management_controllers_are_known_with_all_their_functions() {
        is_used("0x1a03", "0x2000", "0x030000", true);
        is_used("0x102b", "0x0536", "0x030000", true);
        is_used("0x103c", "0x3306", "0x088000", true);
        is_used("0x8086", "0x1234", "0x0c0701", true);
    }

    #[test]
    fn other_displays_are_no_management_controllers() {
        is_used("0x10de", "0x2330", "0x030200", false);
        is_used("0x103c", "0x2000", "0x010802", false);
    }
}
