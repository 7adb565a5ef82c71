//! Places that are looked at before and after an erase, and what is kept of them: digests of what a tenant
//! left, never the bytes; and canaries, blocks of our own that have to be gone afterwards.
//!
//! Canaries make two things certain that nothing else does: that an erase ran after they were written,
//! however often the drive was wiped before, and that a drive which erases nothing is found out even
//! where its last tenant wrote nothing.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, digest};

use crate::blocks;
use crate::drive::Drive;
use crate::error::DriveError;
use crate::identify::Look;
use crate::identify::layout::Layout;
use crate::identify::namespace::Namespace;
use crate::stream::Stream;
use crate::wipe::Run;
use crate::wipe_error::WipeError;

/// Blocks at each end of a namespace that are always looked at: tables of partitions and the like.
const EDGE: u64 = 8;
/// More random blocks than this are not kept in memory, whatever the policy says.
const MOST_BLOCKS: u32 = 1 << 18;
/// Canaries, at most; as many places as that, evenly among all.
const MOST_CANARIES: usize = 64;

/// One block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) nsid: u32,
    pub(crate) lba: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "block {} of namespace {}", self.lba, self.nsid)
    }
}

/// A SHA-256.
pub(crate) type Digest = [u8; 32];

/// What is known of the places from before the erase.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Before {
    /// Digests of blocks that did not look blank.
    pub(crate) digests: BTreeMap<Place, Digest>,
    /// Blocks that hold our own stream, as was read back.
    pub(crate) canaries: BTreeSet<Place>,
    /// Key of that stream.
    pub(crate) seed: u64,
}

/// The places of a layout: the edges of each namespace and `sample_blocks` random ones in all, each
/// namespace by its size; the same ones for the same seed.
pub(crate) fn places(layout: &Layout, sample_blocks: u32, seed: u64) -> BTreeSet<Place> {
    let sample = u128::from(sample_blocks.min(MOST_BLOCKS));
    let total: u128 = layout
        .0
        .values()
        .map(|shape| u128::from(shape.blocks))
        .sum();
    let mut stream = Stream::new(seed);
    let mut places = BTreeSet::new();
    for (nsid, shape) in &layout.0 {
        let blocks = shape.blocks;
        let mut add = |lba| places.insert(Place { nsid: *nsid, lba });
        let share = u64::try_from(sample * u128::from(blocks) / total.max(1)).unwrap_or(0);
        if blocks <= share.saturating_add(2 * EDGE) {
            (0..blocks).for_each(|lba| {
                add(lba);
            });
            continue;
        }
        for edge in 0..EDGE {
            add(edge);
            add(blocks - 1 - edge);
        }
        for _ in 0..share {
            add(stream.below(blocks));
        }
    }
    places
}

/// Which of the places get canaries: the first, the last, and evenly between.
pub(crate) fn canary_places(places: &BTreeSet<Place>) -> BTreeSet<Place> {
    let step = places.len().div_ceil(MOST_CANARIES).max(1);
    let last = places.last().copied();
    places.iter().copied().step_by(step).chain(last).collect()
}

/// What the block of our own stream at a place is.
pub(crate) fn canary(seed: u64, place: Place, bytes: usize) -> Vec<u8> {
    let mut block = vec![0; bytes];
    Stream::of_block(seed, place.nsid, place.lba).fill(&mut block);
    block
}

pub(crate) fn namespace_of(look: &Look, place: Place) -> Option<&Namespace> {
    look.active.iter().find(|found| found.id == place.nsid)
}

