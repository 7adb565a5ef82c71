//! The ring against real files, and what it refuses.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::ptr;

use vm_memory::Bytes;

use super::*;

const RAM_BYTES: usize = 1 << 20;
const FILE_OF_THE_PROCESS: io_uring::types::Fd = io_uring::types::Fd(0);
const HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn file(content: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!(
        "berth-ring-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, content).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(bytes).collect()
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn memory() -> GuestMemoryMmap<()> {
    // Two regions side by side: what crosses the border is cut.
    let half = RAM_BYTES / 2;
    let ranges = [0, half].map(|start| (GuestAddress(u64::try_from(start).unwrap()), half));
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

/// A ring over `file`, or `None` after saying why there is none.
fn ring(file: &File, memory: &GuestMemoryMmap<()>) -> Option<IoRing> {
    match IoRing::new(file.as_fd(), memory.clone(), 8) {
        Ok(ring) => Some(ring),
        Err(error) => {
            println!("SKIPPED: this host has no io_uring: {error}");
            None
        }
    }
}

/// Waits for the only request in progress.
fn finish(ring: &mut IoRing, id: u16) -> io::Result<()> {
    loop {
        if let Some((completed, result)) = ring.next_completed() {
            assert_eq!(completed, id);
            assert!(ring.next_completed().is_none());
            return result;
        }
        ring.wait();
    }
}

#[test]
fn bytes_move_in_the_order_of_the_segments_and_across_regions() {
    let source = file(&pattern(20_000));
    let memory = memory();
    let Some(mut ring) = ring(&source, &memory) else {
        return;
    };
    let border = u64::try_from(RAM_BYTES / 2).unwrap();
    let segments = [(0x100, 1000), (0, 0), (border - 500, 1000), (7, 3)];
    ring.transfer(3, Direction::Read, 10, segments).unwrap();
    finish(&mut ring, 3).unwrap();
    let mut moved = Vec::new();
    for (address, bytes) in segments {
        let mut part = vec![0; usize::try_from(bytes).unwrap()];
        memory.read_slice(&mut part, GuestAddress(address)).unwrap();
        moved.extend(part);
    }
    assert_eq!(moved, pattern(20_000)[10..2013]);
    ring.transfer(0, Direction::Write, 0, segments).unwrap();
    finish(&mut ring, 0).unwrap();
    ring.sync_data(0).unwrap();
    finish(&mut ring, 0).unwrap();
    let mut expected = pattern(20_000);
    expected.copy_within(10..2013, 0);
    assert!(content(&source) == expected);
}

#[test]
fn more_buffers_than_the_kernel_takes_at_once_are_all_moved() {
    let source = file(&pattern(5000));
    let memory = memory();
    let Some(mut ring) = ring(&source, &memory) else {
        return;
    };
    let segments = (0..2 * 1024 + 7).map(|at| (2 * at, 1));
    ring.transfer(1, Direction::Read, 0, segments.clone())
        .unwrap();
    finish(&mut ring, 1).unwrap();
    for (address, _) in segments {
        let byte: u8 = memory.read_obj(GuestAddress(address)).unwrap();
        assert_eq!(u64::from(byte), address / 2 % 251);
    }
}

#[test]
fn zeroes_are_written_and_holes_are_made() {
    let target = file(&pattern(1 << 20));
    let Some(mut ring) = ring(&target, &memory()) else {
        return;
    };
    ring.write_zeroes(0, 5, 200_000).unwrap();
    finish(&mut ring, 0).unwrap();
    ring.allocate(0, HOLE, 512 << 10, 4096).unwrap();
    finish(&mut ring, 0).unwrap();
    let mut expected = pattern(1 << 20);
    expected[5..200_005].fill(0);
    expected[512 << 10..(512 << 10) + 4096].fill(0);
    assert!(content(&target) == expected);
}

#[test]
fn the_end_of_the_file_and_a_full_device_are_errors() {
    let source = file(&pattern(100));
    let memory = memory();
    let Some(mut ring) = ring(&source, &memory) else {
        return;
    };
    ring.transfer(0, Direction::Read, 50, [(0, 30), (100, 30)])
        .unwrap();
    let beyond = finish(&mut ring, 0).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::UnexpectedEof);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut ring = IoRing::new(full.as_fd(), memory, 1).unwrap();
    ring.transfer(0, Direction::Write, 0, [(0, 30)]).unwrap();
    let refused = finish(&mut ring, 0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
}

#[test]
fn a_taken_number_and_what_is_not_memory_are_refused() {
    let (reader, writer) = std::io::pipe().unwrap();
    let Ok(mut ring) = IoRing::new(reader.as_fd(), memory(), 2) else {
        return;
    };
    let end = u64::try_from(RAM_BYTES).unwrap();
    for segment in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
        let refused = ring.transfer(1, Direction::Read, 0, [segment]);
        assert_eq!(refused, Err(StartError::NotMemory), "{segment:x?}");
    }
    // Nobody writes to the pipe: the request stays in progress.
    ring.transfer(1, Direction::Read, u64::MAX, [(0, 1)])
        .unwrap();
    assert!(ring.next_completed().is_none());
    let taken = Err(StartError::NoPlace);
    assert_eq!(ring.transfer(1, Direction::Read, 0, [(0, 1)]), taken);
    assert_eq!(ring.write_zeroes(1, 0, 1), taken);
    assert_eq!(ring.sync_data(1), taken);
    assert_eq!(ring.allocate(2, HOLE, 0, 1), taken, "there are two places");
    drop(writer);
    let end = finish(&mut ring, 1).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn dropping_a_ring_waits_for_what_is_in_progress() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let memory = memory();
    let Ok(mut ring) = IoRing::new(reader.as_fd(), memory.clone(), 2) else {
        return;
    };
    ring.transfer(0, Direction::Read, u64::MAX, [(0x40, 1)])
        .unwrap();
    assert!(ring.next_completed().is_none());
    std::thread::scope(|scope| {
        let dropped = scope.spawn(move || drop(ring));
        io::Write::write_all(&mut writer, b"x").unwrap();
        dropped.join().unwrap();
    });
    let byte: u8 = memory.read_obj(GuestAddress(0x40)).unwrap();
    assert_eq!(byte, b'x');
}

#[test]
fn short_and_interrupted_steps_are_carried_on() {
    let part = |bytes| iovec {
        iov_base: ptr::dangling_mut(),
        iov_len: bytes,
    };
    let mut request = Request {
        work: Some(transfer(Direction::Read, 1000)),
        buffers: vec![part(10), part(0), part(20)],
    };
    assert!(request.step(-libc::EINTR).is_none());
    assert!(
        request.step(-libc::EAGAIN).is_none(),
        "a thread may wait for it"
    );
    assert!(request.step(12).is_none());
    let Some(Work::Transfer {
        first,
        offset,
        may_wait,
        ..
    }) = request.work
    else {
        panic!("the transfer is not over");
    };
    assert_eq!((first, offset, may_wait), (2, 1012, true));
    assert_eq!(request.buffers[2].iov_len, 18);
    let again = request.step(-libc::EAGAIN).unwrap().unwrap_err();
    assert_eq!(
        again.kind(),
        ErrorKind::WouldBlock,
        "and then it is an error"
    );
    assert_eq!(
        request.step(0).unwrap().unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
    request.step(18).unwrap().unwrap();
}

#[test]
fn the_kernel_refuses_every_other_operation_and_file() {
    let source = file(&pattern(100));
    let Ok(mut ring) = narrowed_ring(source.as_fd(), 4) else {
        return;
    };
    let mut target = [0_u8; 16];
    let start = target.as_mut_ptr();
    let entries = [
        opcode::Nop::new().build().flags(Flags::FIXED_FILE),
        opcode::Read::new(FILE, start, 16).build(),
        opcode::OpenAt::new(FILE_OF_THE_PROCESS, c"/".as_ptr()).build(),
        // Allowed, but for the file.
        opcode::Readv::new(FILE_OF_THE_PROCESS, ptr::null(), 0).build(),
        // Allowed, but for a flag.
        opcode::Fsync::new(FILE).build().flags(Flags::IO_LINK),
    ];
    for entry in entries {
        // SAFETY: `target` lives until the entry is complete, and the others name no memory that
        // goes away.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let result = ring.completion().next().unwrap().result();
        assert_eq!(result, -libc::EACCES, "{entry:?}");
    }
    let other = file(b"");
    let replaced = ring
        .submitter()
        .register_files_update(0, &[other.as_raw_fd()]);
    assert_eq!(replaced.unwrap_err().raw_os_error(), Some(libc::EACCES));
    let more = ring.submitter().register_restrictions(&mut []);
    assert!(more.is_err());
}

#[test]
fn another_thread_gets_a_completion_while_the_one_that_started_it_waits_elsewhere() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let memory = memory();
    let Ok(mut ring) = IoRing::new(reader.as_fd(), memory.clone(), 2) else {
        return;
    };
    let (give, take) = std::sync::mpsc::channel();
    let (finished, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            ring.transfer(1, Direction::Read, u64::MAX, [(0x40, 1)])
                .unwrap();
            assert!(ring.next_completed().is_none());
            give.send(ring).unwrap();
            // As the I/O thread waits for vCPUs to pause.
            wait.recv().unwrap();
        });
        let mut ring = take.recv().unwrap();
        io::Write::write_all(&mut writer, b"x").unwrap();
        finish(&mut ring, 1).unwrap();
        finished.send(()).unwrap();
    });
    let byte: u8 = memory.read_obj(GuestAddress(0x40)).unwrap();
    assert_eq!(byte, b'x');
}
