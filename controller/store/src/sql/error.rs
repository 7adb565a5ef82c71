//! Why a statement did not do what it was asked.

/// A database's refusal, whichever database it is.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// A row was expected and there is none.
    #[error("the query found no row")]
    NoRows,
    /// A column is not there or holds something else.
    #[error("column {column} does not hold what was expected")]
    Column {
        /// Its name or its position from 0.
        column: String,
    },
    /// A number has no place in a database's 64 bits.
    #[error("a number is too large to be stored")]
    TooLarge,
    /// A statement has more or fewer parameters than it was given.
    #[error("a statement takes {wanted} parameters and was given {found}")]
    ParameterCount {
        /// Given.
        found: usize,
        /// Taken.
        wanted: usize,
    },
    /// SQLite refused.
    #[error("SQLite refused")]
    Sqlite(#[from] rusqlite::Error),
    /// The disk did not take what was written to SQLite's file.
    #[error("the disk did not take what was written to it")]
    Flush(#[source] std::io::Error),
    /// SQLite's file ends too early.
    #[error(
        "its file ends too early: {lost} pages are neither in it nor in its log; restore it from a backup"
    )]
    CutOff {
        /// How many pages of 4 KiB are nowhere.
        lost: u64,
    },
    /// PostgreSQL refused, or the connection broke.
    #[error("PostgreSQL refused, or cannot be reached")]
    Postgres(#[from] tokio_postgres::Error),
    /// PostgreSQL could not be reached a moment ago, and it is too early for the next attempt.
    #[error("PostgreSQL cannot be reached")]
    Unreachable,
    /// PostgreSQL did not answer.
    #[error("PostgreSQL did not answer in time")]
    ConnectTimeout,
    /// The machine lacks what a connection needs.
    #[error("could not make what a connection runs on")]
    Runtime(#[source] std::io::Error),
}

/// What a statement gives.
pub(crate) type Result<T, E = SqlError> = std::result::Result<T, E>;

impl SqlError {
    /// Whether the disk, the server or the way to it is at fault, rather than our statement.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::NoRows | Self::Column { .. } | Self::TooLarge | Self::ParameterCount { .. } => {
                false
            }
            Self::Unreachable
            | Self::ConnectTimeout
            | Self::Runtime(_)
            | Self::Flush(_)
            | Self::CutOff { .. } => true,
            // Without a code it is the connection.
            Self::Postgres(cause) => cause.code().is_none_or(is_about_the_server),
            Self::Sqlite(cause) => matches!(
                cause.sqlite_error_code(),
                Some(
                    rusqlite::ErrorCode::DiskFull
                        | rusqlite::ErrorCode::SystemIoFailure
                        | rusqlite::ErrorCode::ReadOnly
                        | rusqlite::ErrorCode::DatabaseBusy
                        | rusqlite::ErrorCode::CannotOpen
                )
            ),
        }
    }
}

impl SqlError {
    /// Whether a disk here failed, rather than being full or absent.
    #[must_use]
    pub fn is_disk_failure(&self) -> bool {
        match self {
            Self::Sqlite(cause) => {
                cause.sqlite_error_code() == Some(rusqlite::ErrorCode::SystemIoFailure)
            }
            Self::Flush(_) => true,
            Self::NoRows
            | Self::Column { .. }
            | Self::TooLarge
            | Self::ParameterCount { .. }
            | Self::Postgres(_)
            | Self::Unreachable
            | Self::ConnectTimeout
            | Self::Runtime(_)
            | Self::CutOff { .. } => false,
        }
    }
}

/// Classes of SQLSTATE that say nothing against the statement: connection, read-only server, conflict
/// with others, resources, locks that did not come, an operator's hand, the system.
fn is_about_the_server(code: &tokio_postgres::error::SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    matches!(class, "08" | "25" | "40" | "53" | "55" | "57" | "58")
}

/// "No row" as `None`.
pub(crate) trait OptionalExtension<T> {
    fn optional(self) -> Result<Option<T>>;
}

impl<T> OptionalExtension<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(found) => Ok(Some(found)),
            Err(SqlError::NoRows) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}
