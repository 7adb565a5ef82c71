//! One device of the fake host, and what can be wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::snapshot::{Bar, ConfigFacts, Function, HostUse};
use berth_api::pci::{PciAddress, PciClass, PciId};
use berth_api::slot::{DeviceIdentity, DeviceKind, SlotProblemCode, serial_kind};

use crate::slot_devices::{DeviceError, VFIO_PCI};

/// Something that goes wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceFault {
    /// Its driver does not let it go in time.
    UnbindHangs,
    /// `vfio-pci` does not take it.
    BindFails,
    /// No reset brings it back.
    ResetFails,
    /// It does not say what it is.
    IdentifyFails,
    /// The command that wipes it ends with an error.
    WipeFails,
    /// The command that wipes it does not end, until this is mended or the agent gives up.
    WipeStalls,
    /// It says that it is wiped, and is not.
    WipeLies,
}

/// A device of the fake host.
#[derive(Debug, Clone)]
pub struct FakeDevice {
    /// What is seen of it.
    pub function: Function,
    /// What it is to a slot.
    pub kind: DeviceKind,
    /// The driver that it has when nobody interferes.
    pub host_driver: Option<String>,
    /// Whether a rule of the host's gives it to `vfio-pci` at every start.
    pub is_bound_early: bool,
    /// What a tenant left on it; empty if it is blank.
    pub contents: Vec<u8>,
    /// What it says of itself when it is asked through VFIO.
    pub says: BTreeMap<String, String>,
    /// What goes wrong.
    pub faults: BTreeSet<DeviceFault>,
    /// Processes that have it open and should not.
    pub foreign_users: Vec<u32>,
    /// A wipe that was begun and has not ended, by the device's own log.
    pub unfinished_wipe: bool,
    /// Resets that it has seen.
    pub resets: u32,
}

impl FakeDevice {
    /// An NVMe drive with driver `nvme`.
    #[must_use]
    pub fn nvme(address: PciAddress, group: u32, serial: &str) -> Self {
        let mut drive = Self::new(DeviceKind::Nvme, PciClass::NVME, address, group);
        drive.host_driver = Some("nvme".to_owned());
        drive.function.driver = drive.host_driver.clone();
        drive
            .says
            .insert(serial_kind::NVME_SERIAL.to_owned(), serial.to_owned());
        drive
            .says
            .insert(serial_kind::NVME_MODEL.to_owned(), "fake drive".to_owned());
        drive
    }

    /// A display adapter without a driver.
    #[must_use]
    pub fn gpu(address: PciAddress, group: u32) -> Self {
        let mut gpu = Self::new(DeviceKind::Gpu, PciClass(0x03_02_00), address, group);
        gpu.function.bars.push(Bar {
            index: 1,
            bytes: 256 << 20,
            is_memory: true,
            is_prefetchable: true,
        });
        gpu
    }

    /// A network function without a driver.
    #[must_use]
    pub fn network(address: PciAddress, group: u32) -> Self {
        Self::new(DeviceKind::Network, PciClass(0x02_00_00), address, group)
    }

    fn new(kind: DeviceKind, class: PciClass, address: PciAddress, group: u32) -> Self {
        let identity = DeviceIdentity {
            vendor: PciId(0x1b36),
            device: PciId(0x0010),
            subsystem_vendor: PciId(0x1af4),
            subsystem: PciId(0x1100),
            class,
            path: format!("pci0000:00/{:02x}.0/00.0", address.bus),
            serials: BTreeMap::new(),
        };
        let function = Function {
            address,
            identity,
            parent: None,
            iommu_group: Some(group),
            driver: None,
            driver_override: None,
            numa_node: Some(0),
            reset_methods: vec!["flr".to_owned(), "bus".to_owned()],
            bars: vec![Bar {
                index: 0,
                bytes: 0x4000,
                is_memory: true,
                is_prefetchable: false,
            }],
            link: None,
            config: ConfigFacts {
                answers: true,
                has_msi: true,
                power_state: Some(0),
                ..ConfigFacts::default()
            },
            uses: Vec::new(),
            settings: BTreeMap::new(),
        };
        Self {
            function,
            kind,
            host_driver: None,
            is_bound_early: true,
            contents: Vec::new(),
            says: BTreeMap::new(),
            faults: BTreeSet::new(),
            foreign_users: Vec::new(),
            unfinished_wipe: false,
            resets: 0,
        }
    }

