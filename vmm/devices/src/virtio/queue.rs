//! A checked split ring over virtio-queue: from guest memory to chains of buffers and back.
//!
//! Owns what a driver may do with a running ring. A chain is read once, completely and bounded by
//! the queue's size, before a device sees it; whatever virtio-queue would quietly cut short (a
//! loop, an index out of range, a bad indirect table) is [`QueueBroken`] here. A device can only
//! complete a chain that it took, and each one once. Completions are staged and become visible to the
//! driver together, by one store of the used index.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::guest_error::{GuestError, GuestErrors};
use crate::memory::Memory;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const AVAILABLE_NO_INTERRUPT: u16 = 1;

const DESCRIPTOR_BYTES: u64 = 16;
/// Flags, index and the event field around the elements of both rings.
const RING_FRAME_BYTES: u64 = 6;
/// Flags and index before the elements of both rings.
const RING_HEADER_BYTES: u64 = 4;
/// The index in a ring.
const RING_INDEX: u64 = 2;
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

/// A buffer that a driver named is not wholly in RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a buffer is not wholly in guest memory")]
pub struct NotMemory;

/// Segments in order, read as one run of bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Buffers(Vec<Segment>);

impl From<Vec<Segment>> for Buffers {
    fn from(segments: Vec<Segment>) -> Self {
        Self(segments)
    }
}

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

    /// The segments as memory to move bytes to or from; empty ones are left out.
    ///
    /// # Errors
    /// If a part is not RAM.
    pub fn slices<'a>(
        &self,
        memory: &'a Memory,
        access: Permissions,
    ) -> Result<Vec<VolatileSlice<'a>>, NotMemory> {
        let mut found = Vec::with_capacity(self.0.len());
        for segment in self.0.iter().filter(|segment| segment.bytes > 0) {
            let bytes = usize::try_from(segment.bytes).map_err(|_| NotMemory)?;
            let parts = memory
                .get_slices(GuestAddress(segment.address), bytes, access)
                .map_err(|_| NotMemory)?;
            for part in parts {
                found.push(part.map_err(|_| NotMemory)?);
            }
        }
        Ok(found)
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
pub struct Queues(Vec<Place>);

/// One queue's place.
#[derive(Debug)]
enum Place {
    /// The driver enabled none.
    Absent,
    /// Served here.
    Here(Box<VirtQueue>),
    /// Served by the host's kernel. `has_used` if the driver is to be interrupted.
    Lent { has_used: bool },
}

impl Queues {
    /// One place for each queue of the device, `None` where the driver enabled none.
    #[must_use]
    pub fn new(queues: Vec<Option<VirtQueue>>) -> Self {
        let place = |queue: Option<VirtQueue>| {
            queue.map_or(Place::Absent, |queue| Place::Here(Box::new(queue)))
        };
        Self(queues.into_iter().map(place).collect())
    }

    /// The queue `index`, if the driver enabled it and it is served here.
    pub fn get(&mut self, index: u16) -> Option<&mut VirtQueue> {
        match self.0.get_mut(usize::from(index))? {
            Place::Here(queue) => Some(queue),
            Place::Absent | Place::Lent { .. } => None,
        }
    }

    /// Takes the queue `index` away, for somebody else to serve until the device is reset: from
    /// here on nothing in this process touches its rings.
    pub fn lend(&mut self, index: u16) -> Option<VirtQueue> {
        let place = self.0.get_mut(usize::from(index))?;
        match std::mem::replace(place, Place::Lent { has_used: false }) {
            Place::Here(queue) => Some(*queue),
            other @ (Place::Absent | Place::Lent { .. }) => {
                *place = other;
                None
            }
        }
    }

    /// Whoever serves the lent queue `index` has used buffers of which the driver wants to know.
    pub fn used_elsewhere(&mut self, index: u16) {
        if let Some(Place::Lent { has_used }) = self.0.get_mut(usize::from(index)) {
            *has_used = true;
        }
    }

    /// Whether the driver enabled the queue `index`.
    pub(super) fn is_enabled(&self, index: u16) -> bool {
        let place = self.0.get(usize::from(index));
        place.is_some_and(|place| !matches!(place, Place::Absent))
    }

    /// Publishes what is staged on the queue `index`; whether the driver wants an interrupt for
    /// what was used since the last call.
    pub(super) fn needs_interrupt(
        &mut self,
        index: u16,
        memory: &Memory,
    ) -> Result<bool, QueueBroken> {
        match self.0.get_mut(usize::from(index)) {
            Some(Place::Here(queue)) => queue.needs_interrupt(memory),
            Some(Place::Lent { has_used }) => Ok(std::mem::take(has_used)),
            Some(Place::Absent) | None => Ok(false),
        }
    }

    /// Number of queues, enabled or not.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// Lets the next calls of [`VirtQueue::pop`] take as many chains as `budget` says for the queue.
    pub(super) fn grant(&mut self, budget: impl Fn(u16) -> u16) {
        for (index, place) in (0..).zip(&mut self.0) {
            if let Place::Here(queue) = place {
                queue.grant(budget(index));
            }
        }
    }
}

/// One enabled queue of an active device.
pub struct VirtQueue {
    ring: Queue,
    /// The heads that a device took and did not complete, one bit each.
    taken: Box<[u64]>,
    wish: InterruptWish,
    /// Used elements that are written and not yet visible to the driver.
    staged: u16,
    /// The used index at the last look at the driver's wish for interrupts.
    told: u16,
    is_quiet: bool,
    budget: u16,
    /// Whether the device wants the queue served right after this call.
    is_wanted: bool,
    errors: Arc<GuestErrors>,
}

