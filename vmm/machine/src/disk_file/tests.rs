//! What every backend of a disk has to do, and what the host's files can do beyond it.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use berth_vmm_devices::virtio::block::backend::{FileBackend, NotMemory, Operation, RequestId};
use berth_vmm_devices::virtio::queue::{Buffers, Segment};
use rustix::fs::OFlags;
use vm_memory::{Bytes, GuestAddress};

use super::*;

const BYTES: u64 = 64 << 10;
const RAM_BYTES: usize = 4 << 20;
const REQUESTS: u16 = 8;

fn pattern() -> Vec<u8> {
    (0..BYTES)
        .map(|at| (at % 251).to_le_bytes()[0] | 1)
        .collect()
}

fn file_in(folder: &str) -> File {
    let file = tempfile::tempfile_in(folder).unwrap();
    file.write_all_at(&pattern(), 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn file() -> File {
    file_in(std::env::temp_dir().to_str().unwrap())
}

fn failures() -> Arc<DiskFailures> {
    Arc::new(DiskFailures::new().unwrap())
}

fn disk_file(file: File, read_only: bool, failures: &Arc<DiskFailures>) -> DiskFile {
    let spec = DiskSpec {
        alignment: Alignment::of(file.as_fd()).unwrap(),
        file,
        read_only,
        serial: String::new(),
        bytes: BYTES,
        queues: 1,
        rate_limit: berth_api::vmm::RateLimit::default(),
    };
    DiskFile::new(spec, 3, Arc::clone(failures)).unwrap()
}

/// A backend, the file it works on and the memory it moves bytes of.
struct Bench {
    name: &'static str,
    file: File,
    memory: Memory,
    backend: Box<dyn BlockBackend>,
}

impl Bench {
    fn new(
        name: &'static str,
        file: &File,
        backend: impl FnOnce(File, Memory) -> Box<dyn BlockBackend>,
    ) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        Self {
            name,
            file: file.try_clone().unwrap(),
            backend: backend(file.try_clone().unwrap(), memory.clone()),
            memory,
        }
    }

    fn positioned(file: &File, failures: &Arc<DiskFailures>) -> Self {
        Self::new("positioned", file, |file, _| {
            Box::new(PositionedDisk::new(disk_file(file, false, failures)))
        })
    }

    /// `None` after saying that the host has no io_uring.
    fn ring(file: &File, failures: &Arc<DiskFailures>) -> Option<Self> {
        let probe = disk_file(file.try_clone().unwrap(), false, failures);
        let memory = Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        if RingDisk::new(probe, memory, 1).is_err() {
            println!("SKIPPED for the ring: this host has no io_uring");
            return None;
        }
        Some(Self::new("ring", file, |file, memory| {
            let disk = disk_file(file, false, failures);
            Box::new(RingDisk::new(disk, memory, REQUESTS).unwrap())
        }))
    }

    /// The kinds that a machine has, over `file`.
    fn of_machines(file: &File) -> Vec<Self> {
        let failures = failures();
        let positioned = Self::positioned(file, &failures);
        [Some(positioned), Self::ring(file, &failures)]
            .into_iter()
            .flatten()
            .collect()
    }

    fn run(&mut self, operation: &Operation) -> io::Result<()> {
        self.backend.start(5, operation, &self.memory).unwrap();
        let (id, result) = self.next();
        assert_eq!(id, 5, "{}", self.name);
        assert!(self.backend.next_completed().is_none());
        result
    }

    /// The next completion, for which it waits.
    fn next(&mut self) -> (RequestId, io::Result<()>) {
        loop {
            if let Some(completion) = self.backend.next_completed() {
                return (completion.id, completion.result);
            }
            self.backend.wait();
        }
    }

    fn read(&mut self, offset: u64, lengths: &[u32]) -> io::Result<Vec<u8>> {
        let data = buffers(&places(lengths));
        self.run(&Operation::Read { offset, data })?;
        let mut all = Vec::new();
        for (address, bytes) in places(lengths) {
            let mut part = vec![0; usize::try_from(bytes).unwrap()];
            self.memory
                .read_slice(&mut part, GuestAddress(address))
                .unwrap();
            all.extend(part);
        }
        Ok(all)
    }

    fn write(&mut self, offset: u64, lengths: &[u32], mut content: &[u8]) -> io::Result<()> {
        for (address, bytes) in places(lengths) {
            let (now, later) = content.split_at(usize::try_from(bytes).unwrap());
            self.memory.write_slice(now, GuestAddress(address)).unwrap();
            content = later;
        }
        let data = buffers(&places(lengths));
        self.run(&Operation::Write { offset, data })
    }

    fn zero(&mut self, offset: u64, bytes: u64, space: Space) -> io::Result<()> {
        self.run(&Operation::WriteZeroes {
            offset,
            bytes,
            space,
        })
    }

    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.run(&Operation::Discard { offset, bytes })
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(self.file.metadata().unwrap().len()).unwrap()];
        self.file.read_exact_at(&mut content, 0).unwrap();
        content
    }
}

