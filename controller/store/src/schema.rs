//! The schema and its version (`PRAGMA user_version`). Migrations are only ever added.

use rusqlite::Connection;

const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_first.sql"),
    include_str!("../migrations/0002_slots.sql"),
    include_str!("../migrations/0003_tokens.sql"),
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_the_first_schema_keeps_its_rows() {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(MIGRATIONS[0]).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        conn.execute_batch(
            "INSERT INTO tenant VALUES ('acme', 'Acme', 600, 1, 1, 0, NULL);
             INSERT INTO quota VALUES ('acme', 'vms', 10, 1);
             INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state, generation,
               vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index)
             VALUES ('vm_a', 'acme', 'web', 'running', 0, 'running', 1, 1, 1, 1, 'i', '{}', 0, 0);",
        )
        .unwrap();
        migrate(&mut conn).unwrap();
        assert_eq!(version(&conn).unwrap(), known_version());
        let kept: (String, u32) = conn
            .query_row(
                "SELECT vm.name, quota.used FROM vm JOIN quota ON quota.tenant_id = vm.tenant_id",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(kept, ("web".to_owned(), 1));
        let slots: u32 = conn
            .query_row("SELECT COUNT(*) FROM slot", [], |row| row.get(0))
            .unwrap();
        assert_eq!(slots, 0);
        migrate(&mut conn).unwrap();
    }
}
