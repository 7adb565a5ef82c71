//! What the agent can do with a slot's devices: look, take, reset, identify, hand over, wipe, give back.
//!
//! One trait, one Linux implementation and one stateful fake. Every call is an *ensure*: it may be
//! repeated, reads back what it changed, and names what it found. It judges nothing; it never gives a
//! device to a host driver that was not asked for. Calls block, some of them for hours: each belongs on
//! a thread of its own.

mod linux;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::snapshot::HostSnapshot;
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceWipe, SlotProblemCode};

pub use self::linux::{DRIVER_LIMIT, LinuxSlotDevices};

/// Why a step on a device failed: a code for the controller and a message for people.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    /// As a code.
    pub code: SlotProblemCode,
    /// What was found, and what to do.
    pub message: String,
    /// Whether the device itself is in doubt, so that its slot has to be quarantined.
    pub is_device_suspect: bool,
}

impl DeviceError {
    /// A failure that says nothing against the device.
    #[must_use]
    pub fn new(code: SlotProblemCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            is_device_suspect: false,
        }
    }

    /// The same failure, with the device itself in doubt.
    #[must_use]
    pub fn suspect(mut self) -> Self {
        self.is_device_suspect = true;
        self
    }
}

/// The driver that a slot's devices have, from their approval on.
pub const VFIO_PCI: &str = "vfio-pci";

/// What a step changed or found, in words for a receipt, such as `nvme -> vfio-pci`.
pub type Found = String;

/// Open descriptors of a slot's devices for one guest.
#[derive(Debug)]
pub struct GuestDevices {
    /// A fresh `/dev/vfio/vfio`.
    pub container: OwnedFd,
    /// Each group once, by number.
    pub groups: BTreeMap<u32, OwnedFd>,
    /// Each device with its group.
    pub devices: Vec<(PciAddress, u32)>,
    /// Bytes of the devices' own memory, which the guest maps.
    pub memory_bytes: u64,
}

/// The devices of one host.
pub trait SlotDevices: Send + Sync + 'static {
    /// Look at everything.
    ///
    /// # Errors
    /// If sysfs cannot be read at all. What cannot be read of one device is absent from it.
    fn snapshot(&self) -> Result<HostSnapshot, DeviceError>;

    /// Take a device from its driver and bind it to `vfio-pci`: exclusive opens of all its block
    /// devices held up to the moment of unbinding, each write read back. The driver that had it is
    /// returned, so that it can be noted before anything else is done. Nothing is left half done: what
    /// fails is undone.
    ///
    /// # Errors
    /// `DeviceInUse` if the host uses it, `BindFailed` if a driver would not go or come in time.
    fn ensure_bound(&self, device: PciAddress) -> Result<Found, DeviceError>;

    /// Give a device back to `driver`, or leave it without one. Only for devices that no tenant had
    /// since their last proved wipe.
    ///
    /// # Errors
    /// `BindFailed`.
    fn ensure_unbound(
        &self,
        device: PciAddress,
        driver: Option<&str>,
    ) -> Result<Found, DeviceError>;

    /// Reset a slot's devices, all of them bound to `vfio-pci`: each by its own function's reset, else
    /// by a hot reset whose scope is these devices and no others; then ask each whether it lives.
    ///
    /// # Errors
    /// `ResetFailed`, with the rung of the ladder and the device.
    fn reset(&self, devices: &[PciAddress]) -> Result<Found, DeviceError>;

    /// What a device that is bound to `vfio-pci` says of itself: serials and settings, by the names of
    /// [`berth_api::slot::serial_kind`] and of the approval's settings. Empty for kinds that cannot be
    /// asked.
    ///
    /// # Errors
    /// `DeviceIdentityChanged` if it would not say.
    fn identify(
        &self,
        device: &ApprovedDevice,
        at: PciAddress,
    ) -> Result<BTreeMap<String, String>, DeviceError>;

    /// Processes that have a device's VFIO group or device open, other than this one. One that does not
    /// show itself, such as one that is just ending, is 0.
    ///
    /// # Errors
    /// If procfs cannot be read.
    fn users(&self, device: PciAddress) -> Result<Vec<u32>, DeviceError>;

    /// Open a slot's devices for a guest.
    ///
    /// # Errors
    /// `ForeignUser` if somebody has a group already.
    fn open_for_guest(&self, devices: &[PciAddress]) -> Result<GuestDevices, DeviceError>;

    /// Wipe one device that is bound to `vfio-pci`, and read back what it holds. `earlier` is what an
    /// earlier agent noted last before it ended.
    ///
    /// # Errors
    /// `WipeFailed`. Nothing but `Ok` is a proof. If the journal said that the agent is about to end,
    /// the device is not in doubt: the next agent continues.
    fn wipe(
        &self,
        device: &ApprovedDevice,
        at: PciAddress,
        policy: &WipePolicy,
        earlier: Option<&WipeRun>,
        journal: &mut dyn WipeJournal,
    ) -> Result<DeviceWipe, DeviceError>;
}
