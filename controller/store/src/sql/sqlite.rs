//! SQLite's side of the calls: one file, WAL, every commit on disk before it is answered.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::types::{ToSqlOutput, ValueRef as FileValue};
use rusqlite::wal::CheckpointMode;
use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, params_from_iter};

use super::values::ValueRef;
use super::{Result, SqlError};

/// How long a statement waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared.
const CACHED_STATEMENTS: usize = 256;
/// Pages of the file that the writer keeps, as SQLite takes it: below zero it is in KiB.
const WRITER_CACHE: i64 = -16 * 1024;

/// Open for changes; makes the file if it is missing.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "cache_size", WRITER_CACHE)?;
    // Savepoints' logs as well: one that went on in a temporary file told of a full disk where there was room.
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    keep_prepared(&conn)?;
    Ok(conn)
}

/// Open for reading alone.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    keep_prepared(&conn)?;
    Ok(conn)
}

/// Have statements prepared once. Without the planner's stability guarantee SQLite prepares one anew
/// whenever a parameter changes that it held against the condition of a partial index, and nearly all of our
/// tables have such indexes.
fn keep_prepared(conn: &Connection) -> Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(())
}

/// See [`super::Connection::after_commits`]. An error of `told` is the commit's, which has happened.
pub(super) fn after_commits(
    conn: &mut Connection,
    mut told: impl FnMut(u32, &mut dyn FnMut() -> Result<Option<u32>>) -> Result<()> + Send + 'static,
) -> Result<()> {
    let hook = move |wal: &mut Wal, in_log| {
        let mut copy = || copied(wal.checkpoint_v2(CheckpointMode::PASSIVE));
        match told(u32::try_from(in_log).unwrap_or(0), &mut copy) {
            Ok(()) => Ok(()),
            Err(SqlError::Sqlite(failure)) => Err(failure),
            Err(_) => Err(rusqlite::Error::InvalidQuery),
        }
    };
    Ok(conn.wal_hook(Some(hook))?)
}

/// See [`super::Connection::copy_wal`].
pub(super) fn copy_wal(conn: &Connection) -> Result<Option<u32>> {
    copied(conn.wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE))
}

/// SQLite tells of the pages in the log and of those that are copied; of fewer than none if there is no log.
fn copied(found: rusqlite::Result<(i32, i32)>) -> Result<Option<u32>> {
    match found {
        Ok((_, copied)) => Ok(u32::try_from(copied).ok()),
        Err(busy) if busy.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Run a change; how many rows it touched.
pub(super) fn execute(
    statement: &mut CachedStatement<'_>,
    values: &[ValueRef<'_>],
) -> Result<usize> {
    Ok(statement.execute(params_from_iter(values.iter().map(bound)))?)
}

/// Run a question.
pub(super) fn query<'s>(
    statement: &'s mut CachedStatement<'_>,
    values: &[ValueRef<'_>],
) -> Result<rusqlite::Rows<'s>> {
    Ok(statement.query(params_from_iter(values.iter().map(bound)))?)
}

/// A column's value; `None` if it is of a kind that we never store.
pub(super) fn column<'r>(row: &'r rusqlite::Row<'_>, index: usize) -> Result<Option<ValueRef<'r>>> {
    Ok(match row.get_ref(index)? {
        FileValue::Null => Some(ValueRef::Null),
        FileValue::Integer(number) => Some(ValueRef::Integer(number)),
        FileValue::Text(text) => std::str::from_utf8(text).ok().map(ValueRef::Text),
        FileValue::Blob(bytes) => Some(ValueRef::Blob(bytes)),
        FileValue::Real(_) => None,
    })
}

fn bound<'a>(value: &ValueRef<'a>) -> ToSqlOutput<'a> {
    ToSqlOutput::Borrowed(match *value {
        ValueRef::Null => FileValue::Null,
        ValueRef::Integer(number) => FileValue::Integer(number),
        ValueRef::Text(text) => FileValue::Text(text.as_bytes()),
        ValueRef::Blob(bytes) => FileValue::Blob(bytes),
    })
}