    /// What a host's owner would approve, looking at it now.
    #[must_use]
    pub fn approved(&self) -> ApprovedDevice {
        let mut identity = self.function.identity.clone();
        let mut settings = self.function.settings.clone();
        for (name, value) in &self.says {
            let is_serial = matches!(
                name.as_str(),
                serial_kind::NVME_SERIAL | serial_kind::NVME_MODEL | serial_kind::PCIE_DSN
            );
            let list = if is_serial {
                &mut identity.serials
            } else {
                &mut settings
            };
            list.insert(name.clone(), value.clone());
        }
        ApprovedDevice {
            kind: self.kind,
            address: self.function.address,
            identity,
            settings,
        }
    }

    pub(super) fn has(&self, fault: DeviceFault) -> bool {
        self.faults.contains(&fault)
    }

    pub(super) fn driver_after_boot(&self) -> Option<String> {
        if self.is_bound_early {
            return Some(VFIO_PCI.to_owned());
        }
        self.host_driver.clone()
    }

    /// Gives it to a driver, or takes it from all; returns the breach that this is.
    pub(super) fn put_driver(&mut self, driver: Option<&str>) -> Option<String> {
        self.function.driver = driver.map(str::to_owned);
        let driver = driver.filter(|driver| *driver != VFIO_PCI && !self.contents.is_empty())?;
        let address = self.function.address;
        Some(format!("{address} given to {driver} with data on it"))
    }

    pub(super) fn refuse_if_used(&self) -> Result<(), DeviceError> {
        let address = self.function.address;
        let used = self.function.uses.iter().find_map(|used| match used {
            HostUse::Block { device, how } => Some(format!("{device} is {how}")),
            HostUse::Boot { device } => Some(format!("the host booted from {device}")),
            HostUse::Route { interface } => Some(format!("{interface} has a route")),
            HostUse::Console => Some("it shows the console".to_owned()),
            HostUse::ManagementController => Some("the management controller has it".to_owned()),
            HostUse::VfioUser { .. } => None,
        });
        match used {
            Some(how) => Err(DeviceError::new(
                SlotProblemCode::DeviceInUse,
                format!("{address} is used by the host: {how}"),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn unbind(&mut self) -> Result<(), DeviceError> {
        if self.function.driver.is_some() && self.has(DeviceFault::UnbindHangs) {
            self.function.driver_override = None;
            let message = format!("{}: its driver did not let it go", self.function.address);
            return Err(DeviceError::new(SlotProblemCode::BindFailed, message).suspect());
        }
        self.function.driver = None;
        Ok(())
    }

    /// `before` is the driver that it goes back to if this fails.
    pub(super) fn bind(&mut self, before: Option<&str>) -> Result<(), DeviceError> {
        if self.has(DeviceFault::BindFails) {
            self.function.driver_override = None;
            self.function.driver = before.map(str::to_owned);
            let message = format!("{VFIO_PCI} did not take {}", self.function.address);
            return Err(DeviceError::new(SlotProblemCode::BindFailed, message));
        }
        self.function.driver = Some(VFIO_PCI.to_owned());
        Ok(())
    }

    pub(super) fn reset(&mut self) -> Result<(), DeviceError> {
        if self.has(DeviceFault::ResetFails) {
            let message = format!("no reset brought {} back", self.function.address);
            return Err(DeviceError::new(SlotProblemCode::ResetFailed, message).suspect());
        }
        self.resets = self.resets.saturating_add(1);
        Ok(())
    }

    pub(super) fn identify(&self) -> Result<BTreeMap<String, String>, DeviceError> {
        if self.has(DeviceFault::IdentifyFails) {
            let message = format!("{} does not say what it is", self.function.address);
            let error = DeviceError::new(SlotProblemCode::DeviceIdentityChanged, message);
            return Err(error.suspect());
        }
        Ok(self.says.clone())
    }
}
