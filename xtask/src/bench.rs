//! `cargo xtask bench`: measurements, each as a ratio to others in the same run.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use berth_tests::progress::{self, say};
use berth_tests::startup::{self, Options, Peer};

use crate::package;
use crate::setup::{self, Need};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(clap::Subcommand)]
enum Measurement {
    /// From starting a VMM to its guest's first byte, on this machine's /dev/kvm
    Startup {
        /// A program to compare with, such as firecracker=/usr/bin/firecracker; may be repeated
        #[arg(long, value_name = "NAME=PATH")]
        peer: Vec<Peer>,
        /// How often each is started
        #[arg(long, default_value_t = startup::DEFAULT_ROUNDS)]
        rounds: usize,
        /// Print one JSON document on standard output instead of a table
        #[arg(long)]
        json: bool,
        /// End with status 1 if a promise is broken
        #[arg(long)]
        check: bool,
    },
}

/// Runs the task.
///
/// # Errors
/// If a measurement fails. A broken promise is told and is no error; `--check` makes it status 1.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Measurement::Startup {
        peer,
        rounds,
        json,
        check,
    } = arguments.measurement;
    if json {
        progress::leave_stdout_alone();
    }
    setup::ensure(&[Need::Compile])?;
    let vmm = package::vmm()?;
    ensure!(vmm.exists(), "cargo built no {}", vmm.display());
    let report = startup::run(&Options {
        vmm,
        rounds,
        peers: peer,
    })?;
    if json {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{:#}", report.to_json()).context("printing the document")?;
    } else {
        say(&report.to_string());
    }
    let broken = report.broken_promises();
    for promise in &broken {
        say(&format!("broken promise: {promise}"));
    }
    Ok(if check && !broken.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
