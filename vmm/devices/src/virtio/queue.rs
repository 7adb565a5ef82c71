//! A checked split ring over virtio-queue: from guest memory to chains of buffers and back.
//!
//! Owns what a driver may do with a running ring. A chain is read once, completely and bounded by
//! the queue's size, before a device sees it; whatever virtio-queue would quietly cut short (a
//! loop, an index out of range, a bad indirect table) is [`QueueBroken`] here. A device can only
//! complete a chain that it took, and each one once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::guest_error::{GuestError, GuestErrors};
use crate::memory::Memory;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const AVAILABLE_NO_INTERRUPT: u16 = 1;

const DESCRIPTOR_BYTES: u64 = 16;
/// Flags, index and the event field around the elements of both rings.
const RING_FRAME_BYTES: u64 = 6;
const AVAILABLE_ELEMENT_BYTES: u64 = 2;
const USED_ELEMENT_BYTES: u64 = 8;

/// The driver broke the ring; only a reset of the device helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the driver broke the ring")]
pub struct QueueBroken;

/// A ring cannot lie where the driver put it: misaligned, or not wholly in RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a ring of the queue is misaligned or not wholly in guest memory")]
pub struct BadRingAddress;

/// Where a driver put one queue: guest physical addresses, not yet checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available (driver) ring.
    pub available: u64,
    /// Used (device) ring.
    pub used: u64,
}

/// A part of guest memory that a driver named, not yet checked to be RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
}

/// Segments in order, read as one run of bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Buffers(Vec<Segment>);

impl Buffers {
    /// Total length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|segment| u64::from(segment.bytes)).sum()
    }

    /// The segments in order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Splits off the first `bytes` bytes. `None`, and nothing changes, if there are fewer.
    pub fn take_front(&mut self, bytes: u32) -> Option<Self> {
        if self.bytes() < u64::from(bytes) {
            return None;
        }
        let mut front = Vec::new();
        let mut wanted = bytes;
        while wanted > 0 {
            let segment = self.0.first_mut()?;
            let taken = wanted.min(segment.bytes);
            front.push(Segment {
                address: segment.address,
                bytes: taken,
            });
            segment.address = segment.address.wrapping_add(u64::from(taken));
            segment.bytes -= taken;
            wanted -= taken;
            if segment.bytes == 0 {
                self.0.remove(0);
            }
        }
        Some(Self(front))
    }

    /// Takes away the last byte and returns its address. `None` if there is no byte.
    pub fn take_last_byte(&mut self) -> Option<u64> {
        while let Some(segment) = self.0.last_mut() {
            if let Some(rest) = segment.bytes.checked_sub(1) {
                segment.bytes = rest;
                return segment.address.checked_add(u64::from(rest));
            }
            self.0.pop();
        }
        None
    }
}

/// One request of the driver: what the device may read, then what it may write.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a chain that is not completed is lost to the driver"]
pub struct Chain {
    head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers,
    /// What the device may fill.
    pub writable: Buffers,
}

impl Chain {
    /// The index of the chain's first descriptor: no other chain of the queue that is taken and not
    /// completed has the same.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// All queues of an active device.
#[derive(Debug)]
pub struct Queues(Vec<Option<VirtQueue>>);

impl Queues {
    /// One place for each queue of the device, `None` where the driver enabled none.
    #[must_use]
    pub fn new(queues: Vec<Option<VirtQueue>>) -> Self {
        Self(queues)
    }

    /// The queue `index`, if the driver enabled it.
    pub fn get(&mut self, index: u16) -> Option<&mut VirtQueue> {
        self.0.get_mut(usize::from(index))?.as_mut()
    }

    /// Number of queues, enabled or not.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn grant(&mut self, chains: u16) {
        for queue in self.0.iter_mut().flatten() {
            queue.grant(chains);
        }
    }
}

/// One enabled queue of an active device.
pub struct VirtQueue {
    ring: Queue,
    /// The heads that a device took and did not complete, one bit each.
    taken: Box<[u64]>,
    /// Where the available ring's flags are, if the driver suppresses interrupts by them.
    flags: Option<GuestAddress>,
    /// Whether a chain was completed since the last look at the driver's wish for interrupts.
    has_completed: bool,
    budget: u16,
    flow: Flow,
    errors: Arc<GuestErrors>,
}

/// Whether chains are taken from a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// Yes.
    Open,
    /// The device does not want any, so nobody asks the driver to notify.
    Paused,
    /// The device wants some again.
    Resumed,
}

