//! Overwriting a device's memory and reading all of it back.
//!
//! Each eight bytes become a word that depends on this run and on the place, so that memory which is
//! not there, is there twice, or kept what it had does not pass. Every access is a call to the kernel,
//! in pieces, so that a device that goes away is an error, and there is a deadline and a way out.

use std::io;
use std::time::Duration;

use berth_agent_core::slot::wipe::WipeJournal;
use ring::digest::{Context, SHA256};

/// Bytes that are written or read by one call.
const CHUNK_BYTES: usize = 256 << 10;
const WORD_BYTES: usize = 8;

/// Memory of a device.
pub(super) trait DeviceMemory {
    /// Its length in bytes.
    fn bytes(&self) -> u64;
    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
}

/// Why memory was not overwritten.
#[derive(Debug, thiserror::Error)]
pub(super) enum OverwriteError {
    #[error("its memory does not answer at {offset:#x}")]
    Access { offset: u64, source: io::Error },
    #[error("its memory at {offset:#x} is not what was written")]
    Wrong { offset: u64 },
    #[error("not done within {} s; allow more in the approval (`wipe.deadline_s`)", .0.as_secs())]
    Late(Duration),
    #[error("left as it is, because the agent ends")]
    Cancelled,
}

/// Overwrite all of `memory` and read it back; returns the SHA-256 of what was read.
pub(super) fn overwrite(
    memory: &mut dyn DeviceMemory,
    seed: u64,
    limit: Duration,
    now: &mut dyn FnMut() -> Duration,
    journal: &mut dyn WipeJournal,
) -> Result<[u8; 32], OverwriteError> {
    let begun = now();
    let mut check = |moved: u64, total: u64| {
        let passed = now().saturating_sub(begun);
        if journal.is_cancelled() {
            return Err(OverwriteError::Cancelled);
        }
        if passed > limit {
            return Err(OverwriteError::Late(limit));
        }
        let (percent, left) = progress(moved, total, passed);
        journal.progress(percent, left);
        Ok(())
    };
    let bytes = memory.bytes();
    let total = bytes.saturating_mul(2);
    let mut wanted = vec![0; CHUNK_BYTES];
    for (offset, length) in chunks(bytes) {
        check(offset, total)?;
        let data = wanted.get_mut(..length).unwrap_or_default();
        fill(data, seed, offset);
        memory
            .write(offset, data)
            .map_err(|source| OverwriteError::Access { offset, source })?;
    }
    let mut found = vec![0; CHUNK_BYTES];
    let mut digest = Context::new(&SHA256);
    for (offset, length) in chunks(bytes) {
        check(bytes.saturating_add(offset), total)?;
        let data = found.get_mut(..length).unwrap_or_default();
        memory
            .read(offset, data)
            .map_err(|source| OverwriteError::Access { offset, source })?;
        let wanted = wanted.get_mut(..length).unwrap_or_default();
        fill(wanted, seed, offset);
        if let Some(place) = data.iter().zip(&*wanted).position(|(a, b)| a != b) {
            let place = u64::try_from(place).unwrap_or(0);
            let offset = offset.saturating_add(place);
            return Err(OverwriteError::Wrong { offset });
        }
        digest.update(data);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(digest.finish().as_ref());
    Ok(sum)
}

/// The pieces of `bytes`, each with its length.
fn chunks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes).step_by(CHUNK_BYTES).map(move |offset| {
        let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX);
        (offset, left.min(CHUNK_BYTES))
    })
}

/// The words of this run from `offset` on, which is a multiple of a word.
fn fill(data: &mut [u8], seed: u64, offset: u64) {
    let words = (offset / 8..).map(|place| mix(seed.wrapping_add(place)));
    for (piece, word) in data.chunks_mut(WORD_BYTES).zip(words) {
        for (byte, value) in piece.iter_mut().zip(word.to_le_bytes()) {
            *byte = value;
        }
    }
}

