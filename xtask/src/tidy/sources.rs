//! Rules about Rust files: opening lines, the unsafe fence, error texts, open ends.

use std::path::Path;

use super::{Problem, Tree};

/// The folders whose crates may contain unsafe code: the VMM's hands, and the test's attacker.
const UNSAFE_CRATES: [&str; 3] = ["vfio", "vmm/sys", "tests/src/bin/jail-attempt"];

pub(super) fn problems(tree: &Tree) -> Vec<Problem> {
    tree.with_extension("rs")
        .flat_map(|(file, text)| {
            [
                opens_with_its_purpose(file, text),
                forbids_unsafe(file, text),
                keeps_sources_out_of_display(file, text),
                has_no_open_ends(file, text),
            ]
        })
        .flatten()
        .collect()
}

fn opens_with_its_purpose(file: &Path, text: &str) -> Vec<Problem> {
    if text.starts_with("//! ") {
        return Vec::new();
    }
    vec![Problem::new(
        file,
        1,
        "opens without `//!`: say what the file owns and may not touch",
    )]
}

fn is_crate_root(file: &Path) -> bool {
    let is_bin = |folder: &Path| folder.ends_with("src/bin");
    let folder = file.parent();
    let in_bin = folder.is_some_and(is_bin);
    let in_bins_folder = folder.and_then(Path::parent).is_some_and(is_bin);
    in_bin
        || in_bins_folder && file.ends_with("main.rs")
        || file.ends_with("src/lib.rs")
        || file.ends_with("src/main.rs")
}

fn forbids_unsafe(file: &Path, text: &str) -> Vec<Problem> {
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|crate_| file.starts_with(crate_));
    if !is_crate_root(file) || may_be_unsafe || file.starts_with("fuzz") {
        return Vec::new();
    }
    if text.contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![Problem::new(
        file,
        1,
        "crate root without `#![forbid(unsafe_code)]`",
    )]
}

fn keeps_sources_out_of_display(file: &Path, text: &str) -> Vec<Problem> {
    numbered(text)
        .filter(|(_, line)| line.contains("#[error(\"") && line.contains("{source"))
        .map(|(number, _)| {
            Problem::new(
                file,
                number,
                "an error's text repeats its source: the reporter walks the chain",
            )
        })
        .collect()
}

fn has_no_open_ends(file: &Path, text: &str) -> Vec<Problem> {
    // Put together here so that this file does not find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
    ];
    numbered(text)
        .filter(|(_, line)| {
            line.contains("//")
                && marks
                    .iter()
                    .any(|mark| line.contains(mark) && !line.contains(&format!("{mark}(#")))
        })
        .map(|(number, _)| {
            Problem::new(file, number, "an open end without an issue: `TODO(#issue)`")
        })
        .collect()
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index.saturating_add(1), line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_purpose_is_found() {
        assert_eq!(
            opens_with_its_purpose(Path::new("a.rs"), "use x;\n").len(),
            1
        );
        assert_eq!(
            opens_with_its_purpose(Path::new("a.rs"), "//! Owns x.\n").len(),
            0
        );
    }

    #[test]
    fn every_crate_root_but_two_is_fenced() {
        assert_eq!(
            forbids_unsafe(Path::new("agent/core/src/lib.rs"), "").len(),
            1
        );
        assert_eq!(forbids_unsafe(Path::new("tests/src/bin/x.rs"), "").len(), 1);
        let in_folder = Path::new("tests/src/bin/x/main.rs");
        assert_eq!(forbids_unsafe(in_folder, "").len(), 1);
        assert_eq!(forbids_unsafe(Path::new("vmm/sys/src/lib.rs"), "").len(), 0);
        let attacker = Path::new("tests/src/bin/jail-attempt/main.rs");
        assert_eq!(forbids_unsafe(attacker, "").len(), 0);
        assert_eq!(
            forbids_unsafe(Path::new("agent/core/src/plan.rs"), "").len(),
            0
        );
    }

    #[test]
    fn an_error_text_with_its_source_is_found() {
        let text = "    #[error(\"could not read: {source}\")]\n";
        assert_eq!(
            keeps_sources_out_of_display(Path::new("a.rs"), text).len(),
            1
        );
    }

    #[test]
    fn an_open_end_needs_an_issue() {
        let bare = concat!("// TO", "DO: later\n");
        let with_issue = concat!("// TO", "DO(#3): later\n");
        assert_eq!(has_no_open_ends(Path::new("a.rs"), bare).len(), 1);
        assert_eq!(has_no_open_ends(Path::new("a.rs"), with_issue).len(), 0);
    }
}
