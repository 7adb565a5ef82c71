//! The shapes of VFIO's ioctls: a number, a structure in and out, or a structure that the kernel
//! follows by a list of capabilities.
//!
//! Owns the reading of replies as bytes: whatever length the kernel names is checked against what
//! was given to it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{Ioctl, c_ulong};
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

/// Longest reply that is believed: 2,048 areas would fit.
const MAX_REPLY_BYTES: usize = 64 * 1024;
/// Times that a reply may have grown since it was last asked for.
const MAX_GROWTHS: u32 = 3;

/// `_IO(VFIO_TYPE, VFIO_BASE + offset)`.
pub(crate) const fn vfio(offset: u32) -> Ioctl {
    ioctl_number(VFIO_TYPE, VFIO_BASE + offset)
}

/// `_IO(kind, number)`.
pub(crate) const fn ioctl_number(kind: u8, number: u32) -> Ioctl {
    ((kind as u32) << 8 | number) as Ioctl
}

/// An ioctl whose argument is a number, or none.
pub(crate) fn with_value(file: BorrowedFd<'_>, request: Ioctl, value: c_ulong) -> io::Result<u32> {
    // SAFETY: the callers' requests take a number, so the kernel touches no memory of ours. Should
    // the descriptor be another file, its driver takes VFIO's numbers for unknown ones.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An ioctl whose argument is a `T` that begins with its own length, which the kernel reads and
/// writes.
pub(crate) fn with_struct<T>(
    file: BorrowedFd<'_>,
    request: Ioctl,
    argument: &mut T,
) -> io::Result<u32> {
    // SAFETY: the callers pair each request with the structure that the kernel defines for it, all
    // plain integers, whose first field says how much of it is there. The reference is exclusive and
    // lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut *argument) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Like [`with_struct`] for structures that end in an array: `argument` is all of it as bytes.
pub(crate) fn with_bytes(
    file: BorrowedFd<'_>,
    request: Ioctl,
    argument: &mut [u8],
) -> io::Result<u32> {
    let bytes = u32::try_from(argument.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let head = argument
        .first_chunk_mut()
        .ok_or(io::ErrorKind::InvalidInput)?;
    *head = bytes.to_ne_bytes();
    // SAFETY: VFIO's structures begin with their length, which was set to that of the slice; the
    // kernel reads and writes no more than that. Any bytes are valid in a byte slice.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument.as_mut_ptr()) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A reply that the kernel may follow by capabilities.
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    /// Asks with `question` after the length field, zeroes up to `least` bytes, and room for as much
    /// as the kernel wants.
    pub(crate) fn ask(
        file: BorrowedFd<'_>,
        request: Ioctl,
        least: usize,
        question: &[(usize, u32)],
    ) -> io::Result<Self> {
        let mut bytes = least;
        for _ in 0..MAX_GROWTHS {
            let mut reply = Self(vec![0; bytes]);
            for &(offset, value) in question {
                reply.set_u32(offset, value)?;
            }
            with_bytes(file, request, &mut reply.0)?;
            let wanted = usize::try_from(reply.u32(0)?).map_err(io::Error::other)?;
            if wanted <= bytes {
                return Ok(reply);
            }
            if wanted > MAX_REPLY_BYTES {
                break;
            }
            bytes = wanted;
        }
        Err(broken("the kernel's reply has no end"))
    }

    pub(crate) fn u32(&self, offset: usize) -> io::Result<u32> {
        self.array(offset).map(u32::from_ne_bytes)
    }

    pub(crate) fn u16(&self, offset: usize) -> io::Result<u16> {
        self.array(offset).map(u16::from_ne_bytes)
    }

    pub(crate) fn u64(&self, offset: usize) -> io::Result<u64> {
        self.array(offset).map(u64::from_ne_bytes)
    }

    /// The places of all capabilities with their ids, from the one at `first` on; 0 ends the list.
    pub(crate) fn capabilities(&self, first: u32) -> io::Result<Vec<(u16, usize)>> {
        let mut found = Vec::new();
        let mut next = first;
        while next != 0 {
            let place = usize::try_from(next).map_err(io::Error::other)?;
            // A list that goes back is a circle.
            if found.last().is_some_and(|&(_, last)| place <= last) {
                return Err(broken("the kernel's list of capabilities is a circle"));
            }
            found.push((self.u16(place)?, place));
            next = self.u32(place + 4)?;
        }
        Ok(found)
    }

    /// The `count` pairs of 64-bit numbers from `offset` on.
    pub(crate) fn pairs(&self, offset: usize, count: u32) -> io::Result<Vec<(u64, u64)>> {
        let count = usize::try_from(count).map_err(io::Error::other)?;
        if count > self.0.len() / 16 {
            return Err(broken("the kernel's list is longer than its reply"));
        }
        (0..count)
            .map(|index| {
                let place = offset + index * 16;
                Ok((self.u64(place)?, self.u64(place + 8)?))
            })
            .collect()
    }

    fn set_u32(&mut self, offset: usize, value: u32) -> io::Result<()> {
        let place = self
            .0
            .get_mut(offset..offset + 4)
            .ok_or(io::ErrorKind::InvalidInput)?;
        place.copy_from_slice(&value.to_ne_bytes());
        Ok(())
    }

    fn array<const N: usize>(&self, offset: usize) -> io::Result<[u8; N]> {
        let tail = self.0.get(offset..).and_then(|tail| tail.first_chunk());
        tail.copied()
            .ok_or_else(|| broken("the kernel's reply ends too early"))
    }
}

pub(crate) fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The length of a structure as the kernel wants it in the first field.
pub(crate) fn length_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("the kernel's structures are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(words: &[u32]) -> Reply {
        Reply(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    #[test]
    fn capabilities_are_walked_to_their_end() {
        let list = reply(&[40, 0, 1 << 16 | 7, 20, 0, 9, 0, 0, 0, 0]);
        assert_eq!(list.capabilities(8).unwrap(), [(7, 8), (9, 20)]);
        assert_eq!(list.capabilities(0).unwrap(), []);
    }

    #[test]
    fn a_circle_and_a_way_out_of_the_reply_are_errors() {
        let circle = reply(&[16, 0, 7, 8]);
        circle.capabilities(8).unwrap_err();
        reply(&[16, 0, 7, 400]).capabilities(8).unwrap_err();
        reply(&[16]).capabilities(u32::MAX).unwrap_err();
    }

    #[test]
    fn a_list_longer_than_the_reply_is_an_error() {
        let list = reply(&[0, 0, 1, 0, 2, 0]);
        assert_eq!(list.pairs(8, 1).unwrap(), [(1, 2)]);
        list.pairs(8, 2).unwrap_err();
        list.pairs(8, u32::MAX).unwrap_err();
    }
}
