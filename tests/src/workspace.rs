//! Where things lie in the work tree. Everything that is built goes under `build/` or `target/`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The folder that holds the workspace's `Cargo.toml`.
#[must_use]
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// What is built and may be deleted at any time: images, packages, logs, recorded durations.
#[must_use]
pub fn build_dir() -> PathBuf {
    root().join("build")
}

/// Cargo's target folder, which `CARGO_TARGET_DIR` may move.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program of the workspace that cargo built beside the running test. A test does not build it: what
/// is built alone is built with other features, and everything below it twice.
///
/// # Errors
/// If it is not there; the message says how to build it.
pub fn program_beside_test(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("finding the running test")?;
    let built = test.parent().and_then(Path::parent);
    let program = built.context("a test lies in target/*/deps")?.join(name);
    ensure!(
        program.exists(),
        "{} is missing; build it with `cargo build --workspace --bins`",
        program.display()
    );
    Ok(program)
}
