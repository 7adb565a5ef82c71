//! What every package says about itself: licence, copyright, changelogs, and notices of others.
//!
//! Debian wants them in one folder and compressed; RPM distributions have a folder for licences.

use std::process::Command;

use anyhow::{Context, Result};
use berth_tests::command::capture;

use super::manifest::{Manifest, Package};
use super::stage::Staged;
use super::{Format, Release, third_party};

/// The files that the documents are made from, from the root of the repository; the lock file decides
/// about the crates.
pub(super) const FILES: [&str; 4] = [CHANGELOG, COPYRIGHT, LICENSE, "Cargo.lock"];
const CHANGELOG: &str = "CHANGELOG.md";
const COPYRIGHT: &str = "packaging/copyright";
const LICENSE: &str = "LICENSE";
const THIRD_PARTY: &str = "THIRD-PARTY";

/// Adds the documents of a package.
///
/// # Errors
/// If one of them cannot be read.
pub(super) fn add(
    staged: &mut Staged,
    package: &Package,
    manifest: &Manifest,
    release: &Release,
    format: Format,
) -> Result<()> {
    let read = |name: &str| {
        let path = release.sources.root.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let folder = format!("/usr/share/doc/{}", package.name);
    staged.put(&format!("{folder}/copyright"), &read(COPYRIGHT)?, 0o644)?;
    let notices = third_party::notices(package, manifest, release)?;
    match format {
        Format::Deb => {
            if let Some(notices) = notices {
                staged.put_compressed(&format!("{folder}/{THIRD_PARTY}"), notices.as_bytes())?;
            }
            staged.put_compressed(&format!("{folder}/changelog"), &read(CHANGELOG)?)?;
            let entry = debian_entry(manifest, release)?;
            staged.put_compressed(&format!("{folder}/changelog.Debian"), entry.as_bytes())
        }
        Format::Rpm => {
            staged.put(&format!("{folder}/{CHANGELOG}"), &read(CHANGELOG)?, 0o644)?;
            let folder = format!("/usr/share/licenses/{}", package.name);
            if let Some(notices) = notices {
                staged.put(
                    &format!("{folder}/{THIRD_PARTY}"),
                    notices.as_bytes(),
                    0o644,
                )?;
            }
            staged.put(&format!("{folder}/{LICENSE}"), &read(LICENSE)?, 0o644)
        }
    }
}

/// Debian's changelog has an entry for the packaging; what changed in berth is in the other one.
fn debian_entry(manifest: &Manifest, release: &Release) -> Result<String> {
    let mut date = Command::new("date");
    date.env("LC_ALL", "C").args(["--utc", "--rfc-email"]);
    let date = capture(date.arg(format!("--date=@{}", release.epoch)))?;
    Ok(format!(
        "berth ({}-{}) unstable; urgency=medium\n\n  * What changed is in changelog.gz.\n\n -- {}  {}",
        release.version, manifest.revision, manifest.maintainer, date
    ))
}
