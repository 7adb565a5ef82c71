//! `berth-controller`: the tenants' REST API, quotas, placement, the ledger and the agents' endpoint.
//!
//! This file reads the command line and hands on. `serve` wires the parts together.
#![forbid(unsafe_code)]

mod anchor;
mod api_error;
mod app;
mod config;
mod console_desk;
mod door;
mod expiry;
mod follow;
mod http;
mod https_client;
mod identity;
mod join_tokens;
mod keys;
mod ledger_desk;
mod ledger_key_changes;
mod listener;
mod logging;
mod metrics;
mod node_links;
mod offline;
mod overdue;
mod panics;
mod prices;
mod publisher;
mod rates;
mod recount;
mod serve;
mod single_tenant;
mod sizes;
mod streams;
mod tiers;
mod tls;
mod token_book;
mod turns;
mod witnesses;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The controller of a berth deployment.
#[derive(Parser, Debug)]
#[command(name = "berth-controller", version)]
struct Arguments {
    /// Where the database, the keys and the first token are.
    #[arg(long, global = true, default_value = "/var/lib/berth/controller")]
    state_dir: PathBuf,
    /// Settings; the file may be absent.
    #[arg(long, global = true, default_value = "/etc/berth/controller.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make what is missing: database, keys, the first administrator token. Repeatable.
    Init(offline::InitOptions),
    /// Serve the API.
    Serve(serve::ServeOptions),
    /// Mint one more administrator token and print it.
    AdminToken {
        /// How long it is valid, in days; at most 365.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=365))]
        days: u16,
        /// What it opens: everything, or the metrics alone.
        #[arg(long, default_value = "service:platform-admin",
              value_parser = ["service:platform-admin", "service:metrics"])]
        scope: String,
    },
    /// Check every entry of the ledger; exit 1 naming the first that is not what was signed.
    VerifyLedger,
    /// Print the API's OpenAPI document.
    Openapi,
    /// End this ledger and begin a new one that says so. For a database that went back in time, whose
    /// newer entries are lost: agents refuse destructive work until somebody accepts it on their hosts.
    NewEpoch {
        /// Why, for whoever reads the ledger later.
        #[arg(long)]
        reason: String,
    },
    /// The root key of tokens, and the key of the ledger's log.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Count charges again; exit 1 if a counter does not agree with its rows.
    Check,
}

#[derive(Subcommand, Debug)]
enum KeysCommand {
    /// Make a new root key for tokens. What the old one signed counts until it is dropped.
    RotateToken,
    /// Drop the root key before this one: what it signed counts no longer.
    DropToken,
    /// Make a new key for the ledger's log. Both sign until the old one is dropped.
    RotateLedger,
    /// Drop the ledger's key before this one: it signs no longer.
    DropLedger,
}

fn main() -> ExitCode {
    panics::install_hook();
    if let Some(written) = berth_manual::write_if_asked::<Arguments>() {
        return written;
    }
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            offline::say_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let config = config::Config::read(&arguments.config)?;
    let database = config.database(&arguments.state_dir.join("berth.db"))?;
    let state = offline::StateDir::new(arguments.state_dir, database);
    match arguments.command {
        Command::Init(options) => offline::init(&state, &config, &options),
        Command::AdminToken { days, scope } => offline::admin_token(&state, days, scope.parse()?),
        Command::VerifyLedger => offline::verify_ledger(&state),
        Command::NewEpoch { reason } => offline::new_epoch(&state, &config, &reason),
        Command::Check => offline::check(&state),
        Command::Keys(KeysCommand::RotateToken) => offline::rotate_token_key(&state),
        Command::Keys(KeysCommand::DropToken) => offline::drop_token_key(&state),
        Command::Keys(KeysCommand::RotateLedger) => offline::rotate_ledger_key(&state),
        Command::Keys(KeysCommand::DropLedger) => offline::drop_ledger_key(&state),
        Command::Openapi => offline::say_document(http::document()),
        Command::Serve(options) => serve::run(&state, config, &options),
    }
}
