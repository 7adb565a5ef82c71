//! The programs that are packaged: built by cargo so that no path of this machine is in them.
//!
//! Knows cargo and rustc; knows no package format.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use berth_tests::command::{capture, run_logged};
use berth_tests::workspace;

use super::manifest::{Linkage, Program};
use crate::build::cargo_command;

/// What stands between two flags in `CARGO_ENCODED_RUSTFLAGS`, so that paths may have spaces.
const FLAG_SEPARATOR: &str = "\x1f";

/// Builds all programs in release mode and returns the folder that they are in.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(super) fn build(programs: &[Program]) -> Result<PathBuf> {
    let flags = flags()?;
    let mut cargo = cargo(&flags);
    cargo.args(["build", "--release", "--bins"]);
    let dynamic = programs
        .iter()
        .filter(|program| program.linkage == Linkage::Dynamic);
    for package in dynamic
        .map(|program| &program.package)
        .collect::<BTreeSet<_>>()
    {
        cargo.args(["-p", package]);
    }
    run_logged(&mut cargo, &log())?;
    for program in programs
        .iter()
        .filter(|program| program.linkage == Linkage::Static)
    {
        let mut cargo = self::cargo(&flags);
        cargo.args([
            "rustc",
            "--release",
            "-p",
            &program.package,
            "--bin",
            &program.name,
        ]);
        // The flag matters at the last link alone: dependencies are shared with the others.
        cargo.args(["--", "-C", "target-feature=+crt-static"]);
        run_logged(&mut cargo, &log())?;
    }
    Ok(workspace::target_dir().join("release"))
}

fn log() -> PathBuf {
    workspace::build_dir().join("logs/package-programs.log")
}

fn cargo(flags: &str) -> Command {
    let mut cargo = cargo_command();
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS");
    cargo
}

/// Compiler flags: neutral names for the places where sources lie, and no symbol tables.
fn flags() -> Result<String> {
    let mut rustc = Command::new("rustc");
    rustc
        .current_dir(workspace::root())
        .args(["--print", "sysroot"]);
    let sysroot = PathBuf::from(capture(&mut rustc)?.trim_end());
    let renamed = [
        (cargo_home()?, "/usr/src/cargo"),
        (sysroot, "/usr/src/rust"),
        (workspace::root(), "/usr/src/berth"),
    ];
    let mut flags: Vec<String> = renamed
        .iter()
        .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()))
        .collect();
    flags.push("-Cstrip=symbols".to_owned());
    Ok(flags.join(FLAG_SEPARATOR))
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}
