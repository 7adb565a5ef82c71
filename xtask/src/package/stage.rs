//! Lays a package's files out below a folder, with their modes and one time for all.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use berth_tests::command::{capture, output};

use super::manifest::{Package, resolve};

/// What was laid out.
#[derive(Debug)]
pub(super) struct Staged {
    /// The folder that stands for `/`.
    pub(super) root: PathBuf,
    /// Absolute target paths of all files, sorted.
    pub(super) files: Vec<String>,
}

/// Lays out `package` in `root`, which is emptied first.
///
/// # Errors
/// If a source is missing or a generating command fails.
pub(super) fn stage(package: &Package, root: &Path, epoch: u64) -> Result<Staged> {
    if root.exists() {
        std::fs::remove_dir_all(root).with_context(|| format!("emptying {}", root.display()))?;
    }
    std::fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
    let mut files = Vec::new();
    for entry in &package.files {
        let source = resolve(&entry.source)?;
        let mode = u32::from_str_radix(&entry.mode, 8)
            .with_context(|| format!("{}: mode {}", entry.target, entry.mode))?;
        let content = std::fs::read(&source)
            .with_context(|| format!("{}: reading {}", package.name, source.display()))?;
        put(root, &entry.target, &content, mode)?;
        files.push(entry.target.clone());
    }
    for generated in &package.generated {
        let answer = output(&mut program(&generated.command)?)?;
        anyhow::ensure!(
            answer.status.success() && !answer.stdout.is_empty(),
            "{}: `{}` wrote nothing: {}",
            package.name,
            generated.command.join(" "),
            String::from_utf8_lossy(&answer.stderr).trim()
        );
        put(root, &generated.target, &answer.stdout, 0o644)?;
        files.push(generated.target.clone());
    }
    files.extend(stage_manuals(package, root)?);
    files.sort();
    set_times(root, epoch)?;
    Ok(Staged { root: root.to_path_buf(), files })
}

fn program(words: &[String]) -> Result<Command> {
    let (first, rest) = words.split_first().context("an empty command")?;
    let mut command = Command::new(resolve(first)?);
    command.args(rest);
    Ok(command)
}

/// Has the package's program write its manual pages, and packs them as policy wants.
fn stage_manuals(package: &Package, root: &Path) -> Result<Vec<String>> {
    if package.manuals.is_empty() {
        return Ok(Vec::new());
    }
    let folder = root.join("usr/share/man/man1");
    std::fs::create_dir_all(&folder).context("making the manuals' folder")?;
    capture(program(&package.manuals)?.arg(&folder))?;
    let mut files = Vec::new();
    for page in std::fs::read_dir(&folder).context("listing the manuals")? {
        let page = page.context("listing the manuals")?.path();
        capture(Command::new("gzip").args(["-9", "-n"]).arg(&page))?;
        let name = page.file_name().and_then(|name| name.to_str()).context("a manual's name")?;
        let packed = folder.join(format!("{name}.gz"));
        std::fs::set_permissions(&packed, PermissionsExt::from_mode(0o644))
            .context("setting a manual's mode")?;
        files.push(format!("/usr/share/man/man1/{name}.gz"));
    }
    Ok(files)
}

/// Writes one file with its folders.
///
/// # Errors
/// If it cannot be written.
pub(super) fn put(root: &Path, target: &str, content: &[u8], mode: u32) -> Result<()> {
    let path = root.join(target.trim_start_matches('/'));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

/// Gives everything below `folder`, and `folder` itself, mode and time that do not depend on the
/// machine: folders are 0755, and all is as old as the newest commit.
///
/// # Errors
/// If one of them cannot be changed.
pub(super) fn set_times(folder: &Path, epoch: u64) -> Result<()> {
    for entry in std::fs::read_dir(folder).context("listing the staged files")? {
        let path = entry.context("listing the staged files")?.path();
        if path.is_dir() {
            set_times(&path, epoch)?;
        } else {
            set_time(&path, epoch)?;
        }
    }
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))
        .context("setting a folder's mode")?;
    set_time(folder, epoch)
}

fn set_time(path: &Path, epoch: u64) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(epoch))
        .with_context(|| format!("setting the time of {}", path.display()))
}
