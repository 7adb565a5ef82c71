//! Where log lines go: the journal with fields when systemd started us, standard error otherwise.
//!
//! Tokens, secrets and bodies are never logged; ids are, as fields.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// PostgreSQL's client says every parameter at `debug`, whatever it is.
const NEVER_SAID: &str = "tokio_postgres=info";

/// Install the subscriber of this process.
pub(crate) fn install() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = filter.add_directive(NEVER_SAID.parse()?);
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        // Without a prefix `tenant_id` becomes TENANT_ID, as the other programs write it.
        let journal = tracing_journald::layer()
            .context("could not reach the journal")?
            .with_field_prefix(None)
            .with_syslog_identifier("berth-controller".to_owned());
        registry.with(journal).try_init()?;
    } else {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false);
        registry.with(lines).try_init()?;
    }
    Ok(())
}
