//! Checks a whole log from its published resources: every entry, every tile, the root.
//!
//! Owns [`verify_log`]. It asks for one resource after the other and keeps the right edge of the tree
//! and one tile of each level, so memory does not grow with the log. Every entry is handed on as it
//! passes, so that its reader can look for its own. What it costs is a hash for each entry and node.

use crate::checkpoint::Checkpoint;
use crate::merkle::{Frontier, Hash, leaf_hash};
use crate::tile::{DecodeError, EntryBundle, FULL_WIDTH, Resource, Tile};

/// How far a verification has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Entries that were checked.
    pub entries: u64,
    /// Entries that there are.
    pub size: u64,
}

/// What a log was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogReport {
    /// Entries that were checked: all.
    pub entries: u64,
    /// Tiles that were checked: all that the log has at this size.
    pub tiles: u64,
    /// Bytes of entry bundles and tiles that were read.
    pub bytes: u64,
}

/// Who follows a verification.
pub trait Observer {
    /// An entry has passed: its hash is in the tree that is being built. Whether that is the tree of
    /// the checkpoint is known at the end alone.
    ///
    /// # Errors
    /// A text that says what is wrong with it; the verification ends.
    fn entry(&mut self, index: u64, entry: &[u8]) -> Result<(), EntryProblem>;

    /// A bundle is done.
    fn progress(&mut self, progress: Progress);
}

/// Nobody looks.
impl Observer for () {
    fn entry(&mut self, _: u64, _: &[u8]) -> Result<(), EntryProblem> {
        Ok(())
    }

    fn progress(&mut self, _: Progress) {}
}

/// An entry that its observer does not accept.
#[derive(Debug, thiserror::Error)]
#[error("the observer of the verification does not accept it")]
pub struct EntryProblem(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Why a log is not what its checkpoint says.
#[derive(Debug, thiserror::Error)]
pub enum VerifyLogError<E: std::error::Error + 'static> {
    /// A resource could not be read.
    #[error("{resource} could not be read")]
    Read {
        /// Which.
        resource: Resource,
        /// Why.
        #[source]
        cause: E,
    },
    /// A resource is not what its name says.
    #[error("{resource} is malformed")]
    Malformed {
        /// Which.
        resource: Resource,
        /// In which way.
        #[source]
        cause: DecodeError,
    },
    /// A tile has another hash than follows from the entries.
    #[error(
        "{resource}: hash {item} is {found}, the entries from {first_entry} on lead to {expected}"
    )]
    Tile {
        /// Which.
        resource: Resource,
        /// Which of its hashes, from 0.
        item: usize,
        /// The first entry below that hash.
        first_entry: u64,
        /// The hash in the tile.
        found: Hash,
        /// The hash that follows from the entries.
        expected: Hash,
    },
    /// All tiles follow from the entries, and the root is another.
    #[error("the {size} entries have the root {found}, the checkpoint says {expected}")]
    Root {
        /// Number of entries.
        size: u64,
        /// The root of the entries.
        found: Hash,
        /// The checkpoint's root.
        expected: Hash,
    },
    /// The observer stopped at an entry.
    #[error("entry {index} is not as it should be")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        #[source]
        cause: EntryProblem,
    },
}

/// Check every entry and tile of the log against a checkpoint that the caller has opened.
///
/// `read` gets the resources' bytes, unpacked if they are stored packed; full tiles and bundles, and
/// the partial ones of exactly this size.
///
/// # Errors
/// The first thing that does not hold, by name.
pub fn verify_log<E: std::error::Error + 'static>(
    checkpoint: &Checkpoint,
    mut read: impl FnMut(Resource) -> Result<Vec<u8>, E>,
    observer: &mut impl Observer,
) -> Result<LogReport, VerifyLogError<E>> {
    let size = checkpoint.size;
    let mut log = Log {
        read: |resource| read(resource).map_err(|cause| VerifyLogError::Read { resource, cause }),
        levels: Vec::new(),
        report: LogReport {
            entries: 0,
            tiles: 0,
            bytes: 0,
        },
    };
    let mut tree = Frontier::new();
    for resource in Resource::bundles(size) {
        log.bundle(resource, &mut tree, observer)?;
        observer.progress(Progress {
            entries: tree.size(),
            size,
        });
    }
    log.check_partial_tiles()?;
    let found = tree.root();
    if found != checkpoint.root {
        let expected = checkpoint.root;
        return Err(VerifyLogError::Root {
            size,
            found,
            expected,
        });
    }
    Ok(log.report)
}

struct Log<R> {
    read: R,
    /// For each level of tiles how many full ones were checked, and the hashes since.
    levels: Vec<(u64, Vec<Hash>)>,
    report: LogReport,
}

impl<R, E> Log<R>
where
    E: std::error::Error + 'static,
    R: FnMut(Resource) -> Result<Vec<u8>, VerifyLogError<E>>,
{
    fn bundle(
        &mut self,
        bundle: EntryBundle,
        tree: &mut Frontier,
        observer: &mut impl Observer,
    ) -> Result<(), VerifyLogError<E>> {
        let resource = Resource::Entries(bundle);
        let bytes = (self.read)(resource)?;
        self.report.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let entries = bundle
            .decode(&bytes)
            .map_err(|cause| VerifyLogError::Malformed { resource, cause })?;
        for entry in entries {
            let index = tree.size();
            tree.append(leaf_hash(entry), |node, hash| {
                if node.level % 8 == 0 {
                    self.hash(usize::from(node.level / 8), hash)?;
                }
                Ok(())
            })?;
            observer
                .entry(index, entry)
                .map_err(|cause| VerifyLogError::Entry { index, cause })?;
            self.report.entries += 1;
        }
        Ok(())
    }

    /// A hash of this level of tiles has come to be.
    fn hash(&mut self, level: usize, hash: Hash) -> Result<(), VerifyLogError<E>> {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Default::default);
        }
        let Some((index, hashes)) = self.levels.get_mut(level) else {
            return Ok(());
        };
        hashes.push(hash);
        if hashes.len() < usize::from(FULL_WIDTH) {
            return Ok(());
        }
        let (done, full) = (*index, std::mem::take(hashes));
        *index += 1;
        self.tile(level, done, &full)
    }

    fn check_partial_tiles(&mut self) -> Result<(), VerifyLogError<E>> {
        let levels = std::mem::take(&mut self.levels);
        for (level, (index, hashes)) in levels.iter().enumerate() {
            if !hashes.is_empty() {
                self.tile(level, *index, hashes)?;
            }
        }
        Ok(())
    }

    fn tile(&mut self, level: usize, index: u64, hashes: &[Hash]) -> Result<(), VerifyLogError<E>> {
        let width = u16::try_from(hashes.len()).unwrap_or(FULL_WIDTH);
        let level = u8::try_from(level).unwrap_or(u8::MAX);
        let tile = Tile::new(level, index, width)
            .expect("a tree that was built has the tiles that its nodes fill");
        let resource = Resource::Tile(tile);
        let bytes = (self.read)(resource)?;
        self.report.tiles += 1;
        self.report.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let stored = tile
            .decode(&bytes)
            .map_err(|cause| VerifyLogError::Malformed { resource, cause })?;
        let pairs = stored.iter().zip(hashes).zip(tile.nodes()).enumerate();
        for (item, ((found, expected), node)) in pairs {
            if found != expected {
                return Err(VerifyLogError::Tile {
                    resource,
                    item,
                    first_entry: node.index << node.level,
                    found: *found,
                    expected: *expected,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
