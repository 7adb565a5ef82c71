//! What every backend of a disk has to do, and what the host's files can do beyond it.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use berth_vmm_devices::virtio::block::backend::FileBackend;

use super::*;

const BYTES: u64 = 64 << 10;

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
        file,
        read_only,
        serial: String::new(),
        bytes: BYTES,
    };
    DiskFile::new(spec, 3, Arc::clone(failures)).unwrap()
}

/// Both kinds of backend, each with the file it works on.
fn backends() -> [(File, Box<dyn BlockBackend>); 2] {
    let files = [file(), file()];
    let [first, second] = files.each_ref().map(|file| file.try_clone().unwrap());
    let [file_0, file_1] = files;
    [
        (file_0, Box::new(FileBackend::new(first, BYTES))),
        (file_1, Box::new(disk_file(second, false, &failures()))),
    ]
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn slices(buffers: &mut [Vec<u8>]) -> Vec<VolatileSlice<'_>> {
    buffers
        .iter_mut()
        .map(|buffer| VolatileSlice::from(buffer.as_mut_slice()))
        .collect()
}

#[test]
fn every_backend_reads_and_writes_its_buffers_in_order() {
    for (file, mut disk) in backends() {
        assert_eq!(disk.bytes(), BYTES);
        let mut expected = pattern();
        let mut buffers = [vec![0; 100], vec![], vec![0; 4000], vec![0; 1]];
        disk.read_at(512, &slices(&mut buffers)).unwrap();
        assert_eq!(buffers.concat(), expected[512..][..4101]);
        buffers[0].fill(0xaa);
        disk.write_at(BYTES - 4101, &slices(&mut buffers)).unwrap();
        disk.flush().unwrap();
        let end = expected.len();
        expected[end - 4101..].copy_from_slice(&buffers.concat());
        assert!(content(&file) == expected);
    }
}

#[test]
fn every_backend_takes_as_many_buffers_as_a_request_has_and_more() {
    for (file, mut disk) in backends() {
        let mut buffers = vec![vec![0; 16]; 2000];
        disk.read_at(1, &slices(&mut buffers)).unwrap();
        assert!(buffers.concat() == pattern()[1..][..32_000]);
        disk.write_at(0, &slices(&mut buffers)).unwrap();
        assert!(content(&file)[..32_000] == pattern()[1..][..32_000]);
    }
}

#[test]
fn every_backend_fails_what_the_file_does_not_have() {
    for (file, mut disk) in backends() {
        file.set_len(1000).unwrap();
        let mut buffers = [vec![0; 600], vec![0; 600]];
        let error = disk.read_at(0, &slices(&mut buffers)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        disk.read_at(400, &slices(&mut buffers[..1])).unwrap();
    }
}

#[test]
fn every_backend_that_can_zero_or_discard_touches_nothing_else() {
    for (file, mut disk) in backends() {
        let mut expected = pattern();
        for (space, start, bytes) in [
            (Space::Keep, 512, 512),
            (Space::MayFree, 4096 - 512, 9000),
            (Space::MayFree, 32 << 10, 8192),
        ] {
            if disk.can_write_zeroes() {
                disk.write_zeroes(start, bytes, space).unwrap();
                let start = usize::try_from(start).unwrap();
                expected[start..][..usize::try_from(bytes).unwrap()].fill(0);
            } else {
                let error = disk.write_zeroes(start, bytes, space).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
            }
        }
        if disk.can_discard() {
            // The last block is whole; the ones beside it are not.
            disk.discard(BYTES - 4096 - 512, 4096 + 512).unwrap();
            let start = usize::try_from(BYTES - 4096).unwrap();
            expected[start..].fill(0);
            disk.discard(512, 512).unwrap();
        } else {
            let error = disk.discard(0, 4096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
        assert!(content(&file) == expected);
    }
}

#[test]
fn discarding_gives_space_back_and_zeroing_only_where_it_may() {
    let file = file();
    let blocks = || file.metadata().unwrap().blocks();
    let mut disk = disk_file(file.try_clone().unwrap(), false, &failures());
    let full = blocks();
    disk.write_zeroes(0, 16 << 10, Space::Keep).unwrap();
    assert_eq!(blocks(), full);
    disk.write_zeroes(0, 16 << 10, Space::MayFree).unwrap();
    assert_eq!(blocks(), full - 32);
    disk.discard(16 << 10, 16 << 10).unwrap();
    assert_eq!(blocks(), full - 64);
    assert_eq!(file.metadata().unwrap().len(), BYTES);
}

#[test]
fn zeroes_are_written_out_where_the_file_system_cannot_zero_a_range() {
    // On tmpfs only holes are known.
    let file = file_in("/dev/shm");
    let mut disk = disk_file(file.try_clone().unwrap(), false, &failures());
    disk.write_zeroes(512, BYTES - 1024, Space::Keep).unwrap();
    let mut expected = pattern();
    let end = expected.len();
    expected[512..end - 512].fill(0);
    assert!(content(&file) == expected);
    let all = DiskFile::write_zero_bytes(&disk, 0, BYTES);
    all.unwrap();
    assert!(content(&file).iter().all(|&byte| byte == 0));
}

#[test]
fn a_read_only_disk_neither_discards_nor_zeroes() {
    let disk = disk_file(file(), true, &failures());
    assert!(!disk.can_discard() && !disk.can_write_zeroes());
}

#[test]
fn a_file_that_takes_no_holes_offers_no_discarding() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let disk = disk_file(full, false, &failures());
    assert!(!disk.can_discard());
}

#[test]
fn failures_of_the_host_are_told_with_the_disks_number() {
    let failures = failures();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut disk = disk_file(full, false, &failures);
    let mut buffers = [vec![0; 512]];
    let error = disk.write_at(0, &slices(&mut buffers)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let told = failures.take().unwrap();
    assert_eq!((told.disk, told.total), (3, 1));
    let unable = disk.watched(Err(ErrorKind::Unsupported.into()));
    assert!(unable.is_err());
    assert_eq!(failures.take(), None, "what it never could is no failure");
}
