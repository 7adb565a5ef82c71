//! The disk as a driver meets it: requests that work, and all that may be wrong with one.

mod ejected;
mod late;

use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, Permissions};

use super::backend::{
    BlockBackend, Completion, DiskFacts, FileBackend, NotMemory, Operation, RequestId, Space,
    slices,
};
use super::{Block, BlockOptions, QUEUE_SIZE};
use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::sync::lock;
use crate::virtio::testing::{
    BUFFERS, EVENT_IDX, INDIRECT, NEXT, RAM_BYTES, Ring, TestGuest, WRITE,
};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const SECTORS: u64 = 64;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const RANGE: u64 = BUFFERS + 0x200;
/// What a [`MemoryDisk`] holds where it was discarded.
const DISCARDED: u8 = 0xdd;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const UNTOUCHED: u8 = 0xee;

/// A disk in memory that can fail and counts flushes.
#[derive(Default)]
struct MemoryDisk {
    content: Arc<Mutex<Vec<u8>>>,
    fails: Arc<AtomicBool>,
    is_unable: Arc<AtomicBool>,
    kept: Arc<AtomicUsize>,
    flushes: Arc<AtomicUsize>,
    completed: Vec<Completion>,
}

impl Clone for MemoryDisk {
    /// The same disk, without what is in progress.
    fn clone(&self) -> Self {
        Self {
            content: self.content.clone(),
            fails: self.fails.clone(),
            is_unable: self.is_unable.clone(),
            kept: self.kept.clone(),
            flushes: self.flushes.clone(),
            completed: Vec::new(),
        }
    }
}

