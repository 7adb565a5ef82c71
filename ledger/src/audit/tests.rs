//! Tests of `audit`: what its own file promises, on its public calls.

use std::collections::BTreeMap;

use super::*;
use crate::model::{Absent, ModelLog};

const SIZE: u64 = 66_000;

fn log(size: u64) -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    for index in 0..size {
        log.append(&index.to_be_bytes());
    }
    log
}

#[derive(Default)]
struct Seen {
    entries: u64,
    last: Option<Progress>,
    refuse: Option<u64>,
}

impl Observer for Seen {
    fn entry(&mut self, index: u64, entry: &[u8]) -> Result<(), EntryProblem> {
        assert_eq!(entry, index.to_be_bytes());
        self.entries += 1;
        if self.refuse == Some(index) {
            return Err(EntryProblem("not mine".into()));
        }
        Ok(())
    }

    fn progress(&mut self, progress: Progress) {
        assert!(self.last.is_none_or(|last| last.entries < progress.entries));
        self.last = Some(progress);
    }
}

fn verify(log: &ModelLog, size: u64, seen: &mut Seen) -> Result<LogReport, VerifyLogError<Absent>> {
    verify_log(&log.checkpoint(size), |resource| log.read(resource), seen)
}

#[test]
fn a_sound_log_is_read_once_and_wholly() {
    let log = log(SIZE);
    let mut seen = Seen::default();
    let mut read: BTreeMap<Resource, usize> = BTreeMap::new();
    let report = verify_log(
        &log.checkpoint(SIZE),
        |resource| {
            *read.entry(resource).or_default() += 1;
            log.read(resource)
        },
        &mut seen,
    )
    .unwrap();
    assert_eq!((report.entries, seen.entries), (SIZE, SIZE));
    assert_eq!(
        seen.last,
        Some(Progress {
            entries: SIZE,
            size: SIZE
        })
    );
    let all: BTreeMap<Resource, usize> =
        Resource::all(SIZE).map(|resource| (resource, 1)).collect();
    assert_eq!(read, all);
}

#[test]
fn logs_of_every_small_size_are_verified() {
    let log = log(600);
    for size in [0, 1, 2, 255, 256, 257, 511, 512, 513, 600] {
        let report = verify(&log, size, &mut Seen::default()).unwrap();
        assert_eq!(report.entries, size);
    }
}

#[test]
fn any_changed_bit_is_found_and_its_place_named() {
    let log = log(SIZE);
    let check = |path: &str, byte: usize, expected: &str| {
        let target = Resource::parse(path).unwrap();
        let result = verify_log(
            &log.checkpoint(SIZE),
            |resource| {
                let mut bytes = log.read(resource)?;
                if resource == target {
                    bytes[byte] ^= 1;
                }
                Ok::<_, Absent>(bytes)
            },
            &mut (),
        );
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{path}: {message}");
    };
    // An entry's byte shows in the tile above it, at that entry.
    check("tile/entries/000", 2, "tile/0/000: hash 0");
    check("tile/entries/100", 2 + 10 * 7, "tile/0/100: hash 7");
    check("tile/entries/257.p/208", 9, "tile/0/257.p/208: hash 0");
    check("tile/0/003", 32 * 5, "tile/0/003: hash 5");
    check("tile/0/257.p/208", 6655, "tile/0/257.p/208: hash 207");
    check("tile/1/000", 32, "tile/1/000: hash 1");
    check("tile/1/001.p/1", 31, "tile/1/001.p/1: hash 0");
    check("tile/2/000.p/1", 0, "the entries from 0 on");
    // A length's byte.
    check("tile/entries/000", 1, "tile/entries/000 is malformed");
}

#[test]
fn a_root_that_does_not_follow_from_the_entries_is_found() {
    let log = log(300);
    let mut checkpoint = log.checkpoint(300);
    checkpoint.root.0[0] ^= 1;
    let result = verify_log(&checkpoint, |resource| log.read(resource), &mut ());
    assert!(matches!(
        result,
        Err(VerifyLogError::Root { size: 300, .. })
    ));
}

#[test]
fn a_missing_or_short_resource_is_named() {
    let log = log(300);
    let missing = |resource| match resource {
        Resource::Tile(tile) if tile.index() == 1 => Err(Absent(resource)),
        Resource::Checkpoint | Resource::Tile(_) | Resource::Entries(_) => log.read(resource),
    };
    let error = verify_log(&log.checkpoint(300), missing, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "tile/0/001.p/44 could not be read");
    let short = |resource| log.read(resource).map(|bytes| bytes[1..].to_vec());
    let error = verify_log(&log.checkpoint(300), short, &mut ()).unwrap_err();
    assert!(matches!(error, VerifyLogError::Malformed { .. }));
}

#[test]
fn an_observer_can_end_a_verification() {
    let log = log(300);
    let mut seen = Seen {
        refuse: Some(7),
        ..Seen::default()
    };
    let error = verify(&log, 300, &mut seen).unwrap_err();
    assert!(matches!(error, VerifyLogError::Entry { index: 7, .. }));
}
