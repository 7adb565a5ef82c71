//! `tidy`: what the compiler and clippy cannot see about this tree.
//!
//! Each rule is a function from the tree to [`Problem`]s; nothing here changes a file. A rule that is
//! written in CONTRIBUTING.md and can be checked by reading text has its check here.

mod codes;
mod documents;
mod layers;
mod sources;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// File, relative to the root.
    pub(crate) file: PathBuf,
    /// Line, from 1; 0 for the whole file.
    pub(crate) line: usize,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Problem {
    fn new(file: impl Into<PathBuf>, line: usize, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

/// The files that git tracks or would track, with their text where they are text.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    files: Vec<(PathBuf, String)>,
}

impl Tree {
    /// Read the tree at `root`.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let listing = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("git ls-files")?;
        if !listing.status.success() {
            bail!(
                "git ls-files failed: {}",
                String::from_utf8_lossy(&listing.stderr)
            );
        }
        let files = String::from_utf8(listing.stdout)?
            .lines()
            .filter_map(|name| {
                let text = std::fs::read_to_string(root.join(name)).ok()?;
                Some((PathBuf::from(name), text))
            })
            .collect();
        Ok(Self {
            root: root.to_owned(),
            files,
        })
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.files
            .iter()
            .find(|(name, _)| name == Path::new(path))
            .map(|(_, text)| text.as_str())
    }

    fn with_extension<'a>(
        &'a self,
        extension: &'a str,
    ) -> impl Iterator<Item = (&'a Path, &'a str)> {
        self.files
            .iter()
            .filter(move |(name, _)| name.extension().is_some_and(|found| found == extension))
            .map(|(name, text)| (name.as_path(), text.as_str()))
    }
}

/// Run every rule.
pub(crate) fn problems(root: &Path) -> anyhow::Result<Vec<Problem>> {
    let tree = Tree::read(root)?;
    let mut problems = sources::problems(&tree);
    problems.extend(documents::problems(&tree));
    problems.extend(codes::problems(&tree));
    problems.extend(layers::problems(&tree)?);
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let found: Vec<String> = problems(root)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
