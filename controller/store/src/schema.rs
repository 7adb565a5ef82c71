//! The schema and its version. Migrations are only ever added.
//!
//! They are written for SQLite; `sql::Dialect::schema` says how one speaks to PostgreSQL. The version is
//! SQLite's `user_version`, and a table of one row in PostgreSQL.

use crate::sql::{Connection, Dialect, OptionalExtension as _, Result};

const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_first.sql"),
    include_str!("../migrations/0002_slots.sql"),
    include_str!("../migrations/0003_projects_and_quotas.sql"),
    include_str!("../migrations/0004_log.sql"),
    include_str!("../migrations/0005_placement.sql"),
    include_str!("../migrations/0006_changes.sql"),
    include_str!("../migrations/0007_tokens.sql"),
    include_str!("../migrations/0008_node_policy.sql"),
    include_str!("../migrations/0009_token_charges.sql"),
    include_str!("../migrations/0010_service_accounts.sql"),
    include_str!("../migrations/0011_deadlines.sql"),
    include_str!("../migrations/0012_slot_marks.sql"),
    include_str!("../migrations/0013_node_logs.sql"),
    include_str!("../migrations/0014_free_slots.sql"),
    include_str!("../migrations/0015_guest_tokens.sql"),
    include_str!("../migrations/0016_own_nodes.sql"),
    include_str!("../migrations/0017_witnessed.sql"),
    include_str!("../migrations/0018_sizes.sql"),
    include_str!("../migrations/0019_lifetimes.sql"),
    include_str!("../migrations/0020_pending_by_tenant.sql"),
    include_str!("../migrations/0021_persons.sql"),
    include_str!("../migrations/0022_seeds.sql"),
    include_str!("../migrations/0023_seed_ejections.sql"),
    include_str!("../migrations/0024_charges.sql"),
];

/// The newest schema that this program knows.
pub(crate) fn known_version() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// The schema in the database.
pub(crate) fn version(conn: &Connection) -> Result<u32> {
    match conn.dialect() {
        Dialect::Sqlite => conn.query_row("PRAGMA user_version", [], |row| row.get(0)),
        Dialect::Postgres => {
            // Asked of the table of tables: a name that was looked up in vain is remembered, and another
            // session may have made the table while this one queued.
            let is_there: bool = conn.query_row(
                "SELECT EXISTS (SELECT 1 FROM pg_tables
                   WHERE schemaname = current_schema() AND tablename = 'schema_version')",
                [],
                |row| row.get(0),
            )?;
            if !is_there {
                return Ok(0);
            }
            let stored = conn
                .query_row("SELECT version FROM schema_version", [], |row| row.get(0))
                .optional()?;
            Ok(stored.unwrap_or(0))
        }
    }
}

/// Bring the database up to [`known_version`]; each step is one transaction. Of several programs that
/// do it at once, each step is one's.
pub(crate) fn migrate(conn: &Connection) -> Result<()> {
    for (migration, number) in MIGRATIONS.iter().zip(1..) {
        let step = migrate_to(conn, migration, number);
        if step.is_err() {
            conn.abandon();
        }
        step?;
    }
    Ok(())
}

fn migrate_to(conn: &Connection, migration: &str, number: u32) -> Result<()> {
    conn.begin_migration()?;
    if version(conn)? < number {
        conn.execute_batch(&conn.dialect().schema(migration))?;
        conn.execute_batch(&match conn.dialect() {
            Dialect::Sqlite => format!("PRAGMA user_version = {number}"),
            Dialect::Postgres => format!(
                "CREATE TABLE IF NOT EXISTS schema_version
                   (one BIGINT PRIMARY KEY CHECK (one = 1), version BIGINT NOT NULL);
                 INSERT INTO schema_version VALUES (1, {number})
                   ON CONFLICT (one) DO UPDATE SET version = excluded.version"
            ),
        })?;
    }
    conn.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_the_first_schema_keeps_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let conn = Connection::open_file(&folder.path().join("berth.db")).unwrap();
        conn.execute_batch(&Dialect::Sqlite.schema(MIGRATIONS[0]))
            .unwrap();
        conn.execute_batch("PRAGMA user_version = 1").unwrap();
        conn.execute_batch(
            "INSERT INTO tenant VALUES ('acme', 'Acme', 600, 1, 1, 0, NULL);
             INSERT INTO quota VALUES ('acme', 'vms', 10, 1);
             INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state, generation,
               vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index)
             VALUES ('vm_a', 'acme', 'web', 'running', 0, 'running', 1, 2, 64, 1, 'i', '{}', 0, 0);
             INSERT INTO charge VALUES ('acme', 'vm_a', 'vms', 1);",
        )
        .unwrap();
        migrate(&conn).unwrap();
        assert_eq!(version(&conn).unwrap(), known_version());
        let kept: (String, u32) = conn
            .query_row(
                "SELECT vm.name, quota.used FROM vm JOIN quota ON quota.tenant_id = vm.tenant_id
                 AND scope = vm.project_id WHERE resource = 'vms'",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(kept, ("web".to_owned(), 1));
        let slots: u32 = conn
            .query_row("SELECT COUNT(*) FROM slot", [], |row| row.get(0))
            .unwrap();
        assert_eq!(slots, 0);
        let memory: u32 = conn
            .query_row(
                "SELECT used FROM quota WHERE scope = '' AND resource = 'memory_mb'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(memory, 64);
        migrate(&conn).unwrap();
    }
}
