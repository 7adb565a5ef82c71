//! The Debian format: control file, digests, maintainer scripts, `dpkg-deb`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use berth_tests::command::capture;

use super::manifest::{Manifest, Package};
use super::stage::Staged;
use super::{Release, libraries, scripts};

/// Makes one .deb from what was laid out.
///
/// # Errors
/// If a program needs a library of no known package, or `dpkg-deb` fails.
pub(super) fn build(
    mut staged: Staged,
    package: &Package,
    manifest: &Manifest,
    release: &Release,
    fresh: &Path,
) -> Result<()> {
    let size = installed_kib(&staged.root)?;
    let mut depends = libraries::debian_depends(&staged)?;
    depends.extend(package.deb_depends.iter().cloned());
    depends.sort();
    let write = |name: &str, text: &str, mode| {
        staged.write(&format!("/DEBIAN/{name}"), text.as_bytes(), mode)
    };
    write("md5sums", &digests(&staged)?, 0o644)?;
    write(
        "control",
        &control(package, manifest, release, &depends, size)?,
        0o644,
    )?;
    let conffiles: String = staged
        .files
        .iter()
        .filter(|file| file.is_configuration())
        .map(|file| format!("{}\n", file.target))
        .collect();
    if !conffiles.is_empty() {
        write("conffiles", &conffiles, 0o644)?;
    }
    for name in scripts::DEB {
        if let Some(text) = scripts::script(package, &release.sources.root, name)? {
            write(name, &format!("#!/bin/sh\n{text}"), 0o755)?;
        }
    }
    staged.seal(release.epoch)?;
    let name = format!(
        "{}_{}-{}_{}.deb",
        package.name,
        release.version,
        manifest.revision,
        architecture(release)?
    );
    let mut command = Command::new("dpkg-deb");
    command.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    // One thread: how xz divides the data must not depend on this machine's processors.
    command.args([
        "--root-owner-group",
        "-Zxz",
        "-z6",
        "--threads-max=1",
        "--build",
    ]);
    capture(command.arg(&staged.root).arg(fresh.join(name)))?;
    Ok(())
}

fn architecture(release: &Release) -> Result<&'static str> {
    match release.architecture {
        "x86_64" => Ok("amd64"),
        other => bail!("Debian's name for the architecture {other} is not known here"),
    }
}

fn control(
    package: &Package,
    manifest: &Manifest,
    release: &Release,
    depends: &[String],
    installed_kib: u64,
) -> Result<String> {
    let version = format!("{}-{}", release.version, manifest.revision);
    let fields = [
        ("Package", package.name.clone()),
        ("Source", "berth".to_owned()),
        ("Version", version),
        ("Architecture", architecture(release)?.to_owned()),
        ("Maintainer", manifest.maintainer.clone()),
        ("Installed-Size", installed_kib.to_string()),
        ("Depends", depends.join(", ")),
        ("Recommends", package.recommends.join(", ")),
        ("Section", "admin".to_owned()),
        ("Priority", "optional".to_owned()),
        ("Description", package.summary.clone()),
    ];
    let fields = fields.iter().filter(|(_, value)| !value.is_empty());
    let mut text: String = fields
        .map(|(name, value)| format!("{name}: {value}\n"))
        .collect();
    for line in package.description.trim().lines() {
        // An empty line would end the paragraph.
        text.push_str(if line.is_empty() { " ." } else { " " });
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// Digests of all files but the configuration, which an administrator changes.
fn digests(staged: &Staged) -> Result<String> {
    let mut names: Vec<&str> = staged
        .files
        .iter()
        .filter(|file| !file.is_configuration())
        .map(|file| file.target.trim_start_matches('/'))
        .collect();
    names.sort_unstable();
    capture(
        Command::new("md5sum")
            .current_dir(&staged.root)
            .arg("--")
            .args(names),
    )
}

/// Size as dpkg counts it: each file rounded up to whole KiB, each folder 1 KiB.
fn installed_kib(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).context("listing the staged files")? {
        let entry = entry.context("listing the staged files")?;
        let meta = entry.metadata().context("measuring the staged files")?;
        sum += if meta.is_dir() {
            1 + installed_kib(&entry.path())?
        } else {
            meta.len().div_ceil(1024)
        };
    }
    Ok(sum)
}
