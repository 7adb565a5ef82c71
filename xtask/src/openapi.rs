//! `cargo xtask openapi`: the API's document, as the controller itself tells it, in the tree.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use berth_tests::command::capture;
use berth_tests::progress::say;
use berth_tests::workspace;

use crate::build;
use crate::setup::{self, Need};

/// Where the document is committed.
const PATH: &str = "docs/openapi.json";

/// Writes the document anew.
///
/// # Errors
/// If the controller does not build, or the file cannot be written.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(&[Need::Compile])?;
    let path = workspace::root().join(PATH);
    std::fs::write(&path, told()?).with_context(|| format!("writing {PATH}"))?;
    say(&format!("{PATH} is as the controller tells it"));
    Ok(ExitCode::SUCCESS)
}

/// The committed document is the one that the controller serves.
pub(crate) fn check() -> Result<()> {
    let path = workspace::root().join(PATH);
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if committed == told()? {
        return Ok(());
    }
    bail!("{PATH} is not what the controller serves: `cargo xtask openapi` writes it anew");
}

fn told() -> Result<String> {
    build::everything()?;
    let controller = workspace::target_dir().join("debug/berth-controller");
    capture(Command::new(controller).arg("openapi"))
        .context("asking the controller for its document")
}