/// Where the driver says whether it wants interrupts.
#[derive(Clone, Copy)]
enum InterruptWish {
    /// In the available ring's flags.
    Flags(GuestAddress),
    /// When the used index passes the event behind the available ring.
    Event(GuestAddress),
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
        let wish = if has_event_idx {
            let behind = RING_HEADER_BYTES + AVAILABLE_ELEMENT_BYTES * u64::from(addresses.size);
            let event = addresses.available.checked_add(behind);
            InterruptWish::Event(GuestAddress(event.ok_or(BadRingAddress)?))
        } else {
            InterruptWish::Flags(GuestAddress(addresses.available))
        };
        let taken = vec![0; usize::from(addresses.size).div_ceil(64)].into();
        Ok(Self {
            ring,
            taken,
            wish,
            staged: 0,
            told: 0,
            is_quiet: false,
            budget: 0,
            is_wanted: false,
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

    /// Gives `chain` back with the number of bytes written into its writable part. The driver sees
    /// it, with all others, after [`Self::publish`], at the latest when the call of the device is
    /// over.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete(
        &mut self,
        memory: &Memory,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueBroken> {
        let (word, bit) = taken_bit(chain.head);
        if let Some(word) = self.taken.get_mut(word) {
            *word &= !bit;
        }
        let index = self.ring.next_used().wrapping_add(self.staged);
        let element = u64::from(index % self.ring.size()) * USED_ELEMENT_BYTES;
        let address = GuestAddress(self.ring.used_ring())
            .checked_add(RING_HEADER_BYTES + element)
            .ok_or(QueueBroken)?;
        let element = u64::from(chain.head) | u64::from(written) << 32;
        memory
            .write_obj(element.to_le(), address)
            .map_err(|_| QueueBroken)?;
        self.staged = self.staged.wrapping_add(1);
        Ok(())
    }

    /// Makes all completed chains visible to the driver by one store.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn publish(&mut self, memory: &Memory) -> Result<(), QueueBroken> {
        if self.staged == 0 {
            return Ok(());
        }
        let index = self.ring.next_used().wrapping_add(self.staged);
        self.staged = 0;
        self.ring.set_next_used(index);
        let address = GuestAddress(self.ring.used_ring())
            .checked_add(RING_INDEX)
            .ok_or(QueueBroken)?;
        // Release: whoever sees the index sees the elements and what was written to the buffers.
        memory
            .store(index.to_le(), address, Ordering::Release)
            .map_err(|_| QueueBroken)
    }

    /// Where the rings are: checked when the queue was made.
    #[must_use]
    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            size: self.ring.size(),
            descriptors: self.ring.desc_table(),
            available: self.ring.avail_ring(),
            used: self.ring.used_ring(),
        }
    }

    /// The available index of the chain that is taken next.
    #[must_use]
    pub fn next_available(&self) -> u16 {
        self.ring.next_avail()
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether this call to the device has had its share of chains.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.budget == 0
    }

    /// Ends the device's share of chains for this call.
    pub fn spend(&mut self) {
        self.budget = 0;
    }

    /// With `is_quiet` the driver is not asked to notify when the device returns, although chains
    /// may be there: the device takes them when something else wakes it.
    pub fn keep_quiet(&mut self, is_quiet: bool) {
        self.is_quiet = is_quiet;
    }

    /// Whether chains may be there that the device left for later.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Has the queue served right after the present call of the device, as if the driver had
    /// notified.
    pub fn serve_again(&mut self) {
        self.is_wanted = true;
    }

    pub(super) fn take_wanted(&mut self) -> bool {
        std::mem::take(&mut self.is_wanted)
    }

    /// Counts what the driver did wrong.
    pub fn count(&self, error: GuestError) {
        self.errors.bump(error);
    }

    /// Ends this queue's turn: it is served again after the others had theirs, without a
    /// notification. For work that is left and is not in the ring.
    pub fn ask_for_another_turn(&mut self) {
        self.budget = 0;
    }

    /// Lets the next calls of [`Self::pop`] take up to `chains` chains.
    fn grant(&mut self, chains: u16) {
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

    /// Publishes what is staged; whether the driver wants an interrupt for what became visible
    /// since the last call.
    fn needs_interrupt(&mut self, memory: &Memory) -> Result<bool, QueueBroken> {
        self.publish(memory)?;
        let now = self.ring.next_used();
        let before = std::mem::replace(&mut self.told, now);
        if now == before {
            return Ok(false);
        }
        // The driver writes its wish and then reads the used index; here it is the other way round.
        fence(Ordering::SeqCst);
        let (InterruptWish::Flags(place) | InterruptWish::Event(place)) = self.wish;
        let word: u16 = memory
            .load(place, Ordering::Relaxed)
            .map_err(|_| QueueBroken)?;
        let word = u16::from_le(word);
        Ok(match self.wish {
            InterruptWish::Flags(_) => word & AVAILABLE_NO_INTERRUPT == 0,
            InterruptWish::Event(_) => has_passed(word, before, now),
        })
    }
}

/// Whether an index that went from `before` to `now` passed `event` (virtio 1.2, 2.7.7.2).
fn has_passed(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
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
        bytes.is_ok_and(|bytes| {
            memory.check_range(GuestAddress(start), bytes, Permissions::ReadWrite)
        })
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
mod tests;
