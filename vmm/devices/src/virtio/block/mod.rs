//! virtio-blk: a raw disk.
//!
//! Owns the device's facts and the carrying out of checked requests. Parsing is in [`request`],
//! bytes are in [`backend`]. Requests are served one after the other, so a head that is submitted
//! twice is two requests in a row and never two in flight.

pub mod backend;
pub mod request;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use self::backend::BlockBackend;
use self::request::{DiskShape, Operation, Refusal, SECTOR_BYTES, SERIAL_BYTES};
use super::device::VirtioDevice;
use super::queue::{Buffers, Chain, QueueBroken, VirtQueue};
use crate::guest_error::GuestError;
use crate::memory::Memory;

/// Descriptors of the only queue.
pub const QUEUE_SIZE: u16 = 256;

const DEVICE_TYPE: u16 = 2;
/// Data segments of one request: what a chain holds besides header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// `struct virtio_blk_config` up to the zoned fields, which belong to a feature of their own.
const CONFIG_BYTES: usize = 60;
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SEGMENTS: usize = 12;
const CONFIG_BLOCK_SIZE: usize = 20;
const BLOCK_BYTES: u32 = 512;

/// What a disk tells its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// Serial number: at most 20 bytes are shown, padded with zeroes.
    pub serial: String,
}

/// A disk.
pub struct Block {
    backend: Box<dyn BlockBackend>,
    disk: DiskShape,
    /// Whether the driver knows of no cache: every write is then durable before it is answered
    /// (virtio 1.2, 5.2.6.2).
    writes_through: bool,
    serial: [u8; SERIAL_BYTES as usize],
    config: [u8; CONFIG_BYTES],
}

impl Block {
    /// A disk over `backend`. Bytes after the last whole sector are not part of it.
    #[must_use]
    pub fn new(backend: Box<dyn BlockBackend>, options: BlockOptions) -> Self {
        let disk = DiskShape {
            sectors: backend.bytes() / SECTOR_BYTES,
            read_only: options.read_only,
        };
        let mut serial = [0; SERIAL_BYTES as usize];
        for (byte, &shown) in serial.iter_mut().zip(options.serial.as_bytes()) {
            *byte = shown;
        }
        let mut config = [0; CONFIG_BYTES];
        config[CONFIG_CAPACITY..][..8].copy_from_slice(&disk.sectors.to_le_bytes());
        config[CONFIG_SEGMENTS..][..4].copy_from_slice(&SEGMENTS.to_le_bytes());
        config[CONFIG_BLOCK_SIZE..][..4].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
        Self {
            backend,
            disk,
            writes_through: true,
            serial,
            config,
        }
    }

    /// Carries one operation out; returns the number of bytes written to guest memory.
    fn perform(&mut self, operation: Operation, memory: &Memory) -> Result<u32, Refusal> {
        match operation {
            Operation::Read { offset, data } => {
                let buffers = slices(&data, memory, Permissions::Write)?;
                self.backend
                    .read_at(offset, &buffers)
                    .map_err(host_failed)?;
                Ok(u32::try_from(data.bytes()).expect("a request moves at most 64 MiB"))
            }
            Operation::Write { offset, data } => {
                let buffers = slices(&data, memory, Permissions::Read)?;
                self.backend
                    .write_at(offset, &buffers)
                    .map_err(host_failed)?;
                if self.writes_through {
                    self.backend.flush().map_err(host_failed)?;
                }
                Ok(0)
            }
            Operation::Flush => self.backend.flush().map(|()| 0).map_err(host_failed),
            Operation::Identify { data } => {
                let mut serial = self.serial.as_slice();
                for buffer in slices(&data, memory, Permissions::Write)? {
                    let (shown, rest) = serial.split_at_checked(buffer.len()).ok_or(NOT_MEMORY)?;
                    buffer.copy_from(shown);
                    serial = rest;
                }
                Ok(SERIAL_BYTES)
            }
        }
    }
}

/// A buffer that is not RAM.
const NOT_MEMORY: Refusal = Refusal::Failed(GuestError::VirtioRequest);

/// The guest is told of a failure; whoever watches the host's disk knows more than the error says.
fn host_failed(_: io::Error) -> Refusal {
    Refusal::HostFailed
}

/// `data` as memory to transfer to or from.
fn slices<'a>(
    data: &Buffers,
    memory: &'a Memory,
    access: Permissions,
) -> Result<Vec<VolatileSlice<'a>>, Refusal> {
    let mut found = Vec::with_capacity(data.segments().len());
    for segment in data.segments() {
        let bytes = usize::try_from(segment.bytes).map_err(|_| NOT_MEMORY)?;
        let parts = memory
            .get_slices(GuestAddress(segment.address), bytes, access)
            .map_err(|_| NOT_MEMORY)?;
        for part in parts {
            found.push(part.map_err(|_| NOT_MEMORY)?);
        }
    }
    Ok(found)
}

impl fmt::Debug for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Block")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let read_only = if self.disk.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            0
        };
        1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH | read_only
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.writes_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn serve(
        &mut self,
        _index: u16,
        queue: &mut VirtQueue,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        while let Some(mut chain) = queue.pop(memory)? {
            let written = self.answer(&mut chain, queue, memory);
            queue.complete(memory, chain, written)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

impl Block {
    /// Carries out the request in `chain` and writes its status; returns the number of bytes
    /// written to guest memory.
    fn answer(&mut self, chain: &mut Chain, queue: &VirtQueue, memory: &Memory) -> u32 {
        let Some(request) = request::parse(chain, memory, self.disk) else {
            queue.count(GuestError::VirtioRequest);
            return 0;
        };
        let performed = request
            .operation
            .and_then(|operation| self.perform(operation, memory));
        let (status, written) = match performed {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Failed(error)) => {
                queue.count(error);
                (VIRTIO_BLK_S_IOERR, 0)
            }
            Err(Refusal::HostFailed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => {
                queue.count(GuestError::BlockRefused);
                (VIRTIO_BLK_S_UNSUPP, 0)
            }
        };
        let [status, ..] = status.to_le_bytes();
        match memory.write_obj(status, GuestAddress(request.status)) {
            Ok(()) => written + 1,
            Err(_) => {
                queue.count(GuestError::VirtioRequest);
                0
            }
        }
    }
}
