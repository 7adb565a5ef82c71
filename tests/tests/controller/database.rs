//! The database under a controller, for tests that look into it or do harm to it by hand.
//!
//! `BERTH_TEST_DATABASE=postgres` puts all controllers of a run on PostgreSQL; otherwise they have
//! SQLite's file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use berth_controller_store::{Database, PostgresServer};
use berth_tests::postgres::{self, Postgres};

/// Chooses the database of a run.
const CHOICE: &str = "BERTH_TEST_DATABASE";

/// A database that nobody else has.
#[derive(Clone, Debug)]
pub(crate) struct TestDatabase {
    database: Database,
    /// Where PostgreSQL's is.
    url: Option<String>,
    /// By whose certificates its server is known.
    ca: Option<PathBuf>,
}

/// A database that nobody changes meanwhile.
pub(crate) enum Held {
    /// Its transaction ends with the connection.
    Sqlite(#[expect(dead_code, reason = "held for its end")] rusqlite::Connection),
    /// Its transaction ends with `psql`.
    Postgres(#[expect(dead_code, reason = "held for its end")] postgres::Held),
}

impl TestDatabase {
    /// The one that this run is about.
    pub(crate) fn chosen(folder: &Path) -> Self {
        match std::env::var(CHOICE).as_deref() {
            Ok("postgres") => Self::postgres(),
            Ok("sqlite") | Err(_) => Self::sqlite(folder),
            Ok(other) => panic!("{CHOICE} is sqlite or postgres, not {other}"),
        }
    }

    pub(crate) fn sqlite(folder: &Path) -> Self {
        Self {
            database: Database::File(folder.join("berth.db")),
            url: None,
            ca: None,
        }
    }

    pub(crate) fn postgres() -> Self {
        Self::at(Postgres::of_this_process().new_database())
    }

    pub(crate) fn at(url: String) -> Self {
        Self {
            database: Database::Postgres(PostgresServer::parse(&url, None).unwrap()),
            url: Some(url),
            ca: None,
        }
    }

    /// A database whose server shows certificates of this authority.
    pub(crate) fn behind_tls(url: String, ca: PathBuf) -> Self {
        let pem = std::fs::read(&ca).unwrap();
        Self {
            database: Database::Postgres(PostgresServer::parse(&url, Some(&pem)).unwrap()),
            url: Some(url),
            ca: Some(ca),
        }
    }

    /// One of each kind.
    pub(crate) fn both(folder: &Path) -> [Self; 2] {
        [Self::sqlite(folder), Self::postgres()]
    }

    /// For the store itself.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// The controller's settings that name it.
    pub(crate) fn settings(&self) -> String {
        let mut settings = String::new();
        if let Some(url) = &self.url {
            settings = format!("[database]\nurl = \"{url}\"\n");
        }
        if let Some(ca) = &self.ca {
            settings.push_str(&format!("ca = {ca:?}\n"));
        }
        settings
    }

    /// Run SQL by hand, with foreign keys as they are; the database's words if it refuses.
    pub(crate) fn run(&self, sql: &str) -> Result<(), String> {
        match &self.database {
            Database::File(path) => open(path)
                .execute_batch(sql)
                .map_err(|refused| refused.to_string()),
            Database::Postgres(_) => postgres::run(self.url(), sql)
                .map(drop)
                .map_err(|refused| format!("{refused:#}")),
        }
    }

    /// Let nobody change anything until the guard is dropped. A controller waits five seconds for that.
    pub(crate) fn hold(&self) -> Held {
        match &self.database {
            Database::File(path) => {
                let database = open(path);
                database
                    .busy_timeout(std::time::Duration::from_secs(60))
                    .unwrap();
                database.execute_batch("BEGIN IMMEDIATE").unwrap();
                Held::Sqlite(database)
            }
            Database::Postgres(_) => {
                let locks = "LOCK TABLE idempotency IN ACCESS EXCLUSIVE MODE";
                Held::Postgres(postgres::hold(self.url(), locks).unwrap())
            }
        }
    }

    /// What differs between the two.
    pub(crate) fn run_as(&self, sqlite: &str, postgres: &str) -> Result<(), String> {
        self.run(match &self.database {
            Database::File(_) => sqlite,
            Database::Postgres(_) => postgres,
        })
    }

    /// The one value that a question gives, as text.
    pub(crate) fn value(&self, sql: &str) -> String {
        match &self.database {
            Database::File(path) => open(path)
                .query_row(&format!("SELECT CAST(({sql}) AS TEXT)"), [], |row| {
                    row.get(0)
                })
                .unwrap(),
            Database::Postgres(_) => postgres::run(self.url(), sql).unwrap(),
        }
    }

    /// The one column that a question gives, as texts.
    pub(crate) fn lines(&self, sql: &str) -> BTreeSet<String> {
        match &self.database {
            Database::File(path) => {
                let database = open(path);
                let mut select = database.prepare(sql).unwrap();
                let lines = select.query_map([], |row| row.get(0)).unwrap();
                lines.collect::<Result<_, _>>().unwrap()
            }
            Database::Postgres(_) => postgres::run(self.url(), sql)
                .unwrap()
                .lines()
                .map(ToOwned::to_owned)
                .collect(),
        }
    }

    /// Bytes, as this database writes it.
    pub(crate) fn bytes(&self, letter: &str) -> String {
        let hex: String = letter.bytes().map(|byte| format!("{byte:02x}")).collect();
        match &self.database {
            Database::File(_) => format!("x'{hex}'"),
            Database::Postgres(_) => format!("'\\x{hex}'"),
        }
    }

    /// Everything that is stored.
    pub(crate) fn contents(&self) -> Vec<u8> {
        match &self.database {
            Database::File(path) => {
                let mut bytes = std::fs::read(path).unwrap();
                bytes.extend(std::fs::read(path.with_extension("db-wal")).unwrap());
                bytes
            }
            Database::Postgres(_) => postgres::dump(self.url()).unwrap().into_bytes(),
        }
    }

    #[track_caller]
    pub(crate) fn assert_lacks(&self, secret: &str) {
        let contents = self.contents();
        let found = contents
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "a secret is stored");
    }

    fn url(&self) -> &str {
        self.url.as_deref().unwrap()
    }
}

fn open(path: &Path) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(path).unwrap();
    database.pragma_update(None, "foreign_keys", true).unwrap();
    database
}