impl MemoryDisk {
    fn new(bytes: u64) -> Self {
        let content = (0..bytes)
            .map(|at| u8::try_from(at / 512 % 251).unwrap())
            .collect();
        Self {
            content: Arc::new(Mutex::new(content)),
            ..Self::default()
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn fill(&self, offset: u64, bytes: u64, value: u8) -> io::Result<()> {
        self.check()?;
        if self.is_unable.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let [offset, bytes] = [offset, bytes].map(|count| usize::try_from(count).unwrap());
        lock(&self.content)[offset..offset + bytes].fill(value);
        Ok(())
    }
}

impl MemoryDisk {
    /// Does `operation`.
    fn perform(&self, operation: &Operation, memory: &Memory) -> Result<io::Result<()>, NotMemory> {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        Ok(match operation {
            Operation::Read { offset, data } => {
                let mut at = at(*offset);
                let buffers = slices(data, memory, Permissions::Write)?;
                self.check().map(|()| {
                    for buffer in buffers {
                        buffer.copy_from(&lock(&self.content)[at..at + buffer.len()]);
                        at += buffer.len();
                    }
                })
            }
            Operation::Write { offset, data } => {
                let mut at = at(*offset);
                let buffers = slices(data, memory, Permissions::Read)?;
                self.check().map(|()| {
                    for buffer in buffers {
                        buffer.copy_to(&mut lock(&self.content)[at..at + buffer.len()]);
                        at += buffer.len();
                    }
                })
            }
            Operation::Flush => self.check().map(|()| {
                self.flushes.fetch_add(1, Ordering::SeqCst);
            }),
            Operation::Discard { offset, bytes } => self.fill(*offset, *bytes, DISCARDED),
            Operation::WriteZeroes {
                offset,
                bytes,
                space,
            } => {
                if *space == Space::Keep {
                    self.kept.fetch_add(1, Ordering::SeqCst);
                }
                self.fill(*offset, *bytes, 0)
            }
        })
    }
}

impl BlockBackend for MemoryDisk {
    fn facts(&self) -> DiskFacts {
        DiskFacts {
            can_discard: true,
            can_write_zeroes: true,
            ..DiskFacts::plain(u64::try_from(lock(&self.content).len()).unwrap())
        }
    }
    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory> {
        let result = self.perform(operation, memory)?;
        self.completed.push(Completion { id, result });
        Ok(())
    }
    fn next_completed(&mut self) -> Option<Completion> {
        self.completed.pop()
    }
    fn wait(&mut self) {}
}

fn options(read_only: bool) -> BlockOptions {
    BlockOptions {
        read_only,
        serial: "disk-0".to_owned(),
        queues: 1,
    }
}

fn guest_with(disk: impl BlockBackend + 'static, read_only: bool) -> (TestGuest, Ring) {
    let guest = TestGuest::new(Box::new(Block::new(Box::new(disk), options(read_only))));
    let ring = guest.bring_up(0, QUEUE_SIZE);
    (guest, ring)
}

fn guest() -> (TestGuest, Ring, MemoryDisk) {
    let disk = MemoryDisk::new(SECTORS * 512);
    let (guest, ring) = guest_with(disk.clone(), false);
    (guest, ring, disk)
}

/// A guest whose driver accepted both kinds of ranges.
fn guest_with_ranges() -> (TestGuest, Ring, MemoryDisk) {
    let disk = MemoryDisk::new(SECTORS * 512);
    let block = Block::new(Box::new(disk.clone()), options(false));
    let guest = TestGuest::new(Box::new(block));
    let ring = guest.bring_up(F_FLUSH | F_DISCARD | F_WRITE_ZEROES, QUEUE_SIZE);
    (guest, ring, disk)
}

fn put_range(guest: &TestGuest, sector: u64, sectors: u32, flags: u32) {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(sectors.to_le_bytes());
    range.extend(flags.to_le_bytes());
    guest
        .memory
        .write_slice(&range, GuestAddress(RANGE))
        .unwrap();
}

/// Submits a request with one range and returns its status.
fn range_request(
    guest: &TestGuest,
    ring: &mut Ring,
    kind: u32,
    (sector, sectors, flags): (u64, u32, u32),
) -> u8 {
    put_range(guest, sector, sectors, flags);
    let (status, written) = request(guest, ring, (kind, 0), &[(RANGE, 16, 0)]);
    assert_eq!(written, 1);
    status
}

fn put_header(guest: &TestGuest, kind: u32, sector: u64) {
    guest.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
    guest
        .memory
        .write_obj(u32::MAX, GuestAddress(HEADER + 4))
        .unwrap();
    guest
        .memory
        .write_obj(sector, GuestAddress(HEADER + 8))
        .unwrap();
    guest
        .memory
        .write_obj(UNTOUCHED, GuestAddress(STATUS))
        .unwrap();
}

fn status(guest: &TestGuest) -> u8 {
    guest.memory.read_obj(GuestAddress(STATUS)).unwrap()
}

/// Submits `parts` after a header and returns the status byte and the written length.
fn request(
    guest: &TestGuest,
    ring: &mut Ring,
    (kind, sector): (u32, u64),
    parts: &[(u64, u32, u16)],
) -> (u8, u32) {
    put_header(guest, kind, sector);
    ring.submit(&[&[(HEADER, 16, 0)], parts, &[(STATUS, 1, WRITE)]].concat());
    guest.notify(0);
    let used = ring.take_used();
    assert_eq!(used.len(), 1, "the request is answered once");
    (status(guest), used[0].1)
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
fn the_configuration_says_capacity_segments_and_block_size() {
    let (guest, _, _) = guest();
    let config = guest.at.device.unwrap();
    assert_eq!(guest.config(0, 4), 0x1042_1af4);
    assert_eq!(guest.config(8, 4) >> 8, 0x01_80_00);
    assert_eq!(guest.read(config, 8), SECTORS);
    assert_eq!(guest.read(config + 12, 4), 254);
    assert_eq!(guest.read(config + 20, 4), 512);
    assert_eq!(
        guest.offered_features() & 0xff_ffff,
        1 << 2 | 1 << 6 | 1 << 10 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES
    );
    let limits = [36, 40, 44, 48, 52].map(|at| guest.read(config + at, 4));
    assert_eq!(limits, [131_072, 1, 8, 131_072, 1]);
    assert_eq!(guest.read(config + 56, 1), 1, "zeroes may free storage");
    let (guest, _) = guest_with(MemoryDisk::new(1000), true);
    assert_eq!(
        guest.read(guest.at.device.unwrap(), 8),
        1,
        "only whole sectors are there"
    );
    assert_eq!(
        guest.offered_features() & 0xff_ffff,
        1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10
    );
    let config = guest.at.device.unwrap();
    for at in (36..60).step_by(4) {
        assert_eq!(guest.read(config + at, 4), 0, "at {at} of a read-only disk");
    }
}

#[test]
fn a_backend_that_cannot_discard_or_zero_does_not_offer_it() {
    let disk = FileBackend::new(tempfile::tempfile().unwrap(), 512);
    let (guest, mut ring) = guest_with(disk, false);
    assert_eq!(guest.offered_features() & (F_DISCARD | F_WRITE_ZEROES), 0);
    assert_eq!(guest.read(guest.at.device.unwrap() + 36, 8), 0);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(
            range_request(&guest, &mut ring, kind, (0, 1, 0)),
            UNSUPPORTED
        );
    }
    assert_eq!(guest.errors.count(GuestError::BlockRefused), 2);
}

#[test]
fn ranges_are_discarded_and_zeroed_and_nothing_else_is() {
    let (guest, mut ring, disk) = guest_with_ranges();
    let mut expected = lock(&disk.content).clone();
    assert_eq!(range_request(&guest, &mut ring, DISCARD, (8, 3, 0)), OK);
    expected[8 * 512..11 * 512].fill(DISCARDED);
    assert_eq!(*lock(&disk.content), expected);
    let last = (SECTORS - 1, 1, 0);
    assert_eq!(range_request(&guest, &mut ring, WRITE_ZEROES, last), OK);
    expected[63 * 512..].fill(0);
    assert_eq!(*lock(&disk.content), expected);
    assert_eq!(disk.kept.load(Ordering::SeqCst), 1);
    assert_eq!(
        range_request(&guest, &mut ring, WRITE_ZEROES, (9, 4, 1)),
        OK
    );
    expected[9 * 512..13 * 512].fill(0);
    assert_eq!(*lock(&disk.content), expected);
    assert_eq!(disk.kept.load(Ordering::SeqCst), 1, "the driver let it go");
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(guest.errors.total(), 0);
}

#[test]
fn a_range_may_be_cut_into_descriptors() {
    let (guest, mut ring, disk) = guest_with_ranges();
    put_range(&guest, 1, 1, 0);
    let parts = [(RANGE, 9, 0), (RANGE + 9, 0, 0), (RANGE + 9, 7, 0)];
    assert_eq!(
        request(&guest, &mut ring, (WRITE_ZEROES, 77), &parts),
        (OK, 1)
    );
    assert_eq!(lock(&disk.content)[512..1024], [0; 512]);
}

#[test]
fn ranges_past_the_end_of_the_disk_fail() {
    let (guest, mut ring, disk) = guest_with_ranges();
    let before = lock(&disk.content).clone();
    let ranges = [
        (SECTORS, 1),
        (SECTORS - 1, 2),
        (0, 65),
        (u64::MAX, 1),
        (u64::MAX - 1, 2),
        (u64::MAX / 512, 1),
        (1 << 55, 131_072),
    ];
    for (count, (sector, sectors)) in (1..).zip(ranges) {
        for kind in [DISCARD, WRITE_ZEROES] {
            let status = range_request(&guest, &mut ring, kind, (sector, sectors, 0));
            assert_eq!(status, IOERR, "{sectors} at {sector}");
        }
        assert_eq!(guest.errors.count(GuestError::BlockRange), 2 * count);
    }
    assert_eq!(*lock(&disk.content), before);
}

#[test]
fn ranges_of_no_sector_or_above_the_limit_fail() {
    let (guest, mut ring, _) = guest_with_ranges();
    for sectors in [0, 131_073, u32::MAX] {
        for kind in [DISCARD, WRITE_ZEROES] {
            let status = range_request(&guest, &mut ring, kind, (0, sectors, 0));
            assert_eq!(status, IOERR, "{sectors} sectors");
        }
    }
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 6);
}

#[test]
fn ranges_of_an_odd_length_fail() {
    let (guest, mut ring, disk) = guest_with_ranges();
    let before = lock(&disk.content).clone();
    put_range(&guest, 0, 1, 0);
    for kind in [DISCARD, WRITE_ZEROES] {
        for length in [1, 15, 17, 32, 512] {
            let answer = request(&guest, &mut ring, (kind, 0), &[(RANGE, length, 0)]);
            assert_eq!(answer, (IOERR, 1), "{length} bytes");
        }
        assert_eq!(request(&guest, &mut ring, (kind, 0), &[]), (IOERR, 1));
        let to_fill = request(&guest, &mut ring, (kind, 0), &[(RANGE, 16, WRITE)]);
        assert_eq!(
            to_fill,
            (IOERR, 1),
            "a range that the device may only write"
        );
        let nowhere = request(&guest, &mut ring, (kind, 0), &[(RAM_BYTES - 8, 16, 0)]);
        assert_eq!(nowhere, (IOERR, 1), "a range outside of memory");
    }
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 16);
    assert_eq!(*lock(&disk.content), before);
}

