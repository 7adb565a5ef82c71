//! `cargo xtask check`: formatting, lints and house rules; what needs no guest and no daemon.

use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_tests::progress::{Progress, say};
use berth_tests::workspace;

use crate::build::{cargo_command, logged};
use crate::openapi;
use crate::setup::{self, Need};
use crate::tidy;

/// Runs the task.
///
/// # Errors
/// The first check that fails.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(&[Need::Compile])?;
    let mut progress = Progress::new("check");
    for (name, check) in CHECKS {
        progress.phase(name);
        check()?;
    }
    progress.phase("dependency policy");
    if let Some(reason) = dependency_policy()? {
        say(&format!("skipped dependency policy: {reason}"));
    }
    progress.finish();
    say("check: passed");
    Ok(ExitCode::SUCCESS)
}

/// A check by name.
pub(crate) type Check = (&'static str, fn() -> Result<()>);

/// All checks, cheapest first.
pub(crate) const CHECKS: &[Check] = &[
    ("formatting", formatting),
    ("house rules", house_rules),
    ("lints", lints),
    ("API document", openapi::check),
];

fn formatting() -> Result<()> {
    logged(cargo_command().args(["fmt", "--all", "--check"]), "fmt")
}

fn house_rules() -> Result<()> {
    let problems = tidy::problems(&workspace::root())?;
    if problems.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
    bail!(
        "{} house rules are broken:\n{}",
        list.len(),
        list.join("\n")
    );
}

fn lints() -> Result<()> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    logged(cargo_command().args(arguments), "clippy")
}

/// Licences, sources and bans of `deny.toml`; the reason if it could not be checked here. Advisories
/// need a database from the network, so `cargo deny check` by hand has the last word on them.
pub(crate) fn dependency_policy() -> Result<Option<&'static str>> {
    let installed = cargo_command().args(["deny", "--version"]).output();
    if !installed.is_ok_and(|answer| answer.status.success()) {
        return Ok(Some(
            "cargo-deny is not installed; `cargo install --locked cargo-deny` brings it",
        ));
    }
    let arguments = ["deny", "--offline", "check", "bans", "licenses", "sources"];
    logged(cargo_command().args(arguments), "deny")?;
    Ok(None)
}
