//! `cargo xtask bench ledger`: commits per second, the time until a checkpoint covers a receipt,
//! verification, and how all of it grows with the log.

mod report;
mod work;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::latency::Percentiles;
use super::served::{StoreKind, disk_sync};
use crate::startup::describe_host;

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// The controller.
    pub program: PathBuf,
    /// Where its state is put: on the kind of disk that is to be measured.
    pub under: PathBuf,
    /// On which databases.
    pub stores: Vec<StoreKind>,
    /// How long each rate is measured, in seconds.
    pub seconds: u64,
    /// Callers at the same time, where they are many.
    pub callers: u32,
    /// Lengths of the log at which everything is measured, rising.
    pub entries: Vec<u64>,
}

/// All figures.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The host in one line.
    pub host: String,
    /// One small durable write there.
    pub disk_sync: Percentiles,
    /// One database after the other.
    pub stores: Vec<OfStore>,
}

/// The figures on one database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OfStore {
    /// Which.
    pub store: StoreKind,
    /// Callers at the same time, where they are many.
    pub callers: u32,
    /// With rising lengths of the log.
    pub growth: Vec<Growth>,
    /// From the answer to a change to a published head that covers its entry.
    pub covered: Percentiles,
}

/// At one length of the log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Growth {
    /// Entries.
    pub entries: u64,
    /// Commits of one event per second, one caller after the other's answer.
    pub alone_per_s: f64,
    /// What each of those took.
    pub alone: Percentiles,
    /// Commits of one event per second by many callers at the same time.
    pub together_per_s: f64,
    /// What each of those took.
    pub together: Percentiles,
    /// Entries per second that `berth-controller verify-ledger` checks.
    pub verified_per_s: f64,
    /// Most memory that it had, in MiB.
    pub verify_memory_mib: f64,
    /// Most memory of the process that wrote, at this length, in MiB.
    pub write_memory_mib: f64,
}

/// Measure everything.
///
/// # Errors
/// If the store or the controller fails.
pub fn run(options: &Options) -> Result<Report> {
    super::process::allow_open_files()?;
    std::fs::create_dir_all(&options.under)?;
    let mut report = Report {
        host: describe_host()?,
        disk_sync: disk_sync(&options.under)?,
        stores: Vec::new(),
    };
    for store in &options.stores {
        report.stores.push(work::measure(options, *store)?);
    }
    Ok(report)
}
