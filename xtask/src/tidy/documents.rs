//! Rules about documents: paths exist, commands exist, tables are whole, forbidden phrases stay out.

use std::path::Path;

use super::{Problem, Tree};

/// Phrases that would promise what we do not (requirement S3.59).
const FORBIDDEN: [&str; 6] = [
    "regulated workload isolation",
    "fedramp-ready",
    "ephi-ready",
    "pci cde segmentation",
    "rls-only tenancy",
    "cryptographically tamper-proof workload separation",
];

pub(super) fn problems(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.with_extension("md") {
        problems.extend(paths_exist(tree, file, text));
        problems.extend(phrases_stay_out(file, text));
    }
    problems.extend(dependencies_are_explained(tree));
    problems.extend(requirements_are_whole(tree));
    problems
}

/// A code span is taken for a path of this tree when it has a slash, no spaces and a first part that
/// is a folder of the root, or when it is a file name at the root.
fn looks_like_our_path(tree: &Tree, span: &str) -> bool {
    let plain = span
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-{},".contains(c));
    let Some((first, _)) = span.split_once('/') else {
        return false;
    };
    plain && !first.is_empty() && tree.exists(first)
}

fn expand_braces(span: &str) -> Vec<String> {
    match (span.find('{'), span.find('}')) {
        (Some(open), Some(close)) if open < close => span[open.saturating_add(1)..close]
            .split(',')
            .map(|part| {
                format!(
                    "{}{part}{}",
                    &span[..open],
                    &span[close.saturating_add(1)..]
                )
            })
            .collect(),
        _ => vec![span.to_owned()],
    }
}

fn paths_exist(tree: &Tree, file: &Path, text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let spans = line.split('`').skip(1).step_by(2);
        let links = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        let local_links = links
            .filter(|link| !link.contains("://") && !link.starts_with('#'))
            .filter_map(|link| link.split('#').next())
            .map(|link| {
                let folder = file.parent().unwrap_or(Path::new(""));
                folder.join(link).to_string_lossy().into_owned()
            });
        let named = spans
            .filter(|span| looks_like_our_path(tree, span))
            .map(str::to_owned);
        for path in named
            .chain(local_links)
            .flat_map(|span| expand_braces(&span))
        {
            if !tree.exists(&path) {
                let message = format!("names `{path}`, which does not exist");
                problems.push(Problem::new(file, index.saturating_add(1), message));
            }
        }
    }
    problems
}

fn phrases_stay_out(file: &Path, text: &str) -> Vec<Problem> {
    let lower = text.to_ascii_lowercase();
    FORBIDDEN
        .iter()
        .filter(|phrase| lower.contains(**phrase))
        .map(|phrase| {
            Problem::new(
                file,
                0,
                format!("says \"{phrase}\", which we do not promise"),
            )
        })
        .collect()
}

fn dependencies_are_explained(tree: &Tree) -> Vec<Problem> {
    let document = "docs/dependencies.md";
    let (Some(manifest), Some(explained)) = (tree.text("Cargo.toml"), tree.text(document)) else {
        return vec![Problem::new(document, 0, "is missing")];
    };
    let declared: Vec<&str> = manifest
        .split("# Third parties;")
        .nth(1)
        .and_then(|rest| rest.split("\n[").next())
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(" = ").map(|(name, _)| name))
        .collect();
    let row = |name: &str| format!("| `{name}` |");
    let unexplained = declared
        .iter()
        .filter(|name| !explained.contains(&row(name)))
        .map(|name| {
            Problem::new(
                document,
                0,
                format!("does not say what `{name}` is for and why this one"),
            )
        });
    let gone = explained
        .lines()
        .filter_map(|line| {
            line.strip_prefix("| `")
                .and_then(|rest| rest.split('`').next())
        })
        .filter(|name| !declared.contains(name))
        .map(|name| Problem::new(document, 0, format!("explains `{name}`, which is not used")));
    unexplained.chain(gone).collect()
}

/// Every requirement row is there, and every test that a row names is a function of this tree.
fn requirements_are_whole(tree: &Tree) -> Vec<Problem> {
    let document = "docs/requirements.md";
    let Some(text) = tree.text(document) else {
        return vec![Problem::new(document, 0, "is missing")];
    };
    let rows = |prefix: &'static str, count: u32| (1..=count).map(move |n| format!("{prefix}.{n}"));
    let mut problems: Vec<Problem> = rows("S1", 20)
        .chain(rows("S2", 30))
        .chain(rows("P", 12))
        .filter(|id| !text.contains(&format!("| {id} |")))
        .map(|id| Problem::new(document, 0, format!("has no row for {id}")))
        .collect();
    problems.extend(rows_name_tests(tree, document, "| S"));
    problems.extend(rows_name_tests(tree, document, "| P."));
    problems.extend(rows_name_tests(tree, "docs/attacks.md", "| "));
    problems
}

/// The last cell of every row names tests of this tree, or says that they are planned. Rows begin
/// with `start`; a table's head and the line below it are none.
fn rows_name_tests(tree: &Tree, document: &str, start: &str) -> Vec<Problem> {
    let Some(text) = tree.text(document) else {
        return vec![Problem::new(document, 0, "is missing")];
    };
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let is_row = line.starts_with(start) && !line.ends_with("| shown by |");
        let Some(shown_by) = (is_row && !line.starts_with("| ---"))
            .then(|| line.rsplit('|').nth(1))
            .flatten()
            .map(str::trim)
        else {
            continue;
        };
        let tests: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() && !shown_by.starts_with("planned") {
            let message = "names neither a test nor the word \"planned\"";
            problems.push(Problem::new(document, index.saturating_add(1), message));
        }
        for test in tests {
            if !is_a_test(tree, test) {
                let message = format!("names `{test}`, which is no test of this tree");
                problems.push(Problem::new(document, index.saturating_add(1), message));
            }
        }
    }
    problems
}

/// A test function, or a lab scenario written as `lab <name>`.
fn is_a_test(tree: &Tree, test: &str) -> bool {
    let declaration = match test.strip_prefix("lab ") {
        Some(scenario) => format!("\"{scenario}\""),
        None => format!("fn {test}("),
    };
    let in_lab = |file: &Path| file.starts_with("tests/src/lab");
    tree.with_extension("rs")
        .filter(|(file, _)| !test.starts_with("lab ") || in_lab(file))
        .any(|(_, text)| text.contains(&declaration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_several_paths() {
        assert_eq!(expand_braces("a/{b,c}.rs"), ["a/b.rs", "a/c.rs"]);
        assert_eq!(expand_braces("a/b.rs"), ["a/b.rs"]);
    }

    #[test]
    fn forbidden_phrases_are_found_in_any_case() {
        assert_eq!(
            phrases_stay_out(Path::new("a.md"), "we are FedRAMP-Ready").len(),
            1
        );
        assert_eq!(
            phrases_stay_out(Path::new("a.md"), "tamper-evident").len(),
            0
        );
    }
}
