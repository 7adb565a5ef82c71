//! Who runs active devices: the seam between the transport, on a vCPU thread, and the I/O thread.
//!
//! Owns the loop around a device's `serve`: budget, notification suppression and the one interrupt
//! per batch. Threads and event descriptors are the machine's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::device::{Served, VirtioDevice};
use super::interrupt::VirtioInterrupt;
use super::queue::{QueueBroken, Queues, VirtQueue};
use crate::guest_error::{GuestError, GuestErrors};
use crate::memory::Memory;
use crate::pci::DeviceSlot;
use crate::sync::lock;

/// Chains that one call to [`ActiveDevice::serve`] takes at most from a queue of which its device
/// says nothing else, so that no guest action keeps
/// the I/O thread from other devices.
pub const SERVE_BUDGET: u16 = 64;

/// A device from `DRIVER_OK` until reset, with all that serving needs. Owned by the executor.
pub struct ActiveDevice {
    device: Box<dyn VirtioDevice>,
    queues: Queues,
    memory: Arc<Memory>,
    interrupt: Arc<VirtioInterrupt>,
    errors: Arc<GuestErrors>,
}

impl ActiveDevice {
    /// An active device; `queues` has one place per queue, `None` where the driver enabled none.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        queues: Vec<Option<VirtQueue>>,
        memory: Arc<Memory>,
        interrupt: Arc<VirtioInterrupt>,
        errors: Arc<GuestErrors>,
    ) -> Self {
        Self {
            device,
            queues: Queues::new(queues),
            memory,
            interrupt,
            errors,
        }
    }

    /// Serves queue `queue_index` for up to its budget of chains, publishes the used rings and
    /// interrupts the driver at most once for each queue. Queues that are not enabled are
    /// [`Served::Idle`].
    pub fn serve(&mut self, queue_index: u16) -> Served {
        if !self.queues.is_enabled(queue_index) {
            return self.unless_broken(Served::Idle);
        }
        self.run(|device, queues, memory| {
            let served = serve_queue(device, queue_index, queues, memory)?;
            Ok(more_of(served, serve_wanted(device, queues, memory)?))
        })
    }

    /// Lets the device take input from its descriptor `source`, with the same bounds as
    /// [`Self::serve`].
    pub fn source_ready(&mut self, source: u16) -> Served {
        self.run(|device, queues, memory| {
            let served = device.source_ready(source, queues, memory)?;
            Ok(more_of(served, serve_wanted(device, queues, memory)?))
        })
    }

    /// Has the device give up what the guest reads here. A device that waits for its reset answers
    /// nothing any more, so that what it has in progress ends now.
    pub fn eject(&mut self) {
        self.device.eject();
        if self.interrupt.needs_reset() {
            self.device.reset();
        }
    }

    /// Number of queues of the device, enabled or not.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.queues.count()
    }

    /// Number of descriptors of the host that wake the device.
    #[must_use]
    pub fn source_count(&self) -> u16 {
        u16::try_from(self.device.sources().len()).unwrap_or(u16::MAX)
    }

    fn unless_broken(&self, served: Served) -> Served {
        if self.interrupt.needs_reset() {
            Served::NeedsReset
        } else {
            served
        }
    }

    fn run(
        &mut self,
        act: impl FnOnce(&mut dyn VirtioDevice, &mut Queues, &Memory) -> Result<Served, QueueBroken>,
    ) -> Served {
        if self.interrupt.needs_reset() {
            return Served::NeedsReset;
        }
        let Self { device, queues, .. } = self;
        queues.grant(|index| device.chain_budget(index));
        let served = act(self.device.as_mut(), &mut self.queues, &self.memory);
        // What was completed before a break is the driver's all the same.
        let told = self.tell_driver();
        match served.and_then(|served| told.map(|()| served)) {
            Ok(served) => served,
            Err(QueueBroken) => {
                self.errors.bump(GuestError::VirtioQueueBroken);
                self.interrupt.ask_for_reset();
                Served::NeedsReset
            }
        }
    }

    /// Interrupts for each queue on which chains were completed, where the driver wants it.
    fn tell_driver(&mut self) -> Result<(), QueueBroken> {
        for index in 0..self.queues.count() {
            if self.queues.needs_interrupt(index, &self.memory)? {
                self.interrupt.queue_used(index);
            }
        }
        Ok(())
    }

    /// Ends the active time and gives the device back, at rest.
    pub(super) fn into_device(mut self) -> Box<dyn VirtioDevice> {
        self.device.reset();
        self.device
    }
}

