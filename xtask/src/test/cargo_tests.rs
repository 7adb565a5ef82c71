//! The workspace's test programs: built once, run one by one, counted by what they say.
//!
//! `crate::build` builds them together with everything else, and cargo tells where each is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use berth_tests::command::run_logged;
use berth_tests::workspace;
use serde::Deserialize;

use super::Tally;
use crate::build;

/// Where a test program's tests stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Beside the code.
    Unit,
    /// In a package's `tests`.
    Integration,
}

/// One test program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestProgram {
    pub(super) package: String,
    pub(super) target: String,
    pub(super) kind: Kind,
    executable: PathBuf,
    /// The package's folder, in which cargo runs its tests.
    folder: PathBuf,
}

/// One line of what cargo tells in JSON.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<MessageTarget>,
    profile: Option<MessageProfile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct MessageTarget {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct MessageProfile {
    test: bool,
}

/// All test programs of the workspace, built if need be, and all programs beside them.
///
/// # Errors
/// If something does not compile; the message quotes the log.
pub(super) fn programs() -> Result<&'static [TestProgram]> {
    static BUILT: OnceLock<Vec<TestProgram>> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built);
    }
    let log = build::everything()?;
    let told = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
    let found = told_of(&String::from_utf8_lossy(&told))?;
    ensure!(!found.is_empty(), "cargo told of no test program");
    Ok(BUILT.get_or_init(|| found))
}

/// The test programs in what cargo told. Its own words for people stand between.
fn told_of(output: &str) -> Result<Vec<TestProgram>> {
    let mut found = Vec::new();
    for line in output.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("understanding cargo")?;
        let (Some(target), Some(executable), Some(manifest)) =
            (message.target, message.executable, message.manifest_path)
        else {
            continue;
        };
        let is_test = message.profile.is_some_and(|profile| profile.test);
        if message.reason != "compiler-artifact" || !is_test {
            continue;
        }
        let folder = manifest.parent().context("a manifest lies in a folder")?;
        let is_integration = target.kind.iter().any(|kind| kind == "test");
        found.push(TestProgram {
            package: package_of(&manifest)?,
            target: target.name,
            kind: if is_integration {
                Kind::Integration
            } else {
                Kind::Unit
            },
            executable,
            folder: folder.to_owned(),
        });
    }
    found.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(found)
}

fn package_of(manifest: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let text =
        fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("understanding {}", manifest.display()))?;
    Ok(manifest.package.name)
}

/// Runs some test programs, those tests of theirs whose names hold `filter`, with these variables
/// set, and adds what they counted.
///
/// # Errors
/// If a program cannot be run, or none says anything of any test.
pub(super) fn run<'a>(
    programs: impl IntoIterator<Item = &'a TestProgram>,
    (filter, variables): (&str, &[(&str, &str)]),
    log: &str,
    tally: &mut Tally,
) -> Result<()> {
    let path = workspace::build_dir()
        .join("logs")
        .join(format!("{}.log", name_of_log(log)));
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    let mut counted = Tally::default();
    for program in programs {
        counted.add(run_one(program, filter, variables, &path)?);
    }
    ensure!(
        counted != Tally::default(),
        "no test said anything; see {}",
        path.display()
    );
    tally.add(counted);
    Ok(())
}

fn run_one(
    program: &TestProgram,
    filter: &str,
    variables: &[(&str, &str)],
    log: &Path,
) -> Result<Tally> {
    let mut command = Command::new(&program.executable);
    command
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .envs(scratch(program))
        .envs(variables.iter().copied())
        .arg(filter)
        // What a test that passed printed, to see whether it did not run in truth.
        .arg("--show-output");
    let said_before = fs::metadata(log).map_or(0, |file| file.len());
    let result = run_logged(&mut command, log);
    let output = fs::read(log).with_context(|| format!("reading {}", log.display()))?;
    let from = usize::try_from(said_before).unwrap_or(usize::MAX);
    let said = output.get(from..).unwrap_or_default();
    let mut counted = count(&String::from_utf8_lossy(said), &log.display().to_string());
    // It may end otherwise than by a test that failed.
    if let (Err(error), true) = (result, counted.failed.is_empty()) {
        let name = format!("{} of {}", program.target, program.package);
        counted.count(&name, Err(anyhow!("{error:#}")));
    }
    Ok(counted)
}
/// Where a test program puts what it writes meanwhile: in memory, where every fsync of a journal costs
/// nothing. What is lost with the power is the lab's to show. The VMM's disks have to be on a disk.
fn scratch(program: &TestProgram) -> Option<(&'static str, &'static str)> {
    const MEMORY: &str = "/dev/shm";
    const ENOUGH_BYTES: u64 = 4 << 30;
    let is_vmms = program.package.starts_with("berth-vmm")
        || ["vmm_native", "containment", "packages"].contains(&program.target.as_str());
    let free = rustix::fs::statvfs(MEMORY)
        .map_or(0, |memory| memory.f_bavail.saturating_mul(memory.f_frsize));
    (!is_vmms && free >= ENOUGH_BYTES).then_some(("TMPDIR", MEMORY))
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
