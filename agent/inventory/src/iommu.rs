//! What the kernel says of its IOMMU, of groups, and of switches that weaken them.

use std::collections::BTreeMap;
use std::path::Path;

use berth_agent_core::slot::snapshot::{Group, IommuFacts};

use crate::files::{names, text};

/// Interrupt remapping in VT-d's extended capability register (specification 11.4.3).
const ECAP_IR: u64 = 1 << 3;

/// All facts but the groups.
pub(crate) fn facts(root: &Path) -> IommuFacts {
    let class = root.join("sys/class/iommu");
    let units = names(&class);
    IommuFacts {
        interrupt_remapping: interrupt_remapping(root, &class, &units),
        units,
        unsafe_interrupts_allowed: any_switch(
            root,
            &[
                "vfio_iommu_type1/parameters/allow_unsafe_interrupts",
                "iommufd/parameters/allow_unsafe_interrupts",
            ],
        ),
        no_iommu_mode: any_switch(root, &["vfio/parameters/enable_unsafe_noiommu_mode"]),
        kernel_command_line: text(&root.join("proc/cmdline"))
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    }
}

/// Whether one of these switches of modules is on; `None` if there is none of them.
fn any_switch(root: &Path, parameters: &[&str]) -> Option<bool> {
    parameters
        .iter()
        .filter_map(|parameter| text(&root.join("sys/module").join(parameter)))
        .map(|value| !matches!(value.as_str(), "N" | "0"))
        .reduce(|a, b| a || b)
}

/// No file says it. A kernel that remaps shows interrupt chips whose names begin with `IR-`; one that
/// does not shows the bare chips alone. A unit that cannot remap spoils it for what is behind it.
fn interrupt_remapping(root: &Path, class: &Path, units: &[String]) -> Option<bool> {
    let lacks = units.iter().any(|unit| {
        text(&class.join(unit).join("intel-iommu/ecap"))
            .and_then(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok())
            .is_some_and(|ecap| ecap & ECAP_IR == 0)
    });
    if lacks {
        return Some(false);
    }
    let interrupts = text(&root.join("proc/interrupts"))?;
    let mut words = interrupts.split_whitespace();
    if words.clone().any(|word| word.starts_with("IR-")) {
        return Some(true);
    }
    words
        .any(|word| word.starts_with("IO-APIC") || word.starts_with("PCI-MSI"))
        .then_some(false)
}

/// The groups by number. One with a member that is no PCI function is left out, as nothing here can
/// judge that one: whoever looks for it finds that it is not there.
pub(crate) fn groups(root: &Path) -> BTreeMap<u32, Group> {
    let folder = root.join("sys/kernel/iommu_groups");
    names(&folder)
        .into_iter()
        .filter_map(|name| {
            let group = folder.join(&name);
            let members = names(&group.join("devices"))
                .iter()
                .map(|member| member.parse().ok())
                .collect::<Option<_>>()?;
            let reserved_regions = text(&group.join("reserved_regions"))
                .unwrap_or_default()
                .lines()
                .filter_map(region)
                .collect();
            let number = name.parse().ok()?;
            Some((
                number,
                Group {
                    members,
                    reserved_regions,
                },
            ))
        })
        .collect()
}

fn region(line: &str) -> Option<(u64, u64, String)> {
    let mut words = line.split_whitespace();
    let mut address = || {
        let word = words.next()?;
        u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
    };
    let (first, last) = (address()?, address()?);
    Some((first, last, words.next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    fn remapping(tree: &Tree) -> Option<bool> {
        facts(tree.root()).interrupt_remapping
    }

    #[test]
    fn remapping_is_told_by_the_names_of_interrupt_chips() {
        let tree = Tree::new();
        assert_eq!(remapping(&tree), None);
        tree.file("proc/interrupts", " 24: 0 IO-APIC 5-edge acpi\nNMI: 0\n");
        assert_eq!(remapping(&tree), Some(false));
        tree.file(
            "proc/interrupts",
            " 24: 0 IR-PCI-MSI-0000:00:1f.2 0-edge ahci\n 25: 0 PCI-MSI 1-edge AMD-Vi\n",
        );
        assert_eq!(remapping(&tree), Some(true));
        tree.file("sys/class/iommu/dmar0/intel-iommu/ecap", "f00f5a\n");
        assert_eq!(remapping(&tree), Some(true));
        tree.file("sys/class/iommu/dmar1/intel-iommu/ecap", "f00f52\n");
        assert_eq!(remapping(&tree), Some(false));
    }

    #[test]
    fn switches_are_read_from_whichever_module_is_loaded() {
        let tree = Tree::new();
        let unsafe_ = |tree: &Tree| facts(tree.root()).unsafe_interrupts_allowed;
        assert_eq!(unsafe_(&tree), None);
        tree.file(
            "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            "N\n",
        );
        assert_eq!(unsafe_(&tree), Some(false));
        tree.file(
            "sys/module/iommufd/parameters/allow_unsafe_interrupts",
            "Y\n",
        );
        assert_eq!(unsafe_(&tree), Some(true));
        tree.file(
            "sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
            "Y\n",
        );
        assert_eq!(facts(tree.root()).no_iommu_mode, Some(true));
    }

    #[test]
    fn groups_have_members_and_reserved_regions() {
        let tree = Tree::new();
        tree.file("sys/kernel/iommu_groups/7/devices/0000:01:00.0", "");
        tree.file(
            "sys/kernel/iommu_groups/7/reserved_regions",
            "0x00000000000e0000 0x00000000000fffff direct\n0xfee00000 0xfeefffff msi\n",
        );
        tree.file("sys/kernel/iommu_groups/8/devices/AMDI0020:00", "");
        let groups = groups(tree.root());
        assert_eq!(groups.keys().copied().collect::<Vec<_>>(), [7]);
        assert_eq!(
            groups[&7].reserved_regions,
            [
                (0xe0000, 0xfffff, "direct".to_owned()),
                (0xfee0_0000, 0xfeef_ffff, "msi".to_owned())
            ]
        );
    }
}
