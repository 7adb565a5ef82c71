//! What every virtio device is: constant facts for the transport, and two functions that serve, one
//! for the driver's side and one for the host's.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::config::DeviceConfig;
use super::executor::SERVE_BUDGET;
use super::queue::{QueueBroken, Queues};
use crate::counters::Counters;
use crate::memory::Memory;

/// What is left to do after a call to `serve`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Served {
    /// The queue is empty and the driver will notify.
    Idle,
    /// The budget is used up: serve again after the other queues had their turn, without waiting
    /// for a notification.
    More,
    /// The driver broke the ring. The device waits for a reset; further notifications do nothing.
    NeedsReset,
}

/// A virtio device behind any transport. It lives in the transport while the driver configures it
/// and on the I/O thread while it is active, so it needs no lock of its own.
pub trait VirtioDevice: Send {
    /// The virtio device id (2 for block, 4 for entropy).
    fn device_type(&self) -> u16;

    /// Feature bits of this kind of device; the transport adds those of rings and version.
    fn features(&self) -> u64;

    /// The largest size of each queue: powers of two. Its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// The device configuration space: always the same one.
    fn config(&self) -> Arc<DeviceConfig>;

    /// What the device counts, if anything.
    fn counters(&self) -> Option<Arc<Counters>> {
        None
    }

    /// The host's descriptors that wake the device, at most [`MAX_SOURCES`]: always the same ones, of
    /// which [`Self::eject`] may close the last. They are watched edge-triggered for input from before
    /// the first activation to the end.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Chains that one call may take from queue `index`, so that no guest keeps the I/O thread from
    /// other devices.
    fn chain_budget(&self, index: u16) -> u16 {
        let _ = index;
        SERVE_BUDGET
    }

    /// Takes the accepted features, before the first `serve`.
    fn activate(&mut self, features: u64);

    /// The driver notified queue `index`: takes chains from it until
    /// [`VirtQueue::pop`](super::queue::VirtQueue::pop) gives no more, and completes each now or later.
    /// A queue that was lent to somebody else is not there: the notification is to be passed on.
    /// A device that leaves chains for later says so by
    /// [`VirtQueue::keep_quiet`](super::queue::VirtQueue::keep_quiet), and by
    /// [`VirtQueue::serve_again`](super::queue::VirtQueue::serve_again) when it wants them.
    /// Never interrupts: the caller does, once per call, for every queue on which a chain was
    /// completed. Must not block for longer than the back end's own requests take.
    ///
    /// # Errors
    /// If the driver broke the ring.
    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken>;

    /// The descriptor at `source` in [`Self::sources`] had input since the last call: takes it until
    /// there is none or the queues' budgets are used up, and then answers [`Served::More`]. Called
    /// once for each source after every activation, too, as nothing else tells of earlier input.
    ///
    /// # Errors
    /// If the driver broke a ring.
    fn source_ready(
        &mut self,
        source: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<Served, QueueBroken> {
        let _ = (source, queues, memory);
        Ok(Served::Idle)
    }

    /// Gives up the host's side of what the guest reads here, for good; the driver is told. What is in
    /// progress ends first, and may end later. A device without a medium has nothing to give up.
    fn eject(&mut self) {}

    /// Forgets the driver. On return nothing that the device started may touch guest memory, and
    /// no chain that it took is kept.
    fn reset(&mut self);
}

/// Most host descriptors of one device.
pub const MAX_SOURCES: u16 = 64;
