//! What of others is in a package's programs: crates with their licences and notices, Rust's standard
//! library, and the C library of static programs.
//!
//! Asks cargo what is linked in and reads the crates' sources; it takes no licence text from memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use berth_tests::command::capture;
use serde::Deserialize;

use super::Release;
use super::manifest::{Linkage, Manifest, Package, Program};
use super::programs::STATIC_LIBC;
use crate::build::cargo_command;

/// Notices for what no crate brings: of Rust's standard library, and of each C library.
pub(super) const FILES: [&str; 3] = [
    "packaging/notice-glibc",
    "packaging/notice-musl",
    NOTICE_RUST,
];
const NOTICE_RUST: &str = "packaging/notice-rust";
/// How names of files with licences and notices begin, whatever their case.
const BEGINNINGS: [&str; 6] = [
    "COPYING",
    "COPYRIGHT",
    "LICENCE",
    "LICENSE",
    "NOTICE",
    "UNLICENSE",
];
/// Endings of files that are named after licences and are no text.
const CODE: [&str; 5] = ["c", "h", "json", "rs", "toml"];
const RULE: &str =
    "\n--------------------------------------------------------------------------------\n\n";

/// A crate as its author describes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Crate {
    name: String,
    version: String,
    license: Option<String>,
    authors: Vec<String>,
    manifest_path: PathBuf,
    /// None for our own.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
}

/// The notices for all programs of a package; none if it has no program of ours.
///
/// # Errors
/// If cargo fails, or a crate's sources cannot be read.
pub(super) fn notices(
    package: &Package,
    manifest: &Manifest,
    release: &Release,
) -> Result<Option<String>> {
    let programs: Vec<&Program> = manifest
        .programs
        .iter()
        .filter(|program| {
            let source = format!("release:{}", program.name);
            package.files.iter().any(|entry| entry.source == source)
        })
        .collect();
    if programs.is_empty() {
        return Ok(None);
    }
    let crates = linked(&programs, release)?;
    let mut texts = vec![read(&release.sources.root.join(NOTICE_RUST))?];
    if programs
        .iter()
        .any(|program| program.linkage == Linkage::Static)
    {
        let libc = read(&release.sources.programs.join(STATIC_LIBC))?;
        let notice = format!("packaging/notice-{libc}");
        texts.push(read(&release.sources.root.join(notice))?);
    }
    let mut found = BTreeMap::new();
    for one in crates {
        let folder = one
            .manifest_path
            .parent()
            .context("a manifest in no folder")?;
        let notices = texts_below(folder).with_context(|| format!("reading {}", one.name))?;
        found.insert(one, notices);
    }
    Ok(Some(document(&package.name, &texts, &found)))
}

/// The crates of others whose code is in these programs: what only runs while they are built is not.
fn linked(programs: &[&Program], release: &Release) -> Result<Vec<Crate>> {
    let target = format!("{}-unknown-linux-gnu", release.architecture);
    let mut tree = cargo_command();
    tree.args(["tree", "--locked", "--edges", "normal,no-proc-macro"]);
    tree.args(["--target", &target, "--prefix", "none", "--format", "{p}"]);
    tree.args(programs.iter().flat_map(|program| ["-p", &program.package]));
    let tree = capture(&mut tree).context("asking cargo what is linked in")?;
    let linked = names_and_versions(&tree);
    let mut metadata = cargo_command();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    metadata.args(["--filter-platform", &target]);
    let metadata: Metadata = serde_json::from_str(&capture(&mut metadata)?)
        .context("understanding what cargo says about the crates")?;
    let mut crates = metadata.packages;
    crates.retain(|one| {
        one.source.is_some() && linked.contains(&(one.name.as_str(), one.version.as_str()))
    });
    crates.sort();
    Ok(crates)
}

/// Reads lines such as `serde v1.0.229 (*)`.
fn names_and_versions(tree: &str) -> BTreeSet<(&str, &str)> {
    let pairs = tree.lines().filter_map(|line| line.split_once(" v"));
    pairs
        .map(|(name, rest)| {
            (
                name,
                rest.split_once(' ').map_or(rest, |(version, _)| version),
            )
        })
        .collect()
}

