//! The display that the host shows its console on.

use std::collections::BTreeMap;
use std::path::Path;

use berth_agent_core::slot::snapshot::{Function, HostUse};
use berth_api::pci::PciAddress;

use super::Use;
use crate::files::{names, text};

/// Functions that the firmware gave the screen to, or that have a frame buffer of the kernel's.
pub(super) fn uses(root: &Path, functions: &BTreeMap<PciAddress, Function>) -> Vec<Use> {
    let devices = root.join("sys/bus/pci/devices");
    functions
        .keys()
        .filter(|address| {
            let device = devices.join(address.to_string());
            let has_frame_buffer = names(&device)
                .into_iter()
                .filter(|name| name.starts_with("virtio"))
                .map(|name| device.join(name))
                .chain([device.clone()])
                .any(|device| !names(&device.join("graphics")).is_empty());
            has_frame_buffer || text(&device.join("boot_vga")).as_deref() == Some("1")
        })
        .map(|address| (*address, HostUse::Console))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn the_firmwares_display_and_frame_buffers_are_the_console() {
        let tree = Tree::new();
        for device in ["0000:00:02.0", "0000:00:03.0", "0000:00:04.0"] {
            tree.pci(&format!("pci0000:00/{device}"));
        }
        tree.file("sys/devices/pci0000:00/0000:00:02.0/boot_vga", "1\n");
        tree.file("sys/devices/pci0000:00/0000:00:03.0/boot_vga", "0\n");
        tree.folder("sys/devices/pci0000:00/0000:00:04.0/virtio0/graphics/fb0");
        let at: Vec<String> = uses(tree.root(), &tree.functions())
            .iter()
            .map(|(at, _)| at.to_string())
            .collect();
        assert_eq!(at, ["0000:00:02.0", "0000:00:04.0"]);
    }
}
