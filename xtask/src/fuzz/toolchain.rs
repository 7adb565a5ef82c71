//! The compiler that fuzz targets need, and the build with it.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use berth_tests::command::capture;
use berth_tests::workspace;

use crate::build::{cargo_command, logged};

pub(super) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Coverage counters and compared values for libFuzzer, and the address sanitizer.
const RUSTFLAGS: &str = "-Zsanitizer=address -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing";

/// Why fuzz targets cannot be built here; `None` if they can.
pub(crate) fn missing() -> Option<String> {
    let remedy = "`rustup toolchain install nightly --profile minimal` brings it";
    let mut rustc = Command::new("rustup");
    rustc.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    let Ok(sysroot) = capture(&mut rustc) else {
        return Some(format!("there is no nightly toolchain of rustup; {remedy}"));
    };
    let libraries = Path::new(sysroot.trim()).join(format!("lib/rustlib/{TRIPLE}/lib"));
    let has_sanitizer = libraries.read_dir().is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| is_address_sanitizer(&entry.file_name().to_string_lossy()))
    });
    (!has_sanitizer).then(|| format!("the nightly toolchain has no address sanitizer; {remedy}"))
}

fn is_address_sanitizer(file_name: &str) -> bool {
    file_name.ends_with("_rt.asan.a")
}

/// Builds all targets.
///
/// # Errors
/// If cargo does not exit with 0.
pub(crate) fn build() -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", "nightly", "cargo", "build", "--release", "--locked"]);
    rustup.args(["--bins", "--target", TRIPLE, "--manifest-path"]);
    rustup.arg(workspace::root().join("fuzz/Cargo.toml"));
    rustup.arg("--target-dir").arg(target_dir());
    // The same clean environment as every other build, but neither its cargo nor its rustc.
    for (name, value) in cargo_command().get_envs() {
        if value.is_none() {
            rustup.env_remove(name);
        }
    }
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTUP_TOOLCHAIN",
        "CARGO_ENCODED_RUSTFLAGS",
    ] {
        rustup.env_remove(name);
    }
    logged(rustup.env("RUSTFLAGS", RUSTFLAGS), "build-fuzz")
}

/// Where the targets are built, apart from everything that the stable compiler builds.
pub(super) fn target_dir() -> std::path::PathBuf {
    workspace::target_dir().join("fuzz")
}
