//! virtio-rng: the host's randomness for the guest.
//!
//! Owns the one queue and the bound on a request. The host's generator cannot be drained, so there
//! is no rate limit beyond the budget of a `serve`.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::config::DeviceConfig;
use super::device::VirtioDevice;
use super::queue::{Buffers, QueueBroken, Queues};
use crate::guest_error::GuestError;
use crate::memory::Memory;

/// Most bytes that one request gets; the driver sees the shorter length and asks again.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Descriptors of the only queue. Drivers ask for one buffer at a time.
pub const QUEUE_SIZE: u16 = 16;

const DEVICE_TYPE: u16 = 4;
const CHUNK_BYTES: usize = 1024;

/// An entropy device over the host's `getrandom`.
#[derive(Debug, Default)]
pub struct Entropy;

impl Entropy {
    /// A device over the host's `getrandom`.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Arc<DeviceConfig> {
        DeviceConfig::constant(&[])
    }

    fn activate(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(index) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop(memory)? {
            let written = fill(&chain.writable, memory);
            if written == 0 || chain.readable.bytes() > 0 {
                queue.count(GuestError::VirtioRequest);
            }
            queue.complete(memory, chain, written)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

/// Fills `buffers` with random bytes up to [`MAX_REQUEST_BYTES`] or to the first byte that is not
/// RAM; returns how many.
fn fill(buffers: &Buffers, memory: &Memory) -> u32 {
    let mut left = MAX_REQUEST_BYTES;
    let mut written = 0;
    for segment in buffers.segments() {
        let mut address = segment.address;
        let mut wanted = usize::try_from(segment.bytes)
            .unwrap_or(usize::MAX)
            .min(left);
        left -= wanted;
        while wanted > 0 {
            let mut chunk = [0; CHUNK_BYTES];
            let now = wanted.min(CHUNK_BYTES);
            let chunk = &mut chunk[..now];
            // The host's generator fails only before the host has booted; the guest then gets
            // fewer bytes, never bad ones.
            let is_filled = getrandom::fill(chunk).is_ok()
                && memory.write_slice(chunk, GuestAddress(address)).is_ok();
            if !is_filled {
                return written;
            }
            let advance = u32::try_from(now).expect("a chunk is 1 KiB at most");
            written += advance;
            address = address.wrapping_add(u64::from(advance));
            wanted -= now;
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{BUFFERS, RAM_BYTES, Ring, TestGuest, WRITE};

    fn guest() -> (TestGuest, Ring) {
        let guest = TestGuest::new(Box::new(Entropy::new()));
        let ring = guest.bring_up(0, QUEUE_SIZE);
        (guest, ring)
    }

    fn bytes(guest: &TestGuest, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        guest
            .memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    #[test]
    fn buffers_are_filled_with_different_bytes_each_time() {
        let (guest, mut ring) = guest();
        assert_eq!(guest.config(0, 4), 0x1044_1af4);
        assert!(guest.at.device.is_none(), "there is nothing to configure");
        ring.submit(&[(BUFFERS, 64, WRITE), (BUFFERS + 0x1000, 3000, WRITE)]);
        guest.notify(0);
        assert_eq!(ring.take_used(), [(0, 3064)]);
        let (first, second) = (
            bytes(&guest, BUFFERS, 64),
            bytes(&guest, BUFFERS + 0x1000, 3000),
        );
        assert_ne!(first, [0; 64]);
        assert_ne!(first, second[..64]);
        assert_ne!(second[2900..], [0; 100]);
        assert_eq!(guest.errors.total(), 0);
    }

    #[test]
    fn a_request_gets_64_kib_at_most() {
        let (guest, mut ring) = guest();
        ring.submit(&[
            (BUFFERS, 40_000, WRITE),
            (BUFFERS + 0x1_0000, 0x10_0000, WRITE),
        ]);
        guest.notify(0);
        assert_eq!(ring.take_used(), [(0, 65_536)]);
        let last = BUFFERS + 0x1_0000 + 65_536 - 40_000;
        assert_eq!(bytes(&guest, last, 16), [0; 16]);
    }

    #[test]
    fn requests_without_room_or_outside_of_memory_get_nothing() {
        let (guest, mut ring) = guest();
        ring.submit(&[(BUFFERS, 64, 0)]);
        ring.submit(&[(RAM_BYTES, 64, WRITE)]);
        ring.submit(&[(u64::MAX, u32::MAX, WRITE)]);
        ring.submit(&[(BUFFERS, 0, WRITE)]);
        guest.notify(0);
        let lengths: Vec<_> = ring.take_used().iter().map(|used| used.1).collect();
        assert_eq!(lengths, [0, 0, 0, 0]);
        assert_eq!(guest.errors.count(GuestError::VirtioRequest), 4);
    }
}
