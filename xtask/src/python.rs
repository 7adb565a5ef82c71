//! Python packages that tests compare us with: pinned, each set in an environment of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use berth_tests::command::run_logged;
use berth_tests::workspace;

/// An environment that holds these packages, made if it is missing: its Python. The reason, if the
/// packages cannot be fetched.
///
/// # Errors
/// If folders cannot be made or removed.
pub(crate) fn environment(
    name: &str,
    packages: &[&str],
) -> Result<std::result::Result<PathBuf, String>> {
    let folder = workspace::build_dir().join("python").join(name);
    let python = folder.join("bin/python");
    let mark = folder.join("packages");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == wanted) {
        return Ok(Ok(python));
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    if let Err(error) = fetch(&folder, &python, name, packages) {
        return Ok(Err(format!(
            "the Python packages {} cannot be fetched (is there a network?): {error:#}",
            packages.join(", ")
        )));
    }
    std::fs::write(&mark, wanted).with_context(|| format!("writing {}", mark.display()))?;
    Ok(Ok(python))
}

fn fetch(folder: &Path, python: &Path, name: &str, packages: &[&str]) -> Result<()> {
    let log = workspace::build_dir().join(format!("logs/python-{name}.log"));
    run_logged(
        Command::new("python3").args(["-m", "venv"]).arg(folder),
        &log,
    )?;
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    run_logged(pip.args(["--only-binary", ":all:"]).args(packages), &log)
}
