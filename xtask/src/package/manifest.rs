//! The description of the packages, as data. Unknown keys are refused.
//!
//! Reads `packaging/packages.toml` and checks what can be checked without the files it names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer};

/// Where the description lies, from the root of the repository.
pub(super) const FILE: &str = "packaging/packages.toml";

/// `packaging/packages.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) maintainer: String,
    pub(super) license: String,
    /// Number of the packaging of one version, from 1.
    pub(super) revision: u32,
    #[serde(rename = "program")]
    pub(super) programs: Vec<Program>,
    #[serde(rename = "package")]
    pub(super) packages: Vec<Package>,
}

/// A program that cargo builds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    pub(super) name: String,
    /// The workspace's package that has it.
    pub(super) package: String,
    #[serde(default)]
    pub(super) linkage: Linkage,
    /// Whether cargo builds it by itself, so that the features of its crates are its own.
    #[serde(default)]
    pub(super) apart: bool,
}

/// Whether a program brings the C library along.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Linkage {
    #[default]
    Dynamic,
    Static,
}

/// One package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) summary: String,
    pub(super) description: String,
    /// Beside the libraries, which are found out from the programs.
    #[serde(default)]
    pub(super) deb_depends: Vec<String>,
    #[serde(default)]
    pub(super) rpm_requires: Vec<String>,
    /// Installed along by default; the same names in both formats.
    #[serde(default)]
    pub(super) recommends: Vec<String>,
    /// Units that an installation enables and starts.
    #[serde(default)]
    pub(super) enable: Vec<String>,
    /// Name of its file in `sysusers.d`.
    #[serde(default)]
    pub(super) sysusers: String,
    /// Name of its file in `tmpfiles.d`.
    #[serde(default)]
    pub(super) tmpfiles: String,
    /// Whether it brings udev rules.
    #[serde(default)]
    pub(super) udev: bool,
    /// The folder that outlives the package, with what is in it; for the message on removal.
    pub(super) state: Option<State>,
    pub(super) files: Vec<Entry>,
    /// A command that writes manual pages into the folder that is appended to it.
    #[serde(default)]
    pub(super) manuals: Vec<String>,
}

/// What stays when a package goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) folder: String,
    pub(super) holds: String,
}

/// A file of a package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Entry {
    /// A path in the repository, or `release:NAME` for a program. With `arguments`, the file is what
    /// the program writes to its standard output.
    pub(super) source: String,
    #[serde(default)]
    pub(super) arguments: Vec<String>,
    pub(super) target: String,
    /// Where RPM distributions want it, if not at `target`.
    pub(super) rpm_target: Option<String>,
    /// Permission bits.
    #[serde(default = "plain_mode", deserialize_with = "octal")]
    pub(super) mode: u32,
}

const fn plain_mode() -> u32 {
    0o644
}

fn octal<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    let text = String::deserialize(input)?;
    u32::from_str_radix(&text, 8).map_err(serde::de::Error::custom)
}

impl Manifest {
    /// Reads and checks the description of the repository at `root`.
    ///
    /// # Errors
    /// If it is not as this module says.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("understanding {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let manifest: Self = toml::from_str(text)?;
        for package in &manifest.packages {
            package
                .check()
                .with_context(|| format!("package {}", package.name))?;
        }
        Ok(manifest)
    }
}

impl Package {
    fn check(&self) -> Result<()> {
        for entry in &self.files {
            for target in std::iter::once(&entry.target).chain(&entry.rpm_target) {
                ensure!(
                    target.starts_with('/') && !target.contains(".."),
                    "the target {target:?} is not an absolute path"
                );
            }
            ensure!(
                matches!(entry.mode, 0o644 | 0o755),
                "{} has mode {:o}: files of a package are 0644 or 0755; what is private is made at \
                 run time",
                entry.target,
                entry.mode
            );
            ensure!(
                entry.arguments.is_empty() || entry.source.starts_with("release:"),
                "{} has arguments, so its source must be a program",
                entry.target
            );
        }
        let has = |target: String| self.files.iter().any(|entry| entry.target == target);
        for unit in &self.enable {
            ensure!(
                has(format!("/usr/lib/systemd/system/{unit}")),
                "enables {unit}, which it does not bring"
            );
        }
        for (folder, name) in [
            ("sysusers.d", &self.sysusers),
            ("tmpfiles.d", &self.tmpfiles),
        ] {
            ensure!(
                name.is_empty() || has(format!("/usr/lib/{folder}/{name}")),
                "names {folder}/{name}, which it does not bring"
            );
        }
        Ok(())
    }
}

/// Where a package's files come from.
#[derive(Debug)]
pub(super) struct Sources {
    /// The repository.
    pub(super) root: PathBuf,
    /// The folder with the built programs.
    pub(super) programs: PathBuf,
}

impl Sources {
    /// The path that a `source` stands for.
    pub(super) fn resolve(&self, source: &str) -> PathBuf {
        match source.strip_prefix("release:") {
            Some(program) => self.programs.join(program),
            None => self.root.join(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "maintainer = 'm'\nlicense = 'l'\nrevision = 1\nprogram = []\n";

    #[track_caller]
    fn refused(package: &str, reason: &str) {
        let text =
            format!("{HEAD}[[package]]\nname = 'p'\nsummary = 's'\ndescription = 'd'\n{package}\n");
        let message = format!("{:#}", Manifest::parse(&text).unwrap_err());
        assert!(message.contains(reason), "{message}");
    }

    #[test]
    fn a_key_that_nobody_reads_is_refused() {
        refused("files = []\ndepends = ['x']", "depends");
    }

    #[test]
    fn a_target_outside_the_root_is_refused() {
        refused(
            "files = [{ source = 'a', target = '/usr/../x' }]",
            "not an absolute path",
        );
        refused(
            "files = [{ source = 'a', target = 'usr/x' }]",
            "not an absolute path",
        );
    }

    #[test]
    fn a_special_mode_is_refused() {
        refused(
            "files = [{ source = 'a', target = '/x', mode = '4755' }]",
            "4755",
        );
    }

    #[test]
    fn a_unit_that_the_package_does_not_bring_cannot_be_enabled() {
        refused("files = []\nenable = ['x.service']", "x.service");
    }

    #[test]
    fn this_repository_is_described_well() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let manifest = Manifest::read(root).unwrap();
        let sources = Sources {
            root: root.to_owned(),
            programs: PathBuf::new(),
        };
        for entry in manifest.packages.iter().flat_map(|package| &package.files) {
            let built = entry.source.strip_prefix("release:");
            let known = built.map(|name| manifest.programs.iter().any(|one| one.name == name));
            let found = known.unwrap_or_else(|| sources.resolve(&entry.source).is_file());
            assert!(found, "{} has no source {}", entry.target, entry.source);
        }
    }
}
