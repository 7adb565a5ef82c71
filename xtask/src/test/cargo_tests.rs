//! Runs `cargo test` and counts what it says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use berth_tests::command::capture;
use berth_tests::workspace;
use serde::Deserialize;

use super::Tally;
use crate::build::{cargo_command, logged};

/// An integration test.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) package: String,
    pub(super) name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    targets: Vec<MetadataTarget>,
}

#[derive(Deserialize)]
struct MetadataTarget {
    name: String,
    kind: Vec<String>,
}

/// All integration tests of the workspace.
///
/// # Errors
/// If cargo cannot read the workspace.
pub(super) fn targets() -> Result<Vec<Target>> {
    let mut cargo = cargo_command();
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--locked"]);
    let metadata: Metadata =
        serde_json::from_str(&capture(&mut cargo)?).context("understanding cargo metadata")?;
    let mut found = Vec::new();
    for package in metadata.packages {
        for target in package.targets {
            if target.kind.iter().any(|kind| kind == "test") {
                found.push(Target {
                    package: package.name.clone(),
                    name: target.name,
                });
            }
        }
    }
    Ok(found)
}

/// Runs `cargo test` with these arguments and adds what it counted.
///
/// # Errors
/// If cargo fails without any test having failed: something does not compile.
pub(super) fn run(arguments: &[&str], log: &str, tally: &mut Tally) -> Result<()> {
    run_with(cargo_command(), arguments, log, tally)
}

/// As [`run`], with a cargo that was given an environment.
///
/// # Errors
/// As [`run`].
pub(super) fn run_with(
    mut cargo: Command,
    arguments: &[&str],
    log: &str,
    tally: &mut Tally,
) -> Result<()> {
    let log = &name_of_log(log);
    let path: PathBuf = workspace::build_dir()
        .join("logs")
        .join(format!("{log}.log"));
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    cargo
        .args(["test", "--locked", "--no-fail-fast"])
        .args(arguments)
        // What a test that passed printed, to see whether it did not run in truth.
        .args(["--", "--show-output"]);
    let result = logged(&mut cargo, log);
    let output = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let counted = count(
        &String::from_utf8_lossy(&output),
        &path.display().to_string(),
    );
    if counted.failed.is_empty() {
        result?;
    }
    ensure!(
        counted != Tally::default(),
        "cargo test said nothing about any test; see {}",
        path.display()
    );
    tally.add(counted);
    Ok(())
}

/// A tier that calls cargo again keeps what the first call said.
fn name_of_log(log: &str) -> String {
    static CALLS: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());
    let mut calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let call = calls.entry(log.to_owned()).or_default();
    *call += 1;
    match *call {
        1 => log.to_owned(),
        call => format!("{log}-{call}"),
    }
}

/// What a test prints, and why, when this machine lacks what it needs.
const SKIPPED: &str = "SKIPPED";

/// Counts by the lines of libtest's plain output. A test that passed and printed [`SKIPPED`] was
/// skipped, wholly or in part.
fn count(output: &str, log: &str) -> Tally {
    let mut tally = Tally::default();
    let mut speaker = None;
    for line in output.lines() {
        let heading = line.strip_prefix("---- ");
        if let Some(name) = heading.and_then(|rest| rest.strip_suffix(" stdout ----")) {
            speaker = Some(name);
        } else if let (Some(name), true) = (speaker, line.starts_with(SKIPPED)) {
            tally.passed = tally.passed.saturating_sub(1);
            tally.skipped.push(format!("{name}: {line}"));
            speaker = None;
        } else if let Some((name, word)) = verdict(line) {
            match word {
                "ok" => tally.passed += 1,
                "FAILED" => tally.failed.push(format!("{name} (see {log})")),
                word if word.starts_with("ignored") => {
                    tally.skipped.push(format!("{name}: {word}"));
                }
                _ => {}
            }
        }
    }
    tally
}

/// The name of a test and how it ended, from a line such as `test a::b ... ok`.
fn verdict(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ")
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn every_line_about_a_test_is_counted() {
        let output = "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\
            test d ... ignored, no device\ntest result: FAILED. 1 passed; 1 failed; 1 ignored\n";
        let tally = count(output, "log");
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.failed, ["a::c (see log)"]);
        assert_eq!(tally.skipped, ["d: ignored, no device"]);
    }

    #[test]
    fn a_test_that_says_that_it_was_skipped_has_not_passed() {
        let output = "test a ... ok\ntest b ... ok\n\nsuccesses:\n\n---- a stdout ----\nSKIPPED: no \
            device\nSKIPPED: nor another\n\n---- b stdout ----\nhello\n";
        let tally = count(output, "log");
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.skipped, ["a: SKIPPED: no device"]);
    }
}
