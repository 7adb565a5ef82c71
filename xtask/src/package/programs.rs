//! The programs that are packaged: built by cargo so that no path of this machine is in them, and
//! gathered in one folder.
//!
//! Knows cargo and rustc; knows no package format.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_tests::command::{capture, run_logged};
use berth_tests::workspace;

use super::manifest::{Linkage, Program};
use super::static_libc::{self, StaticLibc};
use crate::build::cargo_command;

/// What stands between two flags in `CARGO_ENCODED_RUSTFLAGS`, so that paths may have spaces.
const FLAG_SEPARATOR: &str = "\x1f";
/// Cargo's profile of the programs.
const PROFILE: &str = "release";
/// Cargo's profile of the program that runs guests: there a panic aborts, see
/// docs/decisions/0012-who-survives-a-panic.md.
const VMM_PROFILE: &str = "vmm";
/// The program that runs guests.
pub(super) const VMM: &str = "berth-vmm";
/// The program that serves one host, and its package.
const AGENT: &str = "berth-agent";
/// Beside the programs: the name of the C library that is in the static ones.
pub(super) const STATIC_LIBC: &str = "static-libc";

/// The folder that the programs are gathered in: cargo's own has programs of other builds too.
pub(super) fn folder() -> PathBuf {
    workspace::build_dir().join("programs")
}

/// Builds all programs in release mode and returns the folder that they are in.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(super) fn build(programs: &[Program]) -> Result<PathBuf> {
    let flags = flags()?;
    let folder = folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let (dynamic, linked): (Vec<_>, Vec<_>) = programs
        .iter()
        .partition(|program| program.linkage == Linkage::Dynamic);
    let (apart, together) = apart_and_together(programs);
    let apart = apart.into_iter().map(|one| BTreeSet::from([one]));
    for packages in std::iter::once(together).chain(apart) {
        if !packages.is_empty() {
            run_logged(&mut cargo_for_dynamic(&packages, &flags), &log())?;
        }
    }
    for program in dynamic {
        gather(&program.name, None, PROFILE, &folder)?;
        refuse_fail_points(&folder.join(&program.name))?;
    }
    for program in linked {
        let libc = static_libc::choose();
        run_logged(&mut cargo_for_static(program, libc, &flags), &log())?;
        gather(&program.name, libc.target(), profile(program), &folder)?;
        put(&folder, STATIC_LIBC, |place| {
            Ok(std::fs::write(place, libc.name())?)
        })?;
    }
    Ok(folder)
}

/// The packages of the programs that use the host's C library: those that are built by themselves,
/// and those that are built by one call.
fn apart_and_together(programs: &[Program]) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let dynamic = programs
        .iter()
        .filter(|program| program.linkage == Linkage::Dynamic);
    let (apart, together): (Vec<_>, Vec<_>) = dynamic.partition(|program| program.apart);
    (packages_of(apart), packages_of(together))
}

fn packages_of(programs: Vec<&Program>) -> BTreeSet<&str> {
    let packages = programs.into_iter().map(|program| program.package.as_str());
    packages.collect()
}

/// What only a program with fail points looks for in its environment.
const FAIL_POINT: &[u8] = b"BERTH_AGENT_EXIT_AFTER";

/// A packaged program must not end because of a variable: refuse one that was built so.
fn refuse_fail_points(program: &Path) -> Result<()> {
    let content =
        std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let found = content
        .windows(FAIL_POINT.len())
        .any(|window| window == FAIL_POINT);
    ensure!(!found, "{} was built with fail points", program.display());
    Ok(())
}

/// Builds the programs of the tests' package that scenarios bring along; returns their folder.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(super) fn build_for_lab() -> Result<PathBuf> {
    let mut cargo = cargo(&flags()?);
    cargo.args(["build", "--profile", PROFILE, "--locked", "--bins"]);
    run_logged(cargo.args(["-p", "berth-tests"]), &log())?;
    Ok(workspace::target_dir().join(PROFILE))
}

/// Builds the agent with its fail points, puts it beside the packaged programs' folder, and returns it.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(super) fn build_failing_agent(programs: &[Program]) -> Result<PathBuf> {
    let folder = workspace::build_dir().join("programs-with-fail-points");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // With the other programs, so that what is below it is not built again for it alone.
    let (_, together) = apart_and_together(programs);
    let mut cargo = cargo_for_dynamic(&together, &flags()?);
    cargo.args(["--features", &format!("{AGENT}/fail-points")]);
    run_logged(&mut cargo, &log())?;
    gather(AGENT, None, PROFILE, &folder)?;
    Ok(folder.join(AGENT))
}

fn profile(program: &Program) -> &'static str {
    if program.name == VMM {
        VMM_PROFILE
    } else {
        PROFILE
    }
}

/// Builds the programs of some packages that use the host's C library, in one call for all.
fn cargo_for_dynamic(packages: &BTreeSet<&str>, flags: &str) -> Command {
    let mut cargo = cargo(flags);
    cargo.args(["build", "--profile", PROFILE, "--locked", "--bins"]);
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    cargo
}

fn cargo_for_static(program: &Program, libc: StaticLibc, flags: &str) -> Command {
    let mut cargo = cargo(flags);
    cargo.args(["rustc", "--profile", profile(program), "--locked"]);
    cargo.args(["-p", &program.package, "--bin", &program.name]);
    cargo.args(libc.target().iter().flat_map(|target| ["--target", target]));
    // What matters at the last link alone leaves the dependencies to be shared with other builds.
    cargo.arg("--").args(libc.link_flags());
    cargo
}

/// Copies a program that cargo built for `target` with `profile` into `folder`.
fn gather(name: &str, target: Option<&str>, profile: &str, folder: &Path) -> Result<()> {
    let mut source = workspace::target_dir();
    source.extend(target);
    source.extend([profile, name]);
    put(folder, name, |place| {
        std::fs::copy(&source, place).with_context(|| format!("copying {}", source.display()))?;
        Ok(())
    })
}

/// Has a file written elsewhere and moves it into its place: who runs the old one keeps it.
fn put(folder: &Path, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = folder.join(name);
    let fresh = tempfile::NamedTempFile::new_in(folder).context("making a temporary file")?;
    write(fresh.path()).with_context(|| format!("writing {}", place.display()))?;
    fresh
        .persist(&place)
        .with_context(|| format!("putting {} in its place", place.display()))?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::manifest::Manifest;

    #[test]
    fn a_panic_aborts_the_vmm_and_leaves_other_programs_to_decide() {
        let text = std::fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        let workspace: toml::Table = text.parse().unwrap();
        let strategy = |profile| {
            let profile = &workspace["profile"][profile];
            profile.get("panic").and_then(|panic| panic.as_str())
        };
        for program in Manifest::read(&workspace::root()).unwrap().programs {
            let aborts = strategy(profile(&program)) == Some("abort");
            assert_eq!(aborts, program.package == VMM, "{}", program.name);
            // Programs of the other linkage all have one profile.
            let fits = program.linkage == Linkage::Static || profile(&program) == PROFILE;
            assert!(fits, "{}", program.name);
        }
    }
}
