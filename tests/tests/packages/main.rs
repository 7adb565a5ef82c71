//! The packages that were built, as they are: what is in them, and what they do to a Debian system.
//!
//! Reads `build/packages` and builds nothing. `cargo xtask package` comes first.

mod debs;
mod installation;
mod rpms;
mod units;

use std::path::{Path, PathBuf};
use std::process::Command;

use berth_tests::command::capture;
use berth_tests::workspace;
use tempfile::TempDir;

/// The names of all packages.
const NAMES: [&str; 5] = [
    "berth-agent",
    "berth-cli",
    "berth-controller",
    "berth-publish",
    "berth-witness",
];

/// Those that have units.
const DAEMONS: [&str; 4] = [
    "berth-agent",
    "berth-controller",
    "berth-publish",
    "berth-witness",
];

/// Where each package has its programs and what belongs to them. Other components rely on it.
const PLACES: [(&str, &[&str]); 5] = [
    (
        "berth-agent",
        &[
            "/etc/berth/agent-policy.toml",
            "/etc/berth/agent.toml",
            "/usr/lib/systemd/system/berth-agent.service",
            "/usr/lib/systemd/system/berth.slice",
            "/usr/lib/sysusers.d/berth-agent.conf",
            "/usr/lib/tmpfiles.d/berth-agent.conf",
            "/usr/lib/udev/rules.d/59-berth-slots.rules",
            "/usr/lib/udev/rules.d/60-berth.rules",
            "/usr/libexec/berth/berth-vmm",
            "/usr/sbin/berth-agent",
            "/usr/share/man/man8/berth-agent.8.gz",
        ],
    ),
    (
        "berth-cli",
        &[
            "/usr/bin/berthctl",
            "/usr/bin/service-fs",
            "/usr/share/bash-completion/completions/berthctl",
            "/usr/share/fish/vendor_completions.d/berthctl.fish",
            "/usr/share/man/man1/berthctl.1.gz",
        ],
    ),
    (
        "berth-controller",
        &[
            "/etc/berth/controller.toml",
            "/usr/lib/systemd/system/berth-controller.service",
            "/usr/lib/systemd/system/berth-controller.socket",
            "/usr/lib/sysusers.d/berth-controller.conf",
            "/usr/lib/tmpfiles.d/berth-controller.conf",
            "/usr/sbin/berth-controller",
            "/usr/share/man/man8/berth-controller.8.gz",
        ],
    ),
    (
        "berth-publish",
        &[
            "/usr/lib/systemd/system/berth-publish.service",
            "/usr/sbin/berth-publish",
            "/usr/share/man/man8/berth-publish.8.gz",
        ],
    ),
    (
        "berth-witness",
        &[
            "/usr/lib/systemd/system/berth-witness.service",
            "/usr/lib/sysusers.d/berth-witness.conf",
            "/usr/lib/tmpfiles.d/berth-witness.conf",
            "/usr/sbin/berth-witness",
            "/usr/share/man/man8/berth-witness.8.gz",
        ],
    ),
];

/// The built package of that name; says how to build it where there is none.
#[track_caller]
fn package(name: &str, extension: &str) -> PathBuf {
    let folder = workspace::build_dir().join("packages");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let file = path.file_name().unwrap().to_str().unwrap();
            let rest = file.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['_', '-']) && rest.ends_with(extension))
        })
        .collect();
    assert_eq!(
        found.len(),
        1,
        "{} has no .{extension} of {name}; build the packages with `cargo xtask package`",
        folder.display()
    );
    found.remove(0)
}

/// The files of a .deb, unpacked.
fn unpacked(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let deb = package(name, "deb");
    capture(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(deb)
            .arg(folder.path()),
    )
    .unwrap();
    folder
}

/// All plain files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// One file of a package, as both formats list it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    path: String,
    /// As `ls` shows it.
    mode: String,
    owner: String,
}

/// Everything belongs to root; folders and programs are 0755, everything else 0644.
#[track_caller]
fn check_owner_and_mode(file: &Listed) {
    assert_eq!(file.owner, "root/root", "{file:?}");
    let program = ["/usr/bin/", "/usr/sbin/", "/usr/libexec/"]
        .iter()
        .any(|folder| file.path.starts_with(folder));
    let expected = match (file.mode.starts_with('d'), program) {
        (true, _) => "drwxr-xr-x",
        (false, true) => "-rwxr-xr-x",
        (false, false) => "-rw-r--r--",
    };
    assert_eq!(file.mode, expected, "{file:?}");
}

/// What this machine calls the places that a build must not tell of.
fn build_places() -> Vec<String> {
    let cargo_home = std::env::var("CARGO_HOME").ok();
    let home = std::env::home_dir().map(|home| home.join(".cargo").display().to_string());
    let mut places: Vec<String> = cargo_home.into_iter().chain(home).collect();
    places.push(workspace::root().display().to_string());
    places
}

/// A shell must be able to read a script, and nothing in it may ask or touch a VM.
#[track_caller]
fn check_script(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    std::fs::write(&file, text).unwrap();
    capture(Command::new("sh").arg("-n").arg(&file)).unwrap();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        for word in ["read", "debconf", "db_input", "whiptail", "dialog"] {
            assert!(
                !line.split_whitespace().any(|found| found == word),
                "it asks: {line}"
            );
        }
        assert!(
            !line.contains("berth-vm-") && !line.contains("berth.slice"),
            "{line}"
        );
        assert!(!line.trim_start().starts_with("rm "), "it removes: {line}");
    }
}
