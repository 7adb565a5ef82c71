//! virtio over PCI, version 1 and later only.

use std::sync::Arc;

use super::device::VirtioDevice;
use super::executor::QueueExecutor;
use crate::guest_error::GuestErrors;
use crate::interrupt::MsiSender;
use crate::memory::Memory;
use crate::pci::DeviceSlot;

/// What a [`VirtioPci`] is made of.
pub struct VirtioPciParts {
    /// The device itself.
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

impl std::fmt::Debug for VirtioPciParts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("VirtioPciParts")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// A virtio device as a PCI function; see [`crate::pci::PciFunction`], which it implements.
pub struct VirtioPci {
    parts: VirtioPciParts,
}

impl VirtioPci {
    /// A function after reset.
    #[must_use]
    pub fn new(parts: VirtioPciParts) -> Self {
        Self { parts }
    }

    /// Number of queues.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.parts.device.queue_max_sizes().len()).unwrap_or(u16::MAX)
    }

    /// Guest physical address whose write (of 2 bytes, value irrelevant) notifies `queue_index`:
    /// register an ioeventfd of length 0 or 2 there. `None` before the BAR has its address and for
    /// queues that are not there.
    #[must_use]
    pub fn notify_address(&self, queue_index: u16) -> Option<u64> {
        let _ = queue_index;
        None
    }
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("VirtioPci")
            .field("parts", &self.parts)
            .finish()
    }
}
