//! `cargo xtask fuzz`: builds the targets of `fuzz/` with a nightly compiler and runs them.
//!
//! libFuzzer is driven directly, so that no tool has to be installed beside the compiler. Long runs
//! keep what they learn in `build/fuzz/`; the committed corpus is only read. What a target may
//! assume is the target's own affair.

mod run;
mod toolchain;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use berth_tests::progress::{Progress, say};
use berth_tests::workspace;

use crate::setup::{self, Need};
pub(crate) use run::{Budget, Limit, run_target};
pub(crate) use toolchain::{build, missing};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The target to run; `--list` shows them
    #[arg(required_unless_present = "list")]
    target: Option<String>,
    /// List the targets and what each drives
    #[arg(long)]
    list: bool,
    /// How long to look for failures
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "input")]
    minutes: u32,
    /// Processes side by side
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "input")]
    jobs: u32,
    /// Run this one input, such as an artifact of an earlier run
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// One target: `fuzz/targets/<name>.rs`.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// The first sentence of its file.
    drives: String,
}

/// Runs the task.
///
/// # Errors
/// If there is no such target, no compiler for it, or the target fails.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let targets = targets()?;
    let Some(name) = arguments.target.as_deref().filter(|_| !arguments.list) else {
        for target in targets {
            say(&format!("{:<17} {}", target.name, target.drives));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(target) = targets.iter().find(|target| target.name == name) else {
        bail!("there is no fuzz target {name}; `cargo xtask fuzz --list` shows them");
    };
    setup::ensure(&[Need::Compile, Need::Fuzz])?;
    if let Some(reason) = missing() {
        bail!("{reason}");
    }
    let mut progress = Progress::new(&format!("fuzz {name}"));
    progress.phase("build the targets");
    build()?;
    if let Some(input) = &arguments.input {
        progress.phase("run the input");
        run::run_input(target, input)?;
        progress.finish();
        say("the target took the input without a failure");
        return Ok(ExitCode::SUCCESS);
    }
    let budget = Budget {
        limit: Limit::Time(Duration::from_secs(u64::from(arguments.minutes) * 60)),
        jobs: arguments.jobs.max(1),
        keeps_what_it_learns: true,
    };
    progress.phase(&format!("{name} for {} min", arguments.minutes));
    let outcome = run_target(target, &budget)?;
    progress.finish();
    say(&format!("{name}: {outcome}, nothing found"));
    Ok(ExitCode::SUCCESS)
}

/// All targets by name.
///
/// # Errors
/// If the folder cannot be read.
pub(crate) fn targets() -> Result<Vec<Target>> {
    let folder = workspace::root().join("fuzz/targets");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        found.push(Target {
            name: name.into_owned(),
            drives: first_sentence(&text),
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The first sentence of a file's opening comment.
fn first_sentence(text: &str) -> String {
    let opening: Vec<&str> = text
        .lines()
        .map_while(|line| line.strip_prefix("//! "))
        .collect();
    let opening = opening.join(" ");
    let end = opening.find(". ").unwrap_or(opening.len());
    opening[..end].trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_says_what_it_drives_and_has_seeds() {
        let targets = targets().unwrap();
        assert!(targets.len() >= 9);
        let manifest = std::fs::read_to_string(workspace::root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets {
            assert!(!target.drives.is_empty(), "{} is undescribed", target.name);
            let line = format!("path = \"targets/{}.rs\"", target.name);
            assert!(manifest.contains(&line), "{} is not built", target.name);
            let seeds = run::committed_corpus(&target).read_dir().unwrap();
            assert!(seeds.count() > 0, "{} has no seeds", target.name);
        }
    }

    #[test]
    fn the_first_sentence_may_span_lines() {
        let text = "//! One thing\n//! on two lines. And more.\n//!\n//! Else.\n";
        assert_eq!(first_sentence(text), "One thing on two lines");
        assert_eq!(first_sentence("//! Only this.\nuse x;\n"), "Only this");
    }
}
