//! One receive queue: packets from the host into the driver's buffers.
//!
//! Owns the buffers that were taken and not used yet, and the one packet that is longer than them.
//! A packet is read straight into guest memory, with a spill behind for what the buffers at hand do
//! not hold: no packet is ever cut short or read without buffers to hold it.
//!
//! ```text
//! no buffer left          -> starved: packets stay with the host until the driver adds buffers
//! packet fits             -> used, all its buffers in one publication, before the next packet is read
//! longer, mergeable       -> its rest waits in the spill for the next buffers
//! longer, not mergeable   -> dropped
//! ```

use std::collections::VecDeque;
use std::io;

use vm_memory::{Permissions, VolatileSlice};

use super::backend::NetBackend;
use super::features::{HEADER_BUFFERS, HEADER_BYTES, MAX_PACKET_BYTES};
use super::slices::{self, Extent};
use super::{Count, NetCounters};
use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::virtio::queue::{Chain, QueueBroken, VirtQueue};

/// Packets of one call: with long ones, 4 MiB of copying.
const PACKETS: usize = 64;
/// Slices that hosts take at once (`IOV_MAX`), without the spill.
const MAX_SLICES: usize = 1023;
/// Room that is looked for before short packets.
const SHORT_BYTES: usize = 2048;

/// Why receiving stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// The host has no packet.
    Drained,
    /// The driver has no buffers.
    Starved,
    /// This call had its share.
    Spent,
}

/// A chain of the driver that is empty so far.
struct Held {
    chain: Chain,
    bytes: usize,
}

/// The part of a packet in the spill, and all of it.
#[derive(Clone, Copy)]
struct Waiting {
    /// Bytes that are in the held chains already.
    in_chains: usize,
    bytes: usize,
}

/// One receive queue's state between two calls.
#[derive(Default)]
pub(super) struct Receiver {
    is_mergeable: bool,
    held: VecDeque<Held>,
    held_bytes: usize,
    waiting: Option<Waiting>,
    /// Room to look for before the next packet: a guess by the last one, right or wrong.
    expected: usize,
    spill: Vec<u8>,
}

impl Receiver {
    /// Begins with nothing held.
    pub(super) fn activate(&mut self, is_mergeable: bool) {
        *self = Self {
            is_mergeable,
            expected: SHORT_BYTES,
            spill: vec![0; MAX_PACKET_BYTES],
            ..Self::default()
        };
    }

    /// Forgets the driver's buffers.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Throws away packets that were made for an earlier driver, as many as a host keeps.
    pub(super) fn discard(&mut self, backend: &mut dyn NetBackend, counters: &NetCounters) {
        const MOST: usize = 4096;
        for _ in 0..MOST {
            let spill = [VolatileSlice::from(self.spill.as_mut_slice())];
            if backend.receive(&spill).is_err() {
                return;
            }
            counters.add(Count::RxDropped, 1);
        }
    }

    /// Moves packets until something runs out.
    pub(super) fn receive(
        &mut self,
        backend: &mut dyn NetBackend,
        queue: &mut VirtQueue,
        memory: &Memory,
        counters: &NetCounters,
    ) -> Result<Stopped, QueueBroken> {
        for _ in 0..PACKETS {
            let waiting = self.waiting;
            let wanted = waiting.map_or(self.expected, |waiting| waiting.bytes);
            self.gather(wanted, queue, memory, counters)?;
            let packet = match waiting {
                Some(waiting) if self.held_bytes >= waiting.bytes => {
                    self.waiting = None;
                    waiting
                }
                Some(_) if self.held.len() >= usize::from(queue.size()) => {
                    // All buffers there can be are here, and too small.
                    self.waiting = None;
                    counters.add(Count::RxDropped, 1);
                    continue;
                }
                None if !self.held.is_empty() => match self.read(backend, memory, counters) {
                    Ok(Some(packet)) => packet,
                    Ok(None) => continue,
                    Err(stopped) => return Ok(stopped),
                },
                Some(_) | None => {
                    let is_spent = queue.is_spent();
                    return Ok(if is_spent {
                        Stopped::Spent
                    } else {
                        Stopped::Starved
                    });
                }
            };
            self.expected = packet
                .bytes
                .saturating_mul(2)
                .clamp(SHORT_BYTES, MAX_PACKET_BYTES);
            if packet.bytes <= self.held_bytes {
                self.deliver(packet, queue, memory, counters)?;
                // A driver that is taking packets takes this one while the next is copied.
                queue.publish(memory)?;
            } else {
                self.waiting = Some(packet);
            }
        }
        queue.spend();
        Ok(Stopped::Spent)
    }

