//! Why the database did not do what it was asked.

use std::path::PathBuf;
use std::sync::Arc;

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// SQLite would not open or prepare the file.
    #[error("could not open the database {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// SQLite's reason.
        #[source]
        cause: rusqlite::Error,
    },
    /// The schema is newer than this program.
    #[error(
        "the database has schema {found}, this program knows up to {known}: install a newer berth-controller"
    )]
    TooNew {
        /// In the file.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The database was not initialised.
    #[error("the database {path} holds no controller identity: run `berth-controller init` first")]
    NotInitialised {
        /// Which file.
        path: PathBuf,
    },
    /// Its end does not verify.
    #[error(
        "the ledger does not verify; run `berth-controller verify-ledger`, and restore from a backup"
    )]
    Ledger(#[source] crate::log::LogError),
    /// The writing thread could not be started.
    #[error("could not start the database's writing thread")]
    Thread(#[source] std::io::Error),
}

/// Why a read or a write did not happen. Nothing of it has.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused a statement.
    #[error("the database refused a statement")]
    Sql(#[from] rusqlite::Error),
    /// The ledger entry could not be written.
    #[error("the ledger entry could not be written")]
    Ledger(#[source] rusqlite::Error),
    /// The transaction did not commit.
    #[error("the transaction did not commit")]
    Commit(#[source] Arc<crate::log::LogError>),
    /// A stored value is not what this program stores.
    #[error("a stored {what} is not readable")]
    Corrupt {
        /// Which value.
        what: &'static str,
    },
    /// A value could not be written as JSON, or a number is too large to store.
    #[error("a {what} could not be stored")]
    Unstorable {
        /// Which value.
        what: &'static str,
    },
    /// The writing thread is gone.
    #[error("the database's writing thread has ended")]
    Stopped,
}

impl StoreError {
    /// Whether the disk or the ledger is at fault, rather than our own statements: the caller should
    /// refuse changes for a while.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Ledger(_) | Self::Commit(_) | Self::Stopped => true,
            Self::Sql(cause) => matches!(
                cause.sqlite_error_code(),
                Some(
                    rusqlite::ErrorCode::DiskFull
                        | rusqlite::ErrorCode::SystemIoFailure
                        | rusqlite::ErrorCode::ReadOnly
                        | rusqlite::ErrorCode::DatabaseBusy
                        | rusqlite::ErrorCode::CannotOpen
                )
            ),
            Self::Corrupt { .. } | Self::Unstorable { .. } => false,
        }
    }
}
