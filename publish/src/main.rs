//! `berth-publish`: copies a published ledger from its folder into an object store, S3-compatible or
//! another folder.
//!
//! A process of its own, as the controller calls nobody: it reads the public copy and the readers' key,
//! and has nothing that is secret but the store's credentials. This file reads the command line and says
//! how things went; `copier` decides and copies, `destination` opens the store.
#![forbid(unsafe_code)]

mod copier;
mod destination;
mod history;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_ledger::keys::PublicKey;
use clap::Parser;
use object_store::local::LocalFileSystem;

use crate::copier::{Copied, Copier, Tell};

/// `EX_DATAERR` of sysexits.h: what is there must not be replaced by what we have.
const EXIT_REFUSED: u8 = 65;
/// `EX_CONFIG` of sysexits.h: another start would end as this one.
const EXIT_CONFIG: u8 = 78;
/// After a failure the store is left alone for so long, at least.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Copies a published ledger into an object store, and follows it
///
/// Credentials and settings of S3 are taken from the environment (AWS_ACCESS_KEY_ID, AWS_REGION,
/// AWS_ENDPOINT and so on) and, before it, from systemd's credentials of the same names in lower case.
///
/// Exit status: 0 all is copied, 1 something failed and may be tried again, 65 the store has what must not
/// be replaced, 78 the settings are wrong.
#[derive(Parser, Debug)]
#[command(name = "berth-publish", version)]
struct Arguments {
    /// The folder of `[publish]` in the controller's configuration
    #[arg(env = "BERTH_PUBLISH_FOLDER")]
    folder: PathBuf,
    /// Where to: s3://bucket/prefix, or file:///folder
    #[arg(env = "BERTH_PUBLISH_URL")]
    url: String,
    /// The log's public key, in base64; several while a key is replaced, or after
    #[arg(
        long = "public-key",
        value_name = "KEY",
        env = "BERTH_PUBLISH_PUBLIC_KEYS",
        value_delimiter = ',',
        required = true,
        value_parser = public_key
    )]
    public_keys: Vec<PublicKey>,
    /// Copy what there is, and end
    #[arg(long)]
    once: bool,
    /// How often to look for something new
    #[arg(long, value_name = "SECONDS", default_value = "5", env = "BERTH_PUBLISH_EVERY_SECONDS",
        value_parser = clap::value_parser!(u32).range(1..))]
    every_seconds: u32,
    /// A line of JSON on standard output for each log that was copied
    #[arg(long)]
    json: bool,
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_base64(text.trim()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    if let Some(written) = berth_manual::write_if_asked::<Arguments>() {
        return written;
    }
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match copier_of(&arguments) {
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
        Ok(copier) => run(copier, &arguments).unwrap_or_else(|error| {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }),
    }
}

fn copier_of(arguments: &Arguments) -> Result<Copier> {
    // An error says that there is one already, which cannot be.
    drop(rustls::crypto::ring::default_provider().install_default());
    let folder = &arguments.folder;
    let source = LocalFileSystem::new_with_prefix(folder)
        .with_context(|| format!("{} must be a folder that can be entered", folder.display()))?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let target = destination::open(&arguments.url, credentials.as_deref().map(Path::new))?;
    Ok(Copier::new(
        Arc::new(source),
        target,
        arguments.public_keys.clone(),
    ))
}

/// Copy once, or until something must not be.
fn run(mut copier: Copier, arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let every = Duration::from_secs(u64::from(arguments.every_seconds));
    let mut screen = Screen::new(arguments.json);
    runtime.block_on(async {
        loop {
            let mut copied = copier.copy(&mut screen).await;
            screen.end();
            if let Ok(copied) = &mut copied {
                // Whoever asked for one copy wants to hear of it even if there was nothing to do.
                copied.retain(|log| arguments.once || log.is_new);
                copied.iter().try_for_each(|log| screen.say(log))?;
            }
            let pause = match copied {
                Ok(_) if arguments.once => return Ok(ExitCode::SUCCESS),
                Ok(_) => every,
                Err(error) if error.is_refusal() => {
                    tracing::error!("{:#}", anyhow::Error::new(error));
                    return Ok(ExitCode::from(EXIT_REFUSED));
                }
                Err(error) if arguments.once => return Err(error.into()),
                Err(error) => {
                    tracing::error!("not published: {:#}", anyhow::Error::new(error));
                    every.max(PAUSE_AFTER_FAILURE)
                }
            };
            tokio::time::sleep(pause).await;
        }
    })
}

/// Standard output for what was done, and a line on a terminal for how far it is.
struct Screen {
    is_json: bool,
    is_terminal: bool,
    is_line_open: bool,
}

impl Screen {
    fn new(is_json: bool) -> Self {
        Self {
            is_json,
            is_terminal: std::io::stderr().is_terminal(),
            is_line_open: false,
        }
    }

    fn say(&self, log: &Copied) -> Result<()> {
        let line = if self.is_json {
            serde_json::to_string(log).context("writing JSON")?
        } else {
            log.to_string()
        };
        writeln!(std::io::stdout(), "{line}").context("writing to standard output")
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_line_open) {
            // A terminal that is gone is nobody's loss.
            drop(writeln!(std::io::stderr()));
        }
    }
}

impl Tell for Screen {
    fn progress(&mut self, epoch: &str, done: u64, all: u64) {
        if self.is_terminal && (done.is_multiple_of(64) || done == all) {
            self.is_line_open = true;
            drop(write!(
                std::io::stderr(),
                "\r{epoch}: {done} of {all} objects"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_wants_a_key() {
        Arguments::command().debug_assert();
        let without = Arguments::try_parse_from(["berth-publish", "/srv/x", "s3://b/p"]);
        let error = without.unwrap_err().to_string();
        assert!(error.contains("--public-key"), "{error}");
    }
}
