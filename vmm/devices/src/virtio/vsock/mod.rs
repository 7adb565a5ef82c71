//! virtio-vsock: stream connections between the guest and the host.
//!
//! Owns the device's facts and the three rings. Packets are read and checked here, connections are
//! [`table`]'s, the host is behind [`backend`]. What the guest offers for packets to it is kept until
//! there is one; a queue's size bounds that.

pub mod backend;
mod connection;
pub mod packet;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::{Permissions, VolatileSlice};

use self::backend::VsockHost;
use self::packet::{HEADER_BYTES, Header, MAX_DATA_BYTES};
use self::table::Table;
use super::config::DeviceConfig;
use super::device::{Served, VirtioDevice};
use super::queue::{Buffers, Chain, QueueBroken, Queues};
use crate::counters::Counters;
use crate::guest_error::GuestError;
use crate::memory::Memory;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// The queue of packets to the guest.
pub const RECEIVE: u16 = 0;
/// The queue of packets from the guest.
pub const TRANSMIT: u16 = 1;
/// The queue of events, of which this device has none.
pub const EVENT: u16 = 2;

const DEVICE_TYPE: u16 = 19;
/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1 << 0;
/// Bytes that one call sends to the guest, or little more, before others have their turn.
const DELIVERY_BYTES: u64 = 1 << 20;
/// Events of the host that one call takes.
const EVENTS: usize = 64;

/// A socket device.
pub struct Vsock {
    table: Table,
    /// What the guest offered for packets.
    rooms: VecDeque<Room>,
    /// What the guest offered for events.
    events: Vec<Chain>,
    config: Arc<DeviceConfig>,
}

/// A buffer of the guest for one packet.
struct Room {
    chain: Chain,
    header: Buffers,
    data: Buffers,
}

impl Vsock {
    /// A device for the guest whose context id is `cid`.
    #[must_use]
    pub fn new(cid: u32, host: Box<dyn VsockHost>) -> Self {
        Self {
            table: Table::new(cid, host),
            rooms: VecDeque::new(),
            events: Vec::new(),
            config: DeviceConfig::constant(&u64::from(cid).to_le_bytes()),
        }
    }

    /// Keeps what the guest offers for packets.
    fn take_rooms(&mut self, queues: &mut Queues, memory: &Memory) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(RECEIVE) else {
            return Ok(());
        };
        while let Some(mut chain) = queue.pop(memory)? {
            let mut data = std::mem::take(&mut chain.writable);
            match data.take_front(HEADER_BYTES) {
                Some(header) if data.bytes() > 0 => self.rooms.push_back(Room {
                    chain,
                    header,
                    data,
                }),
                Some(_) | None => {
                    queue.count(GuestError::VirtioRequest);
                    queue.complete(memory, chain, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the guest's packets.
    fn take_packets(&mut self, queues: &mut Queues, memory: &Memory) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(TRANSMIT) else {
            return Ok(());
        };
        while let Some(mut chain) = queue.pop(memory)? {
            let packet = std::mem::take(&mut chain.readable);
            if !self.take_packet(packet, memory) {
                queue.count(GuestError::VirtioRequest);
            }
            queue.complete(memory, chain, 0)?;
        }
        Ok(())
    }

    /// False if it is no packet that the guest may send.
    fn take_packet(&mut self, mut packet: Buffers, memory: &Memory) -> bool {
        let Some(header) = read_header(&mut packet, memory) else {
            return false;
        };
        let data = if header.length <= MAX_DATA_BYTES {
            packet.take_front(header.length)
        } else {
            None
        };
        let data = data.and_then(|data| data.slices(memory, Permissions::Read).ok());
        self.table.take_packet(&header, data.as_deref()).is_ok()
    }

    /// Sends what there is to the guest, as far as it has room. True if it has both left.
    fn deliver(&mut self, queues: &mut Queues, memory: &Memory) -> Result<bool, QueueBroken> {
        let Some(queue) = queues.get(RECEIVE) else {
            return Ok(false);
        };
        let mut delivered = 0;
        while self.table.wants_room() {
            let Some(room) = self.rooms.pop_front() else {
                return Ok(false);
            };
            let (Ok(place), Ok(data)) = (
                room.header.slices(memory, Permissions::Write),
                room.data.slices(memory, Permissions::Write),
            ) else {
                queue.count(GuestError::VirtioRequest);
                queue.complete(memory, room.chain, 0)?;
                continue;
            };
            let Some(header) = self.table.next_packet(&data) else {
                self.rooms.push_front(room);
                return Ok(false);
            };
            write_header(&header, &place);
            queue.complete(memory, room.chain, HEADER_BYTES + header.length)?;
            delivered += u64::from(HEADER_BYTES + header.length);
            if delivered >= DELIVERY_BYTES {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn read_header(packet: &mut Buffers, memory: &Memory) -> Option<Header> {
    let place = packet.take_front(HEADER_BYTES)?;
    let mut bytes = [0; HEADER_BYTES as usize];
    let mut rest = bytes.as_mut_slice();
    for slice in place.slices(memory, Permissions::Read).ok()? {
        let (now, later) = rest.split_at_mut_checked(slice.len())?;
        slice.copy_to(now);
        rest = later;
    }
    Some(Header::from_bytes(&bytes))
}

fn write_header(header: &Header, place: &[VolatileSlice<'_>]) {
    let bytes = header.to_bytes();
    let mut rest = bytes.as_slice();
    for slice in place {
        let (now, later) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(now);
        rest = later;
    }
}

impl fmt::Debug for Vsock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Vsock")
            .field("rooms", &self.rooms.len())
            .finish_non_exhaustive()
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.config)
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(self.table.counters())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.table.descriptor().into_iter().collect()
    }

    fn activate(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        match index {
            RECEIVE => self.take_rooms(queues, memory)?,
            TRANSMIT => self.take_packets(queues, memory)?,
            _ => {
                while let Some(queue) = queues.get(index)
                    && let Some(chain) = queue.pop(memory)?
                {
                    self.events.push(chain);
                }
            }
        }
        if self.deliver(queues, memory)?
            && let Some(queue) = queues.get(index)
        {
            queue.ask_for_another_turn();
        }
        Ok(())
    }

    fn source_ready(
        &mut self,
        _source: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<Served, QueueBroken> {
        let has_events = self.table.take_events(EVENTS);
        let has_packets = self.deliver(queues, memory)?;
        Ok(if has_events || has_packets {
            Served::More
        } else {
            Served::Idle
        })
    }

    fn reset(&mut self) {
        self.table.clear();
        self.rooms.clear();
        self.events.clear();
    }
}