impl VirtQueue {
    /// The queue that a driver set up.
    ///
    /// # Errors
    /// If the size is no power of two or a ring cannot lie where it is.
    pub fn new(
        addresses: QueueAddresses,
        has_event_idx: bool,
        memory: &Memory,
        errors: Arc<GuestErrors>,
    ) -> Result<Self, BadRingAddress> {
        let ring = checked_ring(addresses, has_event_idx, memory).ok_or(BadRingAddress);
        let ring = ring.inspect_err(|_| errors.bump(GuestError::VirtioRingAddress))?;
        let flags = (!has_event_idx).then_some(GuestAddress(addresses.available));
        let taken = vec![0; usize::from(addresses.size).div_ceil(64)].into();
        Ok(Self {
            ring,
            taken,
            flags,
            has_completed: false,
            budget: 0,
            flow: Flow::Open,
            errors,
        })
    }

    /// The next chain, or `None` if the driver has no more or this call to `serve` had its share.
    ///
    /// # Errors
    /// If the available index jumped by more than the ring holds, or the chain loops, leaves the
    /// table, mixes directions, cannot be read or begins with a descriptor that is still taken.
    pub fn pop(&mut self, memory: &Memory) -> Result<Option<Chain>, QueueBroken> {
        let Some(budget) = self.budget.checked_sub(1) else {
            return Ok(None);
        };
        let size = self.ring.size();
        let Some(descriptors) = self.ring.iter(memory).map_err(|_| QueueBroken)?.next() else {
            return Ok(None);
        };
        self.budget = budget;
        let head = descriptors.head_index();
        let chain = collect_chain(head, size, descriptors)?;
        let (word, bit) = taken_bit(head);
        let word = self.taken.get_mut(word).ok_or(QueueBroken)?;
        if *word & bit != 0 {
            return Err(QueueBroken);
        }
        *word |= bit;
        Ok(Some(chain))
    }

    /// Gives `chain` back with the number of bytes written into its writable part.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete(
        &mut self,
        memory: &Memory,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueBroken> {
        self.has_completed = true;
        let (word, bit) = taken_bit(chain.head);
        if let Some(word) = self.taken.get_mut(word) {
            *word &= !bit;
        }
        self.ring
            .add_used(memory, chain.head, written)
            .map_err(|_| QueueBroken)
    }

    /// Leaves what the driver has for later: the queue is not served before [`Self::resume`]. The
    /// driver is not asked for notifications meanwhile.
    pub fn pause(&mut self) {
        self.flow = Flow::Paused;
    }

    /// Whether the queue is left for later.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.flow == Flow::Paused
    }

    /// Has a paused queue served again, right after the present call of `serve` or `source_ready`.
    pub fn resume(&mut self) {
        if self.flow == Flow::Paused {
            self.flow = Flow::Resumed;
        }
    }

    /// Counts what the driver did wrong.
    pub fn count(&self, error: GuestError) {
        self.errors.bump(error);
    }

    pub(super) fn flow(&self) -> Flow {
        self.flow
    }

    pub(super) fn set_flow(&mut self, flow: Flow) {
        self.flow = flow;
    }

    /// Lets the next calls of [`Self::pop`] take up to `chains` chains.
    pub(super) fn grant(&mut self, chains: u16) {
        self.budget = chains;
    }

    /// Charges `chains` of the budget and returns what is left.
    pub(super) fn charge(&mut self, chains: u16) -> u16 {
        self.budget = self.budget.saturating_sub(chains);
        self.budget
    }

    pub(super) fn disable_notification(&mut self, memory: &Memory) -> Result<(), QueueBroken> {
        self.ring
            .disable_notification(memory)
            .map_err(|_| QueueBroken)
    }

    /// Asks for notifications again; true if chains arrived in between that nobody will notify.
    pub(super) fn enable_notification(&mut self, memory: &Memory) -> Result<bool, QueueBroken> {
        self.ring
            .enable_notification(memory)
            .map_err(|_| QueueBroken)
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    pub(super) fn needs_interrupt(&mut self, memory: &Memory) -> Result<bool, QueueBroken> {
        if !std::mem::take(&mut self.has_completed) {
            return Ok(false);
        }
        let by_event = self
            .ring
            .needs_notification(memory)
            .map_err(|_| QueueBroken)?;
        // virtio-queue knows the event index only. The fence that orders the used ring before
        // this read is in the call above.
        let Some(flags) = self.flags else {
            return Ok(by_event);
        };
        let flags: u16 = memory
            .load(flags, Ordering::Relaxed)
            .map_err(|_| QueueBroken)?;
        Ok(u16::from_le(flags) & AVAILABLE_NO_INTERRUPT == 0)
    }
}