#[test]
fn reserved_flags_and_discarding_with_the_unmap_flag_are_unsupported() {
    let (guest, mut ring, disk) = guest_with_ranges();
    let before = lock(&disk.content).clone();
    let (known, reserved) = ([1], [2, 3, 1 << 31, u32::MAX]);
    for flags in known.into_iter().chain(reserved) {
        let status = range_request(&guest, &mut ring, DISCARD, (0, 1, flags));
        assert_eq!(status, UNSUPPORTED, "flags {flags:#x}");
    }
    for flags in reserved {
        let status = range_request(&guest, &mut ring, WRITE_ZEROES, (0, 1, flags));
        assert_eq!(status, UNSUPPORTED, "flags {flags:#x}");
    }
    assert_eq!(guest.errors.count(GuestError::BlockRefused), 9);
    assert_eq!(*lock(&disk.content), before);
}

#[test]
fn ranges_that_the_driver_did_not_negotiate_are_unsupported() {
    let (guest, mut ring, disk) = guest();
    let before = lock(&disk.content).clone();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(
            range_request(&guest, &mut ring, kind, (0, 1, 0)),
            UNSUPPORTED
        );
    }
    assert_eq!(*lock(&disk.content), before);
    assert_eq!(guest.errors.count(GuestError::BlockRefused), 2);
}

