//! virtio over PCI, version 1 and later only.
//!
//! Owns one virtio device as a PCI function: configuration space, the `PCI_CFG` window and the
//! regions of the BAR. What the registers mean is in [`registers`], where they are in [`layout`],
//! how the status moves in [`status`]. It never touches a queue: that is the executor's.

mod layout;
mod registers;
mod status;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use self::layout::{
    BAR_INDEX, BAR_REQUEST, CapabilityPlaces, MAX_QUEUES, MSIX_CONTROL, NOTIFY_MULTIPLIER,
    NOTIFY_START, Region, WINDOW_BAR, WINDOW_DATA, WINDOW_LENGTH, WINDOW_OFFSET,
};
use self::registers::{Registers, Surroundings};
use super::config::DeviceConfig;
use super::device::VirtioDevice;
use super::executor::QueueExecutor;
use super::interrupt::VirtioInterrupt;
use crate::guest_error::{GuestError, GuestErrors};
use crate::interrupt::MsiSender;
use crate::memory::Memory;
use crate::pci::bar::BarRequest;
use crate::pci::config_space::ConfigSpace;
use crate::pci::msix::Msix;
use crate::pci::{DeviceSlot, PciFunction};
use crate::sync::lock;

/// What a [`VirtioPci`] is made of.
pub struct VirtioPciParts {
    /// The device itself, with at most 256 queues: further ones are not shown to the driver.
    pub device: Box<dyn VirtioDevice>,
    /// Where it sits.
    pub slot: DeviceSlot,
    /// Guest RAM.
    pub memory: Arc<Memory>,
    /// Where its interrupts go.
    pub msi: Arc<dyn MsiSender>,
    /// Who serves it while it is active.
    pub executor: Arc<dyn QueueExecutor>,
    /// Where the guest's mistakes are counted.
    pub errors: Arc<GuestErrors>,
}

impl fmt::Debug for VirtioPciParts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtioPciParts")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    state: Mutex<State>,
    queue_count: u16,
    bar_address: OnceLock<u64>,
}

/// All that one access may read or change.
struct State {
    config_space: ConfigSpace,
    places: CapabilityPlaces,
    registers: Registers,
    device_config: Arc<DeviceConfig>,
    interrupt: Arc<VirtioInterrupt>,
    errors: Arc<GuestErrors>,
}

impl VirtioPci {
    /// A function after reset.
    #[must_use]
    pub fn new(parts: VirtioPciParts) -> Self {
        let VirtioPciParts {
            device,
            slot,
            memory,
            msi,
            executor,
            errors,
        } = parts;
        let queues = device.queue_max_sizes().len().min(usize::from(MAX_QUEUES));
        let queue_count = u16::try_from(queues).expect("there are at most 256 queues");
        // One vector for each queue and one for configuration changes.
        let msix = Msix::new(queue_count + 1, msi, errors.clone());
        let interrupt = Arc::new(VirtioInterrupt::new(queues, msix));
        let device_config = device.config();
        device_config.connect(interrupt.clone());
        let config_bytes = u32::try_from(device_config.length()).unwrap_or(u32::MAX);
        let (config_space, places) = layout::config_space(
            device.device_type(),
            config_bytes,
            u32::from(queue_count),
            queue_count + 1,
        );
        let around = Surroundings {
            slot,
            memory,
            executor,
            interrupt: interrupt.clone(),
            device_config: device_config.clone(),
            errors: errors.clone(),
        };
        let registers = Registers::new(device, around);
        let state = State {
            config_space,
            places,
            registers,
            device_config,
            interrupt,
            errors,
        };
        Self {
            state: Mutex::new(state),
            queue_count,
            bar_address: OnceLock::new(),
        }
    }

    /// Number of queues.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.queue_count
    }

    /// Takes the medium out of the device for good, whatever its driver does at the moment. Not to be
    /// called while the caller serves a device.
    pub fn eject(&self) {
        lock(&self.state).registers.eject();
    }

    /// Guest physical address whose write (of 2 bytes, value irrelevant) notifies `queue_index`:
    /// register an ioeventfd of length 0 or 2 there. `None` before the BAR has its address and for
    /// queues that are not there.
    #[must_use]
    pub fn notify_address(&self, queue_index: u16) -> Option<u64> {
        let base = self
            .bar_address
            .get()
            .filter(|_| queue_index < self.queue_count)?;
        Some(base + NOTIFY_START + u64::from(queue_index) * u64::from(NOTIFY_MULTIPLIER))
    }
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtioPci")
            .field("bar_address", &self.bar_address)
            .finish_non_exhaustive()
    }
}

impl PciFunction for VirtioPci {
    fn bar_requests(&self) -> Vec<BarRequest> {
        vec![BAR_REQUEST]
    }

