//! Where things lie in the work tree. Everything that is built goes under `build/` or `target/`.

use std::path::{Path, PathBuf};

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
