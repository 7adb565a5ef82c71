//! The builder on a repository of three files: both formats with the real tools, without cargo.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;

const MANIFEST: &str = r#"
maintainer = "Somebody <somebody@berth.example>"
license = "Apache-2.0"
revision = 1
program = []

[[package]]
name = "berth-trial"
summary = "a trial"
description = "First line, 100% literal."
enable = ["trial.service"]
state = { folder = "/var/lib/trial", holds = "nobody's data" }
manuals = ["release:tool", "man"]
files = [
    { source = "release:tool", target = "/usr/bin/tool", mode = "0755" },
    { source = "release:tool", arguments = ["completion"], target = "/usr/share/tool", rpm-target = "/usr/share/rpm-tool" },
    { source = "trial.service", target = "/usr/lib/systemd/system/trial.service" },
    { source = "trial.toml", target = "/etc/trial.toml" },
]
"#;

/// A program that does what the CLI does for packages.
const TOOL: &str = r#"#!/bin/sh
case $1 in
completion) echo completions ;;
man) echo .TH TOOL 1 >"$2/tool.1" ;;
esac
"#;

struct Trial {
    folder: tempfile::TempDir,
    manifest: Manifest,
}

impl Trial {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        fs::create_dir_all(root.join(scripts::FOLDER)).unwrap();
        for script in files_with(&own.join(scripts::FOLDER), "sh").unwrap() {
            let name = script.file_name().unwrap();
            fs::copy(&script, root.join(scripts::FOLDER).join(name)).unwrap();
        }
        for name in documents::FILES.iter().chain(&third_party::FILES) {
            fs::copy(own.join(name), root.join(name)).unwrap();
        }
        fs::write(root.join(manifest::FILE), MANIFEST).unwrap();
        fs::write(
            root.join("trial.service"),
            "[Service]\nExecStart=/usr/bin/tool\n",
        )
        .unwrap();
        fs::write(root.join("trial.toml"), "# nothing\n").unwrap();
        let tool = folder.path().join("tool");
        fs::write(&tool, TOOL).unwrap();
        fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
        let manifest = Manifest::read(&root).unwrap();
        Self { folder, manifest }
    }

    fn release(&self, output: &str) -> Release {
        Release {
            version: "1.2.3".to_owned(),
            epoch: 1_700_000_000,
            architecture: "x86_64",
            sources: Sources {
                root: self.folder.path().join("root"),
                programs: self.folder.path().to_owned(),
            },
            output: self.folder.path().join(output),
        }
    }

    fn pack(&self, output: &str, format: Format) -> PathBuf {
        let made = pack(&self.manifest, &self.release(output), format).unwrap();
        assert_eq!(made.len(), 1);
        made[0].clone()
    }
}

/// Two builds in different folders from equal files of different age.
#[track_caller]
fn twice_the_same(format: Format) {
    let trial = Trial::new();
    let first = trial.pack("one", format);
    let tool = trial.folder.path().join("tool");
    File::open(&tool)
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let second = trial.pack("a-longer-name-of-another-folder", format);
    assert!(
        fs::read(first).unwrap() == fs::read(second).unwrap(),
        "two builds differ"
    );
}

#[test]
fn two_builds_of_a_deb_are_equal() {
    twice_the_same(Format::Deb);
}

#[test]
fn two_builds_of_an_rpm_are_equal() {
    twice_the_same(Format::Rpm);
}

#[test]
fn a_package_is_built_again_when_a_source_changed_and_only_then() {
    let trial = Trial::new();
    let package = trial.pack("out", Format::Deb);
    let before = package.metadata().unwrap().modified().unwrap();
    trial.pack("out", Format::Deb);
    assert_eq!(package.metadata().unwrap().modified().unwrap(), before);
    let content = fs::read(&package).unwrap();
    fs::write(trial.folder.path().join("root/trial.toml"), "# something\n").unwrap();
    trial.pack("out", Format::Deb);
    assert!(
        fs::read(&package).unwrap() != content,
        "the change is not in the package"
    );
}

#[test]
fn a_deb_names_its_configuration_and_its_digests() {
    let trial = Trial::new();
    let package = trial.pack("out", Format::Deb);
    let control = trial.folder.path().join("control");
    capture(
        Command::new("dpkg-deb")
            .arg("--control")
            .arg(&package)
            .arg(&control),
    )
    .unwrap();
    let read = |name: &str| fs::read_to_string(control.join(name)).unwrap();
    assert_eq!(read("conffiles"), "/etc/trial.toml\n");
    let digests = read("md5sums");
    assert!(
        digests.contains("  usr/share/man/man1/tool.1.gz\n"),
        "{digests}"
    );
    assert!(!digests.contains("etc/"), "{digests}");
    assert!(read("control").contains("\nVersion: 1.2.3-1\n"));
    let script = control.join("postinst");
    let heads = "set -eu; eval \"$(sed -n '/^[a-z_]*=/p' \"$0\")\"; echo \"$units, $state_holds\"";
    let values = capture(Command::new("sh").args(["-c", heads]).arg(&script)).unwrap();
    assert_eq!(values, "trial.service, nobody's data\n");
}

#[test]
fn an_rpm_has_its_own_targets_and_literal_text() {
    let trial = Trial::new();
    let package = trial.pack("out", Format::Rpm);
    let query = |what: &[&str]| {
        capture(
            Command::new("rpm")
                .args(["--query", "--package"])
                .args(what)
                .arg(&package),
        )
        .unwrap()
    };
    let files = query(&["--list"]);
    assert!(files.contains("/usr/share/rpm-tool\n") && !files.contains("/usr/share/tool"));
    assert_eq!(query(&["--configfiles"]), "/etc/trial.toml\n");
    assert!(query(&["--info"]).contains("100% literal"));
    assert!(query(&["--scripts"]).contains("printf '%s ' \"$unit\""));
}

#[test]
fn a_program_that_writes_no_completions_is_named() {
    let trial = Trial::new();
    fs::write(
        trial.folder.path().join("tool"),
        "#!/bin/sh\necho no such command >&2; exit 2\n",
    )
    .unwrap();
    let error = pack(&trial.manifest, &trial.release("out"), Format::Deb).unwrap_err();
    let message = format!("{error:#}");
    assert!(
        message.contains("berth-trial") && message.contains("no such command"),
        "{message}"
    );
}
