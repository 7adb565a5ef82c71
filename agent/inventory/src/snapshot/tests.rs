//! Whole hosts, drawn as folders, and this one.

use berth_agent_core::slot::snapshot::{AcsControl, Bar, HostUse};
use berth_api::pci::PciClass;
use berth_api::slot::serial_kind;

use super::*;
use crate::config_space::tests::Bytes;
use crate::tree::Tree;

#[test]
fn a_host_is_read_from_its_files() {
    let tree = Tree::new();
    tree.file("proc/self/mountinfo", "");
    tree.file("proc/cmdline", "root=/dev/vda1 intel_iommu=on\n");
    tree.file("proc/interrupts", "24: 0 IR-PCI-MSI 0-edge\n");
    tree.file("sys/class/iommu/dmar0/intel-iommu/ecap", "f00f5a\n");
    tree.file("sys/kernel/iommu_groups/5/devices/0000:3b:00.0", "");
    tree.file("sys/kernel/iommu_groups/5/reserved_regions", "");

    let port = tree.pci("pci0000:00/0000:00:01.0");
    tree.file(&format!("{port}/class"), "0x060400\n");
    let config = Bytes::new(4096)
        .with(&[&[0x10, 0x42, 0x00]])
        .with_extended(&[(0x000d, &[0x1f, 0, 0x1d, 0])]);
    tree.bytes(&format!("{port}/config"), &config.0);

    let drive = tree.pci("pci0000:00/0000:00:01.0/0000:3b:00.0");
    let config = Bytes::new(4096)
        .with(&[&[0x10, 0x02, 0x00], &[0x11, 0, 0], &[0x01, 0, 0, 0]])
        .with_extended(&[(0x0003, &[8, 7, 6, 5, 4, 3, 2, 1])]);
    tree.bytes(&format!("{drive}/config"), &config.0);
    for (name, content) in [
        ("numa_node", "1\n"),
        ("current_link_speed", "16.0 GT/s PCIe\n"),
        ("current_link_width", "4\n"),
        ("driver_override", "vfio-pci\n"),
        ("resource", "0xfe000000 0xfe003fff 0x140204\n"),
        ("nvme/nvme0/serial", "S3CRET  \n"),
        ("nvme/nvme0/model", "A drive\n"),
        ("nvme/nvme0/firmware_rev", "1.2\n"),
        ("nvme/nvme0/nvme0n1/dev", "259:0\n"),
    ] {
        tree.file(&format!("{drive}/{name}"), content);
    }
    tree.link(&format!("{drive}/driver"), "sys/bus/pci/drivers/nvme");
    tree.link(&format!("{drive}/iommu_group"), "sys/kernel/iommu_groups/5");
    tree.link(
        "sys/class/block/nvme0n1",
        &format!("{drive}/nvme/nvme0/nvme0n1"),
    );
    tree.file("proc/swaps", "Filename\n/dev/nvme0n1 partition\n");

    let host = read(tree.root()).unwrap();
    let at = "0000:3b:00.0".parse().unwrap();
    let function = &host.functions[&at];
    assert_eq!(function.identity.path, "pci0000:00/01.0/00.0");
    assert_eq!(function.identity.class, PciClass::NVME);
    assert_eq!(
        function.identity.serials,
        [
            (serial_kind::NVME_MODEL, "A drive"),
            (serial_kind::NVME_SERIAL, "S3CRET"),
            (serial_kind::PCIE_DSN, "0102030405060708"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    );
    assert_eq!(function.settings["nvme_firmware"], "1.2");
    assert_eq!(function.parent, Some("0000:00:01.0".parse().unwrap()));
    assert_eq!(function.iommu_group, Some(5));
    assert_eq!(function.driver.as_deref(), Some("nvme"));
    assert_eq!(function.driver_override.as_deref(), Some("vfio-pci"));
    assert_eq!(function.numa_node, Some(1));
    assert_eq!(function.reset_methods, ["flr", "bus"]);
    assert_eq!(
        function.bars,
        [Bar {
            index: 0,
            bytes: 0x4000,
            is_memory: true,
            is_prefetchable: false
        }]
    );
    assert_eq!(
        function.link,
        Some(("16.0 GT/s PCIe".to_owned(), "x4".to_owned()))
    );
    assert_eq!(
        function.uses,
        [HostUse::Block {
            device: "nvme0n1".to_owned(),
            how: "swap".to_owned()
        }]
    );
    let port = &host.functions[&"0000:00:01.0".parse().unwrap()];
    assert_eq!(
        port.config.acs,
        Some(AcsControl {
            source_validation: true,
            request_redirect: true,
            completion_redirect: true,
            upstream_forwarding: true
        })
    );
    assert_eq!((port.parent, port.numa_node), (None, None));
    assert_eq!(host.groups[&5].members, [at].into());
    assert_eq!(host.iommu.units, ["dmar0"]);
    assert_eq!(host.iommu.interrupt_remapping, Some(true));
    assert_eq!(host.iommu.kernel_command_line[1], "intel_iommu=on");
}

#[test]
fn a_virtual_function_names_its_physical_one_and_that_one_counts_them() {
    let tree = Tree::new();
    tree.file("proc/self/mountinfo", "");
    let physical = tree.pci("pci0000:00/0000:00:01.0/0000:01:00.0");
    tree.file(&format!("{physical}/sriov_numvfs"), "2\n");
    let virtual_ = tree.pci("pci0000:00/0000:00:01.0/0000:01:10.0");
    tree.link(&format!("{virtual_}/physfn"), &physical);
    let host = read(tree.root()).unwrap();
    let config = |at: &str| &host.functions[&at.parse().unwrap()].config;
    assert_eq!(config("0000:01:00.0").virtual_functions, Some(2));
    assert_eq!(
        config("0000:01:10.0").physical_function,
        Some("0000:01:00.0".parse().unwrap())
    );
}

#[test]
fn a_function_that_goes_away_meanwhile_is_absent() {
    let tree = Tree::new();
    tree.file("proc/self/mountinfo", "");
    tree.folder("sys/devices/pci0000:00/0000:00:02.0");
    tree.link(
        "sys/bus/pci/devices/0000:00:02.0",
        "sys/devices/pci0000:00/0000:00:02.0",
    );
    tree.link_to("sys/bus/pci/devices/0000:00:03.0", "nowhere");
    assert_eq!(read(tree.root()).unwrap().functions.len(), 0);
}

#[test]
fn a_function_whose_config_space_cannot_be_read_is_there_and_in_doubt() {
    let tree = Tree::new();
    tree.file("proc/self/mountinfo", "");
    let folder = tree.pci("pci0000:00/0000:00:02.0");
    fs::remove_file(tree.root().join(&folder).join("config")).unwrap();
    let host = read(tree.root()).unwrap();
    let config = &host.functions.values().next().unwrap().config;
    assert!(!config.answers && config.fault.is_some());
}

#[test]
fn a_host_without_sysfs_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let error = read(folder.path()).unwrap_err();
    assert!(error.path.ends_with("sys/bus/pci/devices"));
}

#[test]
fn this_very_host_is_read() {
    let host = read(Path::new("/")).unwrap();
    let listed = files::names(Path::new("/sys/bus/pci/devices")).len();
    assert_eq!(host.functions.len(), listed);
}
