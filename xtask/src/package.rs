//! `cargo xtask package`: one description of the packages, two formats.
//!
//! `manifest` reads `packaging/packages.toml`, `programs` has cargo build what is packaged, `stage`
//! lays the files out, `documents` and `scripts` add what every package has, `libraries` finds out
//! what the programs need, `deb` and `rpm` write one format each. Equal inputs give equal bytes: all
//! times are that of the newest commit that a package is made from.

mod deb;
mod documents;
mod libraries;
mod manifest;
mod programs;
mod rpm;
mod scripts;
mod stage;
mod static_libc;
#[cfg(test)]
mod tests;
mod third_party;

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use berth_tests::command::capture;
use berth_tests::progress::{Progress, say};
use berth_tests::workspace;

use crate::setup::{self, Need};
use manifest::{Manifest, Package, Sources};
use stage::Staged;

/// What packages are made from, for the time that they carry; a commit to anything else, such as a
/// test, leaves every package as it is.
const PACKAGED: [&str; 14] = [
    "Cargo.lock",
    "Cargo.toml",
    "CHANGELOG.md",
    "LICENSE",
    "agent",
    "api",
    "cli",
    "controller",
    "ledger",
    "packaging",
    "systemd",
    "udev",
    "vfio",
    "vmm",
];

/// This code as it was compiled: packages made by other code are made again.
const CODE: [&str; 8] = [
    include_str!("package.rs"),
    include_str!("package/deb.rs"),
    include_str!("package/documents.rs"),
    include_str!("package/libraries.rs"),
    include_str!("package/rpm.rs"),
    include_str!("package/scripts.rs"),
    include_str!("package/stage.rs"),
    include_str!("package/third_party.rs"),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this format; both unless given
    format: Option<Format>,
}

/// A package format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Debian packages
    Deb,
    /// RPM packages
    Rpm,
}

impl Format {
    /// How the files' names end.
    const fn extension(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Rpm => "rpm",
        }
    }
}

/// Runs the task.
///
/// # Errors
/// If a program does not build or a package cannot be made.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Need::Compile, Need::Package])?;
    let formats = arguments
        .format
        .map_or(vec![Format::Deb, Format::Rpm], |format| vec![format]);
    let mut progress = Progress::new("package");
    let made = build(&formats, &mut progress)?;
    progress.finish();
    for package in made {
        say(&package.display().to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs and makes the packages of these formats from them, in the order given. What
/// is there already and made from the same is not made again.
///
/// # Errors
/// If cargo fails, a file is missing, or a packaging tool fails.
pub(crate) fn build(formats: &[Format], progress: &mut Progress) -> Result<Vec<PathBuf>> {
    progress.phase("build the programs");
    programs()?;
    let mut made = Vec::new();
    for format in formats {
        progress.phase(&format!("pack .{}", format.extension()));
        made.extend(packages(*format)?);
    }
    Ok(made)
}

/// Builds the programs that are packaged, in release mode, and returns the folder they are in.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(crate) fn programs() -> Result<PathBuf> {
    programs::build(&Manifest::read(&workspace::root())?.programs)
}

/// Builds the VMM alone, as it is packaged, and returns it.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(crate) fn vmm() -> Result<PathBuf> {
    let mut programs = Manifest::read(&workspace::root())?.programs;
    programs.retain(|program| program.name == programs::VMM);
    Ok(programs::build(&programs)?.join(programs::VMM))
}

/// Builds the programs that scenarios bring along, with the packaged programs' flags so that they
/// share their dependencies, and returns their folder.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(crate) fn lab_programs() -> Result<PathBuf> {
    programs::build_for_lab()
}

/// Builds the agent that ends itself at the step that its environment names, and returns it.
///
/// # Errors
/// If cargo fails; the message quotes its log.
pub(crate) fn failing_agent() -> Result<PathBuf> {
    programs::build_failing_agent(&Manifest::read(&workspace::root())?.programs)
}

/// Makes the .debs from the programs that were built last.
///
/// # Errors
/// If a file is missing or `dpkg-deb` fails.
pub(crate) fn debs() -> Result<Vec<PathBuf>> {
    packages(Format::Deb)
}

fn packages(format: Format) -> Result<Vec<PathBuf>> {
    let root = workspace::root();
    let manifest = Manifest::read(&root)?;
    let release = Release {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: newest_commit(&root)?,
        architecture: std::env::consts::ARCH,
        sources: Sources {
            root,
            programs: programs::folder(),
        },
        output: workspace::build_dir().join("packages"),
    };
    pack(&manifest, &release, format)
}

/// What both formats need to know beside the package itself.
#[derive(Debug)]
struct Release {
    version: String,
    /// Seconds since 1970 that every file carries.
    epoch: u64,
    /// As Rust names it.
    architecture: &'static str,
    sources: Sources,
    /// Where packages go.
    output: PathBuf,
}

