//! One target under libFuzzer: flags, folders, what came of it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use berth_tests::command::run_logged;
use berth_tests::workspace;

use super::Target;
use super::toolchain::{TRIPLE, target_dir};

/// Longest input, in bytes: all targets reach everything with less.
const MAX_INPUT_BYTES: usize = 4096;
/// One input that takes longer is a failure, in seconds.
const INPUT_TIMEOUT_S: u32 = 25;
/// Most memory of one process, in MiB.
const MAX_MEMORY_MIB: u32 = 2048;

/// When a run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many inputs, chosen alike in every run, or after this time on a slow machine.
    Inputs(u32, Duration),
}

/// The seed of runs that choose alike.
const SEED: u32 = 1;

/// How much to do.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) limit: Limit,
    /// Processes side by side.
    pub(crate) jobs: u32,
    /// Whether inputs that reach something new are kept for the next run.
    pub(crate) keeps_what_it_learns: bool,
}

/// What a run did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Inputs run; several processes do not tell.
    executions: Option<u64>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.executions {
            Some(executions) => write!(f, "{executions} executions"),
            None => f.write_str("executions in several processes"),
        }
    }
}

/// The seeds of a target, which no run changes.
pub(super) fn committed_corpus(target: &Target) -> PathBuf {
    workspace::root().join("fuzz/corpus").join(&target.name)
}

/// Runs a target for its budget.
///
/// # Errors
/// If an input fails; the message says where it is and how to run it again.
pub(crate) fn run_target(target: &Target, budget: &Budget) -> Result<Outcome> {
    let kind = if budget.keeps_what_it_learns {
        "corpus"
    } else {
        "short"
    };
    let learned = workspace::build_dir()
        .join("fuzz")
        .join(kind)
        .join(&target.name);
    if !budget.keeps_what_it_learns && learned.exists() {
        fs::remove_dir_all(&learned).with_context(|| format!("{}", learned.display()))?;
    }
    fs::create_dir_all(&learned).with_context(|| format!("{}", learned.display()))?;
    let mut command = program(target)?;
    match budget.limit {
        Limit::Time(time) => {
            command.arg(format!("-max_total_time={}", time.as_secs().max(1)));
        }
        Limit::Inputs(count, at_most) => {
            command.args([format!("-runs={count}"), format!("-seed={SEED}")]);
            command.arg(format!("-max_total_time={}", at_most.as_secs().max(1)));
        }
    }
    command
        .arg(format!("-max_len={MAX_INPUT_BYTES}"))
        .arg("-print_final_stats=1");
    if budget.jobs > 1 {
        command.arg(format!("-fork={}", budget.jobs));
    }
    command.arg(&learned).arg(committed_corpus(target));
    let log = run(&mut command, target)?;
    Ok(Outcome {
        executions: executions(&log),
    })
}

/// Runs a target with one input.
///
/// # Errors
/// If the input fails.
pub(super) fn run_input(target: &Target, input: &Path) -> Result<()> {
    let input = fs::canonicalize(input).with_context(|| format!("{}", input.display()))?;
    run(program(target)?.arg(input), target).map(drop)
}

/// The program with what every run of it gets.
fn program(target: &Target) -> Result<Command> {
    let artifacts = artifacts(target);
    fs::create_dir_all(&artifacts).with_context(|| format!("{}", artifacts.display()))?;
    let mut command = Command::new(target_dir().join(TRIPLE).join("release").join(&target.name));
    command
        // libFuzzer takes the prefix as text: a folder needs its final slash.
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-timeout={INPUT_TIMEOUT_S}"))
        .arg(format!("-rss_limit_mb={MAX_MEMORY_MIB}"));
    Ok(command)
}

fn artifacts(target: &Target) -> PathBuf {
    workspace::root().join("fuzz/artifacts").join(&target.name)
}

/// Runs the program and returns its log.
fn run(command: &mut Command, target: &Target) -> Result<String> {
    let path = workspace::build_dir().join(format!("logs/fuzz-{}.log", target.name));
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
    }
    let result = run_logged(command, &path);
    // A target may write what is no text.
    let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
    let Err(error) = result else {
        return Ok(log);
    };
    match artifact(&log) {
        Some(input) => bail!(
            "{error:#}\n{} failed with the input {input}; run it again with\n    \
             cargo xtask fuzz {} --input {input}",
            target.name,
            target.name
        ),
        None => Err(error),
    }
}

/// Where libFuzzer says that it wrote the failing input.
fn artifact(log: &str) -> Option<&str> {
    log.lines()
        .filter_map(|line| line.split_once("Test unit written to "))
        .map(|(_, path)| path.trim())
        .next_back()
}

fn executions(log: &str) -> Option<u64> {
    log.lines()
        .filter_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .find_map(|number| number.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_executions_and_the_failing_input() {
        let log = "#2 INITED\nartifact_prefix='a/'; Test unit written to a/crash-1\n\
                   stat::number_of_executed_units: 17\n";
        assert_eq!(executions(log), Some(17));
        assert_eq!(artifact(log), Some("a/crash-1"));
        assert_eq!((executions("Done"), artifact("Done")), (None, None));
    }
}
