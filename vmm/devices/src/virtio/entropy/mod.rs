//! virtio-rng: the host's randomness for the guest.
//!
//! Owns the one queue and the bound on a request. The host's generator cannot be drained, so there
//! is no rate limit beyond the budget of a `serve`.

use vm_memory::{Bytes, GuestAddress};

use super::device::VirtioDevice;
use super::queue::{Buffers, QueueBroken, VirtQueue};
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

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        _index: u16,
        queue: &mut VirtQueue,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
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
