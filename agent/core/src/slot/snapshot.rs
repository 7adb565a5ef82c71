//! What a host shows of its PCI functions, its IOMMU and its own use of devices: facts, no judgement.
//!
//! Nothing in here is trusted to be sane: it comes from a device, a kernel or a folder that a test made.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::pci::PciAddress;
use berth_api::slot::DeviceIdentity;

/// One look at a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSnapshot {
    /// All functions, bridges among them.
    pub functions: BTreeMap<PciAddress, Function>,
    /// IOMMU groups by number, with their members.
    pub groups: BTreeMap<u32, Group>,
    /// What is known of the IOMMU.
    pub iommu: IommuFacts,
}

/// What is known of the IOMMU and of what weakens it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IommuFacts {
    /// Names of the IOMMUs, such as `dmar0`; none: there is no IOMMU, or it is off.
    pub units: Vec<String>,
    /// Whether the kernel says that interrupts are remapped; `None` if nothing tells.
    pub interrupt_remapping: Option<bool>,
    /// `allow_unsafe_interrupts` of `vfio_iommu_type1`; `None` while the module is not loaded.
    pub unsafe_interrupts_allowed: Option<bool>,
    /// VFIO's mode without an IOMMU; `None` while the module is not loaded.
    pub no_iommu_mode: Option<bool>,
    /// The kernel's command line, word by word.
    pub kernel_command_line: Vec<String>,
}

/// One IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Its members.
    pub members: BTreeSet<PciAddress>,
    /// Reserved regions as `(first, last, kind)`: `direct` are RMRRs.
    pub reserved_regions: Vec<(u64, u64, String)>,
}

/// One PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// What it is, as far as it can be read now without a driver of its own.
    pub identity: DeviceIdentity,
    /// The bridge above it; `None` on a root bus.
    pub parent: Option<PciAddress>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// What `driver_override` says, if anything.
    pub driver_override: Option<String>,
    /// NUMA node; `None` if the host does not say.
    pub numa_node: Option<u32>,
    /// Names in `reset_method`; empty if there is no such file or nothing in it.
    pub reset_methods: Vec<String>,
    /// BARs by index.
    pub bars: Vec<Bar>,
    /// Current link speed and width as the kernel writes them, such as `16.0 GT/s PCIe` and `x4`.
    pub link: Option<(String, String)>,
    /// What its config space says.
    pub config: ConfigFacts,
    /// What the host itself does with it.
    pub uses: Vec<HostUse>,
    /// Firmware and settings that outlive a reset and can be read without a vendor's driver, by name.
    pub settings: BTreeMap<String, String>,
}

/// One base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether it is memory, not ports.
    pub is_memory: bool,
    /// Whether it may be prefetched.
    pub is_prefetchable: bool,
}

/// What a function's config space says, read and bounded by the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFacts {
    /// Whether the function answered: a vendor id other than `ffff`.
    pub answers: bool,
    /// Whether it is one of several functions of its device (header type, bit 7).
    pub is_multifunction: bool,
    /// PCI Express port kind, such as 4 for a root port and 6 for a switch's downstream port (device/port type
    /// of the PCI Express capability); `None` without that capability.
    pub port_kind: Option<u8>,
    /// Access control services that are on; `None` without that capability.
    pub acs: Option<AcsControl>,
    /// Access control services that the function can switch on; `None` without that capability.
    pub acs_capable: Option<AcsControl>,
    /// Whether it has an SR-IOV capability, and how many virtual functions are on.
    pub virtual_functions: Option<u16>,
    /// The physical function that it is a virtual function of.
    pub physical_function: Option<PciAddress>,
    /// Whether the function has MSI or MSI-X.
    pub has_msi: bool,
    /// Power state as PMCSR has it: 0 is D0, 3 is D3hot; `None` without that capability.
    pub power_state: Option<u8>,
    /// Why what is said here may not be all: it could not be read whole, or its lists of capabilities
    /// run in a circle or out of it. `None` if nothing is in doubt.
    pub fault: Option<String>,
}

/// Access control services of a port or function that are switched on (PCI Express 7.7.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four bits of one register, each judged by itself"
)]
pub struct AcsControl {
    /// SV: requests carry their own requester id.
    pub source_validation: bool,
    /// RR: peer requests go upstream.
    pub request_redirect: bool,
    /// CR: peer completions go upstream.
    pub completion_redirect: bool,
    /// UF: what goes upstream is not routed back.
    pub upstream_forwarding: bool,
}

/// Something that the host itself does with a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostUse {
    /// A block device of it is mounted, is swap, or is held by another one or by a process.
    Block {
        /// Such as `nvme0n1p1`.
        device: String,
        /// What with, such as `mounted on /`, `swap`, `held by dm-0`, `opened exclusively`.
        how: String,
    },
    /// The host booted from it.
    Boot {
        /// Such as `nvme0n1`.
        device: String,
    },
    /// A network interface of it has a route.
    Route {
        /// Such as `eth0`.
        interface: String,
    },
    /// It shows the console.
    Console,
    /// It belongs to the host's management controller.
    ManagementController,
    /// A process has its VFIO group or device open.
    VfioUser {
        /// Process id.
        pid: u32,
    },
}
