//! One set of calls for both databases: connections, cached statements, rows.
//!
//! Everything above speaks SQL that both read, with parameters `?1`, and sees the same four kinds of
//! values. What differs is in `sqlite`, `postgres` and `dialect`. It knows no table but the one row that
//! writers of one PostgreSQL queue up at.

mod dialect;
mod error;
mod postgres;
mod server;
mod sqlite;
mod values;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub(crate) use dialect::Dialect;
pub(crate) use error::OptionalExtension;
pub(crate) use error::Result;
pub use error::SqlError;
pub use server::{DatabaseUrlError, PostgresServer};
pub(crate) use values::{FromValue, Params, ToValue, Value, ValueRef, params_from_iter};

/// A connection. Statements are prepared once and kept.
pub(crate) struct Connection(Link);

enum Link {
    Sqlite(rusqlite::Connection),
    Postgres(Box<postgres::Session>),
}

/// A prepared statement.
pub(crate) struct Statement<'c>(Prepared<'c>);

enum Prepared<'c> {
    Sqlite(rusqlite::CachedStatement<'c>),
    Postgres(&'c postgres::Session, Arc<postgres::Statement>),
}

#[cfg(test)]
thread_local! {
    /// Steps of SQLite's machine that this thread's statements took.
    pub(crate) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
impl Drop for Statement<'_> {
    fn drop(&mut self) {
        if let Prepared::Sqlite(statement) = &self.0 {
            let steps = statement.reset_status(rusqlite::StatementStatus::VmStep);
            STEPS.set(STEPS.get() + u64::try_from(steps).unwrap());
        }
    }
}

/// One row of an answer.
pub(crate) struct Row<'r>(Columns<'r>);

enum Columns<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r tokio_postgres::Row),
}

/// The rows of an answer, each made into what `map` makes of it.
pub(crate) struct Rows<'s, F> {
    answer: Answer<'s>,
    map: F,
}

enum Answer<'s> {
    Sqlite(rusqlite::Rows<'s>),
    Postgres(std::vec::IntoIter<tokio_postgres::Row>),
}

/// How many rows one statement inserts. Few lengths, so that each is prepared once; the last one is 1, so
/// that there is a way for any number.
const ROWS_AT_ONCE: [usize; 3] = [64, 8, 1];
/// Writers of one PostgreSQL queue up at this row, so that quotas and the ledger have one order. It is
/// the first statement of their transactions: each later one sees all that was committed before.
const COUNT_CHANGE: &str = "UPDATE controller SET changes = changes + 1 RETURNING changes";
/// Migrations of one PostgreSQL queue up here, where there may be no table yet.
const QUEUE_TO_MIGRATE: &str = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
    SELECT pg_advisory_xact_lock(7163210542)";

