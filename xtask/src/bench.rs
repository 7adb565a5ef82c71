//! `cargo xtask bench`: measurements, each as a ratio in one run.

use std::process::ExitCode;

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Runs the task.
///
/// # Errors
/// If a measurement fails.
pub(crate) fn run(_arguments: &Arguments) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
