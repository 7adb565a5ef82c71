//! Loads a controller or a ledger: `load-run controller OPTIONS` or `load-run ledger OPTIONS`, both as
//! `cargo xtask bench` makes them, in JSON.
//!
//! A program of its own so that it is built like what it loads: a slow generator would measure itself.
//! The report is one JSON document on standard output; what goes on is told on standard error.
#![forbid(unsafe_code)]

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use berth_tests::load::{controller, ledger};
use berth_tests::progress;

fn main() -> Result<()> {
    progress::leave_stdout_alone();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, options] = &words[..] else {
        bail!("usage: load-run controller|ledger OPTIONS");
    };
    let report = match what.as_str() {
        "controller" => {
            let options = serde_json::from_str(options).context("the options")?;
            serde_json::to_value(controller::run(&options)?)?
        }
        "ledger" => {
            let options = serde_json::from_str(options).context("the options")?;
            serde_json::to_value(ledger::run(&options)?)?
        }
        other => bail!("{other} is not something to measure: controller or ledger"),
    };
    writeln!(std::io::stdout().lock(), "{report:#}").context("printing the report")
}
