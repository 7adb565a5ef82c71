//! Opening the database, and the readers' side of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_api::ids::ControllerId;
use berth_ledger::keys::{PublicKey, SigningKey};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use crate::error::{OpenStoreError, StoreError};
use crate::rows::{clock_ms, parsed};
use crate::writer::{WriteTx, Writer};
use crate::log::LogHead;
use crate::{log, log_check, schema};

/// How long a statement waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle reading connections that are kept.
const MAX_IDLE_READERS: usize = 8;

/// The keys that sign inside transactions.
#[derive(Debug)]
pub struct Keys {
    /// Signs ledger entries.
    pub ledger: SigningKey,
    /// Signs tasks.
    pub task: SigningKey,
}

/// The controller's database.
pub struct Store {
    path: PathBuf,
    controller_id: ControllerId,
    ledger_key: PublicKey,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
}

/// What can be read: of a reader at some moment, or inside a write.
#[derive(Debug)]
pub struct Db<'c> {
    pub(crate) conn: &'c Connection,
    pub(crate) now: i64,
}

impl Store {
    /// Make the database and the controller's identity if they are missing. Repeatable.
    pub fn init(path: &Path) -> Result<ControllerId, OpenStoreError> {
        let failed = |cause| OpenStoreError::Open {
            path: path.to_owned(),
            cause,
        };
        let mut conn = open_writer(path).map_err(failed)?;
        check_version(&conn, path)?;
        schema::migrate(&mut conn).map_err(failed)?;
        if let Some(id) = identity(&conn, path)? {
            return Ok(id);
        }
        let id = ControllerId::generate();
        conn.execute(
            "INSERT INTO controller (one, controller_id, created_at) VALUES (1, ?1, ?2)",
            (id.to_string(), clock_ms()),
        )
        .map_err(failed)?;
        Ok(id)
    }

    /// Open an initialised database, bring its schema up to date, check the ledger's last entry and
    /// start the writing thread.
    pub fn open(path: &Path, keys: Keys) -> Result<Self, OpenStoreError> {
        let failed = |cause| OpenStoreError::Open {
            path: path.to_owned(),
            cause,
        };
        if !path.exists() {
            return Err(OpenStoreError::NotInitialised {
                path: path.to_owned(),
            });
        }
        let mut conn = open_writer(path).map_err(failed)?;
        check_version(&conn, path)?;
        schema::migrate(&mut conn).map_err(failed)?;
        let controller_id =
            identity(&conn, path)?.ok_or_else(|| OpenStoreError::NotInitialised {
                path: path.to_owned(),
            })?;
        let ledger_key = keys.ledger.public();
        log::begin_first(&conn, &keys, controller_id, clock_ms()).map_err(OpenStoreError::Ledger)?;
        log_check::check_end(&conn, &ledger_key).map_err(OpenStoreError::Ledger)?;
        let writer = Writer::start(conn, keys).map_err(OpenStoreError::Thread)?;
        Ok(Self {
            path: path.to_owned(),
            controller_id,
            ledger_key,
            writer,
            readers: Mutex::new(Vec::new()),
        })
    }

    /// Read a database without opening it for writing and without checking anything first.
    pub fn inspect<T>(
        path: &Path,
        read: impl FnOnce(&Db<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut conn = open_reader(path)?;
        let tx = conn.transaction()?;
        read(&Db {
            conn: &tx,
            now: clock_ms(),
        })
    }

    /// Who this controller is.
    #[must_use]
    pub fn controller_id(&self) -> ControllerId {
        self.controller_id
    }

    /// The key that ledger entries are signed with.
    #[must_use]
    pub fn ledger_key(&self) -> PublicKey {
        self.ledger_key
    }

    /// End this log and begin the next one: for a database that is older than what was shown of it,
    /// whose log therefore must never be signed again. `last_known` is the newest checkpoint that is
    /// known of it; the head's own is taken if nothing is. No other controller may be running.
    pub fn begin_epoch(
        &self,
        last_known: Option<&str>,
        reason: &str,
    ) -> Result<LogHead, StoreError> {
        let (last_known, reason) = (last_known.map(ToOwned::to_owned), reason.to_owned());
        self.write(move |tx| tx.begin_next_log(last_known.as_deref(), &reason))?;
        self.read(|db| db.log_head())
    }

    /// Read one consistent picture. Blocks for as long as `read` runs.
    pub fn read<T>(
        &self,
        read: impl FnOnce(&Db<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.lock_readers().pop();
        let mut conn = match idle {
            Some(conn) => conn,
            None => open_reader(&self.path)?,
        };
        let result = {
            let tx = conn.transaction()?;
            read(&Db {
                conn: &tx,
                now: clock_ms(),
            })
        };
        let mut readers = self.lock_readers();
        if readers.len() < MAX_IDLE_READERS {
            readers.push(conn);
        }
        result
    }

    /// Hand a change to the writing thread; `done` is called there once the change is on disk, or
    /// has not happened. An `Err` of `change` undoes everything that it did.
    pub fn submit<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        self.writer.submit(change, done);
    }

    /// [`Store::submit`], and wait.
    pub fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.submit(change, move |result| {
            // Fails only if the waiting side below is gone, and then nobody wants the answer.
            drop(sender.send(result));
        });
        receiver.recv().map_err(|_| StoreError::Stopped)?
    }

    fn lock_readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(conn)
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

fn check_version(conn: &Connection, path: &Path) -> Result<(), OpenStoreError> {
    let found = schema::version(conn).map_err(|cause| OpenStoreError::Open {
        path: path.to_owned(),
        cause,
    })?;
    let known = schema::known_version();
    if found > known {
        return Err(OpenStoreError::TooNew { found, known });
    }
    Ok(())
}

fn identity(conn: &Connection, path: &Path) -> Result<Option<ControllerId>, OpenStoreError> {
    let text: Option<String> = conn
        .query_row("SELECT controller_id FROM controller", [], |row| row.get(0))
        .optional()
        .map_err(|cause| OpenStoreError::Open {
            path: path.to_owned(),
            cause,
        })?;
    Ok(text.and_then(|text| parsed(&text, "controller id").ok()))
}
