//! What every virtio device is: constant facts for the transport and one function that serves.

use super::queue::{QueueBroken, VirtQueue};
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

    /// The device configuration space as the driver reads it. Constant while the device lives.
    fn config(&self) -> &[u8];

    /// Takes the accepted features, before the first `serve`.
    fn activate(&mut self, features: u64);

    /// Takes chains from queue `index` until [`VirtQueue::pop`] gives no more, and completes each.
    /// Never interrupts: the caller does, once per call. Must not block for longer than the back
    /// end's own requests take.
    ///
    /// # Errors
    /// If the driver broke the ring.
    fn serve(
        &mut self,
        index: u16,
        queue: &mut VirtQueue,
        memory: &Memory,
    ) -> Result<(), QueueBroken>;

    /// Forgets the driver. On return nothing that the device started may touch guest memory.
    fn reset(&mut self);
}