/// The word and the bit of `head` in [`VirtQueue::taken`].
fn taken_bit(head: u16) -> (usize, u64) {
    (usize::from(head / 64), 1 << (head % 64))
}

impl fmt::Debug for VirtQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtQueue")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

fn checked_ring(addresses: QueueAddresses, has_event_idx: bool, memory: &Memory) -> Option<Queue> {
    let size = u64::from(addresses.size);
    let lengths = [
        (addresses.descriptors, DESCRIPTOR_BYTES * size),
        (
            addresses.available,
            RING_FRAME_BYTES + AVAILABLE_ELEMENT_BYTES * size,
        ),
        (addresses.used, RING_FRAME_BYTES + USED_ELEMENT_BYTES * size),
    ];
    let is_in_memory = lengths.into_iter().all(|(start, bytes)| {
        let bytes = usize::try_from(bytes);
        bytes.is_ok_and(|bytes| memory.check_range(GuestAddress(start), bytes))
    });
    let mut ring = Queue::new(addresses.size).ok()?;
    ring.try_set_desc_table_address(GuestAddress(addresses.descriptors))
        .ok()?;
    ring.try_set_avail_ring_address(GuestAddress(addresses.available))
        .ok()?;
    ring.try_set_used_ring_address(GuestAddress(addresses.used))
        .ok()?;
    ring.set_event_idx(has_event_idx);
    ring.set_ready(true);
    is_in_memory.then_some(ring)
}

/// Reads a whole chain. `descriptors` ends early, without a word, where the chain is malformed: it
/// is whole only if the last descriptor says that none follows.
fn collect_chain(
    head: u16,
    queue_size: u16,
    descriptors: impl Iterator<Item = Descriptor>,
) -> Result<Chain, QueueBroken> {
    let mut chain = Chain {
        head,
        readable: Buffers::default(),
        writable: Buffers::default(),
    };
    let mut is_whole = false;
    for (position, descriptor) in descriptors.enumerate() {
        // An indirect table may be longer than the queue; a chain may not (virtio 1.2, 2.7.5.3.1).
        if position >= usize::from(queue_size) {
            return Err(QueueBroken);
        }
        is_whole = !descriptor.has_next();
        let segment = Segment {
            address: descriptor.addr().raw_value(),
            bytes: descriptor.len(),
        };
        match (descriptor.is_write_only(), chain.writable.0.is_empty()) {
            (true, _) => chain.writable.0.push(segment),
            (false, true) => chain.readable.0.push(segment),
            // What the device reads comes before what it writes (virtio 1.2, 2.7.4.2).
            (false, false) => return Err(QueueBroken),
        }
    }
    if is_whole {
        Ok(chain)
    } else {
        Err(QueueBroken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(segments: &[(u64, u32)]) -> Buffers {
        let segments = segments
            .iter()
            .map(|&(address, bytes)| Segment { address, bytes });
        Buffers(segments.collect())
    }

    #[test]
    fn a_front_is_split_off_across_segments() {
        let mut rest = buffers(&[(0x100, 10), (0x200, 0), (0x300, 10)]);
        assert_eq!(rest.take_front(21), None);
        assert_eq!(rest.bytes(), 20);
        let front = rest.take_front(14).unwrap();
        assert_eq!(front, buffers(&[(0x100, 10), (0x200, 0), (0x300, 4)]));
        assert_eq!(rest, buffers(&[(0x304, 6)]));
        assert_eq!(rest.take_front(0), Some(buffers(&[])));
        assert_eq!(rest.take_front(6), Some(buffers(&[(0x304, 6)])));
        assert_eq!(rest, buffers(&[]));
    }

    #[test]
    fn the_last_byte_is_found_behind_empty_segments() {
        let mut rest = buffers(&[(0x100, 2), (0x200, 0)]);
        assert_eq!(rest.take_last_byte(), Some(0x101));
        assert_eq!(rest.take_last_byte(), Some(0x100));
        assert_eq!(rest.take_last_byte(), None);
        assert_eq!(buffers(&[(u64::MAX, 3)]).take_last_byte(), None);
    }

    #[test]
    fn lengths_add_up_without_overflow() {
        let all = buffers(&[(0, u32::MAX), (0, u32::MAX), (0, u32::MAX)]);
        assert_eq!(all.bytes(), 3 * u64::from(u32::MAX));
    }
}
