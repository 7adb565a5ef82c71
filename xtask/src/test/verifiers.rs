//! Makes the foreign verifiers of the ledger below `build/verifiers/`: a virtual environment of Python
//! with `aics-tlog`, and the reference Go code with the small program around it.
//!
//! Their versions are pinned in `tests/verifiers/requirements.txt` and by the distribution. What
//! cannot be made is told by the tests that would use it, as skipped.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use berth_tests::workspace;

use crate::build::logged;

const LOG: &str = "verifiers";

/// Makes all that can be made; what could not, with its reason.
pub(super) fn make() -> Vec<String> {
    let made = [
        ("aics-tlog", python()),
        ("the reference Go code", reference()),
    ];
    let failed = made.into_iter().filter_map(|(name, made)| {
        let error = made.err()?;
        Some(format!("{name} could not be made: {error:#}"))
    });
    failed.collect()
}

fn folder() -> PathBuf {
    workspace::build_dir().join("verifiers")
}

fn sources() -> PathBuf {
    workspace::root().join("tests/verifiers")
}

/// `aics-tlog` says that it needs Python 3.12 and runs on 3.11, which Debian 12 has.
fn python() -> Result<()> {
    let venv = folder().join("venv");
    let requirements = sources().join("requirements.txt");
    // A copy of what was installed tells whether that is still what is wanted.
    let stamp = venv.join("requirements.txt");
    let wanted =
        fs::read(&requirements).with_context(|| format!("reading {}", requirements.display()))?;
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    logged(Command::new("python3").args(["-m", "venv"]).arg(&venv), LOG)?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--ignore-requires-python", "-r"]);
    logged(pip.arg(&requirements), LOG)?;
    fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))
}

/// Go's own cache sees whether anything has changed. Nothing is asked of a network.
fn reference() -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut go = Command::new("go");
    go.current_dir(sources().join("go"))
        .env("GOPROXY", "off")
        .env("GOFLAGS", "-mod=mod")
        .env("GOCACHE", folder.join("go-cache"))
        .args(["build", "-o"])
        .arg(folder.join("reference"))
        .arg(".");
    logged(&mut go, LOG)
}
