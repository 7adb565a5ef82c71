//! The log in the database: its head, and the sealing of a batch.
//!
//! A batch of changes is one transaction, and its entries are sealed into the tree at the end of it,
//! before the commit: leaves, nodes, root, signed checkpoint, head. Nothing of the tree is kept in
//! memory from one transaction to the next, so a commit whose outcome is not known, or another
//! controller on the same database, needs no special care.

use std::collections::HashMap;
use std::fmt;

use berth_ledger::checkpoint::{Checkpoint, OpenCheckpointError, SignedCheckpoint};
use berth_ledger::keys::{PublicKey, SigningKey};
use berth_ledger::leaf::ViewKey;
use berth_ledger::merkle::{Frontier, Hash, Node, leaf_hash};
use berth_ledger::note::{KeyKind, KeyName, Signer, Vkey};

use crate::error::StoreError;
use crate::ledger::{Appended, COLUMNS, StoredEntry, insert_entries, stored_entry};
use crate::log_tree::TreeNodes;
use crate::sql::{Connection, SqlError};
use crate::store::KeySet;

/// What stands for a stored hash that is missing or cut: no tree leads to it.
pub(crate) const NO_HASH: Hash = Hash([0; 32]);

/// Which log, and where it ends.
#[derive(Clone, PartialEq, Eq)]
pub struct LogHead {
    /// The log's name without its epoch.
    pub name: String,
    /// Counts honest discontinuities; every epoch is a log of its own.
    pub epoch: u64,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// Time of the last entry, in milliseconds since the epoch of Unix.
    pub at: i64,
    /// The signed checkpoint.
    pub note: String,
    pub(crate) view_secret: [u8; 32],
}

/// The ledger as it stands inside a writing transaction.
#[derive(Debug)]
pub(crate) struct OpenLog {
    /// As it was when the transaction began.
    pub(crate) head: LogHead,
    /// The time of what is appended in this transaction.
    pub(crate) at: i64,
    /// What was appended in it.
    appended: Vec<Appended>,
    /// The newest of them in each stream.
    last: HashMap<String, usize>,
}

