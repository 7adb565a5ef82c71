//! The description of the packages, as data. Unknown keys are refused.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use berth_tests::workspace;
use serde::Deserialize;

use crate::build;

/// `packaging/packages.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) maintainer: String,
    pub(crate) license: String,
    pub(crate) package: Vec<Package>,
}

/// One package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) summary: String,
    pub(crate) description: String,
    pub(crate) deb_depends: Vec<String>,
    pub(crate) rpm_requires: Vec<String>,
    /// Units that an installation enables.
    #[serde(default)]
    pub(crate) enable: Vec<String>,
    /// Name of its file in `sysusers.d`.
    pub(crate) sysusers: Option<String>,
    /// Name of its file in `tmpfiles.d`.
    pub(crate) tmpfiles: Option<String>,
    /// Whether it brings udev rules.
    #[serde(default)]
    pub(crate) udev: bool,
    pub(crate) files: Vec<Entry>,
    /// Files that one of its programs writes to its standard output.
    #[serde(default)]
    pub(crate) generated: Vec<Generated>,
    /// A command that writes manual pages into the folder that is appended to it.
    #[serde(default)]
    pub(crate) manuals: Vec<String>,
}

/// A file of a package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) source: String,
    pub(crate) target: String,
    #[serde(default = "plain_mode")]
    pub(crate) mode: String,
}

/// A file that a program makes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generated {
    pub(crate) command: Vec<String>,
    pub(crate) target: String,
}

fn plain_mode() -> String {
    "0644".to_owned()
}

impl Manifest {
    /// Reads and checks the description.
    ///
    /// # Errors
    /// If it is not as this module says, or names a target that is no absolute path.
    pub(crate) fn read() -> Result<Self> {
        let path = workspace::root().join("packaging/packages.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let manifest: Self =
            toml::from_str(&text).with_context(|| format!("understanding {}", path.display()))?;
        for package in &manifest.package {
            let targets = package.files.iter().map(|file| &file.target);
            for target in targets.chain(package.generated.iter().map(|file| &file.target)) {
                ensure!(
                    target.starts_with('/') && !target.contains(".."),
                    "{}: the target {target} is not an absolute path",
                    package.name
                );
            }
        }
        Ok(manifest)
    }
}

/// The path that a `source` stands for.
///
/// # Errors
/// If it names a program that is not built.
pub(crate) fn resolve(source: &str) -> Result<PathBuf> {
    match source.strip_prefix("release:") {
        Some(program) => build::release_program(program),
        None => Ok(workspace::root().join(source)),
    }
}
