//! `berth-witness`: cosigns checkpoints of logs that it knows, and never two that contradict each other.
//!
//! For whoever is not the operator of a berth deployment: another customer, an auditor, a second
//! operator. It speaks the witness protocol of C2SP (tlog-witness) over plain HTTP on a loopback
//! address; TLS is a reverse proxy's. This file reads the command line; `memory` decides and
//! remembers, `serve` answers.
#![forbid(unsafe_code)]

mod config;
mod memory;
mod serve;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use berth_ledger::cosignature::Cosigner;
use berth_ledger::keys::SigningKey;
use berth_ledger::note::KeyName;
use clap::{Parser, Subcommand};

/// A witness of transparency logs.
#[derive(Parser, Debug)]
#[command(name = "berth-witness", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key; prints the verifier key, which logs and their readers need
    Keygen {
        /// The witness's name, such as `witness.example.com/berth`
        name: String,
        /// Where the private key goes; must not exist
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Take checkpoints and cosign those that grow out of what was cosigned before
    Serve {
        /// Address, state folder, key and logs
        #[arg(long, value_name = "FILE", default_value = "/etc/berth/witness.toml")]
        config: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    if let Some(written) = berth_manual::write_if_asked::<Arguments>() {
        return Ok(written);
    }
    match Arguments::parse().command {
        Command::Keygen { name, key } => keygen(&name, &key),
        Command::Serve { config } => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .init();
            serve::run(config::read(&config)?)
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

fn keygen(name: &str, file: &Path) -> Result<()> {
    let name = KeyName::new(name).context("the witness's name")?;
    let cosigner = Cosigner::new(name, SigningKey::generate().context("making the key")?);
    let mut key = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("making {}", file.display()))?;
    writeln!(key, "{}", cosigner.to_private_text())
        .and_then(|()| key.sync_all())
        .with_context(|| format!("writing {}", file.display()))?;
    writeln!(std::io::stdout(), "{}", cosigner.vkey()).context("printing the verifier key")
}
