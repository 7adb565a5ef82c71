//! Two console segments become one tail.
//!
//! The layout is `berth_api::vmm::console_segment`'s. Both files were written by a VMM, so by a
//! hostile guest in the worst case: whatever they hold, the answer is some bytes and a position,
//! never an error.

use berth_api::vmm::console_segment::{HEADER_BYTES, MAGIC};

/// Output bytes of one segment file before the VMM turns to the other one.
pub const SEGMENT_BYTES: u64 = 1024 * 1024;

/// The newest output of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleTail {
    /// Position of the first byte in the whole output.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

struct Segment<'a> {
    start: u64,
    output: &'a [u8],
}

impl<'a> Segment<'a> {
    /// A segment in use; `None` for a file that never was, or that is not a segment.
    fn parse(file: &'a [u8]) -> Option<Self> {
        let header_bytes = usize::try_from(HEADER_BYTES).ok()?;
        let (header, output) = file.split_at_checked(header_bytes)?;
        let (magic, start) = header.split_first_chunk::<8>()?;
        let start = u64::from_le_bytes(start.try_into().ok()?);
        (*magic == MAGIC).then_some(Self { start, output })
    }

    fn end(&self) -> Option<u64> {
        self.start
            .checked_add(u64::try_from(self.output.len()).ok()?)
    }
}

/// The last `tail_bytes` at the most of what two segment files hold.
#[must_use]
pub fn tail(files: [&[u8]; 2], tail_bytes: usize) -> ConsoleTail {
    let [first, second] = files.map(Segment::parse);
    let (older, newer) = match (first, second) {
        (Some(a), Some(b)) if a.start <= b.start => (Some(a), Some(b)),
        (Some(a), Some(b)) => (Some(b), Some(a)),
        (a, b) => (None, a.or(b)),
    };
    let Some(newer) = newer else {
        return ConsoleTail {
            offset: 0,
            bytes: Vec::new(),
        };
    };
    // A gap between the two means that the older one is from another time: it does not count.
    let older = older.filter(|older| older.end() == Some(newer.start));
    let (start, before) = older.map_or((newer.start, &[][..]), |o| (o.start, o.output));
    let skipped = before
        .len()
        .saturating_add(newer.output.len())
        .saturating_sub(tail_bytes);
    let mut bytes = before.get(skipped..).unwrap_or_default().to_vec();
    let skipped_newer = skipped.saturating_sub(before.len());
    bytes.extend_from_slice(newer.output.get(skipped_newer..).unwrap_or_default());
    ConsoleTail {
        offset: start.saturating_add(u64::try_from(skipped).unwrap_or(u64::MAX)),
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(start: u64, output: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &start.to_le_bytes(), output].concat()
    }

    #[track_caller]
    fn check(files: [&[u8]; 2], tail_bytes: usize, offset: u64, bytes: &[u8]) {
        let expected = ConsoleTail {
            offset,
            bytes: bytes.to_vec(),
        };
        assert_eq!(tail(files, tail_bytes), expected);
        assert_eq!(tail([files[1], files[0]], tail_bytes), expected);
    }

    #[test]
    fn a_console_never_written_is_empty() {
        check([b"", b""], 100, 0, b"");
        check([b"short", b"not a segment at all"], 100, 0, b"");
    }

    #[test]
    fn one_segment_is_the_whole_output() {
        check([&segment(0, b"hello"), b""], 100, 0, b"hello");
        check([&segment(0, b"hello"), b""], 2, 3, b"lo");
        check([&segment(0, b"hello"), b""], 0, 5, b"");
    }

    #[test]
    fn the_older_segment_comes_first() {
        let (older, newer) = (segment(10, b"abcde"), segment(15, b"fg"));
        check([&older, &newer], 100, 10, b"abcdefg");
        check([&older, &newer], 4, 13, b"defg");
        check([&older, &newer], 1, 16, b"g");
    }

    #[test]
    fn a_segment_that_does_not_join_is_left_out() {
        check([&segment(0, b"abc"), &segment(9, b"xyz")], 100, 9, b"xyz");
        check(
            [&segment(u64::MAX, b"abc"), &segment(0, b"")],
            100,
            u64::MAX,
            b"abc",
        );
    }

    proptest! {
        #[test]
        fn any_two_files_give_at_most_what_was_asked(
            first in proptest::collection::vec(any::<u8>(), 0..64),
            second in proptest::collection::vec(any::<u8>(), 0..64),
            start in any::<u64>(),
            asked in 0_usize..80,
        ) {
            prop_assert!(tail([&first, &second], asked).bytes.len() <= asked);
            let wrapped = segment(start, &first);
            prop_assert!(tail([&wrapped, &second], asked).bytes.len() <= asked);
        }

        #[test]
        fn the_tail_is_the_end_of_everything_written(
            older in proptest::collection::vec(any::<u8>(), 0..64),
            newer in proptest::collection::vec(any::<u8>(), 1..64),
            asked in 0_usize..140,
        ) {
            let at = u64::try_from(older.len()).unwrap();
            let whole = [older.as_slice(), &newer].concat();
            let got = tail([&segment(0, &older), &segment(at, &newer)], asked);
            let from = whole.len().saturating_sub(asked);
            prop_assert_eq!(got.bytes.as_slice(), &whole[from..]);
            prop_assert_eq!(got.offset, u64::try_from(from).unwrap());
        }
    }
}