    /// Takes chains until they hold `wanted` bytes; one alone if they are not mergeable.
    fn gather(
        &mut self,
        wanted: usize,
        queue: &mut VirtQueue,
        memory: &Memory,
        counters: &NetCounters,
    ) -> Result<(), QueueBroken> {
        while self.held.is_empty() || self.is_mergeable && self.held_bytes < wanted {
            let Some(chain) = queue.pop(memory)? else {
                return Ok(());
            };
            let extent = slices::extent(&chain.writable, memory, Permissions::Write);
            let is_readable = chain.readable.bytes() > 0;
            match extent.filter(|extent| {
                !is_readable && extent.slices <= MAX_SLICES && extent.bytes >= HEADER_BYTES
            }) {
                Some(Extent { bytes, .. }) => {
                    self.held_bytes = self.held_bytes.saturating_add(bytes);
                    self.held.push_back(Held { chain, bytes });
                }
                None => {
                    queue.count(GuestError::VirtioRequest);
                    counters.add(Count::GuestErrors, 1);
                    queue.complete(memory, chain, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the next packet. `Ok(None)` if it was dropped.
    fn read(
        &mut self,
        backend: &mut dyn NetBackend,
        memory: &Memory,
        counters: &NetCounters,
    ) -> Result<Option<Waiting>, Stopped> {
        let mut buffers = Vec::with_capacity(self.held.len() + 1);
        let mut in_chains: usize = 0;
        for held in &self.held {
            let before = buffers.len();
            // They were RAM when they were taken, and what is RAM stays so.
            let bytes = slices::append(
                &mut buffers,
                &held.chain.writable,
                memory,
                Permissions::Write,
            );
            if buffers.len() > MAX_SLICES {
                buffers.truncate(before);
                break;
            }
            in_chains = in_chains.saturating_add(bytes.unwrap_or(0));
            if in_chains >= self.expected {
                break;
            }
        }
        buffers.push(VolatileSlice::from(self.spill.as_mut_slice()));
        let bytes = match backend.receive(&buffers) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    counters.add(Count::HostErrors, 1);
                }
                return Err(Stopped::Drained);
            }
        };
        let fits = self.is_mergeable || bytes <= self.held_bytes;
        if !(HEADER_BYTES..=MAX_PACKET_BYTES).contains(&bytes) || !fits {
            counters.add(Count::RxDropped, 1);
            return Ok(None);
        }
        Ok(Some(Waiting { in_chains, bytes }))
    }

    /// Gives a packet that the held chains can hold to the driver.
    fn deliver(
        &mut self,
        packet: Waiting,
        queue: &mut VirtQueue,
        memory: &Memory,
        counters: &NetCounters,
    ) -> Result<(), QueueBroken> {
        let mut chains: u16 = 0;
        let mut room: usize = 0;
        for held in &self.held {
            if room >= packet.bytes {
                break;
            }
            room = room.saturating_add(held.bytes);
            chains = chains.saturating_add(1);
        }
        let spilled = packet.bytes.saturating_sub(packet.in_chains);
        // The header is in the first chain, as none is shorter.
        let written_to = if spilled > 0 { usize::from(chains) } else { 1 };
        let mut buffers = Vec::with_capacity(written_to);
        for held in self.held.iter().take(written_to) {
            slices::append(
                &mut buffers,
                &held.chain.writable,
                memory,
                Permissions::Write,
            )
            .ok_or(QueueBroken)?;
        }
        let rest = self.spill.get(..spilled).unwrap_or(&[]);
        slices::write_at(&buffers, packet.in_chains, rest);
        slices::write_at(&buffers, HEADER_BUFFERS, &chains.to_le_bytes());
        let mut left = packet.bytes;
        for held in self.held.drain(..usize::from(chains)) {
            let written = left.min(held.bytes);
            left -= written;
            self.held_bytes = self.held_bytes.saturating_sub(held.bytes);
            let written = u32::try_from(written).expect("a packet is shorter than 4 GiB");
            queue.complete(memory, held.chain, written)?;
        }
        counters.packet(Count::RxPackets, Count::RxBytes, packet.bytes);
        Ok(())
    }
}
