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

/// A statement in PostgreSQL's words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Numbered {
    /// With parameters from `$1` on.
    pub(crate) text: String,
    /// What each parameter says, in their order.
    pub(crate) says: Vec<Says>,
}

/// What a parameter of PostgreSQL says of one of ours, by its position from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Value(usize),
    /// PostgreSQL cannot tell the type of `?1` in `?1 IS NULL`, so the answer is sent instead.
    IsNull(usize),
}

impl Says {
    /// Which of our parameters it is about, from 0.
    pub(crate) fn position(&self) -> usize {
        match self {
            Self::Value(position) | Self::IsNull(position) => *position,
        }
    }
}

/// Give a statement PostgreSQL's parameters for `?1`, or for a bare `?`, which is the next one.
pub(crate) fn numbered(sql: &str) -> Numbered {
    let (mut text, mut says) = (String::with_capacity(sql.len()), Vec::new());
    let mut bare = 0;
    // What stands at an odd place is quoted.
    for (place, piece) in sql.split('\'').enumerate() {
        let quoted = place % 2 == 1;
        if place > 0 {
            text.push('\'');
        }
        let mut pieces = piece.split(if quoted { '\'' } else { '?' });
        text.push_str(pieces.next().unwrap_or_default());
        for after in pieces {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = after.split_at(digits);
            let position = number
                .parse()
                .map_or(bare, |number: usize| number.saturating_sub(1));
            bare = position + 1;
            let words = rest.trim_start();
            let (before, what, rest) = if let Some(rest) = words.strip_prefix("IS NULL") {
                ("", Says::IsNull(position), rest)
            } else if let Some(rest) = words.strip_prefix("IS NOT NULL") {
                ("NOT ", Says::IsNull(position), rest)
            } else {
                ("", Says::Value(position), rest)
            };
            let known = says.iter().position(|known| *known == what);
            let at = known.unwrap_or_else(|| {
                says.push(what);
                says.len() - 1
            });
            text.push_str(&format!("{before}${}{rest}", at + 1));
        }
    }
    Numbered { text, says }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, text: &str, says: &[Says]) {
        let numbered = numbered(sql);
        assert_eq!(
            (numbered.text.as_str(), numbered.says.as_slice()),
            (text, says)
        );
    }

    #[test]
    fn parameters_are_numbered_and_quoted_text_stays() {
        use Says::Value;
        check(
            "SELECT a FROM t WHERE a = ?2 AND b = '?1' AND c > ?12 AND d = ?2",
            "SELECT a FROM t WHERE a = $1 AND b = '?1' AND c > $2 AND d = $1",
            &[Value(1), Value(11)],
        );
        check(
            "a >= ? AND b = ?",
            "a >= $1 AND b = $2",
            &[Value(0), Value(1)],
        );
        check("'it''s ?1' = ?1", "'it''s ?1' = $1", &[Value(0)]);
        check("SELECT 1", "SELECT 1", &[]);
    }

    #[test]
    fn whether_a_parameter_is_null_is_a_parameter_of_its_own() {
        use Says::{IsNull, Value};
        check(
            "(?1 IS NULL OR a = ?1) AND (?2 IS NOT NULL OR b = 'x')",
            "($1 OR a = $2) AND (NOT $3 OR b = 'x')",
            &[IsNull(0), Value(0), IsNull(1)],
        );
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
