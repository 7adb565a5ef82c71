//! The configuration file, read and checked.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_ledger::cosignature::Cosigner;
use berth_ledger::note::{KeyKind, Vkey};
use serde::Deserialize;

/// What a witness needs to run.
#[derive(Debug)]
pub(crate) struct Config {
    /// A loopback address.
    pub(crate) listen: SocketAddr,
    /// Where it remembers.
    pub(crate) state_dir: PathBuf,
    /// Its key.
    pub(crate) cosigner: Cosigner,
    /// The logs that it knows; several keys of one origin are for the time while one is replaced.
    pub(crate) logs: Vec<Vkey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    state_dir: PathBuf,
    key: PathBuf,
    logs: Vec<String>,
}

/// Read it.
pub(crate) fn read(path: &Path) -> Result<Config> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let file: File = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    ensure!(
        file.listen.ip().is_loopback(),
        "`listen` is {}, which others can reach without TLS: use a loopback address and put a reverse \
         proxy with a certificate before it",
        file.listen
    );
    ensure!(
        !file.logs.is_empty(),
        "`logs` is empty: add the verifier key of each log to witness"
    );
    let logs = file
        .logs
        .iter()
        .map(|text| log_key(text))
        .collect::<Result<_>>()?;
    let key = fs::read_to_string(&file.key)
        .with_context(|| format!("reading `key` {}", file.key.display()))?;
    let cosigner = Cosigner::from_private_text(key.trim_end())
        .with_context(|| format!("in `key` {}", file.key.display()))?;
    Ok(Config {
        listen: file.listen,
        state_dir: file.state_dir,
        cosigner,
        logs,
    })
}

fn log_key(text: &str) -> Result<Vkey> {
    let vkey: Vkey = text
        .parse()
        .with_context(|| format!("in `logs`, {text:?}"))?;
    ensure!(
        vkey.kind() == KeyKind::Ed25519,
        "in `logs`, {text:?} is a witness's key: give the log's"
    );
    Ok(vkey)
}
