//! `/etc/berth/controller.toml`: every key optional, unknown keys refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use berth_controller_store::{Database, PostgresServer};
use serde::Deserialize;

use crate::identity::IdentityProviderConfig;
use crate::prices::SlotClassSettings;
use crate::rates::RateLimits;
use crate::sizes::SizeSettings;
use crate::tiers::TierSettings;
use crate::witnesses::WitnessConfig;

/// Settings of the service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Address to listen on, without socket activation.
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// PEM of the certificate to show, and of those between it and its root. Needed on any address that
    /// is not loopback.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// PEM of its private key.
    pub(crate) tls_key: Option<PathBuf>,
    /// What nodes are told to dial; the listening address unless set.
    pub(crate) public_url: Option<String>,
    /// How many requests are taken.
    #[serde(default)]
    pub(crate) rate_limits: RateLimits,
    /// The tier of tenants that name none; `standard` unless set, which sets no ceiling.
    pub(crate) default_tier: Option<String>,
    /// Named ceilings, for what a tenant's record does not set itself.
    #[serde(default)]
    pub(crate) tiers: BTreeMap<String, TierSettings>,
    /// Named shapes of VMs; `small`, `medium` and `large` unless the table is there.
    pub(crate) sizes: Option<BTreeMap<String, SizeSettings>>,
    /// What classes of slots cost.
    #[serde(default)]
    pub(crate) slot_classes: BTreeMap<String, SlotClassSettings>,
    /// Who says who people are, if anybody.
    pub(crate) identity_provider: Option<IdentityProviderConfig>,
    /// The ledger.
    #[serde(default)]
    pub(crate) ledger: LedgerConfig,
    /// Where the ledger's log is published, if anywhere.
    pub(crate) publish: Option<PublishConfig>,
    /// Where the database is, if it is not a file in the state directory.
    pub(crate) database: Option<DatabaseConfig>,
}

/// The `[ledger]` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LedgerConfig {
    /// File that keeps the newest checkpoint, better on another volume than the database;
    /// `anchor/checkpoint` in the state directory unless set.
    pub(crate) anchor: Option<std::path::PathBuf>,
    /// Other parties' witnesses, which cosign checkpoints.
    #[serde(default)]
    pub(crate) witnesses: Vec<WitnessConfig>,
    /// How many of them must have cosigned a checkpoint before anybody is shown it; 0 unless set, and
    /// then nobody waits for them.
    #[serde(default)]
    pub(crate) witness_quorum: usize,
}

/// The `[publish]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublishConfig {
    /// A folder that the service may write to, for readers whom a web server lets in.
    pub(crate) folder: PathBuf,
    /// How often something new is published, in seconds; 5 unless set.
    #[serde(default = "publish_every")]
    pub(crate) every_seconds: u32,
}

fn publish_every() -> u32 {
    5
}

/// The `[database]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseConfig {
    /// `postgres://…`
    pub(crate) url: String,
    /// PEM of the authorities that vouch for a server on another machine.
    pub(crate) ca: Option<PathBuf>,
}

impl Config {
    /// Read the file; an absent one is all defaults.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("could not read {}", path.display()));
            }
        };
        toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
    }
    /// Where the database is: PostgreSQL if the file names one, else SQLite's file.
    pub(crate) fn database(&self, file: &Path) -> anyhow::Result<Database> {
        let Some(database) = &self.database else {
            return Ok(Database::File(file.to_owned()));
        };
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .with_context(|| format!("[database] ca: reading {}", path.display()))
        };
        let ca = database.ca.as_ref().map(read).transpose()?;
        PostgresServer::parse(&database.url, ca.as_deref())
            .map(Database::Postgres)
            .context("[database]")
    }
}