/// What is not as it was written, found while sealing a batch or opening a database.
#[derive(Debug, thiserror::Error)]
pub enum LogFault {
    /// The head's checkpoint is not one by the ledger's key.
    #[error("the ledger's checkpoint is not signed by this controller's ledger key")]
    Checkpoint(#[source] OpenCheckpointError),
    /// The checkpoint is about another tree than the head.
    #[error("the ledger's checkpoint does not say what its head says")]
    Head,
    /// The stored nodes do not lead to the head's root.
    #[error("the tree's nodes do not lead to the root at {size} entries")]
    Root {
        /// The size.
        size: u64,
    },
    /// A leaf does not commit to its entry.
    #[error("entry {index}: its leaf does not belong to its body")]
    Body {
        /// Which entry.
        index: u64,
    },
    /// A stored node is not the hash of what is below it.
    #[error("entry {index}: the tree's node at level {level} is not the hash of what is below it")]
    Node {
        /// The first entry that it covers.
        index: u64,
        /// Its level.
        level: u8,
    },
    /// A stream has a gap, or an entry that does not build on the one before.
    #[error("entry {index}: it does not build on its stream's entry before")]
    Stream {
        /// Which entry.
        index: u64,
    },
    /// An entry cannot be found by what it says.
    #[error("entry {index}: what it can be found by is not what its body says")]
    Terms {
        /// Which entry.
        index: u64,
    },
    /// Entries are missing or stand in another place.
    #[error("entry {index} stands where entry {expected} belongs")]
    Order {
        /// Found.
        index: u64,
        /// Wanted.
        expected: u64,
    },
    /// The entries do not end where the head says.
    #[error("the entries end at {found}, the head says {expected}")]
    End {
        /// Found.
        found: u64,
        /// Said.
        expected: u64,
    },
    /// Somebody else moved the head meanwhile.
    #[error("the ledger's head was moved by another writer")]
    HeadMoved,
    /// The signing key cannot be used.
    #[error("the ledger's key cannot sign")]
    Key,
}

/// Why the log did not take a batch, or does not verify.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Something is not as it was written.
    #[error(transparent)]
    Fault(#[from] LogFault),
    /// It could not be read or written.
    #[error("the ledger could not be read or written")]
    Sql(#[from] SqlError),
    /// The transaction did not commit; whether it will be there after a restart is not known.
    #[error("the transaction did not commit")]
    Commit(#[source] SqlError),
    /// The first entry of a log could not be appended.
    #[error("the first entry of the log could not be appended")]
    Beginning(#[source] Box<StoreError>),
}

impl LogHead {
    /// The log's name with its epoch: what its checkpoints and its key are called.
    #[must_use]
    pub fn origin_text(&self) -> String {
        format!("{}/e{}", self.name, self.epoch)
    }

    fn origin(&self) -> Result<KeyName, LogFault> {
        KeyName::new(&self.origin_text()).map_err(|_| LogFault::Key)
    }

    /// What checkpoints of this log are verified with.
    ///
    /// # Errors
    /// If the stored name is not one that a key can have.
    pub fn vkey(&self, key: &PublicKey) -> Result<Vkey, LogFault> {
        Ok(Self::vkey_of(self.origin()?, key))
    }

    /// What checkpoints of the log of this origin are verified with.
    #[must_use]
    pub fn vkey_of(origin: KeyName, key: &PublicKey) -> Vkey {
        Vkey::new(origin, KeyKind::Ed25519, *key)
    }

    /// What a stream's tags are made with.
    #[must_use]
    pub fn view_key(&self, stream: &str) -> ViewKey {
        ViewKey::derive(&self.view_secret, stream)
    }

    /// The head as a checkpoint: signed by the log's key, and by the one before for as long as that
    /// counts, so that those who know only one of them believe it.
    pub(crate) fn signed(&self, keys: &KeySet) -> Result<String, LogFault> {
        let signers = std::iter::once(&keys.ledger)
            .chain(&keys.previous_ledger)
            .map(|key| {
                let seed = SigningKey::from_seed(key.seed()).map_err(|_| LogFault::Key)?;
                Ok(Signer::new(self.origin()?, seed))
            })
            .collect::<Result<Vec<_>, LogFault>>()?;
        let checkpoint = Checkpoint {
            origin: self.origin()?,
            size: self.size,
            root: self.root,
        };
        let signers: Vec<_> = signers.iter().collect();
        Ok(checkpoint.sign(&signers).to_string())
    }

    /// The checkpoint, if it is signed by one of `keys` and says what the head says.
    pub(crate) fn checkpoint(&self, keys: &[PublicKey]) -> Result<SignedCheckpoint, LogFault> {
        let vkeys = keys.iter().map(|key| self.vkey(key));
        let vkeys = vkeys.collect::<Result<Vec<_>, _>>()?;
        let opened =
            SignedCheckpoint::open(self.note.as_bytes(), &vkeys).map_err(LogFault::Checkpoint)?;
        let said = opened.checkpoint();
        if said.size != self.size || said.root != self.root {
            return Err(LogFault::Head);
        }
        Ok(opened)
    }
}

/// Without the secret.
impl fmt::Debug for LogHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHead")
            .field("name", &self.name)
            .field("epoch", &self.epoch)
            .field("size", &self.size)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl OpenLog {
    /// The log at the beginning of a transaction. Its time never falls, whatever the clock does.
    pub(crate) fn begin(conn: &Connection, now: i64) -> crate::sql::Result<Self> {
        let head = stored_head(conn)?;
        Ok(Self {
            at: now.max(head.at),
            head,
            appended: Vec::new(),
            last: HashMap::new(),
        })
    }

    pub(crate) fn next_index(&self) -> u64 {
        let appended = u64::try_from(self.appended.len()).unwrap_or(u64::MAX);
        self.head.size.saturating_add(appended)
    }

    /// How many entries were appended.
    pub(crate) fn len(&self) -> usize {
        self.appended.len()
    }

    pub(crate) fn append(&mut self, new: Appended) {
        let stream = new.entry.stream.clone();
        self.last.insert(stream, self.appended.len());
        self.appended.push(new);
    }

    /// The newest entry of a stream, if it was appended here.
    pub(crate) fn last_of(&self, stream: &str) -> Option<&StoredEntry> {
        let last = self.appended.get(*self.last.get(stream)?)?;
        Some(&last.entry)
    }

    /// Forget what was appended after the first `count`.
    pub(crate) fn undo_to(&mut self, count: usize) {
        self.appended.truncate(count);
        let streams = self.appended.iter().map(|new| new.entry.stream.clone());
        self.last = streams.zip(0..).collect();
    }

    /// Write down what was appended, put it into the tree, sign it and move the head: everything but the
    /// commit.
    ///
    /// The tree is computed twice, from the leaves in memory and from the rows as they were stored
    /// (each leaf against its body, each node against what is below it). A signed root over a bit
    /// that has flipped can never be taken back.
    pub(crate) fn seal(&self, conn: &Connection, keys: &KeySet) -> Result<(), LogError> {
        if self.appended.is_empty() {
            return Ok(());
        }
        insert_entries(conn, self.head.epoch, &self.appended)?;
        let nodes = TreeNodes::of(conn, self.head.epoch);
        let mut tree = Frontier::load(self.head.size, |node| nodes.read(node))?;
        if tree.root() != self.head.root {
            let size = self.head.size;
            return Err(LogFault::Root { size }.into());
        }
        let before = tree.clone();
        let mut new = Vec::new();
        for Appended { entry, .. } in &self.appended {
            tree.append(leaf_hash(&entry.leaf), |node, hash| {
                new.push((node, hash));
                Ok::<_, LogError>(())
            })?;
        }
        nodes.store(new)?;
        let root = self.root_of_stored(conn, before, &nodes)?;
        if root != tree.root() {
            let size = tree.size();
            return Err(LogFault::Root { size }.into());
        }
        let mut head = LogHead {
            size: tree.size(),
            root,
            at: self.at,
            note: String::new(),
            ..self.head.clone()
        };
        head.note = head.signed(keys)?;
        move_head(conn, &self.head, &head)
    }

    /// The new root from what the database gives back.
    fn root_of_stored(
        &self,
        conn: &Connection,
        mut tree: Frontier,
        nodes: &TreeNodes<'_>,
    ) -> Result<Hash, LogError> {
        let stored = nodes.completed(self.head.size, self.next_index())?;
        let sql = format!(
            "SELECT {COLUMNS} FROM ledger_entry WHERE epoch = ?1 AND idx >= ?2 ORDER BY idx"
        );
        let mut select = conn.prepare_cached(&sql)?;
        let rows = select.query_map((self.head.epoch, self.head.size), stored_entry)?;
        for entry in rows {
            let stored = |node| Ok(stored.get(&node).copied().unwrap_or(NO_HASH));
            check_entry(&mut tree, stored, &entry?)?;
        }
        if tree.size() != self.next_index() {
            return Err(LogFault::End {
                found: tree.size(),
                expected: self.next_index(),
            }
            .into());
        }
        Ok(tree.root())
    }
}

/// Take the next stored entry into a tree: its leaf must commit to it, and the nodes that it
/// completes must be the stored ones.
pub(crate) fn check_entry(
    tree: &mut Frontier,
    stored: impl Fn(Node) -> crate::sql::Result<Hash>,
    entry: &StoredEntry,
) -> Result<(), LogError> {
    let index = entry.index;
    if index != tree.size() {
        let expected = tree.size();
        return Err(LogFault::Order { index, expected }.into());
    }
    if !entry.is_committed() {
        return Err(LogFault::Body { index }.into());
    }
    tree.append(leaf_hash(&entry.leaf), |node, hash| {
        if stored(node)? == hash {
            return Ok(());
        }
        let (index, level) = (node.index << node.level, node.level);
        Err(LogError::from(LogFault::Node { index, level }))
    })
}

/// Compare and swap: nobody else has appended since the head was read.
fn move_head(conn: &Connection, old: &LogHead, new: &LogHead) -> Result<(), LogError> {
    let moved = conn
        .prepare_cached(
            "UPDATE ledger_head SET size = ?1, root = ?2, at = ?3, note = ?4
             WHERE epoch = ?5 AND size = ?6 AND root = ?7",
        )?
        .execute((
            new.size,
            new.root.0.as_slice(),
            new.at,
            &new.note,
            old.epoch,
            old.size,
            old.root.0.as_slice(),
        ))?;
    if moved == 1 {
        Ok(())
    } else {
        Err(LogFault::HeadMoved.into())
    }
}

/// The head as stored, unchecked.
pub(crate) fn stored_head(conn: &Connection) -> crate::sql::Result<LogHead> {
    conn.prepare_cached("SELECT name, epoch, size, root, at, note, view_secret FROM ledger_head")?
        .query_row([], |row| {
            Ok(LogHead {
                name: row.get(0)?,
                epoch: row.get(1)?,
                size: row.get(2)?,
                root: Hash::from_bytes(&row.get::<_, Vec<u8>>(3)?).unwrap_or(NO_HASH),
                at: row.get(4)?,
                note: row.get(5)?,
                view_secret: row.get::<_, Vec<u8>>(6)?.try_into().unwrap_or_default(),
            })
        })
}

#[cfg(test)]
mod tests;
