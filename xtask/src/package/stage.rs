//! Lays a package's files out below a folder, with their modes and one time for all.
//!
//! Both formats are made from what this module lays out; it knows of neither.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use berth_tests::command::{capture, output, shown};

use super::Format;
use super::manifest::{Entry, Package, Sources};

/// Where manual pages go, up to the number of their section.
const MANUALS: &str = "/usr/share/man/man";

/// What was laid out.
#[derive(Debug)]
pub(super) struct Staged {
    /// The folder that stands for `/`.
    pub(super) root: PathBuf,
    /// All files, by target.
    pub(super) files: Vec<StagedFile>,
}

/// One file that was laid out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StagedFile {
    /// Absolute path on the host that it is installed on.
    pub(super) target: String,
    /// Permission bits.
    pub(super) mode: u32,
}

impl StagedFile {
    /// Whether an administrator's changes to it are kept: so it is with everything below `/etc`.
    pub(super) fn is_configuration(&self) -> bool {
        self.target.starts_with("/etc/")
    }
}

impl Staged {
    /// Lays out `package` in `root`, which is emptied first.
    ///
    /// # Errors
    /// If a source is missing or a program does not write what it should.
    pub(super) fn lay_out(
        package: &Package,
        sources: &Sources,
        format: Format,
        root: PathBuf,
    ) -> Result<Self> {
        if root.exists() {
            std::fs::remove_dir_all(&root)
                .with_context(|| format!("emptying {}", root.display()))?;
        }
        std::fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        let mut staged = Self {
            root,
            files: Vec::new(),
        };
        for entry in &package.files {
            let target = match (format, &entry.rpm_target) {
                (Format::Rpm, Some(target)) => target,
                (Format::Rpm, None) | (Format::Deb, _) => &entry.target,
            };
            staged.put(target, &content(entry, sources)?, entry.mode)?;
        }
        staged.put_manuals(package, sources)?;
        Ok(staged)
    }

    /// Adds one file with its folders.
    ///
    /// # Errors
    /// If it cannot be written, or is there already.
    pub(super) fn put(&mut self, target: &str, content: &[u8], mode: u32) -> Result<()> {
        ensure!(
            self.files.iter().all(|file| file.target != target),
            "{target} is there twice"
        );
        self.write(target, content, mode)?;
        self.files.push(StagedFile {
            target: target.to_owned(),
            mode,
        });
        Ok(())
    }

    /// Adds one file, compressed, as `target` with `.gz` appended.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub(super) fn put_compressed(&mut self, target: &str, content: &[u8]) -> Result<()> {
        self.write(target, content, 0o644)?;
        let plain = self.path(target);
        capture(Command::new("gzip").args(["-9", "-n", "-f"]).arg(&plain))?;
        self.files.push(StagedFile {
            target: format!("{target}.gz"),
            mode: 0o644,
        });
        Ok(())
    }

    /// Writes a file that describes the package and is not installed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, target: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.path(target);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", path.display()))
    }

    /// Sorts what was laid out and gives it one time and folder mode, whatever this machine does.
    ///
    /// # Errors
    /// If one of the files cannot be changed.
    pub(super) fn seal(&mut self, epoch: u64) -> Result<()> {
        self.files.sort();
        seal_folder(
            &self.root,
            SystemTime::UNIX_EPOCH + Duration::from_secs(epoch),
        )
    }

    /// Where a target lies now.
    pub(super) fn path(&self, target: &str) -> PathBuf {
        self.root.join(target.trim_start_matches('/'))
    }

    /// Has the package's program write its manual pages, and adds them.
    fn put_manuals(&mut self, package: &Package, sources: &Sources) -> Result<()> {
        let Some((program, arguments)) = package.manuals.split_first() else {
            return Ok(());
        };
        let folder = tempfile::tempdir().context("making a folder for the manuals")?;
        let mut command = Command::new(sources.resolve(program));
        capture(command.args(arguments).arg(folder.path()))
            .context("having the manual pages written")?;
        let pages = std::fs::read_dir(folder.path()).context("listing the manuals")?;
        let mut pages: Vec<PathBuf> = pages
            .map(|page| page.map(|page| page.path()))
            .collect::<Result<_, _>>()
            .context("listing the manuals")?;
        pages.sort();
        ensure!(
            !pages.is_empty(),
            "`{}` wrote no manual page",
            shown(&command)
        );
        for page in pages {
            let name = page
                .file_name()
                .and_then(|name| name.to_str())
                .context("a page's name")?;
            let text = std::fs::read(&page).with_context(|| format!("reading {name}"))?;
            let (_, section) = name.rsplit_once('.').context("a page's section")?;
            self.put_compressed(&format!("{MANUALS}{section}/{name}"), &text)?;
        }
        Ok(())
    }
}

fn content(entry: &Entry, sources: &Sources) -> Result<Vec<u8>> {
    let source = sources.resolve(&entry.source);
    if entry.arguments.is_empty() {
        return std::fs::read(&source).with_context(|| format!("reading {}", source.display()));
    }
    let mut command = Command::new(source);
    let answer = output(command.args(&entry.arguments))?;
    ensure!(
        answer.status.success() && !answer.stdout.is_empty(),
        "`{}` did not write {}: {}\n{}",
        shown(&command),
        entry.target,
        answer.status,
        String::from_utf8_lossy(&answer.stderr).trim()
    );
    Ok(answer.stdout)
}

fn seal_folder(folder: &Path, time: SystemTime) -> Result<()> {
    for entry in std::fs::read_dir(folder).context("listing the staged files")? {
        let path = entry.context("listing the staged files")?.path();
        if path.is_dir() {
            seal_folder(&path, time)?;
        } else {
            set_time(&path, time)?;
        }
    }
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))
        .context("setting a folder's mode")?;
    set_time(folder, time)
}

fn set_time(path: &Path, time: SystemTime) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.set_modified(time)
        .with_context(|| format!("setting the time of {}", path.display()))
}
