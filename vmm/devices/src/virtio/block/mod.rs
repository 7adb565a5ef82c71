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
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use self::backend::BlockBackend;
use self::request::{DiskShape, MAX_DATA_BYTES, Operation, Refusal, SECTOR_BYTES, SERIAL_BYTES};
use super::config::DeviceConfig;
use super::device::VirtioDevice;
use super::queue::{Buffers, Chain, QueueBroken, Queues, VirtQueue};
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
/// Most sectors, most segments, alignment in sectors.
const CONFIG_DISCARD: usize = 36;
/// Most sectors, most segments, and a byte that says whether zeroes may free storage.
const CONFIG_WRITE_ZEROES: usize = 48;
const BLOCK_BYTES: u32 = 512;
/// Sectors of one range to discard or to fill with zeroes.
const RANGE_SECTORS: u32 = 131_072;
const _: () = assert!(RANGE_SECTORS as u64 * SECTOR_BYTES == MAX_DATA_BYTES);
/// A request has one range.
const RANGES: u32 = 1;
/// Hosts free storage in pieces of 4 KiB or more.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

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
    features: u64,
    /// What the driver accepted of `features` is part of it.
    disk: DiskShape,
    /// Whether the driver knows of no cache: every write is then durable before it is answered
    /// (virtio 1.2, 5.2.6.2).
    writes_through: bool,
    serial: [u8; SERIAL_BYTES as usize],
    config: Arc<DeviceConfig>,
}

impl Block {
    /// A disk over `backend`. Bytes after the last whole sector are not part of it.
    #[must_use]
    pub fn new(backend: Box<dyn BlockBackend>, options: BlockOptions) -> Self {
        let disk = DiskShape {
            sectors: backend.bytes() / SECTOR_BYTES,
            read_only: options.read_only,
            can_discard: false,
            can_write_zeroes: false,
        };
        let features = offered(backend.as_ref(), options.read_only);
        let mut serial = [0; SERIAL_BYTES as usize];
        for (byte, &shown) in serial.iter_mut().zip(options.serial.as_bytes()) {
            *byte = shown;
        }
        Self {
            backend,
            features,
            disk,
            writes_through: true,
            serial,
            config: DeviceConfig::constant(&configuration(disk.sectors, features)),
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
                self.settle()
            }
            Operation::Discard { offset, bytes } => {
                self.backend.discard(offset, bytes).map_err(host_failed)?;
                self.settle()
            }
            Operation::WriteZeroes {
                offset,
                bytes,
                space,
            } => {
                self.backend
                    .write_zeroes(offset, bytes, space)
                    .map_err(host_failed)?;
                self.settle()
            }
            Operation::Flush => self.backend.flush().map(|()| 0).map_err(host_failed),
            Operation::Identify { data } => self.identify(&data, memory),
        }
    }

    fn identify(&self, data: &Buffers, memory: &Memory) -> Result<u32, Refusal> {
        let mut serial = self.serial.as_slice();
        for buffer in slices(data, memory, Permissions::Write)? {
            let (shown, rest) = serial.split_at_checked(buffer.len()).ok_or(NOT_MEMORY)?;
            buffer.copy_from(shown);
            serial = rest;
        }
        Ok(SERIAL_BYTES)
    }

    /// Ends a change of the disk.
    fn settle(&mut self) -> Result<u32, Refusal> {
        if self.writes_through {
            self.backend.flush().map_err(host_failed)?;
        }
        Ok(0)
    }
}

/// Feature bits of a disk over `backend`.
fn offered(backend: &dyn BlockBackend, read_only: bool) -> u64 {
    let when = |condition: bool, feature: u32| u64::from(condition) << feature;
    1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_FLUSH
        | when(read_only, VIRTIO_BLK_F_RO)
        | when(!read_only && backend.can_discard(), VIRTIO_BLK_F_DISCARD)
        | when(
            !read_only && backend.can_write_zeroes(),
            VIRTIO_BLK_F_WRITE_ZEROES,
        )
}

/// The configuration space. What belongs to a feature that is not offered stays zero.
fn configuration(sectors: u64, features: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, value: u32| config[at..][..4].copy_from_slice(&value.to_le_bytes());
    put(CONFIG_SEGMENTS, SEGMENTS);
    put(CONFIG_BLOCK_SIZE, BLOCK_BYTES);
    if features & 1 << VIRTIO_BLK_F_DISCARD != 0 {
        put(CONFIG_DISCARD, RANGE_SECTORS);
        put(CONFIG_DISCARD + 4, RANGES);
        put(CONFIG_DISCARD + 8, DISCARD_ALIGNMENT_SECTORS);
    }
    if features & 1 << VIRTIO_BLK_F_WRITE_ZEROES != 0 {
        put(CONFIG_WRITE_ZEROES, RANGE_SECTORS);
        put(CONFIG_WRITE_ZEROES + 4, RANGES);
        put(CONFIG_WRITE_ZEROES + 8, 1);
    }
    config[CONFIG_CAPACITY..][..8].copy_from_slice(&sectors.to_le_bytes());
    config
}

/// A buffer that is not RAM.
const NOT_MEMORY: Refusal = Refusal::Failed(GuestError::VirtioRequest);

/// The guest is told of a failure and nothing about the host; the backend's maker hears more.
fn host_failed(error: io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::Unsupported {
        Refusal::HostUnable
    } else {
        Refusal::HostFailed
    }
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
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, features: u64) {
        self.writes_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        self.disk.can_discard = features & 1 << VIRTIO_BLK_F_DISCARD != 0;
        self.disk.can_write_zeroes = features & 1 << VIRTIO_BLK_F_WRITE_ZEROES != 0;
    }

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(index) else {
            return Ok(());
        };
        while let Some(mut chain) = queue.pop(memory)? {
            let written = self.answer(&mut chain, queue, memory);
            queue.complete(memory, chain, written)?;
            // The next request may take long: a driver that polls sees this one now.
            queue.publish(memory)?;
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
            Err(Refusal::HostUnable) => (VIRTIO_BLK_S_UNSUPP, 0),
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
