//! The schema and its version (`PRAGMA user_version`). Migrations are only ever added.

use rusqlite::Connection;

const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_first.sql")];

/// The newest schema that this program knows.
pub(crate) fn known_version() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// The schema in the file.
pub(crate) fn version(conn: &Connection) -> rusqlite::Result<u32> {
    conn.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Bring the file up to [`known_version`]; each step is one transaction.
pub(crate) fn migrate(conn: &mut Connection) -> rusqlite::Result<()> {
    let done = usize::try_from(version(conn)?).unwrap_or(usize::MAX);
    for (position, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", position + 1)?;
        tx.commit()?;
    }
    Ok(())
}
