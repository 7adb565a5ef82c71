//! Why the database did not do what it was asked.

use std::sync::Arc;

use crate::log::LogError;
use crate::sql::SqlError;

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// It could not be opened, reached or prepared.
    #[error("could not open the database {database}")]
    Open {
        /// Which one.
        database: String,
        /// The database's reason.
        #[source]
        cause: SqlError,
    },
    /// The schema is newer than this program.
    #[error(
        "the database has schema {found}, this program knows up to {known}: install a newer berth-controller"
    )]
    TooNew {
        /// In the database.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The database was not initialised.
    #[error(
        "the database {database} holds no controller identity: run `berth-controller init` first"
    )]
    NotInitialised {
        /// Which one.
        database: String,
    },
    /// Its end does not verify.
    #[error(
        "the ledger does not verify; run `berth-controller verify-ledger`, and restore from a backup"
    )]
    Ledger(#[source] LogError),
    /// The writing thread could not be started.
    #[error("could not start the database's writing thread")]
    Thread(#[source] std::io::Error),
}

/// Why a read or a write did not happen. Nothing of it has, unless [`StoreError::is_outcome_unknown`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused a statement.
    #[error("the database refused a statement")]
    Sql(#[from] SqlError),
    /// The transaction did not commit.
    #[error("the transaction did not commit")]
    Commit(#[source] Arc<LogError>),
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
    /// More changes wait already than can be recorded soon.
    #[error("too many changes wait to be recorded")]
    Busy,
    /// The writing thread is gone.
    #[error("the database's writing thread has ended")]
    Stopped,
}

impl StoreError {
    /// Whether the disk, the server or the ledger is at fault, rather than our own statements: the caller should
    /// refuse changes for a while.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Commit(_) | Self::Busy | Self::Stopped => true,
            Self::Sql(cause) => cause.is_unavailable(),
            Self::Corrupt { .. } | Self::Unstorable { .. } => false,
        }
    }

    /// Whether the connection or the disk failed at the commit itself: the change may be there.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Commit(cause) if matches!(**cause, LogError::Commit(_)))
    }
}
