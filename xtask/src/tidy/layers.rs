//! Rules about crates: who may depend on whom, and one version of each rust-vmm crate.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::{Problem, Tree};

/// The house has three storeys. `api`, `ledger` and `manual` know nobody above them; `vmm`, `agent` and
/// `controller` stand side by side and never on each other; `cli` and `tests` are on top.
const ALLOWED: &[(&str, &[&str])] = &[
    ("berth-api", &[]),
    ("berth-ledger", &["berth-api"]),
    ("berth-manual", &[]),
    ("berth-witness", &["berth-ledger", "berth-manual"]),
    ("berth-publish", &["berth-ledger", "berth-manual"]),
    ("berth-vfio", &[]),
    ("berth-vmm-sys", &["berth-vfio"]),
    ("berth-vmm-devices", &[]),
    (
        "berth-vmm-machine",
        &[
            "berth-api",
            "berth-vfio",
            "berth-vmm-devices",
            "berth-vmm-sys",
        ],
    ),
    (
        "berth-vmm",
        &[
            "berth-api",
            "berth-vmm-devices",
            "berth-vmm-machine",
            "berth-vmm-sys",
        ],
    ),
    ("berth-agent-core", &["berth-api", "berth-ledger"]),
    ("berth-inventory", &["berth-agent-core", "berth-api"]),
    ("berth-nvme", &["berth-agent-core", "berth-api"]),
    (
        "berth-agent-host",
        &[
            "berth-agent-core",
            "berth-api",
            "berth-inventory",
            "berth-ledger",
            "berth-nvme",
            "berth-vfio",
        ],
    ),
    (
        "berth-agent",
        &[
            "berth-agent-core",
            "berth-agent-host",
            "berth-api",
            "berth-inventory",
            "berth-ledger",
            "berth-manual",
            "berth-nvme",
        ],
    ),
    ("berth-token", &["berth-api", "berth-ledger"]),
    ("berth-controller-core", &["berth-api"]),
    (
        "berth-controller-store",
        &["berth-api", "berth-controller-core", "berth-ledger"],
    ),
    (
        "berth-controller",
        &[
            "berth-api",
            "berth-controller-core",
            "berth-controller-store",
            "berth-ledger",
            "berth-manual",
            "berth-token",
        ],
    ),
    (
        "berth-cli",
        &[
            "berth-agent-core",
            "berth-api",
            "berth-inventory",
            "berth-ledger",
            "berth-manual",
            "berth-token",
        ],
    ),
];

/// Crates on top may use anything.
const ON_TOP: [&str; 2] = ["berth-tests", "xtask"];

/// Crates of which two versions at once would mean two incompatible kinds of guest memory or ioctl.
const ONE_VERSION: [&str; 9] = [
    "acpi_tables",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

pub(super) fn problems(tree: &Tree) -> anyhow::Result<Vec<Problem>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(&tree.root)
        .output()
        .context("cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut problems = edges(&metadata);
    problems.extend(versions(tree.text("Cargo.lock").unwrap_or_default()));
    Ok(problems)
}

fn edges(metadata: &Value) -> Vec<Problem> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let packages = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let names: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if ON_TOP.contains(&name) {
            continue;
        }
        let Some(targets) = allowed.get(name) else {
            problems.push(Problem::new(
                "xtask/src/tidy/layers.rs",
                0,
                format!("`{name}` has no storey"),
            ));
            continue;
        };
        let dependencies = package["dependencies"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        for dependency in dependencies {
            let target = dependency["name"].as_str().unwrap_or_default();
            let for_tests_only = dependency["kind"].as_str() == Some("dev");
            if names.contains(&target) && !targets.contains(&target) && !for_tests_only {
                problems.push(Problem::new(
                    "Cargo.toml",
                    0,
                    format!("`{name}` depends on `{target}`, which the house does not allow"),
                ));
            }
        }
    }
    problems
}

fn versions(lock: &str) -> Vec<Problem> {
    ONE_VERSION
        .iter()
        .filter(|name| lock.matches(&format!("name = \"{name}\"\n")).count() > 1)
        .map(|name| {
            Problem::new(
                "Cargo.lock",
                0,
                format!("holds more than one version of `{name}`"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_across_the_house_is_found() {
        let metadata = serde_json::json!({"packages": [
            {"name": "berth-api", "dependencies": []},
            {"name": "berth-vmm-sys", "dependencies": [{"name": "berth-api", "kind": null}]},
        ]});
        assert_eq!(edges(&metadata).len(), 1);
    }

    #[test]
    fn two_versions_of_a_rust_vmm_crate_are_found() {
        let lock = "name = \"vm-memory\"\nversion = \"1\"\nname = \"vm-memory\"\nversion = \"2\"\n";
        assert_eq!(versions(lock).len(), 1);
    }
}
