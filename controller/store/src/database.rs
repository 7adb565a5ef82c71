//! Where the database is, and the writer's way to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::seen_changes::SeenChanges;
use crate::sql::{Connection, PostgresServer, Result, SqlError};
use crate::wal::{self, WalCopier};

/// Pauses between attempts to reach a database that cannot be reached: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where the database is.
#[derive(Clone, Debug)]
pub enum Database {
    /// SQLite: one file, for one machine.
    File(PathBuf),
    /// PostgreSQL: several controllers may share it.
    Postgres(PostgresServer),
}

impl Database {
    /// A connection for changes.
    pub(crate) fn writer(&self) -> Result<Connection> {
        match self {
            Self::File(path) => Connection::open_file(path),
            Self::Postgres(server) => Connection::connect(server),
        }
    }

    /// A connection for reading.
    pub(crate) fn reader(&self) -> Result<Connection> {
        match self {
            Self::File(path) => Connection::read_file(path),
            Self::Postgres(server) => Connection::connect(server),
        }
    }

    /// Whether there cannot be anything to open.
    pub(crate) fn is_absent(&self) -> bool {
        match self {
            Self::File(path) => !path.exists(),
            Self::Postgres(_) => false,
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Postgres(server) => write!(f, "{server}"),
        }
    }
}

impl<P: AsRef<Path>> From<P> for Database {
    fn from(path: P) -> Self {
        Self::File(path.as_ref().to_owned())
    }
}

impl From<&Database> for Database {
    fn from(database: &Database) -> Self {
        database.clone()
    }
}

/// The writer's connection, made again when it is lost.
pub(crate) struct WriterLink {
    database: Database,
    conn: Option<Connection>,
    pause: Duration,
    not_before: Option<Instant>,
    /// The number of the open transaction.
    number: u64,
    seen: Arc<SeenChanges>,
    /// SQLite's alone.
    wal: Option<WalCopier>,
}

impl WriterLink {
    /// Take over a connection that is there already.
    pub(crate) fn new(
        database: Database,
        mut conn: Connection,
        seen: Arc<SeenChanges>,
    ) -> std::io::Result<Self> {
        let wal = match &database {
            Database::File(path) => Some(WalCopier::start(path, wal::LIMITS)?),
            Database::Postgres(_) => None,
        };
        if let Some(wal) = &wal {
            wal.watch(&mut conn).map_err(std::io::Error::other)?;
        }
        Ok(Self {
            database,
            conn: Some(conn),
            pause: FIRST_PAUSE,
            not_before: None,
            number: 0,
            seen,
            wal,
        })
    }

    fn connect(&self) -> Result<(Connection, u64)> {
        let mut conn = self.database.writer()?;
        if let Some(wal) = &self.wal {
            wal.watch(&mut conn)?;
        }
        let number = conn.begin_write()?;
        Ok((conn, number))
    }

    /// A connection in a fresh writing transaction. One that was lost while idle is replaced before
    /// anybody notices.
    pub(crate) fn begin(&mut self) -> Result<&Connection> {
        if let Some(conn) = self.conn.take() {
            match conn.begin_write() {
                Ok(number) => {
                    self.number = number;
                    return Ok(self.conn.insert(conn));
                }
                Err(refused) if conn.abandon() => {
                    self.conn = Some(conn);
                    return Err(refused);
                }
                Err(_) => {}
            }
        }
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(SqlError::Unreachable);
        }
        match self.connect() {
            Ok((conn, number)) => {
                self.number = number;
                self.pause = FIRST_PAUSE;
                self.not_before = None;
                Ok(self.conn.insert(conn))
            }
            Err(failure) => {
                self.not_before = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Err(failure)
            }
        }
    }

    /// The transaction has committed.
    pub(crate) fn committed(&self) {
        self.seen.own(self.number);
    }

    /// The transaction did not commit, or nobody knows whether it did: nothing of it is kept here.
    pub(crate) fn give_up(&mut self) {
        self.conn = self.conn.take().filter(Connection::abandon);
    }
}