/// Take digests of the places, then write canaries into some and read them back. What cannot be read is
/// not compared; a drive that cannot be written is of no use to the next tenant either.
pub(crate) fn take(run: &mut Run<'_, '_>, look: &Look) -> Result<Before, WipeError> {
    let seed = run.seed;
    let mut before = Before {
        seed,
        ..Before::default()
    };
    let deadline = run.deadline();
    let places = places(&look.layout(), run.policy.sample_blocks, seed);
    for place in &places {
        let Some(namespace) = namespace_of(look, *place) else {
            continue;
        };
        match blocks::read(run.drive, namespace, place.lba, 1) {
            Ok(block) if !looks_blank(&block) => {
                before.digests.insert(*place, sha256(&block));
            }
            Ok(_) | Err(DriveError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        run.keep_time(deadline)?;
    }
    let mut written = BTreeSet::new();
    for place in canary_places(&places) {
        let Some(namespace) = namespace_of(look, place) else {
            continue;
        };
        let block = canary(seed, place, stride(namespace));
        blocks::write(run.drive, namespace, place.lba, &block)?;
        written.insert(place);
        run.keep_time(deadline)?;
    }
    for namespace in &look.active {
        blocks::flush(run.drive, namespace.id)?;
    }
    let kept = canaries_left(run.drive, look, &written, seed)?;
    if let Some(first) = written.difference(&kept).next() {
        return Err(WipeError::WritesNotKept {
            blocks: u64::try_from(written.len() - kept.len()).unwrap_or(u64::MAX),
            first: first.to_string(),
        });
    }
    before.canaries = kept;
    Ok(before)
}

/// Those of the canaries that are still there.
pub(crate) fn canaries_left(
    drive: &mut Drive<'_>,
    look: &Look,
    canaries: &BTreeSet<Place>,
    seed: u64,
) -> Result<BTreeSet<Place>, DriveError> {
    let mut left = BTreeSet::new();
    for place in canaries {
        let Some(namespace) = namespace_of(look, *place) else {
            continue;
        };
        let block = blocks::read(drive, namespace, place.lba, 1)?;
        if block == canary(seed, *place, stride(namespace)) {
            left.insert(*place);
        }
    }
    Ok(left)
}

/// Bytes of a block with its metadata.
pub(crate) fn stride(namespace: &Namespace) -> usize {
    usize::try_from(namespace.shape.stride()).unwrap_or(usize::MAX)
}

/// Whether a block is as erased or new ones are, so that its being the same again says nothing.
fn looks_blank(block: &[u8]) -> bool {
    matches!(uniform_byte(block), Some(0x00 | 0xff))
}

/// The byte that a block is full of, if it is.
pub(crate) fn uniform_byte(block: &[u8]) -> Option<u8> {
    let first = *block.first()?;
    block.iter().all(|byte| *byte == first).then_some(first)
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut found = [0; 32];
    found.copy_from_slice(digest(&SHA256, bytes).as_ref());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(text: &str) -> Layout {
        text.parse().unwrap()
    }

    #[test]
    fn small_namespaces_are_looked_at_whole_and_large_ones_at_their_edges_and_between() {
        let found = places(&layout("1:20x512+0/0, 2:1000000x512+0/0"), 100, 1);
        let of = |nsid| found.iter().filter(move |place| place.nsid == nsid);
        assert_eq!(of(1).count(), 16);
        assert!(of(2).count() > 100);
        let large = layout("1:1000000x512+0/0");
        let found = places(&large, 100, 1);
        for lba in (0..8).chain(999_992..1_000_000) {
            assert!(found.contains(&Place { nsid: 1, lba }), "{lba}");
        }
        assert_eq!(found, places(&large, 100, 1));
        assert_ne!(found, places(&large, 100, 2));
        assert_eq!(places(&layout("1:100x512+0/0"), 100, 1).len(), 100);
    }

    #[test]
    fn an_absurd_layout_costs_no_more_than_the_sample() {
        let found = places(&layout("1:4503599627370496x512+0/0"), u32::MAX, 1);
        assert!(found.len() <= 16 + usize::try_from(MOST_BLOCKS).unwrap());
    }

    #[test]
    fn canaries_are_few_and_reach_both_ends() {
        let places = places(&layout("1:1000000x512+0/0"), 1024, 1);
        let canaries = canary_places(&places);
        assert!(canaries.len() <= MOST_CANARIES + 1);
        assert_eq!(canaries.first(), places.first());
        assert_eq!(canaries.last(), places.last());
        assert!(canary_places(&BTreeSet::new()).is_empty());
    }
}
