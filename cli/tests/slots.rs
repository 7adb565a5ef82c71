//! `berthctl slot` on made-up machines: a root folder with two drives behind root ports of their own.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;
    use std::process::{Command, Output};

    use serde_json::Value;
    use tempfile::TempDir;

    const FIRST: &str = "0000:01:00.0";
    const SECOND: &str = "0000:02:00.0";

    fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(root: &Path, path: &str, target: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(root.join(target)).unwrap();
        symlink(root.join(target), path).unwrap();
    }

    /// A config space with PCI Express (port kind `kind`), MSI-X, and all of ACS on.
    fn config(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &[0x36, 0x1b, 0x10, 0x00]);
        put(0x06, &[0x10]);
        put(0x34, &[0x40]);
        put(0x40, &[0x10, 0x50, kind << 4, 0x00]);
        put(0x50, &[0x11, 0x00]);
        put(0x100, &[0x0d, 0x00, 0x01, 0x00, 0x1f, 0x00, 0x1d, 0x00]);
        bytes
    }

    fn function(root: &Path, path: &str, class: &str, kind: u8, group: u32) {
        let folder = format!("sys/devices/pci0000:00/{path}");
        for (name, content) in [
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
            ("subsystem_vendor", "0x1af4\n"),
            ("subsystem_device", "0x1100\n"),
            ("class", class),
            ("reset_method", "flr bus\n"),
        ] {
            write(root, &format!("{folder}/{name}"), content);
        }
        write(root, &format!("{folder}/config"), config(kind));
        let address = path.rsplit('/').next().unwrap();
        link(root, &format!("sys/bus/pci/devices/{address}"), &folder);
        let group = format!("sys/kernel/iommu_groups/{group}");
        link(root, &format!("{folder}/iommu_group"), &group);
        link(root, &format!("{group}/devices/{address}"), &folder);
    }

    fn machine() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "proc/self/mountinfo", "");
        write(root, "proc/cmdline", "intel_iommu=on\n");
        write(root, "proc/interrupts", " 24: 0 IR-PCI-MSI 0-edge\n");
        write(root, "sys/class/iommu/dmar0/intel-iommu/ecap", "f00f5a\n");
        for (index, serial) in [(1, "S1"), (2, "S2")] {
            let port = format!("0000:00:0{index}.0");
            let drive = format!("{port}/0000:0{index}:00.0");
            function(root, &port, "0x060400\n", 4, index * 10);
            function(root, &drive, "0x010802\n", 0, index * 10 + 1);
            let nvme = format!("sys/devices/pci0000:00/{drive}/nvme/nvme{index}");
            write(root, &format!("{nvme}/serial"), format!("{serial}\n"));
            write(root, &format!("{nvme}/model"), "A drive\n");
            write(root, &format!("{nvme}/firmware_rev"), "1.0\n");
        }
        folder
    }

    fn slot(machine: &TempDir, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_berthctl"))
            .arg("slot")
            .args(arguments)
            .arg("--sysroot")
            .arg(machine.path())
            .env_clear()
            .output()
            .unwrap()
    }

    fn approve(machine: &TempDir, address: &str, name: &str) -> Output {
        let arguments = [
            "approve", address, "--name", name, "--class", "nvme", "--yes",
        ];
        slot(machine, &arguments)
    }

    #[track_caller]
    fn json(machine: &TempDir, arguments: &[&str], code: i32) -> Value {
        let output = slot(machine, &[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(output: &Output, code: i32, word: &str) {
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn an_approved_slot_is_fit_and_known_to_udev_until_it_is_taken_back() {
        let machine = machine();
        let output = approve(&machine, FIRST, "disk-1");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let file = machine.path().join("etc/berth/slots.d/disk-1.toml");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let rules = machine.path().join("etc/udev/rules.d/58-berth-slots.rules");
        let text = fs::read_to_string(&rules).unwrap();
        assert!(text.contains("ENV{BERTH_SLOT}=\"disk-1\""), "{text}");

        let verdicts = json(&machine, &["check"], 0);
        assert_eq!(verdicts[1]["subject"], "disk-1");
        assert_eq!(verdicts[1]["is_fit"], true);
        assert_eq!(verdicts[1]["devices"][0]["address"], FIRST);

        let output = slot(&machine, &["unapprove", "disk-1", "--yes"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(!file.exists());
        assert!(!fs::read_to_string(&rules).unwrap().contains("disk-1"));
        let output = slot(&machine, &["unapprove", "disk-1", "--yes"]);
        fails(&output, 3, "no slot \"disk-1\"");
    }

    /// The commands of `docs/slots.md`, in order.
    fn documented() -> Vec<String> {
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/slots.md");
        let text = fs::read_to_string(document).unwrap();
        let mut commands = Vec::new();
        let mut is_inside = false;
        for line in text.lines() {
            match line {
                "```sh" => is_inside = true,
                "```" => is_inside = false,
                line if is_inside => commands.push(line.to_owned()),
                _ => {}
            }
        }
        commands
    }

    #[test]
    fn the_documents_commands_work_in_their_order() {
        let machine = machine();
        let mut ran = 0;
        for command in documented() {
            let words: Vec<&str> = command.split(' ').collect();
            // What asks a controller, or looks at more than devices, is shown elsewhere.
            let ["berthctl", "slot", verb, ..] = words[..] else {
                continue;
            };
            if !["approve", "candidates", "check", "unapprove"].contains(&verb) {
                continue;
            }
            ran += 1;
            let output = slot(&machine, &words[2..]);
            assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
        }
        assert!(ran >= 6, "{ran} commands");
    }

    #[test]
    fn a_device_with_a_finding_is_not_approved_and_nothing_is_written() {
        let machine = machine();
        let drive = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
        write(machine.path(), &format!("{drive}/reset_method"), "");
        fails(&approve(&machine, FIRST, "disk-1"), 1, "cannot be rented");
        assert!(!machine.path().join("etc").exists());
        let verdicts = json(&machine, &["check", FIRST], 1);
        assert_eq!(verdicts[1]["findings"][0]["code"], "reset_failed");
    }

    #[test]
    fn a_host_that_does_not_isolate_approves_nothing() {
        let machine = machine();
        write(
            machine.path(),
            "proc/cmdline",
            "pcie_acs_override=downstream\n",
        );
        fails(&approve(&machine, FIRST, "disk-1"), 1, "cannot be rented");
        let verdicts = json(&machine, &["check"], 1);
        assert_eq!(verdicts[0]["subject"], "host");
        assert_eq!(verdicts[0]["findings"][0]["code"], "iommu_group_unsafe");
    }

    #[test]
    fn one_device_is_approved_once() {
        let machine = machine();
        assert!(approve(&machine, FIRST, "disk-1").status.success());
        fails(&approve(&machine, FIRST, "disk-2"), 8, "disk-1.toml");
        fails(&approve(&machine, SECOND, "disk-1"), 8, "there already");
        assert!(approve(&machine, SECOND, "disk-2").status.success());
    }

    #[test]
    fn without_an_answer_nothing_is_written() {
        let machine = machine();
        let arguments = ["approve", FIRST, "--name", "disk-1", "--class", "nvme"];
        fails(&slot(&machine, &arguments), 1, "nothing was changed");
        assert!(!machine.path().join("etc").exists());
    }

    #[test]
    fn names_and_addresses_that_cannot_be_are_usage_errors() {
        let machine = machine();
        fails(&approve(&machine, FIRST, "../x"), 2, "lower-case");
        fails(&approve(&machine, "0000:0a:00.0", "x"), 2, "0000:0a:00.0");
        fails(&approve(&machine, "1:0.0", "x"), 2, "0000:01:00.0");
        fails(&slot(&machine, &["check", "nothing"]), 3, "nothing");
    }

    #[test]
    fn another_drive_at_an_approved_place_is_told() {
        let machine = machine();
        assert!(approve(&machine, FIRST, "disk-1").status.success());
        let drive = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
        write(machine.path(), &format!("{drive}/nvme/nvme1/serial"), "S9");
        let verdicts = json(&machine, &["check", "disk-1"], 1);
        let finding = &verdicts[1]["findings"][0];
        assert_eq!(finding["code"], "device_identity_changed");
        assert!(finding["message"].as_str().unwrap().contains("S9"));
    }

    #[test]
    fn a_file_that_others_can_write_is_told_and_approves_nothing() {
        let machine = machine();
        assert!(approve(&machine, FIRST, "disk-1").status.success());
        let file = machine.path().join("etc/berth/slots.d/disk-1.toml");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let verdicts = json(&machine, &["check"], 1);
        assert!(
            verdicts[1]["refused_file"]
                .as_str()
                .unwrap()
                .contains("666")
        );
    }

    #[test]
    fn a_slot_that_a_guest_has_is_fit_and_one_that_a_stranger_has_is_not() {
        let machine = machine();
        assert!(approve(&machine, FIRST, "disk-1").status.success());
        let root = machine.path();
        fs::create_dir_all(root.join("proc/70/fd")).unwrap();
        symlink("/dev/vfio/11", root.join("proc/70/fd/5")).unwrap();
        for (group, code) in [
            ("0::/berth.slice/berth-acme.slice/berth-vm-01k.service\n", 0),
            ("0::/system.slice/berth-agent.service\n", 0),
            ("0::/user.slice/berth-vm-01k.service\n", 1),
            ("0::/system.slice/other.service\n", 1),
        ] {
            write(root, "proc/70/cgroup", group);
            let verdicts = json(&machine, &["check", "disk-1"], code);
            let found = &verdicts[1]["findings"][0]["code"];
            let expected = if code == 0 {
                Value::Null
            } else {
                "foreign_user".into()
            };
            assert_eq!(*found, expected, "{group}");
        }
    }

    #[test]
    fn candidates_say_what_is_fit_and_what_is_taken() {
        let machine = machine();
        assert!(approve(&machine, FIRST, "disk-1").status.success());
        let drive = "sys/devices/pci0000:00/0000:00:02.0/0000:02:00.0";
        fs::remove_file(machine.path().join(drive).join("reset_method")).unwrap();
        let candidates = json(&machine, &["candidates"], 0);
        let candidates = candidates.as_array().unwrap();
        assert_eq!(candidates.len(), 2);
        assert_eq!(candidates[0]["slot"], "disk-1");
        assert_eq!(candidates[0]["findings"], Value::Array(Vec::new()));
        assert_eq!(candidates[1]["findings"][0]["code"], "reset_failed");
        let output = slot(&machine, &["candidates"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().nth(1).unwrap().contains("disk-1"), "{text}");
    }
}
