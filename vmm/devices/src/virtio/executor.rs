//! Who runs active devices: the seam between the transport, on a vCPU thread, and the I/O thread.
//!
//! Owns the loop around a device's `serve`: budget, notification suppression and the one interrupt
//! per batch. Threads and event descriptors are the machine's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::device::{Served, VirtioDevice};
use super::interrupt::VirtioInterrupt;
use super::queue::{QueueBroken, VirtQueue};
use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::pci::DeviceSlot;
use crate::sync::lock;

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
    /// An active device; `queues` has one place per queue, `None` where the driver enabled none.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        queues: Vec<Option<VirtQueue>>,
        memory: Arc<Memory>,
        interrupt: Arc<VirtioInterrupt>,
    ) -> Self {
        Self {
            device,
            queues,
            memory,
            interrupt,
        }
    }

    /// Serves queue `queue_index` for up to [`SERVE_BUDGET`] chains, publishes the used ring and
    /// interrupts the driver at most once. Queues that are not enabled are [`Served::Idle`].
    pub fn serve(&mut self, queue_index: u16) -> Served {
        if self.interrupt.needs_reset() {
            return Served::NeedsReset;
        }
        let Some(Some(queue)) = self.queues.get_mut(usize::from(queue_index)) else {
            return Served::Idle;
        };
        queue.grant(SERVE_BUDGET);
        let served = serve_queue(self.device.as_mut(), queue_index, queue, &self.memory);
        // What was completed before a break is the driver's all the same.
        let wants_interrupt = queue.needs_interrupt(&self.memory);
        if wants_interrupt == Ok(true) {
            self.interrupt.queue_used(queue_index);
        }
        match served.and_then(|served| wants_interrupt.map(|_| served)) {
            Ok(served) => served,
            Err(QueueBroken) => {
                queue.count(GuestError::VirtioQueueBroken);
                self.interrupt.ask_for_reset();
                Served::NeedsReset
            }
        }
    }

    /// Number of queues of the device, enabled or not.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Ends the active time and gives the device back, at rest.
    pub(super) fn into_device(mut self) -> Box<dyn VirtioDevice> {
        self.device.reset();
        self.device
    }
}

/// Serves until the ring is empty and the driver knows that it has to notify again, or until the
/// budget is used up.
fn serve_queue(
    device: &mut dyn VirtioDevice,
    index: u16,
    queue: &mut VirtQueue,
    memory: &Memory,
) -> Result<Served, QueueBroken> {
    loop {
        queue.disable_notification(memory)?;
        device.serve(index, queue, memory)?;
        if queue.charge(0) == 0 {
            return Ok(Served::More);
        }
        if !queue.enable_notification(memory)? {
            return Ok(Served::Idle);
        }
        // A driver that moves the index to and fro makes rounds without chains: they cost, too.
        if queue.charge(1) == 0 {
            return Ok(Served::More);
        }
    }
}

impl fmt::Debug for ActiveDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ActiveDevice")
            .field("queues", &self.queues)
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

/// Runs active devices. The machine implements it with its I/O thread; [`InlineExecutor`] is for
/// tests and fuzzers. All calls come from vCPU threads with the device's transport locked, so the
/// executor must never call back into a transport.
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

/// Serves on the thread that notifies. For tests and fuzzers: a real machine would stall a vCPU.
#[derive(Debug, Default)]
pub struct InlineExecutor {
    devices: Mutex<BTreeMap<DeviceSlot, ActiveDevice>>,
}

/// Rounds that one notification is served for. A ring whose used part overlaps its available part
/// never runs empty.
const INLINE_ROUNDS: usize = 64;

impl QueueExecutor for InlineExecutor {
    fn activate(&self, slot: DeviceSlot, device: ActiveDevice) -> Result<(), ActivateError> {
        let queues = device.queue_count();
        lock(&self.devices).insert(slot, device);
        for queue_index in 0..queues {
            self.notify(slot, queue_index);
        }
        Ok(())
    }

    fn deactivate(&self, slot: DeviceSlot) -> Option<ActiveDevice> {
        lock(&self.devices).remove(&slot)
    }

    fn notify(&self, slot: DeviceSlot, queue_index: u16) {
        let mut devices = lock(&self.devices);
        let Some(device) = devices.get_mut(&slot) else {
            return;
        };
        for _ in 0..INLINE_ROUNDS {
            if device.serve(queue_index) != Served::More {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::testing::{BUFFERS, EVENT_IDX, Ring, TestGuest, WRITE};

    /// What a [`Racing`] device saw while it served.
    #[derive(Default)]
    struct Seen {
        /// Addresses of the available and the used ring.
        rings: (u64, u64),
        used_flags: Vec<u16>,
        chains: usize,
    }

    /// Serves a driver that adds one chain just after the device found the ring empty.
    struct Racing(Arc<Mutex<Seen>>);

    impl VirtioDevice for Racing {
        fn device_type(&self) -> u16 {
            4
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[16]
        }
        fn config(&self) -> &[u8] {
            &[]
        }
        fn activate(&mut self, _: u64) {}
        fn serve(
            &mut self,
            _: u16,
            queue: &mut VirtQueue,
            memory: &Memory,
        ) -> Result<(), QueueBroken> {
            let mut seen = lock(&self.0);
            let (available, used) = seen.rings;
            if used != 0 {
                seen.used_flags
                    .push(memory.read_obj(GuestAddress(used)).unwrap());
            }
            while let Some(chain) = queue.pop(memory)? {
                seen.chains += 1;
                queue.complete(memory, chain, 0)?;
            }
            if seen.chains == 1 {
                memory
                    .write_obj(2_u16, GuestAddress(available + 2))
                    .unwrap();
            }
            Ok(())
        }
        fn reset(&mut self) {}
    }

    fn racing(features: u64) -> (TestGuest, Ring, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let guest = TestGuest::new(Box::new(Racing(seen.clone())));
        let ring = guest.bring_up(features, 16);
        lock(&seen).rings = (ring.available, ring.used);
        (guest, ring, seen)
    }

    #[test]
    fn a_chain_added_while_notifications_are_off_is_not_forgotten() {
        for features in [0, EVENT_IDX] {
            let (guest, mut ring, seen) = racing(features);
            ring.submit(&[(BUFFERS, 4, WRITE)]);
            guest.notify(0);
            assert_eq!(lock(&seen).chains, 2);
            assert_eq!(ring.take_used().len(), 2);
            assert_eq!(guest.messages.take(), [1], "still one interrupt");
        }
    }

    #[test]
    fn the_driver_need_not_notify_while_its_queue_is_served() {
        let (guest, mut ring, seen) = racing(0);
        ring.submit(&[(BUFFERS, 4, WRITE)]);
        guest.notify(0);
        assert_eq!(lock(&seen).used_flags, [1, 1]);
        assert!(!ring.suppresses_notifications());
    }

    #[test]
    fn a_queue_that_is_not_enabled_or_not_there_is_idle() {
        let (guest, _, _) = racing(0);
        let memory = guest.memory.clone();
        let msix = crate::pci::msix::Msix::new(1, guest.messages.clone(), guest.errors.clone());
        let interrupt = Arc::new(VirtioInterrupt::new(1, msix));
        let device = Box::new(Racing(Arc::default()));
        let mut active = ActiveDevice::new(device, vec![None], memory, interrupt);
        assert_eq!(active.queue_count(), 1);
        assert_eq!([active.serve(0), active.serve(1)], [Served::Idle; 2]);
    }
}
