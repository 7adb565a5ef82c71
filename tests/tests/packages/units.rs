//! Units and udev rules, as the programs that read them see them.

use super::*;

/// What other packages bring, so far as our units name it.
const FOREIGN_UNITS: [&str; 10] = [
    "basic.target",
    "dbus.socket",
    "multi-user.target",
    "network-online.target",
    "network.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "sysinit.target",
    "system.slice",
];

/// The most that `systemd-analyze security` may hold against a unit, in tenths of its points.
const EXPOSURE: [(&str, u32); 4] = [
    ("berth-agent.service", 29),
    ("berth-controller.service", 12),
    // It alone calls somebody else than its own machine.
    ("berth-publish.service", 13),
    ("berth-witness.service", 12),
];

/// A root with all daemons unpacked, and the units of others in name.
fn root_with_units() -> TempDir {
    let root = unpacked("berth-agent");
    for other in ["berth-controller", "berth-publish", "berth-witness"] {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package(other, "deb"));
        capture(unpack.arg(root.path())).unwrap();
    }
    let folder = root.path().join("usr/lib/systemd/system");
    for unit in FOREIGN_UNITS {
        let kind = if unit.ends_with(".socket") {
            "[Socket]\nListenStream=/run/x\n"
        } else {
            ""
        };
        let text = format!("[Unit]\nDefaultDependencies=no\n{kind}");
        std::fs::write(folder.join(unit), text).unwrap();
    }
    std::fs::write(
        folder.join("dbus.service"),
        "[Service]\nExecStart=/usr/sbin/berth-agent\n",
    )
    .unwrap();
    // The one program of others that a unit of ours calls.
    std::fs::create_dir_all(root.path().join("bin")).unwrap();
    std::os::unix::fs::symlink("/usr/sbin/berth-controller", root.path().join("bin/sh")).unwrap();
    root
}

fn analyze(root: &TempDir, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new("systemd-analyze");
    command
        .args(arguments)
        .arg(format!("--root={}", root.path().display()));
    berth_tests::command::output(&mut command).unwrap()
}

#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    let root = root_with_units();
    let folder = root.path().join("usr/lib/systemd/system");
    let mut own = 0;
    for path in files_below(&folder) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("berth") {
            own += 1;
            let answer = analyze(&root, &["verify", "--man=no", path.to_str().unwrap()]);
            let said = String::from_utf8_lossy(&answer.stderr);
            assert!(answer.status.success() && said.is_empty(), "{name}: {said}");
        }
    }
    assert_eq!(own, 6, "units of ours");
}

#[test]
fn a_misspelt_option_would_be_found() {
    let root = root_with_units();
    let unit = root
        .path()
        .join("usr/lib/systemd/system/berth-agent.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    std::fs::write(&unit, text.replace("ProtectClock=", "ProtectClocks=")).unwrap();
    let answer = analyze(&root, &["verify", "--man=no", unit.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&answer.stderr).contains("ProtectClocks"));
}

#[test]
fn the_daemons_are_as_confined_as_promised() {
    let root = root_with_units();
    for (unit, most) in EXPOSURE {
        let threshold = format!("--threshold={most}");
        let answer = analyze(
            &root,
            &["security", "--offline=yes", "--no-pager", &threshold, unit],
        );
        let said = String::from_utf8_lossy(&answer.stdout);
        let verdict = said.lines().last().unwrap_or_default();
        assert!(
            answer.status.success(),
            "{unit} may be exposed by {most} tenths: {verdict}"
        );
    }
}

#[test]
fn the_daemons_keep_what_restarts_and_guests_rely_on() {
    let root = root_with_units();
    let folder = root.path().join("usr/lib/systemd/system");
    let has = |unit: &str, line: &str| {
        let text = std::fs::read_to_string(folder.join(unit)).unwrap();
        assert!(
            text.lines().any(|found| found == line),
            "{unit} lacks {line}"
        );
    };
    for line in [
        "ConditionPathExists=/var/lib/berth/agent/node.json",
        "FileDescriptorStoreMax=1024",
        "KillMode=process",
        "Restart=always",
        "StateDirectoryMode=0700",
        "Type=notify",
        "CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SYS_ADMIN CAP_SYS_PTRACE",
        "ReadOnlyPaths=/etc/berth/slots.d",
    ] {
        has("berth-agent.service", line);
    }
    for line in [
        "ExecStartPre=/usr/sbin/berth-controller init",
        "ExecStart=/usr/sbin/berth-controller serve",
        "User=berth-controller",
        "NotifyAccess=main",
        "StateDirectoryMode=0700",
        "CapabilityBoundingSet=",
    ] {
        has("berth-controller.service", line);
    }
    has("berth-controller.socket", "ListenStream=127.0.0.1:9221");
    for line in [
        "ConditionPathExists=/etc/berth/witness.toml",
        "LoadCredential=witness.key:/etc/berth/witness.key",
        "User=berth-witness",
        "StateDirectoryMode=0700",
    ] {
        has("berth-witness.service", line);
    }
    for line in [
        "ConditionPathExists=/etc/berth/publish.env",
        "DynamicUser=yes",
        "LoadCredential=aws_secret_access_key:berth-publish.aws_secret_access_key",
        "RestartPreventExitStatus=2 65 78",
        "SocketBindDeny=any",
        "CapabilityBoundingSet=",
    ] {
        has("berth-publish.service", line);
    }
}

/// The rules as udev splits them: lines of `KEY op "value"` parts.
fn rules() -> Vec<Vec<String>> {
    rules_of("60-berth.rules")
}

fn rules_of(file: &str) -> Vec<Vec<String>> {
    let root = unpacked("berth-agent");
    let folder = root.path().join("usr/lib/udev/rules.d");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split(", ").map(str::to_owned).collect())
        .collect()
}

