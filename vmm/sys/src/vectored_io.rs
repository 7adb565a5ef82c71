//! Transfers between a file or a stream and guest memory: one system call for many buffers.
//!
//! Owns the pointers that the kernel is given and, for files, the carrying on after a short transfer.
//! A request's meaning and the check of its range are the caller's. A file's own position is not used.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use libc::{c_int, iovec, off_t, ssize_t};
use vm_memory::VolatileSlice;

/// Buffers that the kernel takes at once (`IOV_MAX`, `UIO_MAXIOV` in the kernel).
pub(crate) const MAX_BUFFERS: usize = 1024;

/// `preadv` or `pwritev`.
type Transfer = unsafe extern "C" fn(RawFd, *const iovec, c_int, off_t) -> ssize_t;

/// Fills `buffers` in order from `file`, starting at byte `offset`.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::UnexpectedEof`] if the file ends first. Some buffers may
/// be filled by then.
pub fn read_exact_at(
    file: BorrowedFd<'_>,
    offset: u64,
    buffers: &[VolatileSlice<'_>],
) -> io::Result<()> {
    move_all(
        offset,
        buffers,
        io::ErrorKind::UnexpectedEof,
        |parts, at| call(libc::preadv, file, parts, at),
    )
}

/// Writes `buffers` in order to `file`, starting at byte `offset`.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::WriteZero`] if it takes no more. Some buffers may be
/// written by then.
pub fn write_all_at(
    file: BorrowedFd<'_>,
    offset: u64,
    buffers: &[VolatileSlice<'_>],
) -> io::Result<()> {
    move_all(offset, buffers, io::ErrorKind::WriteZero, |parts, at| {
        call(libc::pwritev, file, parts, at)
    })
}

/// Fills `buffers` in order with what `stream` has, by one call. Returns the number of bytes, which is
/// 0 at the stream's end.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::WouldBlock`] if the stream does not block and has nothing.
pub fn read_some(stream: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    move_some(stream, buffers, libc::readv)
}

/// Writes as much of `buffers` to `stream` as one call takes. Returns the number of bytes. The process
/// must ignore `SIGPIPE`, as Rust programs do.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::WouldBlock`] if the stream does not block and is full.
pub fn write_some(stream: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    move_some(stream, buffers, libc::writev)
}

/// `readv` or `writev`.
type StreamTransfer = unsafe extern "C" fn(RawFd, *const iovec, c_int) -> ssize_t;

fn move_some(
    stream: BorrowedFd<'_>,
    buffers: &[VolatileSlice<'_>],
    transfer: StreamTransfer,
) -> io::Result<usize> {
    let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let parts: Vec<iovec> = guards
        .iter()
        .map(|guard| iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = c_int::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: the descriptor is borrowed, so it is open; the array has `count` entries, each of
        // which lies in memory that its guard in `guards` keeps mapped. Whoever else reads or writes
        // there is what volatile slices are for: no Rust reference to that memory exists.
        let moved = unsafe { transfer(stream.as_raw_fd(), parts.as_ptr(), count) };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// What zeroes are written from, as direct writes want it.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);
static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

/// `bytes` zeroes to write. The memory is never written to.
pub(crate) fn zeroes(bytes: u64) -> io::Result<Vec<iovec>> {
    let mut left = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut parts = Vec::with_capacity(left.div_ceil(ZEROES.0.len()));
    while left > 0 {
        let now = left.min(ZEROES.0.len());
        parts.push(iovec {
            iov_base: ptr::from_ref(&ZEROES).cast_mut().cast(),
            iov_len: now,
        });
        left -= now;
    }
    Ok(parts)
}

/// Writes `bytes` zeroes to `file`, starting at byte `offset`.
///
/// # Errors
/// As [`write_all_at`].
pub fn write_zeroes_at(file: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    let stuck = io::ErrorKind::WriteZero;
    move_parts(offset, &mut zeroes(bytes)?, stuck, |parts, at| {
        call(libc::pwritev, file, parts, at)
    })
}

/// Parts of live guest memory or of what is static. Only [`move_parts`] makes them, out of those
/// that its callers keep.
struct Parts<'a>(&'a [iovec]);

fn call(
    transfer: Transfer,
    file: BorrowedFd<'_>,
    parts: Parts<'_>,
    at: off_t,
) -> io::Result<usize> {
    let count = c_int::try_from(parts.0.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is borrowed, so it is open; the array has `count` entries, each of
    // which lies in memory that a volatile slice vouches for as long as `Parts` lives, or in a
    // static that is only written from (`write_zeroes_at`). The kernel
    // reads or writes there without regard for who else does, which is what volatile slices are
    // for: no Rust reference to that memory exists.
    let moved = unsafe { transfer(file.as_raw_fd(), parts.0.as_ptr(), count, at) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Repeats `transfer` until all of `buffers` is moved.
fn move_all(
    offset: u64,
    buffers: &[VolatileSlice<'_>],
    stuck: io::ErrorKind,
    transfer: impl FnMut(Parts<'_>, off_t) -> io::Result<usize>,
) -> io::Result<()> {
    // A slice's memory is only promised to be mapped while its guard lives.
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut parts: Vec<iovec> = guards
        .iter()
        .map(|guard| iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    move_parts(offset, &mut parts, stuck, transfer)
}

/// The same for `parts`, which the caller keeps alive.
fn move_parts(
    offset: u64,
    parts: &mut [iovec],
    stuck: io::ErrorKind,
    mut transfer: impl FnMut(Parts<'_>, off_t) -> io::Result<usize>,
) -> io::Result<()> {
    let mut at = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut rest = skip(parts, 0);
    while !rest.is_empty() {
        let batch = rest.len().min(MAX_BUFFERS);
        let moved = match transfer(Parts(&rest[..batch]), at) {
            Ok(0) => return Err(stuck.into()),
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        at = off_t::try_from(moved)
            .ok()
            .and_then(|moved| at.checked_add(moved))
            .ok_or(io::ErrorKind::InvalidInput)?;
        rest = skip(rest, moved);
    }
    Ok(())
}

/// What is left of `parts` after the first `moved` bytes; it never begins with an empty part.
pub(crate) fn skip(parts: &mut [iovec], mut moved: usize) -> &mut [iovec] {
    let mut whole = 0;
    while let Some(left) = parts
        .get(whole)
        .and_then(|part| moved.checked_sub(part.iov_len))
    {
        moved = left;
        whole += 1;
    }
    let rest = &mut parts[whole..];
    if let Some(first) = rest.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(moved);
        first.iov_len -= moved;
    }
    rest
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn file(content: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!(
            "berth-vectored-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, content).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn slices(buffers: &mut [Vec<u8>]) -> Vec<VolatileSlice<'_>> {
        buffers
            .iter_mut()
            .map(|buffer| VolatileSlice::from(buffer.as_mut_slice()))
            .collect()
    }

    #[test]
    fn more_buffers_than_one_call_takes_are_all_moved() {
        let content: Vec<u8> = (0..=250).cycle().take(3 * MAX_BUFFERS).collect();
        let source = file(&content);
        let mut buffers = vec![vec![0]; content.len() - 7];
        read_exact_at(source.as_fd(), 7, &slices(&mut buffers)).unwrap();
        assert_eq!(buffers.concat(), content[7..]);
        let mut target = file(&[]);
        write_all_at(target.as_fd(), 0, &slices(&mut buffers)).unwrap();
        let mut written = Vec::new();
        target.read_to_end(&mut written).unwrap();
        assert_eq!(
            written,
            content[7..],
            "and the file's own position stayed at 0"
        );
    }

    #[test]
    fn short_and_interrupted_transfers_are_carried_on() {
        let source = file(b"0123456789abcdef");
        for most in 1..=16 {
            let mut calls = 0;
            let mut buffers = vec![vec![], vec![0; 3], vec![], vec![0; 9], vec![0; 1], vec![]];
            move_all(
                2,
                &slices(&mut buffers),
                io::ErrorKind::UnexpectedEof,
                |parts, at| {
                    calls += 1;
                    if calls % 2 == 1 {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                    assert!(parts.0[0].iov_len > 0);
                    let first = iovec {
                        iov_len: parts.0[0].iov_len.min(most),
                        ..parts.0[0]
                    };
                    call(libc::preadv, source.as_fd(), Parts(&[first]), at)
                },
            )
            .unwrap();
            assert_eq!(
                buffers.concat(),
                b"23456789abcde",
                "at most {most} bytes at once"
            );
        }
    }

    #[test]
    fn a_stream_moves_what_it_can_and_says_when_it_would_block() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut buffers = [vec![0; 2], vec![], vec![0; 9]];
        let kind = |result: io::Result<usize>| result.unwrap_err().kind();
        let nothing = read_some(ours.as_fd(), &slices(&mut buffers));
        assert_eq!(kind(nothing), io::ErrorKind::WouldBlock);
        theirs.write_all(b"hello").unwrap();
        assert_eq!(
            read_some(ours.as_fd(), &slices(&mut buffers)).unwrap(),
            5,
            "and not all that there is room for"
        );
        assert_eq!(buffers.concat(), b"hello\0\0\0\0\0\0");
        assert_eq!(write_some(ours.as_fd(), &slices(&mut buffers)).unwrap(), 11);
        let mut large = [vec![7; 1 << 20], vec![7; 1 << 20]];
        let taken = write_some(ours.as_fd(), &slices(&mut large)).unwrap();
        assert!(taken < 2 << 20);
        let full = write_some(ours.as_fd(), &slices(&mut large));
        assert_eq!(kind(full), io::ErrorKind::WouldBlock);
        drop(theirs);
        let gone = write_some(ours.as_fd(), &slices(&mut large));
        assert_eq!(kind(gone), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_end_of_the_file_and_refusals_are_errors() {
        let source = file(b"0123");
        let mut buffers = [vec![0; 3], vec![0; 3]];
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        let beyond = read_exact_at(source.as_fd(), 0, &slices(&mut buffers));
        assert_eq!(kind(beyond), io::ErrorKind::UnexpectedEof);
        let negative = read_exact_at(source.as_fd(), u64::MAX, &slices(&mut buffers));
        assert_eq!(kind(negative), io::ErrorKind::InvalidInput);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let refused = write_all_at(full.as_fd(), 0, &slices(&mut buffers));
        assert_eq!(kind(refused), io::ErrorKind::StorageFull);
        read_exact_at(source.as_fd(), 99, &[]).unwrap();
    }

    #[test]
    fn zeroes_are_written_and_nothing_beside_them() {
        let target = file(&vec![1; 300_000]);
        write_zeroes_at(target.as_fd(), 5, 200_000).unwrap();
        let mut content = vec![0; 300_000];
        std::os::unix::fs::FileExt::read_exact_at(&target, &mut content, 0).unwrap();
        let zeroes = content.iter().position(|&byte| byte == 0).unwrap();
        let after = content.iter().rposition(|&byte| byte == 0).unwrap();
        assert_eq!((zeroes, after), (5, 200_004));
        assert!(content[5..200_005].iter().all(|&byte| byte == 0));
    }
}