/// Where parts of these lengths lie in memory: apart, and at odd addresses.
fn places(lengths: &[u32]) -> Vec<(u64, u32)> {
    let mut at = 0x101;
    let place = |&bytes: &u32| {
        let place = (at, bytes);
        at += u64::from(bytes) + 10;
        place
    };
    lengths.iter().map(place).collect()
}

fn buffers(places: &[(u64, u32)]) -> Buffers {
    let segment = |&(address, bytes): &(u64, u32)| Segment { address, bytes };
    places.iter().map(segment).collect::<Vec<_>>().into()
}

/// Every kind of backend, each with a file of its own.
fn benches() -> Vec<Bench> {
    let safe = Bench::new("safe", &file(), |file, _| {
        Box::new(FileBackend::new(file, BYTES))
    });
    let mut benches = vec![safe, Bench::positioned(&file(), &failures())];
    benches.extend(Bench::ring(&file(), &failures()));
    benches
}

#[test]
fn every_backend_reads_and_writes_its_buffers_in_order() {
    for mut bench in benches() {
        let lengths = [100, 0, 4000, 1];
        let mut expected = pattern();
        let read = bench.read(512, &lengths).unwrap();
        assert!(read == expected[512..][..4101], "{}", bench.name);
        let content = vec![0xaa; 4101];
        bench.write(BYTES - 4101, &lengths, &content).unwrap();
        bench.run(&Operation::Flush).unwrap();
        let end = expected.len();
        expected[end - 4101..].fill(0xaa);
        assert!(bench.content() == expected, "{}", bench.name);
    }
}

#[test]
fn every_backend_takes_as_many_buffers_as_a_request_has_and_more() {
    for mut bench in benches() {
        let lengths = vec![16; 2000];
        let read = bench.read(1, &lengths).unwrap();
        assert!(read == pattern()[1..][..32_000], "{}", bench.name);
        bench.write(0, &lengths, &read).unwrap();
        assert!(bench.content()[..32_000] == read, "{}", bench.name);
    }
}

#[test]
fn every_backend_fails_what_the_file_does_not_have() {
    for mut bench in benches() {
        bench.file.set_len(1000).unwrap();
        let error = bench.read(0, &[600, 600]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{}", bench.name);
        bench.read(400, &[600]).unwrap();
    }
}

#[test]
fn every_backend_refuses_what_is_not_memory_and_starts_nothing() {
    let end = u64::try_from(RAM_BYTES).unwrap();
    for mut bench in benches() {
        for place in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
            let data = buffers(&[(0, 16), place]);
            for operation in [
                Operation::Read {
                    offset: 0,
                    data: data.clone(),
                },
                Operation::Write { offset: 0, data },
            ] {
                let refused = bench.backend.start(0, &operation, &bench.memory);
                assert_eq!(refused, Err(NotMemory), "{}", bench.name);
            }
        }
        assert!(bench.backend.next_completed().is_none());
        assert!(bench.content() == pattern(), "{}", bench.name);
    }
}

#[test]
fn every_backend_completes_many_requests_each_once() {
    for mut bench in benches() {
        for round in 0..20 {
            for id in 0..REQUESTS {
                let sector = (u64::from(id) * 7 + round) % 128;
                let place = (0x1000 * u64::from(id), 512);
                let operation = Operation::Read {
                    offset: sector * 512,
                    data: buffers(&[place]),
                };
                bench.backend.start(id, &operation, &bench.memory).unwrap();
            }
            let mut ids: Vec<_> = (0..REQUESTS)
                .map(|_| {
                    let (id, result) = bench.next();
                    result.unwrap();
                    let sector = usize::try_from((u64::from(id) * 7 + round) % 128).unwrap();
                    let mut content = vec![0; 512];
                    let place = GuestAddress(0x1000 * u64::from(id));
                    bench.memory.read_slice(&mut content, place).unwrap();
                    assert!(content == pattern()[sector * 512..][..512]);
                    id
                })
                .collect();
            assert!(bench.backend.next_completed().is_none());
            ids.sort_unstable();
            assert_eq!(ids, (0..REQUESTS).collect::<Vec<_>>(), "{}", bench.name);
        }
    }
}