impl Connection {
    /// SQLite's file, for changes; made if it is missing.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        Ok(Self(Link::Sqlite(sqlite::open_writer(path)?)))
    }

    /// SQLite's file, for reading.
    pub(crate) fn read_file(path: &Path) -> Result<Self> {
        Ok(Self(Link::Sqlite(sqlite::open_reader(path)?)))
    }

    /// A session of a PostgreSQL server.
    pub(crate) fn connect(server: &PostgresServer) -> Result<Self> {
        Ok(Self(Link::Postgres(Box::new(postgres::Session::connect(
            server,
        )?))))
    }

    /// From here on `told` hears after each commit how many pages SQLite's write-ahead log has, and can
    /// have the connection copy them into the file, as [`Connection::copy_wal`] does.
    pub(crate) fn after_commits(
        &mut self,
        told: impl FnMut(u32, &mut dyn FnMut() -> Result<Option<u32>>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        match &mut self.0 {
            Link::Sqlite(conn) => sqlite::after_commits(conn, told),
            Link::Postgres(_) => Ok(()),
        }
    }

    /// Copy what SQLite's write-ahead log holds into the file, as far as nobody has to be waited for. How
    /// many pages of the log are copied now; `None` if another connection is copying.
    pub(crate) fn copy_wal(&self) -> Result<Option<u32>> {
        match &self.0 {
            Link::Sqlite(conn) => sqlite::copy_wal(conn),
            Link::Postgres(_) => Ok(None),
        }
    }

    /// Refuse a file of SQLite that lacks a page, which otherwise nobody notices before the page is read.
    pub(crate) fn check_whole(&self, path: &Path) -> Result<()> {
        match &self.0 {
            Link::Sqlite(conn) => sqlite::check_whole(conn, path),
            Link::Postgres(_) => Ok(()),
        }
    }

    /// Which database it is.
    pub(crate) fn dialect(&self) -> Dialect {
        match &self.0 {
            Link::Sqlite(_) => Dialect::Sqlite,
            Link::Postgres(_) => Dialect::Postgres,
        }
    }

    /// A statement, prepared or taken from those that are.
    pub(crate) fn prepare_cached(&self, sql: &str) -> Result<Statement<'_>> {
        Ok(Statement(match &self.0 {
            Link::Sqlite(conn) => Prepared::Sqlite(conn.prepare_cached(sql)?),
            Link::Postgres(session) => Prepared::Postgres(session, session.prepare(sql)?),
        }))
    }

    /// Run a change; how many rows it touched.
    pub(crate) fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// Insert rows, many with one statement. `into` is the statement up to its rows. See
    /// [`Statement::send`].
    pub(crate) fn insert_all<const N: usize>(
        &self,
        into: &str,
        mut rows: &[[ValueRef<'_>; N]],
    ) -> Result<()> {
        for count in ROWS_AT_ONCE {
            if rows.len() < count {
                continue;
            }
            let mut sql = format!("{into} VALUES ");
            for row in 0..count {
                let comma = if row > 0 { "), (" } else { "(" };
                sql.push_str(comma);
                for column in 1..=N {
                    let comma = if column > 1 { ", ?" } else { "?" };
                    sql.push_str(&format!("{comma}{}", row * N + column));
                }
            }
            sql.push(')');
            let mut insert = self.prepare_cached(&sql)?;
            while let Some((some, rest)) = rows.split_at_checked(count) {
                insert.send(some.as_flattened())?;
                rows = rest;
            }
        }
        Ok(())
    }

    /// The first row of an answer.
    pub(crate) fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<T> {
        self.prepare_cached(sql)?.query_row(params, map)
    }

    /// Run statements without parameters, one after the other.
    pub(crate) fn execute_batch(&self, sql: &str) -> Result<()> {
        match &self.0 {
            Link::Sqlite(conn) => Ok(conn.execute_batch(sql)?),
            Link::Postgres(session) => session.execute_batch(sql),
        }
    }
}

/// Transactions. One is open at a time; inside a writing one, each change has a savepoint.
impl Connection {
    /// From here on all reads see one moment.
    pub(crate) fn begin_read(&self) -> Result<()> {
        self.execute_batch(match self.dialect() {
            Dialect::Sqlite => "BEGIN",
            Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        })
    }

    /// From here on nobody else changes anything. The number of this transaction, if it commits.
    pub(crate) fn begin_write(&self) -> Result<u64> {
        self.step(match self.dialect() {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN",
        })?;
        self.query_row(COUNT_CHANGE, [], |row| row.get(0))
    }

    /// As [`Connection::begin_write`], for a schema that may not be there.
    pub(crate) fn begin_migration(&self) -> Result<()> {
        self.execute_batch(match self.dialect() {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => QUEUE_TO_MIGRATE,
        })
    }

    /// What comes now is kept or undone as one.
    pub(crate) fn begin_change(&self) -> Result<()> {
        self.step("SAVEPOINT change")
    }

    /// Keep what came since [`Connection::begin_change`].
    pub(crate) fn keep_change(&self) -> Result<()> {
        self.step("RELEASE SAVEPOINT change")
    }

    /// Wait for the answers to all that was sent ([`Statement::send`]). A change that is kept has settled
    /// before: what fails afterwards is another's.
    pub(crate) fn settle(&self) -> Result<()> {
        match &self.0 {
            Link::Sqlite(_) => Ok(()),
            Link::Postgres(session) => session.settle(),
        }
    }

    /// Undo what came since [`Connection::begin_change`].
    pub(crate) fn undo_change(&self) -> Result<()> {
        // It is undone, whatever became of it.
        drop(self.settle());
        self.step("ROLLBACK TO SAVEPOINT change")?;
        self.step("RELEASE SAVEPOINT change")
    }

    /// Everything since the transaction's begin is on disk once this returns. After an error nobody
    /// knows whether it is.
    pub(crate) fn commit(&self) -> Result<()> {
        self.execute_batch("COMMIT")
    }

    /// Undo the open transaction, if there is one; whether the connection is good for another.
    pub(crate) fn abandon(&self) -> bool {
        match &self.0 {
            Link::Sqlite(conn) => conn.is_autocommit() || conn.execute_batch("ROLLBACK").is_ok(),
            Link::Postgres(session) => session.abandon(),
        }
    }

    fn step(&self, sql: &'static str) -> Result<()> {
        match &self.0 {
            Link::Sqlite(conn) => {
                conn.prepare_cached(sql)?.execute([])?;
                Ok(())
            }
            Link::Postgres(session) => {
                session.send_ahead(sql);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.dialect()).finish()
    }
}

impl Statement<'_> {
    /// Run a change; how many rows it touched.
    pub(crate) fn execute(&mut self, params: impl Params) -> Result<usize> {
        match &mut self.0 {
            Prepared::Sqlite(statement) => params.with(|values| sqlite::execute(statement, values)),
            Prepared::Postgres(session, statement) => {
                params.with(|values| session.execute(statement, values))
            }
        }
    }

    /// Run a change of whose answer nothing is asked. PostgreSQL's is not waited for: a failure is told by a
    /// later statement, or by [`Connection::settle`].
    pub(crate) fn send(&mut self, params: impl Params) -> Result<()> {
        match &mut self.0 {
            Prepared::Sqlite(statement) => {
                params.with(|values| sqlite::execute(statement, values).map(drop))
            }
            Prepared::Postgres(session, statement) => {
                params.with(|values| session.send(statement, values))
            }
        }
    }

    /// The first row of the answer; [`SqlError::NoRows`] if it has none.
    pub(crate) fn query_row<T>(
        &mut self,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<T> {
        match &mut self.0 {
            Prepared::Sqlite(statement) => params.with(|values| {
                let mut rows = sqlite::query(statement, values)?;
                let row = rows.next()?.ok_or(SqlError::NoRows)?;
                map(&Row(Columns::Sqlite(row)))
            }),
            Prepared::Postgres(session, statement) => {
                let rows = params.with(|values| session.query(statement, values))?;
                let row = rows.first().ok_or(SqlError::NoRows)?;
                map(&Row(Columns::Postgres(row)))
            }
        }
    }

    /// All rows of the answer, in its order. PostgreSQL sends them all before the first is given, so
    /// a question has a `LIMIT` where rows can be many.
    pub(crate) fn query_map<T, F: FnMut(&Row<'_>) -> Result<T>>(
        &mut self,
        params: impl Params,
        map: F,
    ) -> Result<Rows<'_, F>> {
        let answer = match &mut self.0 {
            Prepared::Sqlite(statement) => {
                Answer::Sqlite(params.with(|values| sqlite::query(statement, values))?)
            }
            Prepared::Postgres(session, statement) => {
                let rows = params.with(|values| session.query(statement, values))?;
                Answer::Postgres(rows.into_iter())
            }
        };
        Ok(Rows { answer, map })
    }
}

impl<T, F: FnMut(&Row<'_>) -> Result<T>> Iterator for Rows<'_, F> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        match &mut self.answer {
            Answer::Sqlite(rows) => match rows.next() {
                Ok(row) => row.map(|row| (self.map)(&Row(Columns::Sqlite(row)))),
                Err(failure) => Some(Err(failure.into())),
            },
            Answer::Postgres(rows) => rows
                .next()
                .map(|row| (self.map)(&Row(Columns::Postgres(&row)))),
        }
    }
}

/// A column by its position from 0 or by its name.
pub(crate) trait ColumnIndex: Copy + fmt::Display {
    fn position(self, row: &Row<'_>) -> Option<usize>;
}

impl ColumnIndex for usize {
    fn position(self, _: &Row<'_>) -> Option<usize> {
        Some(self)
    }
}

impl ColumnIndex for &str {
    fn position(self, row: &Row<'_>) -> Option<usize> {
        match &row.0 {
            Columns::Sqlite(row) => row.as_ref().column_index(self).ok(),
            Columns::Postgres(row) => postgres::position(row, self),
        }
    }
}

impl Row<'_> {
    /// A column's value.
    pub(crate) fn get<I: ColumnIndex, T: FromValue>(&self, index: I) -> Result<T> {
        let value = match (&self.0, index.position(self)) {
            (_, None) => None,
            (Columns::Sqlite(row), Some(position)) => sqlite::column(row, position)?,
            (Columns::Postgres(row), Some(position)) => postgres::column(row, position)?,
        };
        value
            .and_then(T::from_value)
            .ok_or_else(|| SqlError::Column {
                column: index.to_string(),
            })
    }
}
