//! Opening the database, and the readers' side of it.

use std::fmt;
use std::sync::Arc;

use berth_api::ids::ControllerId;
use berth_ledger::keys::{PublicKey, SigningKey};

use crate::database::Database;
use crate::error::{OpenStoreError, StoreError};
use crate::log::LogHead;
use crate::readers::Readers;
use crate::rows::{clock_ms, parsed};
use crate::seen_changes::SeenChanges;
use crate::sql::{Connection, OptionalExtension as _, SqlError};
use crate::writer::{WriteTx, Writer};
use crate::{log_check, log_epoch, schema};

/// The keys that sign inside transactions.
#[derive(Debug)]
pub struct Keys {
    /// Signs ledger entries.
    pub ledger: SigningKey,
    /// Signs tasks.
    pub task: SigningKey,
}

/// The keys of an open database.
#[derive(Debug)]
pub(crate) struct KeySet {
    pub(crate) ledger: SigningKey,
    /// Signs beside it for as long as there are those who know no other.
    pub(crate) previous_ledger: Option<SigningKey>,
    pub(crate) task: SigningKey,
}

/// The controller's database.
pub struct Store {
    database: Database,
    controller_id: ControllerId,
    ledger_key: PublicKey,
    ledger_keys: Vec<PublicKey>,
    writer: Writer,
    readers: Readers,
    seen: Arc<SeenChanges>,
}

/// What can be read: of a reader at some moment, or inside a write.
#[derive(Debug)]
pub struct Db<'c> {
    pub(crate) conn: &'c Connection,
    pub(crate) now: i64,
}

impl Store {
    /// Make the database and the controller's identity if they are missing. Repeatable.
    pub fn init(database: impl Into<Database>) -> Result<ControllerId, OpenStoreError> {
        let database = database.into();
        let conn = prepared(&database)?;
        let new = ControllerId::generate();
        // Of several that begin at once, one gives the name.
        conn.execute(
            "INSERT INTO controller (one, controller_id, created_at) VALUES (1, ?1, ?2)
             ON CONFLICT (one) DO NOTHING",
            (new.to_string(), clock_ms()),
        )
        .map_err(|cause| not_opened(&database, cause))?;
        identity(&conn, &database)
    }

    /// Open an initialised database, bring its schema up to date, check the ledger's last entry and
    /// start the writing thread.
    pub fn open(database: impl Into<Database>, keys: Keys) -> Result<Self, OpenStoreError> {
        Self::open_overlapping(database, keys, None)
    }

    /// [`Store::open`] while the ledger's key is changed: what is signed is signed by the key before it
    /// as well.
    pub fn open_overlapping(
        database: impl Into<Database>,
        keys: Keys,
        previous_ledger: Option<SigningKey>,
    ) -> Result<Self, OpenStoreError> {
        let database = database.into();
        let keys = KeySet {
            ledger: keys.ledger,
            previous_ledger,
            task: keys.task,
        };
        if database.is_absent() {
            return Err(not_initialised(&database));
        }
        let conn = prepared(&database)?;
        let controller_id = identity(&conn, &database)?;
        let ledger_keys: Vec<_> = std::iter::once(&keys.ledger)
            .chain(&keys.previous_ledger)
            .map(SigningKey::public)
            .collect();
        let ledger_key = keys.ledger.public();
        log_epoch::begin_first(&conn, &keys, controller_id, clock_ms())
            .map_err(OpenStoreError::Ledger)?;
        log_check::check_end(&conn, &ledger_keys).map_err(OpenStoreError::Ledger)?;
        let last = last_change(&conn).map_err(|cause| not_opened(&database, cause))?;
        let seen = Arc::new(SeenChanges::up_to(last));
        let writer = Writer::start(&database, conn, Arc::clone(&seen), keys)
            .map_err(OpenStoreError::Thread)?;
        Ok(Self {
            database,
            controller_id,
            ledger_key,
            ledger_keys,
            writer,
            readers: Readers::default(),
            seen,
        })
    }

    /// Read a database without opening it for writing and without checking anything first.
    pub fn inspect<T>(
        database: impl Into<Database>,
        read: impl FnOnce(&Db<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let conn = database.into().reader()?;
        conn.begin_read()?;
        read(&Db {
            conn: &conn,
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

    /// All keys whose signatures of the ledger count: that one, and the one before it while there are two.
    #[must_use]
    pub fn ledger_keys(&self) -> &[PublicKey] {
        &self.ledger_keys
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
        self.readers.read(
            || self.database.reader(),
            |conn| {
                read(&Db {
                    conn,
                    now: clock_ms(),
                })
            },
        )?
    }

    /// Whether another controller changed the database since this was last asked, or since it was
    /// opened. It may say so once too often.
    pub fn have_others_written(&self) -> Result<bool, StoreError> {
        let last = self.read(|db| Ok(last_change(db.conn)?))?;
        Ok(self.seen.have_others_written(last))
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
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// A connection to a database of this program's schema.
fn prepared(database: &Database) -> Result<Connection, OpenStoreError> {
    let failed = |cause| not_opened(database, cause);
    let conn = database.writer().map_err(failed)?;
    if let Database::File(path) = database {
        conn.check_whole(path).map_err(failed)?;
    }
    let found = schema::version(&conn).map_err(failed)?;
    let known = schema::known_version();
    if found > known {
        return Err(OpenStoreError::TooNew { found, known });
    }
    schema::migrate(&conn).map_err(failed)?;
    Ok(conn)
}

fn identity(conn: &Connection, database: &Database) -> Result<ControllerId, OpenStoreError> {
    let text: Option<String> = conn
        .query_row("SELECT controller_id FROM controller", [], |row| row.get(0))
        .optional()
        .map_err(|cause| not_opened(database, cause))?;
    text.and_then(|text| parsed(&text, "controller id").ok())
        .ok_or_else(|| not_initialised(database))
}

fn last_change(conn: &Connection) -> Result<u64, SqlError> {
    conn.query_row("SELECT changes FROM controller", [], |row| row.get(0))
}

fn not_opened(database: &Database, cause: SqlError) -> OpenStoreError {
    OpenStoreError::Open {
        database: database.to_string(),
        cause,
    }
}

fn not_initialised(database: &Database) -> OpenStoreError {
    OpenStoreError::NotInitialised {
        database: database.to_string(),
    }
}
