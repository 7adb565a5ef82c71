//! `cargo xtask test`: everything that CI runs, tier by tier, and one closing count.
//!
//! A tier that cannot run says why and counts as skipped; it never passes silently. Logs stay in
//! `build/logs/` and `build/lab/runs/`.

mod cargo_tests;
mod schemathesis;
mod tiers;
mod verifiers;

use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_tests::progress::{Progress, say, short};

use crate::setup;
use tiers::{TIERS, Tier};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this tier; may be repeated
    #[arg(long, value_name = "NAME")]
    tier: Vec<String>,
    /// List the tiers and what each shows
    #[arg(long)]
    list: bool,
}

/// How a tier went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    passed: u32,
    /// What failed, each with its reason.
    failed: Vec<String>,
    /// What did not run, each with its reason.
    skipped: Vec<String>,
    /// What a passed test did a second time because its emulated host failed.
    repeated: Vec<String>,
}

impl Tally {
    /// Counts one test.
    fn count(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.failed.push(format!("{name}: {error:#}")),
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.repeated.extend(other.repeated);
    }

    /// The counts in words; what `cargo xtask test` ends with.
    fn closing(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failed.len());
        if !self.skipped.is_empty() {
            line.push_str(&format!(", {} skipped", self.skipped.len()));
        }
        if !self.repeated.is_empty() {
            line.push_str(&format!(", {} repeated", self.repeated.len()));
        }
        line
    }
}

/// Runs the task.
///
/// # Errors
/// If a tier's name is unknown or the set-up fails; failed tests make the exit status 1.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for tier in TIERS {
            say(&format!("{:<11} {}", tier.name, tier.shows));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let tiers = chosen(&arguments.tier)?;
    let needs: Vec<_> = tiers.iter().flat_map(|tier| tier.needs).copied().collect();
    setup::ensure(&needs)?;
    let mut progress = Progress::new("test");
    let mut all = Tally::default();
    let mut summary = Vec::new();
    for tier in tiers {
        progress.phase(&format!("tier {}", tier.name));
        let began = std::time::Instant::now();
        let mut tally = Tally::default();
        if let Err(error) = (tier.run)(&mut tally) {
            tally.failed.push(format!("tier {}: {error:#}", tier.name));
        }
        for (word, reasons) in [
            ("FAILED", &tally.failed),
            ("skipped", &tally.skipped),
            ("repeated", &tally.repeated),
        ] {
            for reason in reasons {
                say(&format!("{word} {reason}"));
            }
        }
        summary.push(line(tier, &tally, &short(began.elapsed())));
        if tally == Tally::default() {
            tally
                .failed
                .push(format!("tier {}: nothing ran", tier.name));
        }
        all.add(tally);
    }
    progress.finish();
    say("");
    for line in summary {
        say(&line);
    }
    if !all.failed.is_empty() {
        say("logs are in build/logs/, those of nodes in build/lab/runs/");
    }
    say(&all.closing());
    Ok(if all.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(tier: &Tier, tally: &Tally, took: &str) -> String {
    format!("{:<11} {} ({took})", tier.name, tally.closing())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Tier>> {
    if names.is_empty() {
        return Ok(TIERS.iter().collect());
    }
    let mut found = Vec::new();
    for name in names {
        match TIERS.iter().find(|tier| tier.name == name) {
            Some(tier) => found.push(tier),
            None => bail!("there is no tier {name}; `cargo xtask test --list` shows them"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_closing_line_counts_all() {
        let mut tally = Tally {
            passed: 3,
            ..Tally::default()
        };
        assert_eq!(tally.closing(), "3 passed, 0 failed");
        tally.count("bad", Err(anyhow::anyhow!("reason")));
        tally.add(Tally {
            skipped: vec!["x".to_owned()],
            repeated: vec!["y".to_owned()],
            ..Tally::default()
        });
        assert_eq!(tally.closing(), "3 passed, 1 failed, 1 skipped, 1 repeated");
        assert_eq!(tally.failed, ["bad: reason"]);
    }

    #[test]
    fn an_unknown_tier_is_an_error() {
        chosen(&["unheard-of".to_owned()]).unwrap_err();
        assert_eq!(chosen(&[]).unwrap().len(), TIERS.len());
        assert_eq!(chosen(&["fuzz".to_owned()]).unwrap().len(), 1);
    }
}
