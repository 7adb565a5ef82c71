//! `cargo xtask package`: one description of the packages, two formats.
//!
//! `manifest` reads `packaging/packages.toml`, `stage` lays the files out, `deb` and `rpm` write one
//! format each, `inspect` reads the results back as the `package` test tier does. Equal inputs give
//! equal bytes: all times are that of the newest commit.

mod deb;
pub(crate) mod inspect;
mod manifest;
mod rpm;
mod stage;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use berth_tests::command::capture;
use berth_tests::progress::{Progress, say};
use berth_tests::workspace;

use crate::build;
use crate::setup::{self, Need};
use manifest::{Manifest, Package};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this format; both unless given
    format: Option<Format>,
}

/// A package format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Debian packages
    Deb,
    /// RPM packages
    Rpm,
}

/// Runs the task.
///
/// # Errors
/// If a program does not build or a package cannot be made.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Need::Compile, Need::Package])?;
    let mut progress = Progress::new("package");
    progress.phase("build the programs");
    build::release_programs()?;
    let mut made = Vec::new();
    if arguments.format != Some(Format::Rpm) {
        progress.phase("pack .deb");
        made.extend(debs()?);
    }
    if arguments.format != Some(Format::Deb) {
        progress.phase("pack .rpm");
        made.extend(rpms()?);
    }
    progress.finish();
    for package in made {
        say(&package.display().to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the .debs from the release build and returns their paths.
///
/// # Errors
/// If a file is missing or `dpkg-deb` fails.
pub(crate) fn debs() -> Result<Vec<PathBuf>> {
    each_package(deb::build)
}

/// Makes the .rpms from the release build and returns their paths.
///
/// # Errors
/// If a file is missing or `rpmbuild` fails.
pub(crate) fn rpms() -> Result<Vec<PathBuf>> {
    each_package(rpm::build)
}

/// What both formats need to know beside the package itself.
#[derive(Debug)]
struct Release {
    version: String,
    maintainer: String,
    license: String,
    /// Seconds since the epoch that every file carries.
    epoch: u64,
    /// Where packages go.
    output: PathBuf,
    /// Where packages are laid out.
    work: PathBuf,
}

fn each_package(build: fn(&Package, &Release) -> Result<PathBuf>) -> Result<Vec<PathBuf>> {
    let manifest = Manifest::read()?;
    let output = workspace::build_dir().join("packages");
    std::fs::create_dir_all(&output).with_context(|| format!("making {}", output.display()))?;
    let release = Release {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        maintainer: manifest.maintainer.clone(),
        license: manifest.license.clone(),
        epoch: newest_commit()?,
        work: output.join("work"),
        output,
    };
    manifest.package.iter().map(|package| build(package, &release)).collect()
}

/// When the newest commit was made; a tree without git is as old as the epoch.
fn newest_commit() -> Result<u64> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]);
    let Ok(time) = capture(&mut git) else { return Ok(0) };
    time.trim().parse().context("reading the newest commit's time")
}
