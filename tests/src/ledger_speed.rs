//! How fast a whole log is verified: written as its published files, then read back as a stranger would.
//!
//! Owns the measurement for `cargo xtask bench ledger`. Neither side holds more of the log than its
//! right edge, so the size is bounded by the disk alone.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_ledger::audit::verify_log;
use berth_ledger::checkpoint::Checkpoint;
use berth_ledger::leaf::{Commitment, Leaf, Nonce, ViewKey};
use berth_ledger::merkle::{Frontier, Hash, leaf_hash};
use berth_ledger::note::KeyName;
use berth_ledger::tile::{Resource, Tile, encode_entry};

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// Entries of the log.
    pub entries: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// From the first read to the verdict.
    pub took: Duration,
}

impl Verified {
    /// Entries per second.
    #[must_use]
    pub fn entries_per_second(&self) -> f64 {
        per_second(self.entries, self.took)
    }

    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.took)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate with 53 bits is more exact than its clock"
)]
fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Writes a log of so many leaves below an empty folder, and measures its verification.
///
/// # Errors
/// If a file cannot be written or read, or the log does not verify.
pub fn verify_of_files(folder: &Path, entries: u64) -> Result<Verified> {
    let checkpoint = write_log(folder, entries)?;
    let began = Instant::now();
    let read = |resource: Resource| fs::read(folder.join(resource.to_string()));
    let report = verify_log(&checkpoint, read, &mut ())?;
    let took = began.elapsed();
    ensure!(report.entries == entries, "not all entries were verified");
    Ok(Verified {
        entries,
        bytes: report.bytes,
        took,
    })
}

/// A log of leaves as a busy deployment has them; its checkpoint.
fn write_log(folder: &Path, entries: u64) -> Result<Checkpoint> {
    let view_key = ViewKey::from_bytes([1; 32]);
    let mut tree = Frontier::new();
    let mut levels: Vec<(u64, Vec<Hash>)> = Vec::new();
    for bundle in Resource::bundles(entries) {
        let mut bytes = Vec::new();
        for index in bundle.entries() {
            let commitment = Commitment::of(&Nonce([2; 32]), &index.to_be_bytes());
            let leaf = Leaf::of_event(index, view_key.tag(index), commitment).to_bytes();
            encode_entry(&mut bytes, &leaf)?;
            let mut hashes = Vec::new();
            let Ok(()) = tree.append(leaf_hash(&leaf), |node, hash| {
                hashes.extend((node.level % 8 == 0).then_some(hash));
                Ok::<_, Infallible>(())
            });
            for (level, hash) in hashes.into_iter().enumerate() {
                keep(folder, &mut levels, level, hash)?;
            }
        }
        write(folder, Resource::Entries(bundle), &bytes)?;
    }
    for (level, (index, hashes)) in levels.iter().enumerate() {
        if !hashes.is_empty() {
            write_tile(folder, level, *index, hashes)?;
        }
    }
    Ok(Checkpoint {
        origin: KeyName::new("ledger.example/bench")?,
        size: tree.size(),
        root: tree.root(),
    })
}

fn keep(folder: &Path, levels: &mut Vec<(u64, Vec<Hash>)>, level: usize, hash: Hash) -> Result<()> {
    if levels.len() == level {
        levels.push((0, Vec::new()));
    }
    let (index, hashes) = levels.get_mut(level).context("levels come in order")?;
    hashes.push(hash);
    if hashes.len() == 256 {
        write_tile(folder, level, *index, hashes)?;
        (*index, *hashes) = (*index + 1, Vec::new());
    }
    Ok(())
}

fn write_tile(folder: &Path, level: usize, index: u64, hashes: &[Hash]) -> Result<()> {
    let (level, width) = (u8::try_from(level)?, u16::try_from(hashes.len())?);
    let tile = Tile::new(level, index, width).context("no tree has such a tile")?;
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    write(folder, Resource::Tile(tile), &bytes)
}

fn write(folder: &Path, resource: Resource, bytes: &[u8]) -> Result<()> {
    let path = folder.join(resource.to_string());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_files_is_verified_to_its_last_entry() {
        let folder = tempfile::tempdir().unwrap();
        let verified = verify_of_files(folder.path(), 66_000).unwrap();
        assert_eq!(verified.entries, 66_000);
        // 82 bytes of each entry, 32 of each leaf's hash, and the tiles above.
        assert_eq!(verified.bytes, 66_000 * (82 + 32) + 257 * 32 + 32);
    }
}
