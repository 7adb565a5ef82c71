//! A chain's buffers as memory, and copies to and from a run of such slices.

use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::memory::Memory;
use crate::virtio::queue::Buffers;

/// Appends `buffers` to `slices`; returns their length. `None` if a part is no RAM.
pub(super) fn append<'a>(
    slices: &mut Vec<VolatileSlice<'a>>,
    buffers: &Buffers,
    memory: &'a Memory,
    access: Permissions,
) -> Option<usize> {
    let mut bytes: usize = 0;
    for segment in buffers.segments() {
        let length = usize::try_from(segment.bytes).ok()?;
        let parts = memory
            .get_slices(GuestAddress(segment.address), length, access)
            .ok()?;
        for part in parts {
            slices.push(part.ok()?);
        }
        bytes = bytes.checked_add(length)?;
    }
    Some(bytes)
}

/// What [`append`] would append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// Slices.
    pub(super) slices: usize,
    /// Their length.
    pub(super) bytes: usize,
}

/// How much `buffers` are. `None` if a part is no RAM.
pub(super) fn extent(buffers: &Buffers, memory: &Memory, access: Permissions) -> Option<Extent> {
    let mut extent = Extent {
        slices: 0,
        bytes: 0,
    };
    for segment in buffers.segments() {
        let length = usize::try_from(segment.bytes).ok()?;
        let parts = memory
            .get_slices(GuestAddress(segment.address), length, access)
            .ok()?;
        for part in parts {
            part.ok()?;
            extent.slices += 1;
        }
        extent.bytes = extent.bytes.checked_add(length)?;
    }
    Some(extent)
}

/// Takes the first `front.len()` bytes away from `slices` and into `front`; `None` if there are
/// fewer.
pub(super) fn take_front(slices: &mut Vec<VolatileSlice<'_>>, front: &mut [u8]) -> Option<()> {
    let mut done = 0;
    let mut whole = 0;
    while done < front.len() {
        let slice = slices.get_mut(whole)?;
        let wanted = front.get_mut(done..)?;
        let taken = slice.copy_to(wanted);
        *slice = slice.offset(taken).ok()?;
        done += taken;
        whole += usize::from(slice.is_empty());
    }
    slices.drain(..whole);
    Some(())
}

/// Copies `bytes` to `slices`, `offset` bytes behind their beginning; what does not fit is left.
pub(super) fn write_at(slices: &[VolatileSlice<'_>], mut offset: usize, mut bytes: &[u8]) {
    for slice in slices {
        let Ok(rest) = slice.offset(offset.min(slice.len())) else {
            return;
        };
        offset = offset.saturating_sub(slice.len());
        let (now, later) = bytes.split_at(bytes.len().min(rest.len()));
        rest.copy_from(now);
        bytes = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(parts: &mut [Vec<u8>]) -> Vec<VolatileSlice<'_>> {
        let slices = parts.iter_mut().map(|part| part.as_mut_slice().into());
        slices.collect()
    }

    #[test]
    fn a_front_is_taken_across_slices() {
        let mut parts = [vec![1, 2], vec![], vec![3, 4, 5], vec![6]];
        for (wanted, left) in [(0, 6), (1, 5), (2, 4), (4, 2), (5, 1), (6, 0)] {
            let mut slices = slices(&mut parts);
            let mut front = vec![0; wanted];
            take_front(&mut slices, &mut front).unwrap();
            assert_eq!(front, [1, 2, 3, 4, 5, 6][..wanted]);
            let rest: usize = slices.iter().map(VolatileSlice::len).sum();
            assert_eq!(rest, left);
        }
        assert!(take_front(&mut slices(&mut parts), &mut [0; 7]).is_none());
    }

    #[test]
    fn bytes_are_written_across_slices_and_not_beyond() {
        for (offset, expected) in [
            (0, [9, 8, 7, 0]),
            (1, [0, 9, 8, 7]),
            (3, [0, 0, 0, 9]),
            (4, [0; 4]),
            (usize::MAX, [0; 4]),
        ] {
            let mut parts = [vec![0], vec![0, 0], vec![0]];
            write_at(&slices(&mut parts), offset, &[9, 8, 7]);
            assert_eq!(parts.concat(), expected);
        }
    }
}
