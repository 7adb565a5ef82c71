//! `cargo xtask bench`: measurements, each as a ratio to others or beside a promise.

mod load;
mod page;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use berth_tests::lab::contest::{self, Work};
use berth_tests::lab::scenario::NodeKind;
use berth_tests::progress::{self, Progress, say};
use berth_tests::slot_steps;
use berth_tests::startup::{self, Options, Peer, Report};
use serde_json::{Value, json};

use crate::setup::{self, Need};
use crate::{lab, package};

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
        /// Write the table to docs/performance.md, too
        #[arg(long)]
        write: bool,
        /// End with status 1 if a promise is broken
        #[arg(long)]
        check: bool,
    },
    /// What each step of claims and releases took, by the receipts of a host
    Slots {
        /// Receipts, as a host keeps them in /var/lib/berth/agent/slots/*/receipts
        #[arg(required = true, value_name = "FILE")]
        receipts: Vec<PathBuf>,
        /// Print one JSON document on standard output instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Start-up as above; then boot, disk, network and NVMe passthrough in the lab
    Vmm {
        /// A program to compare with, such as firecracker=/usr/bin/firecracker; may be repeated
        #[arg(long, value_name = "NAME=PATH")]
        peer: Vec<Peer>,
        /// How often each contender does each piece of work in the lab
        #[arg(long, default_value_t = contest::DEFAULT_ROUNDS)]
        rounds: usize,
        /// Only this: boot, block, network or passthrough; may be repeated
        #[arg(long, conflicts_with = "write")]
        work: Vec<Work>,
        /// Print one JSON document on standard output instead of a table
        #[arg(long)]
        json: bool,
        /// Write the table to docs/performance.md, too
        #[arg(long)]
        write: bool,
        /// End with status 1 if a promise is broken
        #[arg(long)]
        check: bool,
    },
    /// Creates per second, token checks, placement and the control plane's share of a create
    Controller(load::ControllerArguments),
    /// Commits per second, verification and memory of the ledger, as it grows
    Ledger(load::LedgerArguments),
}

/// Runs the task.
///
/// # Errors
/// If a measurement fails. A broken promise is told and is no error; `--check` makes it status 1.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.measurement {
        Measurement::Startup {
            peer,
            rounds,
            json,
            write,
            check,
        } => {
            let report = startup(json, rounds, peer)?;
            tell(json, &report.to_json(), &report)?;
            if write {
                page::write(&[("Start-up", &section(&report))])?;
            }
            Ok(judge(&report.broken_promises(), check))
        }
        Measurement::Slots { receipts, json } => {
            let report = slot_steps::read(&receipts)?;
            tell(json, &report.to_json(), &report)?;
            Ok(ExitCode::SUCCESS)
        }
        Measurement::Vmm {
            peer,
            rounds,
            work,
            json,
            write,
            check,
        } => {
            let report = startup(json, startup::DEFAULT_ROUNDS, peer.clone())?;
            let mut progress = Progress::new("bench vmm");
            let context = lab::prepare(&mut progress, NodeKind::Bare)?;
            progress.phase("measure in the lab");
            let options = contest::Options {
                rounds,
                work: if work.is_empty() {
                    Work::ALL.to_vec()
                } else {
                    work
                },
                peers: peer,
            };
            let contest = contest::run(&context, &options)?;
            progress.finish();
            let document = json!({ "startup": report.to_json(), "lab": contest.to_json() });
            let startup = section(&report);
            let lab = contest.to_string();
            tell(json, &document, &format!("{startup}\n\n{lab}"))?;
            if write {
                page::write(&[("Start-up", &startup), ("In the lab", &lab)])?;
            }
            let mut broken = report.broken_promises();
            broken.extend(contest.broken_promises());
            Ok(judge(&broken, check))
        }
        Measurement::Controller(arguments) => load::controller(arguments),
        Measurement::Ledger(arguments) => load::ledger(arguments),
    }
}

/// The table of the start-up as a section of the page.
fn section(report: &Report) -> String {
    format!("```text\n{}\n```", report.to_string().trim_end())
}

fn startup(json: bool, rounds: usize, peers: Vec<Peer>) -> Result<Report> {
    if json {
        progress::leave_stdout_alone();
    }
    setup::ensure(&[Need::Compile])?;
    let vmm = package::vmm()?;
    ensure!(vmm.exists(), "cargo built no {}", vmm.display());
    startup::run(&Options { vmm, rounds, peers })
}

fn tell(as_json: bool, document: &Value, text: &dyn std::fmt::Display) -> Result<()> {
    if as_json {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{document:#}").context("printing the document")?;
    } else {
        say(&text.to_string());
    }
    Ok(())
}

fn judge(broken: &[String], check: bool) -> ExitCode {
    for promise in broken {
        say(&format!("broken promise: {promise}"));
    }
    if check && !broken.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