#[test]
fn a_read_only_disk_refuses_ranges() {
    let disk = MemoryDisk::new(512);
    let (guest, mut ring) = guest_with(disk.clone(), true);
    let before = lock(&disk.content).clone();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(
            range_request(&guest, &mut ring, kind, (0, 1, 0)),
            UNSUPPORTED
        );
    }
    assert_eq!(*lock(&disk.content), before);
}

#[test]
fn a_host_that_fails_or_is_unable_is_not_the_guests_error() {
    let (guest, mut ring, disk) = guest_with_ranges();
    disk.is_unable.store(true, Ordering::SeqCst);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(
            range_request(&guest, &mut ring, kind, (0, 1, 0)),
            UNSUPPORTED
        );
    }
    disk.fails.store(true, Ordering::SeqCst);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(range_request(&guest, &mut ring, kind, (0, 1, 0)), IOERR);
    }
    assert_eq!(guest.errors.total(), 0);
}

#[test]
fn ranges_are_durable_at_once_for_a_driver_that_never_flushes() {
    let disk = MemoryDisk::new(SECTORS * 512);
    let block = Block::new(Box::new(disk.clone()), options(false));
    let guest = TestGuest::new(Box::new(block));
    let mut ring = guest.bring_up(F_DISCARD | F_WRITE_ZEROES, QUEUE_SIZE);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(range_request(&guest, &mut ring, kind, (0, 1, 0)), OK);
    }
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn data_is_read_and_written_in_the_order_of_its_segments() {
    let (guest, mut ring, disk) = guest();
    let parts = [(DATA, 512, WRITE), (DATA + 0x2000, 1024, WRITE)];
    assert_eq!(request(&guest, &mut ring, (IN, 3), &parts), (OK, 1537));
    assert_eq!(bytes(&guest, DATA, 512), [3; 512]);
    assert_eq!(
        bytes(&guest, DATA + 0x2000, 1024),
        [[4; 512], [5; 512]].concat()
    );

    guest
        .memory
        .write_slice(&[0xaa; 100], GuestAddress(DATA))
        .unwrap();
    guest
        .memory
        .write_slice(&[0xbb; 412], GuestAddress(DATA + 0x2000))
        .unwrap();
    let parts = [(DATA, 100, 0), (DATA + 0x2000, 412, 0)];
    assert_eq!(request(&guest, &mut ring, (OUT, 63), &parts), (OK, 1));
    let written = &lock(&disk.content)[63 * 512..];
    assert_eq!(written, [vec![0xaa; 100], vec![0xbb; 412]].concat());
    assert_eq!(guest.errors.total(), 0);
}

