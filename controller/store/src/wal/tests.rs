//! When who copies, and that the log stays short while nothing but writing goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;

const SMALL: Limits = Limits {
    pass_after: 64,
    begins_again_at: 512,
    rest_at_most: 256,
    writer_copies_at: 64 * 1024,
};
/// SQLite's page and what the log says of each.
const FRAME_BYTES: u64 = 4096 + 24;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_pass_is_due_after_so_many_pages_and_again_after_as_many() {
    let mut state = State::new(SMALL);
    assert_eq!(state.committed(63, SMALL), AfterCommit::GoOn);
    assert_eq!(state.committed(64, SMALL), AfterCommit::WakeCopier);
    state.copied(60, SMALL);
    assert_eq!(state.committed(127, SMALL), AfterCommit::GoOn);
    assert_eq!(state.committed(128, SMALL), AfterCommit::WakeCopier);
}

#[test]
fn the_writer_copies_the_rest_once_after_a_pass_and_only_a_small_one() {
    let mut state = State::new(SMALL);
    assert_eq!(state.committed(600, SMALL), AfterCommit::WakeCopier);
    state.copied(300, SMALL);
    state.is_rest_due = true;
    assert_ne!(state.committed(601, SMALL), AfterCommit::Copy, "too much");
    state.copied(590, SMALL);
    assert_eq!(state.committed(602, SMALL), AfterCommit::Copy);
    // A reader keeps the log from beginning again: it is not tried with each commit.
    assert_eq!(state.committed(603, SMALL), AfterCommit::GoOn);
}

#[test]
fn a_log_that_began_again_is_copied_from_its_start() {
    let mut state = State::new(SMALL);
    state.committed(600, SMALL);
    state.copied(600, SMALL);
    assert_eq!(state.committed(2, SMALL), AfterCommit::GoOn);
    // Told late, of the log as it was before.
    state.copied(600, SMALL);
    assert_eq!(state.copied, 2);
    assert_eq!(state.committed(70, SMALL), AfterCommit::WakeCopier);
}

#[test]
fn a_writer_that_nobody_keeps_up_with_copies_itself() {
    let limits = Limits {
        writer_copies_at: 1000,
        ..SMALL
    };
    let mut state = State::new(limits);
    for in_log in 1000..1003 {
        assert_eq!(state.committed(in_log, limits), AfterCommit::Copy);
    }
}

fn database() -> (tempfile::TempDir, PathBuf, Connection) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let conn = Connection::open_file(&path).unwrap();
    conn.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)", [])
        .unwrap();
    (folder, path, conn)
}

fn write_a_row(conn: &Connection, n: u64) {
    conn.execute("INSERT INTO t VALUES (?1, zeroblob(20000))", [n])
        .unwrap();
}

fn log_bytes(path: &Path) -> u64 {
    std::fs::metadata(path.with_extension("db-wal"))
        .unwrap()
        .len()
}

#[test]
fn the_log_begins_again_while_nothing_but_writing_goes_on() {
    let (_folder, path, mut conn) = database();
    let copier = WalCopier::start(&path, SMALL).unwrap();
    copier.watch(&mut conn).unwrap();
    // How far the log gets before that is the scheduler's. A row is 5 pages or more, and a log that never
    // begins again holds all of them.
    let begun = Instant::now();
    let mut rows = 0;
    while rows == 0 || log_bytes(&path) >= rows * 5 * FRAME_BYTES {
        write_a_row(&conn, rows);
        rows += 1;
        assert!(begun.elapsed() < PATIENCE, "{rows} rows are in the log");
    }
    let found: u64 = conn
        .query_row("SELECT COUNT(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(found, rows);
}

#[test]
fn what_was_written_last_is_copied_without_another_write() {
    let (_folder, path, mut conn) = database();
    let copier = WalCopier::start(&path, SMALL).unwrap();
    copier.watch(&mut conn).unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    for n in 0..40 {
        write_a_row(&conn, n);
    }
    let begun = Instant::now();
    while std::fs::metadata(&path).unwrap().len() < before + 64 * 4096 {
        assert!(begun.elapsed() < PATIENCE, "nothing is copied");
        std::thread::yield_now();
    }
}

#[test]
fn a_reader_that_takes_long_keeps_nobody_from_writing() {
    let (_folder, path, mut conn) = database();
    let copier = WalCopier::start(&path, SMALL).unwrap();
    copier.watch(&mut conn).unwrap();
    write_a_row(&conn, 0);
    let reader = Connection::read_file(&path).unwrap();
    reader.begin_read().unwrap();
    let count = |conn: &Connection| -> u32 {
        conn.query_row("SELECT COUNT(*) FROM t", [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(count(&reader), 1);
    for n in 1..500 {
        write_a_row(&conn, n);
    }
    assert_eq!((count(&reader), count(&conn)), (1, 500));
}
