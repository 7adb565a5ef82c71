//! The anchor: a file with the newest checkpoint that was shown to anybody, kept apart from the
//! database, so that a database that went back in time is recognised before it signs anything.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth_controller_store::{LogHead, Store, StoreError};
use berth_ledger::checkpoint::{Checkpoint, OpenCheckpointError, SignedCheckpoint};
use berth_ledger::merkle::Hash;
use berth_ledger::note::Note;

/// Longest anchor that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// Where the newest checkpoint is kept.
#[derive(Clone, Debug)]
pub(crate) struct Anchor {
    path: PathBuf,
}

/// Why a database must not be served with this anchor beside it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnchorError {
    /// The database is older than what was shown of it.
    #[error(
        "the database went back in time: its ledger has {found} entries, and {known} were shown to others ({path}). Restore the newer database. If its newer entries are lost for good, `berth-controller new-epoch --reason …` begins a new log that says so; agents then refuse destructive work until `berth-agent accept-rollback` is run on their hosts"
    )]
    RolledBack {
        /// Entries of the database.
        found: u64,
        /// Entries that were shown.
        known: u64,
        /// The anchor.
        path: PathBuf,
    },
    /// Another history than the one that was shown.
    #[error(
        "the database's ledger is not the one that was shown to others: at {size} entries its root is another than in {path}. Restore the database that belongs to this anchor, or begin a new log with `berth-controller new-epoch --reason …`"
    )]
    Forked {
        /// The size of the checkpoint.
        size: u64,
        /// The anchor.
        path: PathBuf,
    },
    /// It belongs to another log.
    #[error(
        "{path} is of the log {origin}, which this database does not continue: move it away if it is of another controller"
    )]
    Foreign {
        /// Its log.
        origin: String,
        /// The anchor.
        path: PathBuf,
    },
    /// It cannot be read as what was written.
    #[error("{path} is not a checkpoint by this controller's ledger key")]
    Unreadable {
        /// The anchor.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: OpenCheckpointError,
    },
    /// The file system failed.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// The database failed.
    #[error("could not compare the ledger with its anchor")]
    Store(#[from] StoreError),
}

impl AnchorError {
    /// Whether the database is another one than was shown, which no later try makes good.
    pub(crate) fn is_another_history(&self) -> bool {
        match self {
            Self::RolledBack { .. } | Self::Forked { .. } | Self::Foreign { .. } => true,
            Self::Unreadable { .. } | Self::Io { .. } | Self::Store(_) => false,
        }
    }
}

impl Anchor {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The checkpoint in it, unverified; nothing if there is no file.
    pub(crate) fn read(&self) -> Result<Option<String>, AnchorError> {
        use std::io::Read as _;
        let mut text = String::new();
        let read =
            File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(self.io("read")(cause)),
        }
    }

    /// Replace it: whole and on disk, or not at all. The folder is held open while its file is
    /// written, so that an error of the disk is not lost with a forgotten inode.
    pub(crate) fn write(&self, note: &str) -> Result<(), AnchorError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let write = || {
            std::fs::create_dir_all(folder)?;
            let held = File::open(folder)?;
            // Two controllers of one machine may share the anchor.
            let temporary = self
                .path
                .with_extension(format!("{}.new", std::process::id()));
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(&temporary)?;
            file.write_all(note.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            held.sync_all()
        };
        write().map_err(self.io("write"))
    }

    /// Refuse a database that does not continue what was shown.
    pub(crate) fn check(&self, store: &Store) -> Result<(), AnchorError> {
        let Some(text) = self.read()? else {
            return Ok(());
        };
        let head = store.read(|db| db.log_head())?;
        let known = self.open(store, &head, &text)?;
        self.check_continues(store, &head, known.origin.as_str(), known.size, known.root)
    }

    /// Refuse a head that does not continue a tree that was shown: this log's of that size and root.
    pub(crate) fn check_continues(
        &self,
        store: &Store,
        head: &LogHead,
        origin: &str,
        size: u64,
        root: Hash,
    ) -> Result<(), AnchorError> {
        let rolled_back = || AnchorError::RolledBack {
            found: head.size,
            known: size,
            path: self.path.clone(),
        };
        if origin != head.origin_text() {
            // An anchor of an earlier epoch was left behind when the next one was begun; one of a
            // later epoch tells of a database from before that.
            return match epoch_of(origin, head) {
                Some(epoch) if epoch < head.epoch => Ok(()),
                Some(_) => Err(rolled_back()),
                None => Err(AnchorError::Foreign {
                    origin: origin.to_owned(),
                    path: self.path.clone(),
                }),
            };
        }
        if size > head.size {
            return Err(rolled_back());
        }
        if store.read(|db| db.root_at(size))? != root {
            return Err(AnchorError::Forked {
                size,
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    fn open(&self, store: &Store, head: &LogHead, text: &str) -> Result<Checkpoint, AnchorError> {
        let unreadable = |cause| AnchorError::Unreadable {
            path: self.path.clone(),
            cause,
        };
        let note = Note::parse(text.as_bytes())
            .map_err(OpenCheckpointError::Note)
            .map_err(unreadable)?;
        let said = Checkpoint::parse(note.text())
            .map_err(OpenCheckpointError::Text)
            .map_err(unreadable)?;
        if !said.origin.as_str().starts_with(&head.name) {
            return Ok(said);
        }
        let vkeys: Vec<_> = store
            .ledger_keys()
            .iter()
            .map(|key| LogHead::vkey_of(said.origin.clone(), key))
            .collect();
        SignedCheckpoint::open_note(note, &vkeys)
            .map(|opened| opened.checkpoint().clone())
            .map_err(unreadable)
    }

    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> AnchorError {
        let path = self.path.clone();
        move |cause| AnchorError::Io {
            action,
            path,
            cause,
        }
    }
}

/// The epoch of an origin, if it is of the same log as the head.
fn epoch_of(origin: &str, head: &LogHead) -> Option<u64> {
    let epoch = origin
        .strip_prefix(head.name.as_str())?
        .strip_prefix("/e")?;
    epoch.parse().ok()
}