#[test]
fn the_cut_into_descriptors_does_not_matter() {
    let (guest, mut ring, _) = guest();
    put_header(&guest, IN, 7);
    // The header in three pieces, and the status as the last byte of the data's descriptor.
    ring.submit(&[
        (HEADER, 3, 0),
        (HEADER + 3, 0, 0),
        (HEADER + 3, 13, 0),
        (DATA, 513, WRITE),
    ]);
    guest.notify(0);
    assert_eq!(ring.take_used(), [(0, 513)]);
    assert_eq!(bytes(&guest, DATA, 513), [vec![7; 512], vec![OK]].concat());
    // Header and data in one descriptor.
    put_header(&guest, OUT, 0);
    ring.submit(&[(HEADER, 16 + 512, 0), (STATUS, 1, WRITE)]);
    // The status byte lies within that descriptor, in the data: a driver may do so.
    guest.notify(0);
    assert_eq!(ring.take_used().len(), 1);
    assert_eq!(status(&guest), OK);
    assert_eq!(guest.errors.total(), 0);
}

#[test]
fn indirect_descriptors_are_followed() {
    let (guest, mut ring, _) = guest();
    put_header(&guest, IN, 9);
    let table = BUFFERS + 0x800;
    ring.describe_in(table, 0, (HEADER, 16), NEXT, 1);
    ring.describe_in(table, 1, (DATA, 512), WRITE | NEXT, 2);
    ring.describe_in(table, 2, (STATUS, 1), WRITE, 0);
    ring.submit(&[(table, 48, INDIRECT)]);
    guest.notify(0);
    assert_eq!(ring.take_used(), [(0, 513)]);
    assert_eq!(bytes(&guest, DATA, 512), [9; 512]);
}

#[test]
fn an_indirect_table_longer_than_the_queue_breaks_it() {
    let (guest, mut ring, _) = guest();
    let table = BUFFERS + 0x8000;
    for index in 0..QUEUE_SIZE {
        ring.describe_in(table, index, (DATA, 512), WRITE | NEXT, index + 1);
    }
    ring.describe_in(table, QUEUE_SIZE, (STATUS, 1), WRITE, 0);
    ring.submit(&[(table, 16 * (u32::from(QUEUE_SIZE) + 1), INDIRECT)]);
    guest.notify(0);
    assert_eq!(guest.errors.count(GuestError::VirtioQueueBroken), 1);
}

#[test]
fn requests_past_the_end_of_the_disk_fail() {
    let (guest, mut ring, disk) = guest();
    let before = lock(&disk.content).clone();
    let positions = [
        SECTORS,
        SECTORS - 1,
        SECTORS + 1,
        u64::MAX,
        u64::MAX - 1,
        u64::MAX / 512,
        1 << 55,
    ];
    for (count, sector) in (1..).zip(positions) {
        let read = request(&guest, &mut ring, (IN, sector), &[(DATA, 1024, WRITE)]);
        let write = request(&guest, &mut ring, (OUT, sector), &[(DATA, 1024, 0)]);
        assert_eq!((read, write), ((IOERR, 1), (IOERR, 1)), "sector {sector}");
        assert_eq!(guest.errors.count(GuestError::BlockRange), 2 * count);
    }
    assert_eq!(*lock(&disk.content), before);
    let last = request(&guest, &mut ring, (IN, SECTORS - 1), &[(DATA, 512, WRITE)]);
    assert_eq!(last, (OK, 513));
}

#[test]
fn odd_lengths_fail() {
    let (guest, mut ring, _) = guest();
    for length in [1, 511, 513, 1000] {
        let read = request(&guest, &mut ring, (IN, 0), &[(DATA, length, WRITE)]);
        let write = request(&guest, &mut ring, (OUT, 0), &[(DATA, length, 0)]);
        assert_eq!((read, write), ((IOERR, 1), (IOERR, 1)), "{length}");
    }
    assert_eq!(
        request(&guest, &mut ring, (IN, 0), &[]),
        (IOERR, 1),
        "no data at all"
    );
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 9);
}

