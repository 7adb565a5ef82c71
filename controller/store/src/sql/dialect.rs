//! Where the two databases want another text for the same meaning.

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// Lines between which a migration speaks to one database alone.
const SQLITE_ONLY: &str = "-- SQLite only:";
const POSTGRES_ONLY: &str = "-- PostgreSQL only:";
const BOTH: &str = "-- Both:";

impl Dialect {
    /// A migration's text for this database. Migrations are written for SQLite; what stands between
    /// `-- PostgreSQL only:` and `-- Both:` is taken as it is.
    pub(crate) fn schema(self, migration: &str) -> String {
        let mut taken = String::with_capacity(migration.len());
        let mut only = None;
        for line in migration.lines() {
            match line.trim() {
                SQLITE_ONLY => only = Some(Self::Sqlite),
                POSTGRES_ONLY => only = Some(Self::Postgres),
                BOTH => only = None,
                _ if only.is_some_and(|only| only != self) => {}
                _ => {
                    match (self, only) {
                        (Self::Postgres, None) => taken.push_str(&for_postgres(line)),
                        (Self::Postgres, Some(_)) | (Self::Sqlite, _) => taken.push_str(line),
                    }
                    taken.push('\n');
                }
            }
        }
        taken
    }
}

/// SQLite's types and endings of tables in PostgreSQL's words. Text is compared and ordered by its
/// bytes, whatever the server's locale.
fn for_postgres(line: &str) -> String {
    let code = line.split_once("--").map_or(line, |(code, _)| code);
    let code = code
        .replace(") STRICT, WITHOUT ROWID;", ");")
        .replace(") STRICT;", ");");
    let mut text = String::with_capacity(code.len());
    let mut word = String::new();
    for letter in code.chars().chain(['\n']) {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
            continue;
        }
        text.push_str(match word.as_str() {
            "INTEGER" => "BIGINT",
            "BLOB" => "BYTEA",
            "TEXT" => "TEXT COLLATE \"C\"",
            other => other,
        });
        word.clear();
        if letter != '\n' {
            text.push(letter);
        }
    }
    text
}

/// A statement with PostgreSQL's parameters: `?1` becomes `$1`, and a bare `?` the next number.
pub(crate) fn numbered(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    let mut bare = 0_u32;
    let mut quoted = false;
    let mut letters = sql.chars().peekable();
    while let Some(letter) = letters.next() {
        quoted ^= letter == '\'';
        if letter != '?' || quoted {
            text.push(letter);
            continue;
        }
        text.push('$');
        if !letters.peek().is_some_and(char::is_ascii_digit) {
            bare += 1;
            text.push_str(&bare.to_string());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_and_quoted_text_stays() {
        assert_eq!(
            numbered("SELECT a FROM t WHERE a = ?1 AND b = '?1' AND c > ?12"),
            "SELECT a FROM t WHERE a = $1 AND b = '?1' AND c > $12"
        );
        assert_eq!(numbered("a >= ? AND b = ?"), "a >= $1 AND b = $2");
    }

    #[test]
    fn a_table_has_the_types_of_its_database() {
        let table = "-- TEXT stays in a comment.
CREATE TABLE t (
    id TEXT PRIMARY KEY,
    INTEGERS INTEGER NOT NULL, -- not INTEGER
    hash BLOB
) STRICT, WITHOUT ROWID;";
        let postgres = Dialect::Postgres.schema(table);
        let lines: Vec<_> = postgres.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "",
                "CREATE TABLE t (",
                "id TEXT COLLATE \"C\" PRIMARY KEY,",
                "INTEGERS BIGINT NOT NULL,",
                "hash BYTEA",
                ");"
            ]
        );
        assert_eq!(Dialect::Sqlite.schema(table).trim(), table);
    }

    #[test]
    fn each_database_reads_what_is_for_it() {
        let migration = "CREATE TABLE a (x INTEGER) STRICT;
-- SQLite only:
CREATE TABLE b (x INTEGER) STRICT;
-- PostgreSQL only:
CREATE TABLE c (x INTEGER);
-- Both:
CREATE TABLE d (x INTEGER) STRICT;";
        assert_eq!(
            Dialect::Sqlite.schema(migration),
            "CREATE TABLE a (x INTEGER) STRICT;\nCREATE TABLE b (x INTEGER) STRICT;\n\
             CREATE TABLE d (x INTEGER) STRICT;\n"
        );
        assert_eq!(
            Dialect::Postgres.schema(migration),
            "CREATE TABLE a (x BIGINT);\nCREATE TABLE c (x INTEGER);\n\
             CREATE TABLE d (x BIGINT);\n"
        );
    }
}