#[test]
fn every_backend_that_can_zero_or_discard_touches_nothing_else() {
    for mut bench in benches() {
        let facts = bench.backend.facts();
        let mut expected = pattern();
        for (space, start, bytes) in [
            (Space::Keep, 512, 512),
            (Space::MayFree, 4096 - 512, 9000),
            (Space::MayFree, 32 << 10, 8192),
        ] {
            let result = bench.zero(start, bytes, space);
            if facts.can_write_zeroes {
                result.unwrap();
                let start = usize::try_from(start).unwrap();
                expected[start..][..usize::try_from(bytes).unwrap()].fill(0);
            } else {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
            }
        }
        if facts.can_discard {
            // The last block is whole; the ones beside it are not.
            bench.discard(BYTES - 4096 - 512, 4096 + 512).unwrap();
            let start = usize::try_from(BYTES - 4096).unwrap();
            expected[start..].fill(0);
            bench.discard(512, 512).unwrap();
        } else {
            let error = bench.discard(0, 4096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
        assert!(bench.content() == expected, "{}", bench.name);
    }
}

#[test]
fn discarding_gives_space_back_and_zeroing_only_where_it_may() {
    let file = file();
    for mut bench in Bench::of_machines(&file) {
        file.write_all_at(&pattern(), 0).unwrap();
        file.sync_all().unwrap();
        let blocks = || file.metadata().unwrap().blocks();
        let full = blocks();
        bench.zero(0, 16 << 10, Space::Keep).unwrap();
        assert_eq!(blocks(), full, "{}", bench.name);
        bench.zero(0, 16 << 10, Space::MayFree).unwrap();
        assert_eq!(blocks(), full - 32, "{}", bench.name);
        bench.discard(16 << 10, 16 << 10).unwrap();
        assert_eq!(blocks(), full - 64, "{}", bench.name);
        assert_eq!(file.metadata().unwrap().len(), BYTES);
    }
}

#[test]
fn zeroes_are_written_out_where_the_file_system_cannot_zero_a_range() {
    // On tmpfs only holes are known.
    let file = file_in("/dev/shm");
    for mut bench in Bench::of_machines(&file) {
        file.write_all_at(&pattern(), 0).unwrap();
        bench.zero(512, BYTES - 1024, Space::Keep).unwrap();
        let mut expected = pattern();
        let end = expected.len();
        expected[512..end - 512].fill(0);
        assert!(bench.content() == expected, "{}", bench.name);
        bench.zero(0, BYTES, Space::Keep).unwrap();
        assert!(bench.content().iter().all(|&byte| byte == 0));
    }
}

#[test]
fn direct_transfers_work_wherever_the_guests_buffers_lie() {
    // Not every file system has them: a folder on a disk is more likely to.
    let Ok(path) = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")) else {
        return println!("SKIPPED: the source folder cannot be written to");
    };
    path.as_file().write_all_at(&pattern(), 0).unwrap();
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let mut options = File::options();
    let Ok(file) = options
        .read(true)
        .write(true)
        .custom_flags(direct)
        .open(path.path())
    else {
        return println!("SKIPPED: this file system has no direct transfers");
    };
    let block = Alignment::of(file.as_fd()).unwrap().logical_block();
    let blocks = usize::try_from(block).unwrap();
    for mut bench in Bench::of_machines(&file) {
        path.as_file().write_all_at(&pattern(), 0).unwrap();
        let mut expected = pattern();
        // Odd places and lengths, and places as the host likes them.
        for lengths in [vec![block], vec![1, block - 1], vec![block, 7, block - 7]] {
            let bytes: u32 = lengths.iter().sum();
            let read = bench.read(u64::from(block), &lengths).unwrap();
            assert!(read == expected[blocks..][..usize::try_from(bytes).unwrap()]);
            let content = vec![0xbb; read.len()];
            bench.write(0, &lengths, &content).unwrap();
            expected[..content.len()].copy_from_slice(&content);
        }
        let data = buffers(&[(0x2000, block), (0x8000, block)]);
        bench.run(&Operation::Read { offset: 0, data }).unwrap();
        bench.run(&Operation::Flush).unwrap();
        let mut content = vec![0; expected.len()];
        path.as_file().read_exact_at(&mut content, 0).unwrap();
        assert!(content == expected, "{}", bench.name);
    }
}

#[test]
fn a_read_only_disk_neither_discards_nor_zeroes() {
    let disk = disk_file(file(), true, &failures());
    assert!(!disk.facts.can_discard && !disk.facts.can_write_zeroes);
}

#[test]
fn a_file_that_takes_no_holes_offers_no_discarding() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let disk = disk_file(full, false, &failures());
    assert!(!disk.facts.can_discard);
}

#[test]
fn failures_of_the_host_are_told_with_the_disks_number() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let failures = failures();
    let benches = [
        Some(Bench::positioned(&full, &failures)),
        Bench::ring(&full, &failures),
    ];
    for (count, mut bench) in (1..).zip(benches.into_iter().flatten()) {
        let error = bench.write(0, &[512], &[0; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let told = failures.take().unwrap();
        assert_eq!((told.disk, told.total), (3, count), "{}", bench.name);
    }
    let disk = disk_file(file(), false, &failures);
    let unable = disk.watched(Err(ErrorKind::Unsupported.into()));
    assert!(unable.is_err());
    assert_eq!(failures.take(), None, "what it never could is no failure");
}
