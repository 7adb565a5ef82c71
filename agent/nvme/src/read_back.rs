//! What is read from a drive after its erase, and whether it is what it has to be.

use berth_api::slot::ReadBack;
use ring::digest::{Context, SHA256};

use crate::blocks;
use crate::identify::Look;
use crate::identify::layout::Layout;
use crate::plan;
use crate::sample::{Place, canary, namespace_of, places, sha256, stride, uniform_byte};
use crate::wipe::Run;
use crate::wipe_error::WipeError;

/// Blocks that were read, judged one by one.
pub(crate) struct Reader {
    digest: Context,
    bytes_total: u64,
    pub(crate) blocks_read: u64,
    pub(crate) blocks_zero: u64,
    pub(crate) blocks_uniform: u64,
    bytes_read: u64,
    bytes_wrong: u64,
    pub(crate) blocks_wrong: u64,
    pub(crate) first_wrong: Option<Place>,
}

impl Reader {
    pub(crate) fn new(layout: &Layout) -> Self {
        let bytes = layout
            .0
            .values()
            .filter_map(crate::identify::layout::Shape::bytes);
        Self {
            digest: Context::new(&SHA256),
            bytes_total: bytes.fold(0, u64::saturating_add),
            blocks_read: 0,
            blocks_zero: 0,
            blocks_uniform: 0,
            bytes_read: 0,
            bytes_wrong: 0,
            blocks_wrong: 0,
            first_wrong: None,
        }
    }

    /// Note one block.
    pub(crate) fn add(&mut self, place: Place, block: &[u8], is_wrong: bool) {
        let bytes = u64::try_from(block.len()).unwrap_or(u64::MAX);
        self.digest.update(block);
        self.blocks_read += 1;
        self.bytes_read = self.bytes_read.saturating_add(bytes);
        if let Some(byte) = uniform_byte(block) {
            self.blocks_uniform += 1;
            self.blocks_zero += u64::from(byte == 0);
        }
        if is_wrong {
            self.blocks_wrong += 1;
            self.bytes_wrong = self.bytes_wrong.saturating_add(bytes);
            self.first_wrong.get_or_insert(place);
        }
    }

    pub(crate) fn finish(self, sample: String, expected: String) -> ReadBack {
        ReadBack {
            sample,
            bytes_total: self.bytes_total,
            bytes_read: self.bytes_read,
            bytes_wrong: self.bytes_wrong,
            expected,
            sha256: hex(self.digest.finish().as_ref()),
        }
    }
}

/// Read the places of a sample and compare them with what is known from before.
pub(crate) fn sample(run: &mut Run<'_, '_>, look: &Look) -> Result<Reader, WipeError> {
    let layout = look.layout();
    let mut reader = Reader::new(&layout);
    let seed = run.evidence.before.seed;
    let places: Vec<_> = places(&layout, run.policy.sample_blocks, seed)
        .into_iter()
        .collect();
    let count = u64::try_from(places.len()).unwrap_or(u64::MAX);
    let deadline = run.deadline();
    for (index, place) in (0..).zip(&places) {
        let Some(namespace) = namespace_of(look, *place) else {
            continue;
        };
        let block = blocks::read(run.drive, namespace, place.lba, 1)?;
        let before = &run.evidence.before;
        let is_canary = before.canaries.contains(place)
            && block == canary(before.seed, *place, stride(namespace));
        let digest = before.digests.get(place);
        let is_as_before = digest.is_some_and(|digest| *digest == sha256(&block));
        reader.add(*place, &block, is_canary || is_as_before);
        run.keep_time(deadline)?;
        let percent = plan::percent(index, count, 90, 99);
        run.progress(percent, None);
    }
    Ok(reader)
}

/// How the places were chosen, in words.
pub(crate) fn sample_in_words(reader: &Reader, look: &Look) -> String {
    let blocks = look
        .active
        .iter()
        .map(|found| u128::from(found.shape.blocks));
    if u128::from(reader.blocks_read) == blocks.sum() {
        return "every block".to_owned();
    }
    format!(
        "edges of each namespace and random blocks, {} in all",
        reader.blocks_read
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