/// Makes all packages in one format, unless they are there and made from the same.
fn pack(manifest: &Manifest, release: &Release, format: Format) -> Result<Vec<PathBuf>> {
    let output = &release.output;
    std::fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    let lock = File::create(output.join(".lock")).context("creating the packages' lock")?;
    lock.lock()
        .context("waiting for another build of the packages")?;

    let note = output.join(format!(".{}-made-from", format.extension()));
    let made_from = made_from(manifest, release)?;
    let there = files_with(output, format.extension())?;
    if there.len() == manifest.packages.len()
        && std::fs::read_to_string(&note).is_ok_and(|noted| noted == made_from)
    {
        return Ok(there);
    }
    // Readers find either the old packages or the new ones.
    let fresh = output
        .join("work")
        .join(format!("new-{}", format.extension()));
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("emptying {}", fresh.display()))?;
    }
    std::fs::create_dir_all(&fresh).with_context(|| format!("making {}", fresh.display()))?;
    // Most of it is compression, which takes one processor for each package.
    std::thread::scope(|scope| {
        let fresh = fresh.as_path();
        let pack = |package| pack_one(package, manifest, release, format, fresh);
        let threads: Vec<_> = manifest
            .packages
            .iter()
            .map(|package| (package, scope.spawn(move || pack(package))))
            .collect();
        threads.into_iter().try_for_each(|(package, thread)| {
            let packed = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            packed.with_context(|| format!("packing {}", package.name))
        })
    })?;
    // The note never vouches for a set that is half replaced.
    if note.exists() {
        std::fs::remove_file(&note).with_context(|| format!("removing {}", note.display()))?;
    }
    put_in_place(&fresh, output, format)?;
    std::fs::write(&note, made_from).context("noting what the packages are made from")?;
    files_with(output, format.extension())
}

/// Replaces all packages of a format by those in `fresh`.
fn put_in_place(fresh: &Path, output: &Path, format: Format) -> Result<()> {
    let old = files_with(output, format.extension())?;
    let mut placed = Vec::new();
    for package in files_with(fresh, format.extension())? {
        let place = output.join(package.file_name().context("a package without a name")?);
        std::fs::rename(&package, &place)
            .with_context(|| format!("putting {} in its place", place.display()))?;
        placed.push(place);
    }
    for package in old.iter().filter(|package| !placed.contains(package)) {
        std::fs::remove_file(package).with_context(|| format!("removing {}", package.display()))?;
    }
    Ok(())
}

fn pack_one(
    package: &Package,
    manifest: &Manifest,
    release: &Release,
    format: Format,
    fresh: &Path,
) -> Result<()> {
    let work = release
        .output
        .join("work")
        .join(format.extension())
        .join(&package.name);
    let mut staged = Staged::lay_out(package, &release.sources, format, work.join("root"))?;
    documents::add(&mut staged, package, manifest, release, format)?;
    match format {
        Format::Deb => deb::build(staged, package, manifest, release, fresh),
        Format::Rpm => rpm::build(staged, package, manifest, release, &work, fresh),
    }
}

/// All that decides about the packages' bytes, as text: times, digests of files, and this code.
fn made_from(manifest: &Manifest, release: &Release) -> Result<String> {
    let mut files = Vec::new();
    let root = &release.sources.root;
    files.extend(files_with(&root.join(scripts::FOLDER), "sh")?);
    files.extend(
        [manifest::FILE]
            .iter()
            .chain(&documents::FILES)
            .chain(&third_party::FILES)
            .map(|name| root.join(name)),
    );
    for package in &manifest.packages {
        let entries = package.files.iter().map(|entry| entry.source.as_str());
        let manuals = package.manuals.first().map(String::as_str);
        files.extend(
            entries
                .chain(manuals)
                .map(|source| release.sources.resolve(source)),
        );
    }
    let libc = release.sources.programs.join(programs::STATIC_LIBC);
    files.extend(libc.exists().then_some(libc));
    files.sort();
    files.dedup();
    let digests = capture(Command::new("sha256sum").arg("--").args(&files))?;
    let mut code = DefaultHasher::new();
    CODE.hash(&mut code);
    let code = code.finish();
    Ok(format!(
        "{} {} {code:x}\n{digests}",
        release.version, release.epoch
    ))
}

fn files_with(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("listing {}", folder.display()))?
            .path();
        if path.is_file() && path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// When the newest commit to what is packaged was made; `SOURCE_DATE_EPOCH` stands in for it where
/// there is no git.
fn newest_commit(root: &Path) -> Result<u64> {
    if let Ok(time) = std::env::var("SOURCE_DATE_EPOCH") {
        return time.trim().parse().context("reading SOURCE_DATE_EPOCH");
    }
    let mut git = Command::new("git");
    git.current_dir(root)
        .args(["log", "-1", "--format=%ct", "--"])
        .args(PACKAGED);
    let time = capture(&mut git).context(
        "packages carry the time of the newest commit; where there is none, set SOURCE_DATE_EPOCH",
    )?;
    ensure!(
        !time.trim().is_empty(),
        "nothing is committed yet; set SOURCE_DATE_EPOCH"
    );
    time.trim()
        .parse()
        .context("reading the newest commit's time")
}