#[test]
fn rules_begin_with_their_guards_and_run_nothing() {
    let rules = rules();
    for guard in &rules[..3] {
        assert!(guard.last().unwrap() == "GOTO=\"berth_end\"", "{guard:?}");
    }
    assert_eq!(rules.last().unwrap().as_slice(), ["LABEL=\"berth_end\""]);
    const KEYS: [&str; 9] = [
        "ACTION",
        "GOTO",
        "GROUP",
        "KERNEL",
        "LABEL",
        "MODE",
        "OPTIONS",
        "OWNER",
        "SUBSYSTEM",
    ];
    for part in rules.iter().flatten() {
        let key = part.split(['=', '!', '+']).next().unwrap();
        assert!(KEYS.contains(&key), "{part} does more than permissions");
        assert!(part.ends_with('"'), "{part} does not end");
    }
}

#[test]
fn rules_for_slots_touch_slots_alone_and_run_no_program() {
    let rules = rules_of("59-berth-slots.rules");
    assert_eq!(
        rules[1],
        ["ENV{BERTH_SLOT}!=\"?*\"", "GOTO=\"berth_slots_end\""]
    );
    for part in rules.iter().flatten() {
        assert!(part.ends_with('"'), "{part} does not end");
        let runs = ["RUN+", "RUN=", "PROGRAM", "IMPORT{program}"];
        assert!(!runs.iter().any(|run| part.starts_with(run)), "{part}");
    }
    // Whatever names a slot's devices and whatever probes drives sorts around this file.
    let name = "59-berth-slots.rules";
    assert!("58-berth-slots.rules" < name && name < "60-persistent-storage.rules");
    for flag in [
        "ENV{SYSTEMD_READY}=\"0\"",
        "ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}=\"1\"",
        "ENV{UDISKS_IGNORE}=\"1\"",
        "OPTIONS:=\"nowatch\"",
    ] {
        assert!(rules.iter().any(|rule| rule == &[flag]), "{flag}");
    }
}

#[test]
fn devices_for_guests_are_not_for_everybody() {
    let rules = rules();
    let assigned = |device: &str, part: &str| {
        let named = rules.iter().filter(|rule| {
            rule.iter()
                .any(|found| found.contains("==") && found.contains(device))
        });
        let mut named = named.filter(|rule| rule.iter().any(|found| found.starts_with("MODE")));
        let found = named.clone().count() > 0 && named.all(|rule| rule.iter().any(|p| p == part));
        assert!(found, "{device}: {part}");
    };
    assigned("\"kvm\"", "MODE=\"0660\"");
    assigned("\"kvm\"", "GROUP=\"kvm\"");
    assigned("vfio", "MODE=\"0600\"");
    assigned("vfio", "OWNER=\"root\"");
}
