//! virtio-console: one port, which Linux calls `hvc0`.
//!
//! Owns the device's facts and its two rings. Input is read when the guest has offered room for it,
//! and no further: whoever sends it is slowed down by the host's kernel. Output is handed on at once;
//! what becomes of bytes that nobody takes is the writer's business.

pub mod backend;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::Permissions;

use self::backend::ConsoleInput;
use super::config::DeviceConfig;
use super::device::{Served, VirtioDevice};
use super::queue::{Buffers, Chain, NotMemory, QueueBroken, Queues};
use crate::counters::Counters;
use crate::guest_error::GuestError;
use crate::memory::Memory;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 64;
/// The queue of input.
pub const RECEIVE: u16 = 0;
/// The queue of output.
pub const TRANSMIT: u16 = 1;
/// Most output of one chain; what is beyond is lost. Drivers send a page at most.
pub const MAX_OUTPUT_BYTES: u32 = 64 * 1024;

const DEVICE_TYPE: u16 = 3;
/// `struct virtio_console_config`: each field belongs to a feature that is not offered.
const CONFIG_BYTES: usize = 12;
const CHUNK_BYTES: usize = 4096;
/// Input that one call hands on, or little more, before others have their turn.
const DELIVERY_BYTES: usize = 256 * 1024;

const BYTES_IN: usize = 0;
const BYTES_OUT: usize = 1;
const COUNTERS: &[&str] = &["bytes_in", "bytes_out"];

/// A console.
pub struct VirtioConsole {
    output: Box<dyn Write + Send>,
    input: Option<Box<dyn ConsoleInput>>,
    /// Whether reading may give something.
    has_input: bool,
    /// What the guest offered for input.
    rooms: VecDeque<Room>,
    config: Arc<DeviceConfig>,
    counters: Arc<Counters>,
}

/// A buffer of the guest for input.
struct Room {
    chain: Chain,
    data: Buffers,
}

impl VirtioConsole {
    /// A console that writes to `output`, which must not block and whose errors lose bytes.
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>, input: Option<Box<dyn ConsoleInput>>) -> Self {
        Self {
            output,
            input,
            has_input: true,
            rooms: VecDeque::new(),
            config: DeviceConfig::constant(&[0; CONFIG_BYTES]),
            counters: Arc::new(Counters::new(COUNTERS)),
        }
    }

    /// Keeps what the guest offers for input.
    fn take_rooms(&mut self, queues: &mut Queues, memory: &Memory) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(RECEIVE) else {
            return Ok(());
        };
        while let Some(mut chain) = queue.pop(memory)? {
            let data = std::mem::take(&mut chain.writable);
            if data.bytes() > 0 {
                self.rooms.push_back(Room { chain, data });
            } else {
                queue.count(GuestError::VirtioRequest);
                queue.complete(memory, chain, 0)?;
            }
        }
        Ok(())
    }

    fn take_output(&mut self, queues: &mut Queues, memory: &Memory) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(TRANSMIT) else {
            return Ok(());
        };
        while let Some(mut chain) = queue.pop(memory)? {
            let mut data = std::mem::take(&mut chain.readable);
            let is_whole = data.bytes() <= u64::from(MAX_OUTPUT_BYTES);
            let data = data.take_front(MAX_OUTPUT_BYTES).unwrap_or(data);
            if self.write(&data, memory).is_err() || !is_whole {
                queue.count(GuestError::VirtioRequest);
            }
            queue.complete(memory, chain, 0)?;
        }
        Ok(())
    }

    fn write(&mut self, data: &Buffers, memory: &Memory) -> Result<(), NotMemory> {
        let mut chunk = [0; CHUNK_BYTES];
        for slice in data.slices(memory, Permissions::Read)? {
            let mut at = 0;
            while let Ok(rest) = slice.offset(at)
                && !rest.is_empty()
            {
                let copied = rest.copy_to(&mut chunk[..]);
                // The writer counts what it loses; the guest cannot be told.
                self.output
                    .write_all(&chunk[..copied])
                    .and_then(|()| self.output.flush())
                    .unwrap_or(());
                at += copied;
            }
            self.counters.add(BYTES_OUT, u64::try_from(at).unwrap_or(0));
        }
        Ok(())
    }

    /// Hands input to the guest, as far as it has room. True if it has both left.
    fn deliver(&mut self, queues: &mut Queues, memory: &Memory) -> Result<bool, QueueBroken> {
        let (Some(queue), Some(input)) = (queues.get(RECEIVE), &mut self.input) else {
            return Ok(false);
        };
        let mut delivered = 0;
        while self.has_input
            && let Some(room) = self.rooms.pop_front()
        {
            let Ok(slices) = room.data.slices(memory, Permissions::Write) else {
                queue.count(GuestError::VirtioRequest);
                queue.complete(memory, room.chain, 0)?;
                continue;
            };
            let read = input.read(&slices).unwrap_or(0);
            if read == 0 {
                // Nothing now. If somebody sends again, the descriptor tells.
                self.has_input = false;
                self.rooms.push_front(room);
                return Ok(false);
            }
            let written = u32::try_from(read).unwrap_or(u32::MAX);
            self.counters.add(BYTES_IN, u64::from(written));
            queue.complete(memory, room.chain, written)?;
            delivered += read;
            if delivered >= DELIVERY_BYTES {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl fmt::Debug for VirtioConsole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtioConsole")
            .field("rooms", &self.rooms.len())
            .finish_non_exhaustive()
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.config)
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(Arc::clone(&self.counters))
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.input.iter().map(|input| input.descriptor()).collect()
    }

    fn activate(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        if index == TRANSMIT {
            return self.take_output(queues, memory);
        }
        self.take_rooms(queues, memory)?;
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
        self.has_input = true;
        let has_more = self.deliver(queues, memory)?;
        Ok(if has_more { Served::More } else { Served::Idle })
    }

    fn reset(&mut self) {
        self.rooms.clear();
    }
}
