//! Which of two checkpoints of a log may take the other's place. Pure.

use std::collections::HashMap;
use std::convert::Infallible;

use berth_ledger::checkpoint::Checkpoint;
use berth_ledger::merkle::{Hash, Node, root_from_nodes};

/// Why what is published must stay as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// It is newer.
    #[error(
        "the store has a checkpoint of {published} entries and the folder one of {found}: the folder went back in time, or is not the newest one. Bring the newer folder back; if those entries are lost, begin a new log with `berth-controller new-epoch --reason …`, which has a folder of its own"
    )]
    Newer {
        /// Entries of the store's.
        published: u64,
        /// Entries of the folder's.
        found: u64,
    },
    /// It is of another history.
    #[error(
        "the store has another history than the folder: at {size} entries its root is {published}, and the folder's is {found}. Publish the folder that belongs to this store, or give another destination"
    )]
    Forked {
        /// Entries of the store's.
        size: u64,
        /// The root there.
        published: Hash,
        /// The root here.
        found: Hash,
    },
}

/// The nodes that the root of the tree of this size is made of.
pub(crate) fn peaks(size: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    let Ok(_) = root_from_nodes(size, |node| {
        nodes.push(node);
        Ok::<_, Infallible>(Hash::of_empty_tree())
    });
    nodes
}

/// The root of the tree of this size; `None` if not all of its [`peaks`] are known.
pub(crate) fn root(size: u64, known: &HashMap<Node, Hash>) -> Option<Hash> {
    root_from_nodes(size, |node| known.get(&node).copied().ok_or(())).ok()
}

/// Whether `ours` may take the place of what is published. `found` is the root that our log has at the
/// published size, if it is that long.
pub(crate) fn may_replace(
    published: &Checkpoint,
    ours: &Checkpoint,
    found: Option<Hash>,
) -> Result<(), Denied> {
    match found {
        Some(found) if published.size <= ours.size => {
            if found == published.root {
                return Ok(());
            }
            Err(Denied::Forked {
                size: published.size,
                published: published.root,
                found,
            })
        }
        _ => Err(Denied::Newer {
            published: published.size,
            found: ours.size,
        }),
    }
}

#[cfg(test)]
mod tests {
    use berth_ledger::model::ModelLog;

    use super::*;

    fn log(size: u64, seed: u64) -> ModelLog {
        let mut log = ModelLog::new("ledger.example/d/e1", 7);
        for number in 0..size {
            log.append(format!("{seed} {number}").as_bytes());
        }
        log
    }

    #[test]
    fn only_what_has_grown_out_of_the_published_log_may_take_its_place() {
        let (ours, other) = (log(20, 1), log(20, 2));
        for published in 0..=20 {
            for size in 0..=20 {
                let verdict = |theirs: &ModelLog| {
                    let found = (published <= size).then(|| ours.checkpoint(published).root);
                    may_replace(&theirs.checkpoint(published), &ours.checkpoint(size), found)
                };
                let same = verdict(&ours);
                let forked = verdict(&other);
                if published > size {
                    let newer = Denied::Newer {
                        published,
                        found: size,
                    };
                    assert_eq!(same, Err(newer.clone()));
                    assert_eq!(forked, Err(newer));
                } else {
                    assert_eq!(same, Ok(()));
                    // Of nothing there is one history.
                    assert_eq!(forked.is_ok(), published == 0);
                }
            }
        }
    }
}
