//! docs/performance.md: one page, a section for each measurement, each written by its own.

use anyhow::{Context as _, Result};
use berth_tests::workspace;

/// What stands above the sections.
const HEAD: &str = "# Performance

Written by `cargo xtask bench MEASUREMENT --write`, each section by its own measurement; nothing here is
written by hand. A share is berth's median divided by the other's.";
/// How a section begins. What is inside has deeper headings.
const SECTION: &str = "## ";

/// Put these sections, by their headings, on the page, and leave all others as they are.
///
/// # Errors
/// If the page cannot be written.
pub(super) fn write(sections: &[(&str, &str)]) -> Result<()> {
    let path = workspace::root().join("docs/performance.md");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let new = with_sections(&old, sections);
    std::fs::write(&path, new).context("writing docs/performance.md")
}

/// Put a file beside the page, named from there.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_beside(name: &str, content: &str) -> Result<()> {
    let path = workspace::root().join("docs").join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
}

fn with_sections(page: &str, new: &[(&str, &str)]) -> String {
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix(SECTION) {
            sections.push((heading.trim().to_owned(), String::new()));
        } else if let Some((_, body)) = sections.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    for (heading, body) in new {
        let body = (*body).to_owned();
        match sections.iter_mut().find(|(known, _)| known == heading) {
            Some((_, old)) => *old = body,
            None => sections.push(((*heading).to_owned(), body)),
        }
    }
    let sections = sections
        .iter()
        .map(|(heading, body)| format!("\n\n{SECTION}{heading}\n\n{}", body.trim()));
    let text: String = std::iter::once(HEAD.to_owned()).chain(sections).collect();
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_writes_its_own_section_and_no_other() {
        let first = with_sections("", &[("A", "one\n### Deeper\ntwo\n"), ("B", "three")]);
        assert!(first.starts_with(HEAD), "{first}");
        let second = with_sections(&first, &[("B", "four"), ("C", "five")]);
        assert_eq!(
            second.strip_prefix(HEAD).unwrap(),
            "\n\n## A\n\none\n### Deeper\ntwo\n\n## B\n\nfour\n\n## C\n\nfive\n"
        );
        assert_eq!(with_sections(&second, &[]), second);
    }
}