/// A permutation of 64-bit numbers without visible order (the finaliser of `splitmix64`).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Percent done, and seconds left if it goes on like that.
fn progress(moved: u64, total: u64, passed: Duration) -> (u8, Option<u64>) {
    let [moved, total] = [moved, total].map(u128::from);
    let percent = (moved * 100).checked_div(total).unwrap_or(100);
    let left = (passed.as_millis() * total.saturating_sub(moved)).checked_div(moved * 1000);
    (
        u8::try_from(percent).unwrap_or(100),
        left.and_then(|left| u64::try_from(left).ok()),
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use berth_agent_core::slot::wipe::WipeRun;

    use super::*;

    /// Memory of so many bytes, of which only the first ones are there: the rest mirrors them.
    struct Memory {
        bytes: u64,
        cells: Vec<u8>,
        stuck: Option<usize>,
        gone_after: Option<u32>,
    }

    impl Memory {
        fn new(bytes: usize, there: usize) -> Self {
            Self {
                bytes: bytes.try_into().unwrap(),
                cells: vec![b'x'; there],
                stuck: None,
                gone_after: None,
            }
        }

        fn answer(&mut self) -> io::Result<()> {
            match &mut self.gone_after {
                Some(0) => Err(io::ErrorKind::Other.into()),
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }
    }

    impl DeviceMemory for Memory {
        fn bytes(&self) -> u64 {
            self.bytes
        }

        fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
            self.answer()?;
            let start = usize::try_from(offset).unwrap();
            for (at, byte) in (start..).zip(data) {
                *byte = self.cells[at % self.cells.len()];
            }
            Ok(())
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.answer()?;
            let start = usize::try_from(offset).unwrap();
            let there = self.cells.len();
            for (at, byte) in (start..).zip(data) {
                if self.stuck != Some(at) {
                    self.cells[at % there] = *byte;
                }
            }
            Ok(())
        }
    }

    #[derive(Default)]
    struct Journal {
        seen: Vec<u8>,
        cancel_after: Option<u32>,
        asked: Cell<u32>,
    }

    impl WipeJournal for Journal {
        fn note(&mut self, _: &WipeRun) -> io::Result<()> {
            Ok(())
        }

        fn progress(&mut self, percent: u8, _: Option<u64>) {
            self.seen.push(percent);
        }

        fn is_cancelled(&self) -> bool {
            self.asked.set(self.asked.get() + 1);
            self.cancel_after
                .is_some_and(|after| self.asked.get() > after)
        }
    }

    fn run(memory: &mut Memory, journal: &mut Journal) -> Result<[u8; 32], OverwriteError> {
        let limit = Duration::from_secs(10);
        overwrite(memory, 7, limit, &mut || Duration::ZERO, journal)
    }

    const BYTES: usize = CHUNK_BYTES * 3 + 24;

    #[test]
    fn all_of_it_is_overwritten_and_read() {
        let mut memory = Memory::new(BYTES, BYTES);
        let mut journal = Journal::default();
        let sum = run(&mut memory, &mut journal).unwrap();
        let expected = ring::digest::digest(&SHA256, &memory.cells);
        assert_eq!(sum, expected.as_ref());
        assert!(memory.cells.chunks(8).all(|word| word != b"xxxxxxxx"));
        assert_eq!(journal.seen.first(), Some(&0));
        assert!(journal.seen.is_sorted() && journal.seen.len() == 8);
    }

    #[test]
    fn another_run_writes_something_else() {
        let [mut one, mut two] = [[0; 64]; 2];
        fill(&mut one, 1, 0);
        fill(&mut two, 1 << 40, 0);
        assert!(one.chunks(8).zip(two.chunks(8)).all(|(a, b)| a != b));
    }

    #[test]
    fn a_cell_that_keeps_its_value_is_found() {
        let mut memory = Memory::new(BYTES, BYTES);
        memory.stuck = Some(BYTES - 1);
        let error = run(&mut memory, &mut Journal::default()).unwrap_err();
        let wanted = u64::try_from(BYTES - 1).unwrap();
        assert!(
            matches!(error, OverwriteError::Wrong { offset } if offset == wanted),
            "{error:?}"
        );
    }

    #[test]
    fn memory_that_is_there_twice_does_not_pass() {
        let mut memory = Memory::new(CHUNK_BYTES * 2, CHUNK_BYTES);
        let error = run(&mut memory, &mut Journal::default()).unwrap_err();
        assert!(
            matches!(error, OverwriteError::Wrong { offset: 0 }),
            "{error:?}"
        );
    }

    #[test]
    fn a_device_that_goes_away_is_an_error_wherever_it_goes() {
        for calls in 0..8 {
            let mut memory = Memory::new(BYTES, BYTES);
            memory.gone_after = Some(calls);
            let error = run(&mut memory, &mut Journal::default()).unwrap_err();
            assert!(matches!(error, OverwriteError::Access { .. }), "{error:?}");
        }
    }

    #[test]
    fn it_ends_at_its_deadline_or_when_the_agent_does() {
        let mut memory = Memory::new(BYTES, BYTES);
        let mut clock = 0;
        let mut tick = || {
            clock += 4;
            Duration::from_secs(clock)
        };
        let limit = Duration::from_secs(10);
        let error = overwrite(&mut memory, 7, limit, &mut tick, &mut Journal::default());
        assert!(matches!(error.unwrap_err(), OverwriteError::Late(_)));
        let mut journal = Journal {
            cancel_after: Some(5),
            ..Journal::default()
        };
        let error = run(&mut memory, &mut journal).unwrap_err();
        assert!(matches!(error, OverwriteError::Cancelled), "{error:?}");
    }

    #[test]
    fn progress_tells_what_is_left() {
        let tenth = Duration::from_secs(10);
        assert_eq!(progress(10, 100, tenth), (10, Some(90)));
        assert_eq!(progress(0, 100, tenth), (0, None));
        assert_eq!(progress(0, 0, tenth), (100, None));
        assert_eq!(progress(u64::MAX, u64::MAX, tenth), (100, Some(0)));
    }
}
