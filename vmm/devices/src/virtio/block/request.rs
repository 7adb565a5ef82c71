//! From a descriptor chain to a checked block request (virtio 1.2, 5.2.6).
//!
//! Pure but for reading the header: owns every check of what a driver asks for, so that the device
//! only moves bytes. A request is a header to read, data in one direction, and a status byte as
//! the last byte that the device may write; how these are cut into descriptors does not matter.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress};

use super::backend::{Operation, Space};
use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::virtio::queue::{Buffers, Chain};

/// Bytes of a sector: the unit of positions and of the disk's length.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes that a driver reads as the serial number.
pub const SERIAL_BYTES: u32 = 20;
/// Most bytes of the disk in one request: 64 MiB. A longer one would keep the thread from other
/// devices.
pub const MAX_DATA_BYTES: u64 = 64 << 20;

const HEADER_BYTES: u32 = 16;
/// `struct virtio_blk_discard_write_zeroes`; a request has exactly one.
const RANGE_BYTES: u32 = 16;

/// What the disk is, as far as a request is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskShape {
    /// Number of whole sectors.
    pub sectors: u64,
    /// What positions and lengths of transfers are multiples of, in bytes.
    pub unit: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the driver may discard.
    pub can_discard: bool,
    /// Whether the driver may have zeroes written.
    pub can_write_zeroes: bool,
}

/// What is asked of the disk.
#[derive(PartialEq, Eq, Debug)]
pub enum Task {
    /// Something for the backend.
    Operate(Operation),
    /// Write [`SERIAL_BYTES`] bytes of the serial number.
    Identify {
        /// Where the bytes go; exactly as long.
        data: Buffers,
    },
}

/// What a driver is told about a request that is not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// `VIRTIO_BLK_S_IOERR` for what the guest did wrong.
    Failed(GuestError),
    /// `VIRTIO_BLK_S_IOERR` because the host's disk said no.
    HostFailed,
    /// `VIRTIO_BLK_S_UNSUPP` for what the guest had no reason to ask for.
    Unsupported,
    /// `VIRTIO_BLK_S_UNSUPP` because the host's disk turned out to be unable.
    HostUnable,
}

/// One request with the place of its answer.
#[derive(PartialEq, Eq, Debug)]
pub struct Request {
    /// Guest physical address of the status byte.
    pub status: u64,
    /// What to do, or why not.
    pub task: Result<Task, Refusal>,
}

/// Reads and checks the request in `chain`. `None` if there is no byte for a status: nothing can
/// be answered.
#[must_use]
pub fn parse(chain: &mut Chain, memory: &Memory, disk: DiskShape) -> Option<Request> {
    let mut writable = std::mem::take(&mut chain.writable);
    let status = writable.take_last_byte()?;
    let readable = std::mem::take(&mut chain.readable);
    Some(Request {
        status,
        task: task(readable, writable, memory, disk),
    })
}

const MALFORMED: Refusal = Refusal::Failed(GuestError::VirtioRequest);

fn task(
    mut readable: Buffers,
    mut writable: Buffers,
    memory: &Memory,
    disk: DiskShape,
) -> Result<Task, Refusal> {
    let header = readable.take_front(HEADER_BYTES).ok_or(MALFORMED)?;
    let (kind, sector) = read_header(&header, memory).ok_or(MALFORMED)?;
    let operation = match kind {
        VIRTIO_BLK_T_IN => Operation::Read {
            offset: checked_offset(sector, writable.bytes(), disk)?,
            data: writable,
        },
        VIRTIO_BLK_T_OUT if disk.read_only => {
            return Err(Refusal::Failed(GuestError::BlockRefused));
        }
        VIRTIO_BLK_T_OUT => Operation::Write {
            offset: checked_offset(sector, readable.bytes(), disk)?,
            data: readable,
        },
        VIRTIO_BLK_T_DISCARD if disk.can_discard => {
            let (offset, bytes, _) = range(&readable, memory, disk, 0)?;
            Operation::Discard { offset, bytes }
        }
        VIRTIO_BLK_T_WRITE_ZEROES if disk.can_write_zeroes => {
            write_zeroes(&readable, memory, disk)?
        }
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => {
            let data = writable.take_front(SERIAL_BYTES).ok_or(MALFORMED)?;
            return Ok(Task::Identify { data });
        }
        _ => return Err(Refusal::Unsupported),
    };
    Ok(Task::Operate(operation))
}

/// Type and sector; the header is copied once and may be cut into several descriptors.
fn read_header(header: &Buffers, memory: &Memory) -> Option<(u32, u64)> {
    let bytes: [u8; HEADER_BYTES as usize] = copied(header, memory)?;
    let (kind, sector) = (bytes.first_chunk()?, bytes.last_chunk()?);
    Some((u32::from_le_bytes(*kind), u64::from_le_bytes(*sector)))
}

/// A copy of `buffers`, if they are `N` bytes of memory.
fn copied<const N: usize>(buffers: &Buffers, memory: &Memory) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    for segment in buffers.segments() {
        let (now, later) = rest.split_at_mut_checked(usize::try_from(segment.bytes).ok()?)?;
        memory.read_slice(now, GuestAddress(segment.address)).ok()?;
        rest = later;
    }
    rest.is_empty().then_some(bytes)
}

/// Offset, length in bytes and flags of the one range that `data` holds. A flag that is not in
/// `known` is unsupported, whatever the range.
fn range(
    data: &Buffers,
    memory: &Memory,
    disk: DiskShape,
    known: u32,
) -> Result<(u64, u64, u32), Refusal> {
    let raw: [u8; RANGE_BYTES as usize] = copied(data, memory).ok_or(MALFORMED)?;
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = raw;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    if flags & !known != 0 {
        return Err(Refusal::Unsupported);
    }
    let bytes = u64::from(sectors) * SECTOR_BYTES;
    Ok((checked_offset(sector, bytes, disk)?, bytes, flags))
}

fn write_zeroes(data: &Buffers, memory: &Memory, disk: DiskShape) -> Result<Operation, Refusal> {
    let (offset, bytes, flags) = range(data, memory, disk, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)?;
    let space = if flags == 0 {
        Space::Keep
    } else {
        Space::MayFree
    };
    Ok(Operation::WriteZeroes {
        offset,
        bytes,
        space,
    })
}

/// The byte position of a request about `bytes` bytes of the disk from `sector` on, if these are
/// whole units and lie on the disk.
fn checked_offset(sector: u64, bytes: u64, disk: DiskShape) -> Result<u64, Refusal> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) || bytes > MAX_DATA_BYTES {
        return Err(MALFORMED);
    }
    let end = sector.checked_add(bytes / SECTOR_BYTES);
    let is_on_disk = end.is_some_and(|end| end <= disk.sectors);
    let offset = sector.checked_mul(SECTOR_BYTES).filter(|_| is_on_disk);
    let offset = offset.ok_or(Refusal::Failed(GuestError::BlockRange))?;
    if offset.is_multiple_of(disk.unit) && bytes.is_multiple_of(disk.unit) {
        Ok(offset)
    } else {
        Err(MALFORMED)
    }
}
