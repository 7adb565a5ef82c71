//! The list of pages in one chain of a balloon: from the driver's numbers to ranges of RAM.
//!
//! Owns the reading, the checks and the joining of neighbours. What happens to the pages is the
//! device's.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::MAX_CHAIN_PAGES;
use crate::memory::Memory;
use crate::virtio::queue::Buffers;

/// Length of a page in the device's numbering (`VIRTIO_BALLOON_PFN_SHIFT`).
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of a page's number.
const NUMBER_BYTES: usize = 4;

/// Pages of RAM, each once and in ascending order, and how many others were named.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PageList {
    numbers: Vec<u32>,
    duplicates: usize,
    outside: usize,
}

impl PageList {
    /// Reads the numbers in `buffers`. The second value is true if there was more than that: beyond
    /// [`MAX_CHAIN_PAGES`], a part of a number, or a buffer that is not RAM.
    pub(super) fn read(buffers: &Buffers, memory: &Memory) -> (Self, bool) {
        let (mut bytes, mut has_rest) = (Vec::new(), false);
        for segment in buffers.segments() {
            let room = MAX_CHAIN_PAGES * NUMBER_BYTES - bytes.len();
            let wanted = usize::try_from(segment.bytes).unwrap_or(usize::MAX);
            let taken = wanted.min(room);
            let start = bytes.len();
            bytes.resize(start + taken, 0);
            let is_read = memory
                .read_slice(&mut bytes[start..], GuestAddress(segment.address))
                .is_ok();
            has_rest |= taken < wanted || !is_read;
            if !is_read {
                bytes.truncate(start);
                break;
            }
        }
        let numbers = bytes.chunks_exact(NUMBER_BYTES);
        has_rest |= !numbers.remainder().is_empty();
        let numbers = numbers.filter_map(|chunk| chunk.first_chunk());
        let list = Self::of(numbers.map(|&bytes| u32::from_le_bytes(bytes)), memory);
        (list, has_rest)
    }

    fn of(numbers: impl Iterator<Item = u32>, memory: &Memory) -> Self {
        let mut named: Vec<u32> = numbers.collect();
        let all = named.len();
        named.sort_unstable();
        named.dedup();
        let distinct = named.len();
        let page = usize::try_from(PAGE_BYTES).expect("a page has 4 KiB");
        named.retain(|&number| memory.check_range(GuestAddress(address(number)), page));
        Self {
            duplicates: all - distinct,
            outside: distinct - named.len(),
            numbers: named,
        }
    }

    /// Number of pages.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// How often a page was named once more.
    pub(super) fn duplicates(&self) -> usize {
        self.duplicates
    }

    /// Pages that were named and are not wholly RAM.
    pub(super) fn outside(&self) -> usize {
        self.outside
    }

    /// The pages' addresses, neighbours joined.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.numbers
            .chunk_by(|&a, &b| a.checked_add(1) == Some(b))
            .filter_map(|run| Some(address(*run.first()?)..address(*run.last()?) + PAGE_BYTES))
    }
}

fn address(number: u32) -> u64 {
    u64::from(number) * PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RAM of 16 pages from 0 and of 16 pages from number 64 on, the last one cut in half.
    fn memory() -> Memory {
        let low = (GuestAddress(0), 16 << 12);
        let high = (GuestAddress(64 << 12), (16 << 12) - 2048);
        Memory::from_ranges(&[low, high]).unwrap()
    }

    fn is_page(number: u32) -> bool {
        (0..16).contains(&number) || (64..79).contains(&number)
    }

    #[test]
    fn neighbours_are_joined_and_strangers_are_counted() {
        let numbers = [3, 1, 2, 2, 15, 16, 64, 79, u32::MAX, 1];
        let list = PageList::of(numbers.into_iter(), &memory());
        let ranges: Vec<_> = list.ranges().collect();
        assert_eq!(
            ranges,
            [0x1000..0x4000, 0xf000..0x1_0000, 0x4_0000..0x4_1000]
        );
        assert_eq!((list.len(), list.duplicates(), list.outside()), (5, 2, 3));
    }

    proptest! {
        #[test]
        fn ranges_hold_exactly_the_pages_that_were_named(
            numbers in prop::collection::vec(prop_oneof![0..96_u32, any::<u32>()], 0..200)
        ) {
            let list = PageList::of(numbers.iter().copied(), &memory());
            let ranges: Vec<_> = list.ranges().collect();
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            let held: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!(held, u64::try_from(list.len()).unwrap() * PAGE_BYTES);
            for number in numbers.iter().copied().chain(0..96) {
                let is_held = ranges.iter().any(|range| range.contains(&address(number)));
                prop_assert_eq!(is_held, is_page(number) && numbers.contains(&number));
            }
            prop_assert_eq!(list.len() + list.duplicates() + list.outside(), numbers.len());
        }
    }
}