/// Both together.
fn more_of(first: Served, second: Served) -> Served {
    if second == Served::More {
        second
    } else {
        first
    }
}

/// Serves the queues that the device asked for.
fn serve_wanted(
    device: &mut dyn VirtioDevice,
    queues: &mut Queues,
    memory: &Memory,
) -> Result<Served, QueueBroken> {
    let mut all = Served::Idle;
    for index in 0..queues.count() {
        let is_wanted = queues.get(index).is_some_and(VirtQueue::take_wanted);
        if is_wanted && serve_queue(device, index, queues, memory)? == Served::More {
            all = Served::More;
            // Its turn comes with the next call for the same queue or source.
            if let Some(queue) = queues.get(index) {
                queue.serve_again();
            }
        }
    }
    Ok(all)
}

/// Serves until the ring is empty and the driver knows that it has to notify again, or until the
/// budget is used up.
fn serve_queue(
    device: &mut dyn VirtioDevice,
    index: u16,
    queues: &mut Queues,
    memory: &Memory,
) -> Result<Served, QueueBroken> {
    loop {
        if let Some(queue) = queues.get(index) {
            queue.disable_notification(memory)?;
        }
        device.serve(index, queues, memory)?;
        let Some(queue) = queues.get(index) else {
            return Ok(Served::Idle);
        };
        if queue.charge(0) == 0 {
            return Ok(Served::More);
        }
        if queue.is_quiet() || !queue.enable_notification(memory)? {
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
/// tests and fuzzers. All calls come with the device's transport locked, and all but
/// [`QueueExecutor::eject`] from vCPU threads, so the executor must never call back into a transport.
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

    /// Has the device at `slot` give up what the guest reads there, if it is here. Called from the I/O
    /// thread as well, which then holds no device.
    fn eject(&self, slot: DeviceSlot);
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
        let (queues, sources) = (device.queue_count(), device.source_count());
        lock(&self.devices).insert(slot, device);
        for queue_index in 0..queues {
            self.notify(slot, queue_index);
        }
        for source in 0..sources {
            self.source_ready(slot, source);
        }
        Ok(())
    }

    fn deactivate(&self, slot: DeviceSlot) -> Option<ActiveDevice> {
        lock(&self.devices).remove(&slot)
    }

    fn notify(&self, slot: DeviceSlot, queue_index: u16) {
        self.serve_rounds(slot, |device| device.serve(queue_index));
    }

    fn eject(&self, slot: DeviceSlot) {
        if let Some(device) = lock(&self.devices).get_mut(&slot) {
            device.eject();
        }
    }
}

impl InlineExecutor {
    /// Says that the descriptor at `source` of the device in `slot` has input.
    pub fn source_ready(&self, slot: DeviceSlot, source: u16) {
        self.serve_rounds(slot, |device| device.source_ready(source));
    }

    fn serve_rounds(&self, slot: DeviceSlot, serve: impl Fn(&mut ActiveDevice) -> Served) {
        let mut devices = lock(&self.devices);
        let Some(device) = devices.get_mut(&slot) else {
            return;
        };
        for _ in 0..INLINE_ROUNDS {
            if serve(device) != Served::More {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::config::DeviceConfig;
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
        fn config(&self) -> Arc<DeviceConfig> {
            DeviceConfig::constant(&[])
        }
        fn activate(&mut self, _: u64) {}
        fn serve(
            &mut self,
            index: u16,
            queues: &mut Queues,
            memory: &Memory,
        ) -> Result<(), QueueBroken> {
            let queue = queues.get(index).unwrap();
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
        let mut active =
            ActiveDevice::new(device, vec![None], memory, interrupt, guest.errors.clone());
        assert_eq!(active.queue_count(), 1);
        assert_eq!([active.serve(0), active.serve(1)], [Served::Idle; 2]);
    }
}
