//! `cargo xtask bench controller`: creates per second, the check of a token, placement as rows grow,
//! and the control plane's share of a create.

mod report;
mod work;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::latency::Percentiles;
use super::pace::Paced;
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
    /// Creates per second that are tried, up to the first that is not borne.
    pub rates: Vec<u32>,
    /// How long each rate lasts, in seconds.
    pub seconds: u64,
    /// Agents of the fleet.
    pub agents: usize,
    /// Numbers of VMs at which placement and single creates are measured, rising.
    pub rows: Vec<usize>,
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
    /// Creates at rising rates.
    pub creates: Vec<CreateRate>,
    /// The check of a token.
    pub token: TokenCheck,
    /// With rising numbers of VMs.
    pub growth: Vec<Growth>,
}

/// Creates at one rate.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CreateRate {
    /// What became of them.
    pub paced: Paced,
    /// Processor time of the controller for each, in microseconds.
    pub cpu_us: f64,
}

/// The check of a token.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TokenCheck {
    /// Signature, times, scope and revocation, by the calls that the controller makes.
    pub check: Percentiles,
    /// Revoked tokens that were kept meanwhile.
    pub revoked: usize,
    /// `GET /v1/me`, which asks for a token and no more.
    pub with_token: Paced,
    /// The controller's processor time for each, in microseconds.
    pub with_token_cpu_us: f64,
    /// `GET /v1/version`, which asks for none.
    pub without: Paced,
    /// The controller's processor time for each, in microseconds.
    pub without_cpu_us: f64,
}

/// With one number of VMs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Growth {
    /// VMs that exist.
    pub rows: usize,
    /// Agents that sync meanwhile.
    pub agents: usize,
    /// One placement decision on the database as it is.
    pub decision: Percentiles,
    /// Single creates.
    pub creates: Paced,
    /// From sending each create to the moment that its agent had the task.
    pub share: Percentiles,
    /// Most memory that the controller had up to then, in MiB.
    pub peak_memory_mib: f64,
}

/// Measure everything.
///
/// # Errors
/// If a controller does not start, or refuses what no measurement provokes.
pub fn run(options: &Options) -> Result<Report> {
    super::process::allow_open_files()?;
    std::fs::create_dir_all(&options.under)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut report = Report {
        host: describe_host()?,
        disk_sync: disk_sync(&options.under)?,
        stores: Vec::new(),
    };
    for store in &options.stores {
        report
            .stores
            .push(runtime.block_on(work::measure(options, *store))?);
    }
    Ok(report)
}
