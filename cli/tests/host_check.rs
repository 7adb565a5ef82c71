//! `berthctl host check` on made-up machines: a root folder, and shell scripts for the programs.

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Output};

    use tempfile::TempDir;

    const PROBE: &str = r#"echo '{"kvm":true,"api_version":12,"runs_unmodified_guest":true}'"#;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn script(root: &Path, path: &str, line: &str) {
        write(root, path, &format!("#!/bin/sh\n{line}\n"));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(root.join(path), mode).unwrap();
    }

    fn good_machine() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "dev/kvm", "");
        write(root, "proc/self/mountinfo", "");
        write(root, "proc/cpuinfo", "flags\t\t: svm pdpe1gb\n");
        write(root, "proc/interrupts", "  8: 0 IR-IO-APIC 8-edge rtc0\n");
        write(root, "proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
        write(root, "sys/kernel/iommu_groups/7/type", "DMA\n");
        write(root, "sys/class/iommu/ivhd0/amd-iommu/cap", "0\n");
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "9\n",
        );
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "9\n",
        );
        write(
            root,
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] never\n",
        );
        write(
            root,
            "sys/fs/cgroup/cgroup.controllers",
            "cpu io memory pids\n",
        );
        script(
            root,
            "usr/bin/systemctl",
            "echo 'systemd 252 (252.38-1~deb12u1)'",
        );
        script(root, "berth-vmm", PROBE);
        folder
    }

    fn check(root: &Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_berthctl"))
            .args(["host", "check", "--sysroot"])
            .arg(root)
            .arg("--vmm")
            .arg(root.join("berth-vmm"))
            .args(arguments)
            .env_clear()
            .output()
            .unwrap()
    }

    #[test]
    fn a_good_host_exits_with_0_and_says_ok_in_each_line() {
        let machine = good_machine();
        let output = check(machine.path(), &["--no-headers"]);
        let shown = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{shown}");
        assert_eq!(shown.lines().count(), 12, "{shown}");
        assert!(shown.lines().all(|line| line.contains("  ok ")), "{shown}");
    }

    #[test]
    fn a_warning_is_no_failure_and_comes_with_its_remedy() {
        let machine = good_machine();
        std::fs::remove_file(machine.path().join("berth-vmm")).unwrap();
        let output = check(machine.path(), &["--json"]);
        assert_eq!(output.status.code(), Some(0));
        let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = checks.as_array().unwrap();
        let found: Vec<_> = checks
            .iter()
            .filter(|check| check["status"] != "ok")
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["status"], "warn");
        assert!(found[0]["remedy"].as_str().unwrap().contains("berth-agent"));
    }

    #[test]
    fn a_failure_exits_with_1() {
        let machine = good_machine();
        write(machine.path(), "proc/sys/kernel/osrelease", "5.10.0\n");
        let output = check(machine.path(), &[]);
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("1 of the host's checks failed"), "{error}");
    }
}
