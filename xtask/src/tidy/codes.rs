//! Error codes: each has a row in `docs/errors.md`, with its status, and a test that provokes it.

use std::path::{Path, PathBuf};

use super::{Problem, Tree};

const DOCUMENT: &str = "docs/errors.md";
const CATALOGUE: &str = "api/src/rest/error.rs";

pub(super) fn problems(tree: &Tree) -> Vec<Problem> {
    let (Some(catalogue), Some(document)) = (tree.text(CATALOGUE), tree.text(DOCUMENT)) else {
        return vec![Problem::new(DOCUMENT, 0, "or its catalogue is missing")];
    };
    let codes: Vec<(&str, &str)> = catalogue.lines().filter_map(code_of).collect();
    if codes.is_empty() {
        return vec![Problem::new(CATALOGUE, 0, "has no code that can be read")];
    }
    let rows: Vec<(usize, Row<'_>)> = document
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((index.saturating_add(1), row_of(line)?)))
        .collect();
    let mut problems = Vec::new();
    for (code, status) in &codes {
        let is_told = |(_, row): &(usize, Row<'_>)| row.code == *code && row.status == *status;
        if !rows.iter().any(is_told) {
            let message = format!("has no row for {code} with its status {status}");
            problems.push(Problem::new(DOCUMENT, 0, message));
        }
    }
    for (line, row) in &rows {
        if !codes.iter().any(|(code, _)| *code == row.code) {
            let message = format!("tells of `{}`, which is no code", row.code);
            problems.push(Problem::new(DOCUMENT, *line, message));
        }
        if !row.tests.iter().any(|test| provokes(tree, test, row.code)) {
            let message = format!(
                "names no test for `{}` whose file expects that code",
                row.code
            );
            problems.push(Problem::new(DOCUMENT, *line, message));
        }
    }
    problems
}

/// A code and its status, of a line of the catalogue.
fn code_of(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.trim().split_once(" = \"")?;
    if !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return None;
    }
    let (code, rest) = rest.split_once("\", ")?;
    let (status, _) = rest.split_once(", \"")?;
    status
        .chars()
        .all(|c| c.is_ascii_digit())
        .then_some((code, status))
}

struct Row<'d> {
    code: &'d str,
    status: &'d str,
    tests: Vec<&'d str>,
}

/// A row: code and status in the first two cells, tests in the last.
fn row_of(line: &str) -> Option<Row<'_>> {
    let cells: Vec<&str> = line
        .strip_prefix("| `")?
        .strip_suffix(" |")?
        .split(" | ")
        .collect();
    let [code, status, .., shown_by] = cells.as_slice() else {
        return None;
    };
    Some(Row {
        code: code.trim_end_matches('`'),
        status,
        tests: shown_by.split('`').skip(1).step_by(2).collect(),
    })
}

/// Whether the test stands in a file of the tests that expects this code, there or in the file's own
/// folder.
fn provokes(tree: &Tree, test: &str, code: &str) -> bool {
    let declaration = format!("fn {test}(");
    let expected = format!("\"{code}\"");
    let files = || {
        tree.with_extension("rs")
            .filter(|(file, _)| file.starts_with("tests/tests"))
    };
    files()
        .filter(|(_, text)| text.contains(&declaration))
        .any(|(home, _)| {
            files().any(|(file, text)| belongs(file, home) && text.contains(&expected))
        })
}

fn belongs(file: &Path, home: &Path) -> bool {
    file == home || file.starts_with(PathBuf::from(home).with_extension(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_with_its_status_and_other_lines_are_none() {
        let line = "    NotFound = \"not_found\", 404, \"Not found\";";
        assert_eq!(code_of(line), Some(("not_found", "404")));
        for other in [
            "    /// Absent.",
            "let x = \"a\";",
            "#[serde(rename = \"type\")]",
        ] {
            assert_eq!(code_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_row_has_a_code_a_status_and_tests() {
        let row =
            row_of("| `not_found` | 404 | gone | look `here` | `a_test`, `b_test` |").unwrap();
        assert_eq!((row.code, row.status), ("not_found", "404"));
        assert_eq!(row.tests, ["a_test", "b_test"]);
        assert!(row_of("| --- | --- |").is_none() && row_of("| code | status |").is_none());
    }

    #[test]
    fn a_file_owns_the_folder_of_its_name() {
        let home = Path::new("tests/tests/controller/matrix.rs");
        assert!(belongs(
            Path::new("tests/tests/controller/matrix/world.rs"),
            home
        ));
        assert!(!belongs(Path::new("tests/tests/controller/rates.rs"), home));
    }
}