    fn assign_bar(&self, index: u8, address: u64) {
        if index == BAR_INDEX && self.bar_address.set(address).is_ok() {
            lock(&self.state).config_space.add_bar(BAR_REQUEST, address);
        }
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.state).config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        lock(&self.state).config_write(offset, data);
    }

    fn bar_read(&self, index: u8, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        if state.answers_in(index) {
            state.region_read(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn bar_write(&self, index: u8, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        if state.answers_in(index) {
            state.region_write(offset, data);
        }
    }
}

impl State {
    fn answers_in(&self, bar: u8) -> bool {
        let answers = bar == BAR_INDEX && self.config_space.decodes_memory();
        if !answers {
            self.errors.bump(GuestError::PciBarDisabled);
        }
        answers
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config_space.read(offset, data);
        if offset == self.places.window + WINDOW_DATA
            && let Some(target) = self.window_target(data.len())
        {
            self.region_read(target, data);
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config_space.write(offset, data);
        // The control word can be written alone or as a part of its register.
        let control = self.config_space.value(self.places.msix + MSIX_CONTROL, 2);
        let control = u16::try_from(control & 0xffff).expect("the value is masked to 16 bits");
        self.interrupt.msix().set_control(control);
        if offset == self.places.window + WINDOW_DATA
            && let Some(target) = self.window_target(data.len())
        {
            self.region_write(target, data);
        }
    }

    /// The offset into the BAR that the `PCI_CFG` window names, if an access of `width` bytes may
    /// go there: the length is 1, 2 or 4 and that of the access, the offset is aligned to it.
    fn window_target(&self, width: usize) -> Option<u64> {
        let field = |offset, width| self.config_space.value(self.places.window + offset, width);
        let (bar, offset) = (field(WINDOW_BAR, 1), field(WINDOW_OFFSET, 4));
        let length = field(WINDOW_LENGTH, 4);
        // Whoever dumps configuration space reads the window without having set it up.
        if length == 0 {
            return None;
        }
        let is_valid = matches!(length, 1 | 2 | 4)
            && usize::try_from(length) == Ok(width)
            && bar == u32::from(BAR_INDEX)
            && offset.is_multiple_of(length)
            && u64::from(offset) < BAR_REQUEST.bytes;
        if !is_valid {
            self.errors.bump(GuestError::VirtioConfigWindow);
        }
        is_valid.then_some(u64::from(offset))
    }

    fn region_read(&self, offset: u64, data: &mut [u8]) {
        match Region::at(offset) {
            Some(Region::Common(offset)) => match self.registers.read(offset, data.len()) {
                Some(value) => data.copy_from_slice(&value.to_le_bytes()[..data.len()]),
                None => self.refuse_read(data),
            },
            Some(Region::Isr(0)) if data.len() == 1 => data[0] = self.interrupt.take_isr(),
            Some(Region::Device(offset)) => {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                self.device_config.read(offset, data);
            }
            Some(Region::Table(offset)) => self.interrupt.msix().table_read(offset, data),
            Some(Region::Pending(offset)) => self.interrupt.msix().pending_read(offset, data),
            Some(Region::Isr(_) | Region::Notify(_)) | None => self.refuse_read(data),
        }
    }

    fn region_write(&mut self, offset: u64, data: &[u8]) {
        match Region::at(offset) {
            Some(Region::Common(offset)) => {
                let mut bytes = [0; 8];
                for (byte, &value) in bytes.iter_mut().zip(data) {
                    *byte = value;
                }
                self.registers
                    .write(offset, data.len(), u64::from_le_bytes(bytes));
            }
            Some(Region::Notify(offset)) => self.notify(offset, data.len()),
            Some(Region::Table(offset)) => self.interrupt.msix().table_write(offset, data),
            Some(Region::Device(offset))
                if self
                    .device_config
                    .write(usize::try_from(offset).unwrap_or(usize::MAX), data) => {}
            Some(Region::Isr(_) | Region::Device(_) | Region::Pending(_)) | None => {
                self.errors.bump(GuestError::VirtioRegister);
            }
        }
    }

    /// The queue is in the address; the value repeats it and is not looked at, as an ioeventfd
    /// does not look either.
    fn notify(&self, offset: u64, width: usize) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        if !matches!(width, 2 | 4) || !offset.is_multiple_of(multiplier) {
            return self.errors.bump(GuestError::VirtioRegister);
        }
        self.registers
            .notify(u16::try_from(offset / multiplier).unwrap_or(u16::MAX));
    }

    fn refuse_read(&self, data: &mut [u8]) {
        self.errors.bump(GuestError::VirtioRegister);
        data.fill(0xff);
    }
}