/// All licences and notices in a crate's sources, also of what its author took from others.
fn texts_below(folder: &Path) -> Result<BTreeSet<String>> {
    let mut texts = BTreeSet::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("listing {}", folder.display()))?
            .path();
        if path.is_dir() {
            texts.extend(texts_below(&path)?);
        } else if is_notice(&path) {
            texts.insert(read(&path)?);
        }
    }
    Ok(texts)
}

fn is_notice(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default().to_ascii_uppercase();
    let ending = path.extension().and_then(|ending| ending.to_str());
    BEGINNINGS
        .iter()
        .any(|beginning| name.starts_with(beginning))
        && ending.is_none_or(|ending| !CODE.contains(&ending))
}

/// A text without what differs between two copies of the same: ends of lines, blank lines around.
fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    Ok(lines.join("\n").trim_matches('\n').to_owned())
}

/// The crates by name, then every text once with the crates that have it.
fn document(
    package: &str,
    beside: &[String],
    crates: &BTreeMap<Crate, BTreeSet<String>>,
) -> String {
    let mut text = format!("Software of others in the programs of {package}\n\n");
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (one, notices) in crates {
        let title = format!("{} {}", one.name, one.version);
        let license = one
            .license
            .as_deref()
            .unwrap_or("see its licence text below");
        line(&mut text, &format!("{title}: {license}"));
        if notices.is_empty() {
            let authors = one.authors.join(", ");
            line(
                &mut text,
                &format!("    (no text in its sources; by {authors})"),
            );
        }
        for notice in notices {
            owners.entry(notice).or_default().push(title.clone());
        }
    }
    for notice in beside {
        text.push_str(RULE);
        line(&mut text, notice);
    }
    for (notice, titles) in owners {
        text.push_str(RULE);
        line(&mut text, &format!("{}:\n\n{notice}", titles.join(", ")));
    }
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a String takes all that is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, license: Option<&str>) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            authors: vec!["Somebody".to_owned()],
            manifest_path: PathBuf::new(),
            source: Some("registry".to_owned()),
        }
    }

    #[test]
    fn crates_that_are_ours_or_shown_again_are_read_alike() {
        let tree = "berth-vmm v0.1.0 (/src/berth vmm)\nserde v1.0.2\nserde v1.0.2 (*)\n\n";
        let found: Vec<_> = names_and_versions(tree).into_iter().collect();
        assert_eq!(found, [("berth-vmm", "0.1.0"), ("serde", "1.0.2")]);
    }

    #[test]
    fn texts_of_vendored_parts_are_found_and_code_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("third_party/part");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(folder.path().join("LICENSE-MIT"), "\nMIT \r\nof a\r\n\n").unwrap();
        std::fs::write(folder.path().join("license.rs"), "fn main() {}").unwrap();
        std::fs::write(folder.path().join("README.md"), "read me").unwrap();
        std::fs::write(deep.join("Copying.md"), "part's").unwrap();
        let found: Vec<String> = texts_below(folder.path()).unwrap().into_iter().collect();
        assert_eq!(found, ["MIT\nof a", "part's"]);
    }

    #[test]
    fn a_text_that_two_crates_share_is_there_once() {
        let shared = BTreeSet::from(["the text".to_owned()]);
        let crates = BTreeMap::from([
            (one("a", Some("MIT")), shared.clone()),
            (one("b", None), shared),
            (one("c", Some("ISC")), BTreeSet::new()),
        ]);
        let text = document("berth-trial", &["about Rust".to_owned()], &crates);
        assert_eq!(text.matches("the text").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0, b 1.0.0:\n\nthe text\n"), "{text}");
        assert!(text.contains("a 1.0.0: MIT\n"), "{text}");
        assert!(text.contains("c 1.0.0: ISC\n    (no text in its sources; by Somebody)"));
        assert!(text.contains("about Rust"));
    }
}