#[test]
fn data_in_the_wrong_direction_fails() {
    let (guest, mut ring, disk) = guest();
    let before = lock(&disk.content).clone();
    assert_eq!(
        request(&guest, &mut ring, (IN, 0), &[(DATA, 512, 0)]),
        (IOERR, 1)
    );
    assert_eq!(
        request(&guest, &mut ring, (OUT, 0), &[(DATA, 512, WRITE)]),
        (IOERR, 1)
    );
    assert_eq!(*lock(&disk.content), before);
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 2);
}

#[test]
fn a_short_header_fails_and_a_missing_status_is_only_counted() {
    let (guest, mut ring, _) = guest();
    put_header(&guest, IN, 0);
    ring.submit(&[(HEADER, 15, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    guest.notify(0);
    assert_eq!((ring.take_used().len(), status(&guest)), (1, IOERR));
    put_header(&guest, OUT, 0);
    ring.submit(&[(HEADER, 16, 0), (DATA, 512, 0)]);
    ring.submit(&[(HEADER, 16, 0), (STATUS, 0, WRITE)]);
    guest.notify(0);
    assert_eq!(
        ring.take_used()
            .iter()
            .map(|used| used.1)
            .collect::<Vec<_>>(),
        [0, 0]
    );
    assert_eq!(status(&guest), UNTOUCHED);
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 3);
    assert_eq!(guest.status(), 0xf, "a bad request does not break the ring");
}

#[test]
fn unknown_types_are_unsupported() {
    let (guest, mut ring, _) = guest();
    for kind in [2, 3, 5, 11, 13, 0xffff_ffff] {
        let answer = request(&guest, &mut ring, (kind, 0), &[(DATA, 512, 0)]);
        assert_eq!(answer, (UNSUPPORTED, 1), "{kind}");
    }
    assert_eq!(guest.errors.count(GuestError::BlockRefused), 6);
}

#[test]
fn a_read_only_disk_refuses_writes_and_serves_the_rest() {
    let disk = MemoryDisk::new(512);
    let (guest, mut ring) = guest_with(disk.clone(), true);
    let before = lock(&disk.content).clone();
    assert_eq!(
        request(&guest, &mut ring, (OUT, 0), &[(DATA, 512, 0)]),
        (IOERR, 1)
    );
    assert_eq!(guest.errors.count(GuestError::BlockRefused), 1);
    assert_eq!(
        request(&guest, &mut ring, (IN, 0), &[(DATA, 512, WRITE)]),
        (OK, 513)
    );
    assert_eq!(*lock(&disk.content), before);
}

#[test]
fn the_serial_number_is_padded_and_needs_20_bytes() {
    let (guest, mut ring, _) = guest();
    guest
        .memory
        .write_slice(&[0xff; 32], GuestAddress(DATA))
        .unwrap();
    assert_eq!(
        request(&guest, &mut ring, (GET_ID, 0), &[(DATA, 20, WRITE)]),
        (OK, 21)
    );
    assert_eq!(
        bytes(&guest, DATA, 21),
        *b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff"
    );
    assert_eq!(
        request(&guest, &mut ring, (GET_ID, 0), &[(DATA, 19, WRITE)]),
        (IOERR, 1)
    );
    let parts = [(DATA, 5, WRITE), (DATA + 100, 27, WRITE)];
    assert_eq!(request(&guest, &mut ring, (GET_ID, 0), &parts).0, OK);
    assert_eq!(bytes(&guest, DATA + 100, 1), b"0");
}

#[test]
fn buffers_outside_of_memory_fail() {
    let (guest, mut ring, _) = guest();
    for address in [RAM_BYTES, RAM_BYTES - 256, u64::MAX, u64::MAX - 511] {
        assert_eq!(
            request(&guest, &mut ring, (IN, 0), &[(address, 512, WRITE)]),
            (IOERR, 1)
        );
        assert_eq!(
            request(&guest, &mut ring, (OUT, 0), &[(address, 512, 0)]),
            (IOERR, 1)
        );
    }
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 8);
    put_header(&guest, FLUSH, 0);
    ring.submit(&[(HEADER, 16, 0), (RAM_BYTES, 1, WRITE)]);
    ring.submit(&[(HEADER, 16, 0), (u64::MAX, 2, WRITE)]);
    ring.submit(&[(u64::MAX - 3, 16, 0), (STATUS, 1, WRITE)]);
    guest.notify(0);
    // Both of the flushes go through the disk, and the third is answered before them.
    let mut lengths: Vec<_> = ring.take_used().iter().map(|used| used.1).collect();
    lengths.sort_unstable();
    assert_eq!((lengths, status(&guest)), (vec![0, 0, 1], IOERR));
}

#[test]
fn flush_reaches_the_disk_and_failures_of_the_disk_reach_the_guest() {
    let (guest, mut ring, disk) = guest();
    assert_eq!(request(&guest, &mut ring, (FLUSH, 0), &[]), (OK, 1));
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    disk.fails.store(true, Ordering::SeqCst);
    assert_eq!(request(&guest, &mut ring, (FLUSH, 0), &[]), (IOERR, 1));
    assert_eq!(
        request(&guest, &mut ring, (IN, 0), &[(DATA, 512, WRITE)]),
        (IOERR, 1)
    );
    assert_eq!(
        request(&guest, &mut ring, (OUT, 0), &[(DATA, 512, 0)]),
        (IOERR, 1)
    );
    assert_eq!(
        guest.errors.total(),
        0,
        "the host's failures are not the guest's"
    );
}

#[test]
fn writes_are_durable_at_once_for_a_driver_that_never_flushes() {
    for (features, flushes) in [(0, 2), (1 << 9, 0)] {
        let disk = MemoryDisk::new(SECTORS * 512);
        let block = Block::new(Box::new(disk.clone()), options(false));
        let guest = TestGuest::new(Box::new(block));
        let mut ring = guest.bring_up(features, QUEUE_SIZE);
        for sector in 0..2 {
            let answer = request(&guest, &mut ring, (OUT, sector), &[(DATA, 512, 0)]);
            assert_eq!(answer, (OK, 1));
        }
        assert_eq!(disk.flushes.load(Ordering::SeqCst), flushes);
    }
}

#[test]
fn a_descriptor_head_submitted_again_after_completion_is_a_new_request() {
    let (guest, mut ring, disk) = guest();
    put_header(&guest, FLUSH, 0);
    let head = ring.submit(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
    for count in 1..4 {
        guest.notify(0);
        assert_eq!(ring.take_used(), [(u32::from(head), 1)]);
        assert_eq!(disk.flushes.load(Ordering::SeqCst), count);
        ring.offer(head);
    }
    assert_eq!(guest.errors.total(), 0);
}

#[test]
fn a_request_longer_than_64_mib_is_refused_before_any_work() {
    let (guest, mut ring) = guest_with(MemoryDisk::new(512), false);
    let huge = [(0, 0x4000_0000, WRITE), (0, 0x4000_0000, WRITE)];
    assert_eq!(request(&guest, &mut ring, (IN, 0), &huge), (IOERR, 1));
    assert_eq!(guest.errors.count(GuestError::VirtioRequest), 1);
}

#[test]
fn a_file_serves_a_full_ring_with_the_event_index() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512).unwrap();
    let disk = FileBackend::new(file.try_clone().unwrap(), SECTORS * 512);
    let guest = TestGuest::new(Box::new(Block::new(Box::new(disk), options(false))));
    let mut ring = guest.bring_up(EVENT_IDX, 128);
    put_header(&guest, OUT, 5);
    guest
        .memory
        .write_slice(&[0x42; 512], GuestAddress(DATA))
        .unwrap();
    for _ in 0..40 {
        ring.submit(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    }
    guest.notify(0);
    assert_eq!(ring.take_used().len(), 40);
    assert_eq!(guest.messages.take(), [1]);
    let mut sector = [0; 512];
    file.seek(SeekFrom::Start(5 * 512)).unwrap();
    file.read_exact(&mut sector).unwrap();
    assert_eq!(sector, [0x42; 512]);
    file.flush().unwrap();
}

#[test]
fn more_chains_than_one_budget_are_served_in_turns() {
    let (guest, mut ring, disk) = guest();
    put_header(&guest, FLUSH, 0);
    for _ in 0..100 {
        ring.submit(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
    }
    guest.notify(0);
    assert_eq!(ring.take_used().len(), 100);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 100);
    assert_eq!(guest.messages.take(), [1, 1], "64 and 36 chains");
}

proptest! {
    #[test]
    fn random_requests_never_panic_and_are_answered(
        requests in prop::collection::vec(
            (
                prop_oneof![0_u32..14, any::<u32>()],
                prop_oneof![0..SECTORS * 2, any::<u64>()],
                prop::collection::vec(
                    (
                        prop_oneof![DATA..RAM_BYTES, any::<u64>()],
                        prop_oneof![Just(512_u32), 0_u32..2048, any::<u32>()],
                        any::<bool>(),
                    ),
                    0..4,
                ),
            ),
            1..20,
        ),
    ) {
        let (guest, mut ring, disk) = guest_with_ranges();
        for (kind, sector, mut parts) in requests {
            parts.sort_by_key(|part| part.2);
            let parts: Vec<_> = parts
                .into_iter()
                .map(|(address, bytes, writes)| (address, bytes, if writes { WRITE } else { 0 }))
                .collect();
            put_header(&guest, kind, sector);
            ring.submit(&[&[(HEADER, 16, 0)], parts.as_slice(), &[(STATUS, 1, WRITE)]].concat());
            guest.notify(0);
            if guest.errors.count(GuestError::VirtioQueueBroken) > 0 {
                // Only a chain of more than 4 GiB is that bad here.
                prop_assert!(parts.iter().map(|part| u64::from(part.1)).sum::<u64>() > 0xffff_0000);
                return Ok(());
            }
            prop_assert_eq!(ring.take_used().len(), 1);
            prop_assert!(status(&guest) <= UNSUPPORTED);
        }
        prop_assert_eq!(lock(&disk.content).len(), usize::try_from(SECTORS * 512).unwrap());
    }

    #[test]
    fn random_requests_leave_what_a_model_disk_holds(
        requests in prop::collection::vec(
            (
                prop_oneof![Just(IN), Just(OUT), Just(DISCARD), Just(WRITE_ZEROES)],
                prop_oneof![9 => 0..SECTORS + 2, 1 => any::<u64>()],
                prop_oneof![9 => 0_u32..8, 1 => any::<u32>()],
                prop_oneof![4 => Just(0), 2 => Just(1), 1 => any::<u32>()],
                any::<u8>(),
            ),
            1..30,
        ),
    ) {
        let (guest, mut ring, disk) = guest_with_ranges();
        let mut model = lock(&disk.content).clone();
        for (kind, sector, sectors, flags, value) in requests {
            let sectors = if kind <= OUT { sectors % 9 } else { sectors };
            let place = on_model(sector, sectors);
            let known_flags = u32::from(kind == WRITE_ZEROES);
            let status = if kind <= OUT {
                let count = usize::try_from(sectors).unwrap() * 512;
                guest.memory.write_slice(&vec![value; count], GuestAddress(DATA)).unwrap();
                let direction = if kind == IN { WRITE } else { 0 };
                let parts = [(DATA, sectors * 512, direction)];
                request(&guest, &mut ring, (kind, sector), &parts).0
            } else {
                range_request(&guest, &mut ring, kind, (sector, sectors, flags))
            };
            let expected = match place {
                _ if kind > OUT && flags & !known_flags != 0 => UNSUPPORTED,
                None => IOERR,
                Some(place) => {
                    match kind {
                        IN => prop_assert_eq!(&bytes(&guest, DATA, place.len()), &model[place]),
                        OUT => model[place].fill(value),
                        DISCARD => model[place].fill(DISCARDED),
                        _ => model[place].fill(0),
                    }
                    OK
                }
            };
            prop_assert_eq!(status, expected);
            prop_assert!(*lock(&disk.content) == model);
        }
    }
}

/// The bytes of a model disk that a request is about, if they are all there.
fn on_model(sector: u64, sectors: u32) -> Option<std::ops::Range<usize>> {
    let end = u128::from(sector) + u128::from(sectors);
    if sectors == 0 || end > u128::from(SECTORS) {
        return None;
    }
    let byte = |sector: u128| usize::try_from(sector * 512).unwrap();
    Some(byte(u128::from(sector))..byte(end))
}
