//! Builds the programs with cargo, and says where they are.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use berth_tests::{command, workspace};

/// Runs a command with its output in `build/logs/<log>.log`.
///
/// # Errors
/// If it does not exit with 0; the message quotes the end of the log.
pub(crate) fn logged(command: &mut Command, log: &str) -> Result<()> {
    let folder = workspace::build_dir().join("logs");
    command::run_logged(command, &folder.join(format!("{log}.log")))
}

/// cargo, in the workspace, without what the `cargo xtask` around us has put into the environment.
pub(crate) fn cargo_command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    for (name, _) in std::env::vars_os() {
        // What cargo sets for the package that it runs would make build scripts run again.
        let own = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name == "CARGO_MANIFEST_DIR"
                || name == "CARGO_MANIFEST_PATH"
        });
        if own {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Builds all programs and all test programs of the workspace for debugging; the file in which cargo
/// tells of each in JSON.
///
/// Cargo builds what is selected with the features that the selection asks for: a call for a few
/// packages builds most of what is below them once more. So there is one selection for all.
///
/// # Errors
/// If something does not compile; the message quotes the log.
pub(crate) fn everything() -> Result<PathBuf> {
    let log = workspace::build_dir().join("logs/build-debug.log");
    if log.exists() {
        std::fs::remove_file(&log).with_context(|| format!("removing {}", log.display()))?;
    }
    // The tests of packages, which run by name alone, are no part of `--tests`.
    for targets in [&["--lib", "--bins", "--tests"][..], &["--test", "packages"]] {
        let mut cargo = cargo_command();
        cargo
            .args(["build", "--workspace", "--locked"])
            .args(targets);
        cargo.args(["--message-format", "json-render-diagnostics"]);
        command::run_logged(&mut cargo, &log)?;
    }
    Ok(log)
}
