//! SQLite's side of the calls: one file, WAL, every commit on disk before it is answered.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
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
/// The page of this byte holds locks and is never written.
const LOCKED_BYTE: u32 = 1 << 30;
/// What the write-ahead log begins with, and what is before each page in it.
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

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

/// See [`super::Connection::check_whole`].
pub(super) fn check_whole(conn: &Connection, path: &Path) -> Result<()> {
    conn.execute_batch("BEGIN")?;
    let checked = lost_pages(conn, path);
    conn.execute_batch("ROLLBACK")?;
    match checked? {
        0 => Ok(()),
        lost => Err(SqlError::CutOff { lost }),
    }
}

/// SQLite looks at the file's length itself while there is no log. With one it takes the log's word for the
/// number of pages, and reads those that are in neither as empty.
fn lost_pages(conn: &Connection, path: &Path) -> Result<u64> {
    let number = |pragma| conn.pragma_query_value(None, pragma, |row| row.get::<_, u32>(0));
    // From the first answer on this is a reader, so that the log does not begin again meanwhile.
    let (pages, page_size) = (number("page_count")?, number("page_size")?);
    let length = std::fs::metadata(path).map_err(SqlError::Runtime)?.len();
    let in_file = u32::try_from(length / u64::from(page_size)).unwrap_or(u32::MAX);
    if in_file >= pages {
        return Ok(0);
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = match File::open(log) {
        Ok(log) => pages_of_log(log, page_size).map_err(SqlError::Runtime)?,
        Err(absent) if absent.kind() == ErrorKind::NotFound => BTreeSet::new(),
        Err(failure) => return Err(SqlError::Runtime(failure)),
    };
    let never_written = LOCKED_BYTE / page_size + 1;
    let is_lost = |page: &u32| !log.contains(page) && *page != never_written;
    Ok((in_file + 1..=pages).filter(is_lost).count() as u64)
}

/// The numbers of the pages that the log holds since it last began, by SQLite's file format, section 4.
fn pages_of_log(mut log: File, page_size: u32) -> std::io::Result<BTreeSet<u32>> {
    let mut pages = BTreeSet::new();
    let mut header = [0; LOG_HEADER];
    let mut frame = [0; FRAME_HEADER];
    let mut at = LOG_HEADER as u64;
    if log.metadata()?.len() < at {
        return Ok(pages);
    }
    log.read_exact(&mut header)?;
    // From a log that began again, older frames follow. What SQLite takes from the log ends there as well.
    while log.read_exact_at(&mut frame, at).is_ok() && frame.get(8..16) == header.get(16..24) {
        let [a, b, c, d, ..] = frame;
        pages.insert(u32::from_be_bytes([a, b, c, d]));
        at += (FRAME_HEADER as u64) + u64::from(page_size);
    }
    Ok(pages)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A table over many pages, some of which are in the file, some in the log, and some in both.
    fn fill(path: &Path) -> Connection {
        let conn = open_writer(path).unwrap();
        conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        let rows = |from: u32, to: u32| {
            for number in from..to {
                conn.execute("INSERT INTO t VALUES (?1, randomblob(1000))", [number])
                    .unwrap();
            }
        };
        conn.execute_batch("CREATE TABLE t (number INTEGER PRIMARY KEY, bytes BLOB) STRICT")
            .unwrap();
        rows(0, 100);
        copy_wal(&conn).unwrap();
        rows(100, 200);
        conn.execute(
            "UPDATE t SET bytes = randomblob(1000) WHERE number >= 50",
            [],
        )
        .unwrap();
        conn
    }

    #[test]
    fn a_file_that_ends_early_is_refused_unless_its_log_holds_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole.db");
        let conn = fill(&whole);
        let in_file = std::fs::metadata(&whole).unwrap().len() / 4096;
        let cut = folder.path().join("cut.db");
        let (mut refused, mut taken) = (0, 0);
        for pages in 1..=in_file {
            std::fs::copy(&whole, &cut).unwrap();
            std::fs::copy(
                folder.path().join("whole.db-wal"),
                folder.path().join("cut.db-wal"),
            )
            .unwrap();
            drop(std::fs::remove_file(folder.path().join("cut.db-shm")));
            let file = File::options().write(true).open(&cut).unwrap();
            // A page of which one byte is missing is read with a zero in its place: nobody else would notice.
            let lacks_a_byte = pages % 2 == 0;
            file.set_len(pages * 4096 - u64::from(lacks_a_byte))
                .unwrap();
            let reader = open_reader(&cut).unwrap();
            let checked = check_whole(&reader, &cut);
            let found: String = reader
                .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
                .unwrap_or_else(|failure| failure.to_string());
            match checked {
                Ok(()) => {
                    taken += 1;
                    assert_eq!(found, "ok", "{pages} pages");
                }
                Err(SqlError::CutOff { lost }) => {
                    refused += 1;
                    assert!(lost > 0);
                    assert!(found != "ok" || lacks_a_byte, "{pages} pages: {lost}");
                }
                Err(other) => panic!("{pages} pages: {other}"),
            }
        }
        assert!(refused > 5 && taken > 5, "{refused} refused, {taken} taken");
        drop(conn);
    }
}
