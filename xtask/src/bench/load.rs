//! `bench controller` and `bench ledger`: builds what is loaded and the generator alike, has the
//! generator measure, and tells its report.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use berth_tests::load::promise::Promise;
use berth_tests::load::served::StoreKind;
use berth_tests::load::{controller, ledger};
use berth_tests::{progress, workspace};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{judge, page, tell};
use crate::build::{cargo_command, logged};
use crate::setup::{self, Need};

/// What both have.
#[derive(clap::Args)]
struct Common {
    /// On this database; may be repeated; both unless given
    #[arg(long, value_name = "DATABASE")]
    store: Vec<Store>,
    /// How long each rate lasts
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where the controller's state is put meanwhile; build/load unless given
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// How the programs are built: figures of a dev build mean nothing
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Print one JSON document on standard output instead of tables
    #[arg(long)]
    json: bool,
    /// Write the tables and the plot to docs/performance.md, too
    #[arg(long)]
    write: bool,
    /// End with status 1 if a promise is broken
    #[arg(long)]
    check: bool,
}

#[derive(clap::Args)]
pub(super) struct ControllerArguments {
    #[command(flatten)]
    common: Common,
    /// Creates per second that are tried, up to the first that is not borne
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "250,500,1000,1500,2000,2500,3000"
    )]
    rates: Vec<u32>,
    /// Agents of the fleet
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Numbers of VMs at which placement and single creates are measured; 0 for none
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    rows: Vec<usize>,
}

#[derive(clap::Args)]
pub(super) struct LedgerArguments {
    #[command(flatten)]
    common: Common,
    /// Callers at the same time, where they are many
    #[arg(long, default_value_t = 256)]
    callers: u32,
    /// Most entries: measured at 10,000 and each tenfold of it up to this; 10,000,000 takes an hour
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Store {
    Sqlite,
    Postgres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Profile {
    Release,
    Dev,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }

    fn folder(self) -> PathBuf {
        workspace::target_dir().join(match self {
            Self::Release => "release",
            Self::Dev => "debug",
        })
    }
}

impl Common {
    fn stores(&self) -> Vec<StoreKind> {
        if self.store.is_empty() {
            return vec![StoreKind::Sqlite, StoreKind::Postgres];
        }
        let kinds = self.store.iter().map(|store| match store {
            Store::Sqlite => StoreKind::Sqlite,
            Store::Postgres => StoreKind::Postgres,
        });
        kinds.collect()
    }

    fn program(&self) -> PathBuf {
        self.profile.folder().join("berth-controller")
    }

    fn under(&self) -> PathBuf {
        let usual = || workspace::build_dir().join("load");
        self.state.clone().unwrap_or_else(usual)
    }

    /// Build the programs, and have the generator do `what`.
    fn measure<O: Serialize, R: DeserializeOwned>(&self, what: &str, options: &O) -> Result<R> {
        if self.json {
            progress::leave_stdout_alone();
        }
        ensure!(
            !(self.write && self.profile == Profile::Dev),
            "--write is for release builds alone: leave out `--profile dev`"
        );
        setup::ensure(&[Need::Compile])?;
        progress::say("building berth-controller and load-run");
        let mut cargo = cargo_command();
        cargo.args(["build", "--profile", self.profile.name(), "--locked"]);
        cargo.args(["-p", "berth-controller", "-p", "berth-tests"]);
        cargo.args(["--bin", "berth-controller", "--bin", "load-run"]);
        logged(&mut cargo, "bench-load")?;
        let output = Command::new(self.profile.folder().join("load-run"))
            .arg(what)
            .arg(serde_json::to_string(options)?)
            .stderr(Stdio::inherit())
            .output()
            .context("starting load-run")?;
        ensure!(
            output.status.success(),
            "load-run ended with {}",
            output.status
        );
        serde_json::from_slice(&output.stdout).context("the report of load-run")
    }

    /// Tell a report, write its section and its plot if that is wished, and judge its promises.
    fn conclude(
        &self,
        heading: &str,
        report: &(impl Serialize + std::fmt::Display),
        promises: &[Promise],
        plot: Option<(&'static str, String)>,
    ) -> Result<ExitCode> {
        let mut document = serde_json::to_value(report)?;
        document["promises"] = serde_json::to_value(promises)?;
        tell(self.json, &document, report)?;
        if self.write {
            page::write(&[(heading, &report.to_string())])?;
            if let Some((name, picture)) = plot {
                page::write_beside(name, &picture)?;
            }
        }
        let broken: Vec<String> = promises.iter().filter_map(Promise::broken).collect();
        Ok(judge(&broken, self.check))
    }
}

/// `bench controller`
pub(super) fn controller(arguments: ControllerArguments) -> Result<ExitCode> {
    let common = arguments.common;
    let mut rows = arguments.rows;
    rows.retain(|count| *count > 0);
    rows.sort_unstable();
    let options = controller::Options {
        program: common.program(),
        under: common.under(),
        stores: common.stores(),
        rates: arguments.rates,
        seconds: common.seconds.max(1),
        agents: arguments.agents.max(1),
        rows,
    };
    let report: controller::Report = common.measure("controller", &options)?;
    common.conclude("Controller", &report, &report.promises(), report.plot())
}

/// `bench ledger`
pub(super) fn ledger(arguments: LedgerArguments) -> Result<ExitCode> {
    let common = arguments.common;
    let options = ledger::Options {
        program: common.program(),
        under: common.under(),
        stores: common.stores(),
        seconds: common.seconds.max(1),
        callers: arguments.callers.max(1),
        entries: lengths(arguments.entries),
    };
    let report: ledger::Report = common.measure("ledger", &options)?;
    common.conclude("Ledger", &report, &report.promises(), report.plot())
}

/// 10,000, its tenfold and so on, and the longest.
fn lengths(longest: u64) -> Vec<u64> {
    let tenfold = |length: &u64| length.checked_mul(10);
    let shorter =
        std::iter::successors(Some(10_000), tenfold).take_while(|length| *length < longest);
    shorter.chain([longest]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_rise_tenfold_up_to_the_longest() {
        assert_eq!(lengths(1_000_000), [10_000, 100_000, 1_000_000]);
        assert_eq!(lengths(20_000), [10_000, 20_000]);
        assert_eq!(lengths(500), [500]);
    }
}
