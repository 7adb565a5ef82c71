//! What installation, upgrade, removal and purge do to a real Debian system without an init.

use berth_tests::command::{as_root, capture};
use berth_tests::lab::image;

use super::{NAMES, package};

/// What `installation.sh` found after one step, with what dpkg said before that.
struct Facts<'a> {
    step: &'a str,
    said: &'a str,
    lines: Vec<&'a str>,
}

impl Facts<'_> {
    #[track_caller]
    fn has(&self, line: &str) {
        assert!(
            self.lines.contains(&line),
            "after {}: no {line:?} in {:#?}",
            self.step,
            self.lines
        );
    }

    #[track_caller]
    fn has_none(&self, beginning: &str) {
        let found = self.lines.iter().find(|line| line.starts_with(beginning));
        assert_eq!(found, None, "after {}", self.step);
    }
}

fn facts(text: &str) -> Vec<Facts<'_>> {
    let mut parts = text.split("== after ");
    let mut said = parts.next().unwrap_or_default();
    let mut found = Vec::new();
    for part in parts {
        let mut lines = part.lines();
        let step = lines.next().unwrap_or_default();
        found.push(Facts {
            step,
            said,
            lines: lines.collect(),
        });
        said = part;
    }
    found
}

/// Kept state and the way it is told are the point of all four steps, so they are one test: a
/// Debian tree is laid over and thrown away once.
#[test]
fn packages_install_upgrade_and_go_and_the_state_stays() {
    let tree = image::node_tree().expect("a Debian tree by mmdebstrap");
    let mut command = as_root("unshare");
    command.args(["--mount", "--propagation", "private", "sh"]);
    command
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/packages/installation.sh"
        ))
        .arg(tree);
    command.args(NAMES.map(|name| package(name, "deb")));
    let text = capture(&mut command).unwrap();
    let found = facts(&text);
    let [installation, upgrade, removal, purge] = found.as_slice() else {
        panic!("not four steps:\n{text}");
    };
    check_installation(installation);
    check_upgrade(upgrade);
    assert!(removal.said.contains("changes kept: 1"), "{}", removal.said);
    check_removal(removal);
    check_purge(purge);
}

fn check_installation(facts: &Facts<'_>) {
    facts.has("users: berth-controller /var/lib/berth/controller /usr/sbin/nologin");
    for unit in [
        "multi-user.target.wants/berth-agent.service",
        "multi-user.target.wants/berth-controller.service",
        "multi-user.target.wants/berth-publish.service",
        "multi-user.target.wants/berth-witness.service",
        "sockets.target.wants/berth-controller.socket",
    ] {
        facts.has(&format!("enabled: etc/systemd/system/{unit}"));
    }
    for file in [
        "etc/berth/agent-policy.toml",
        "usr/bin/berthctl",
        "usr/libexec/berth/berth-vmm",
    ] {
        facts.has(&format!("file: {file}"));
    }
    facts.has("broken: 0");
}

fn check_upgrade(facts: &Facts<'_>) {
    facts.has("controller's folder: its own");
    for folder in ["agent", "controller"] {
        facts.has(&format!("state: 700 var/lib/berth/{folder}"));
    }
    facts.has("state: 644 var/lib/berth/agent/vms/disk.raw");
    facts.has("enabled: etc/systemd/system/multi-user.target.wants/berth-controller.service");
    facts.has_none("enabled: etc/systemd/system/multi-user.target.wants/berth-agent.service");
    facts.has("broken: 0");
}

fn check_removal(facts: &Facts<'_>) {
    facts.has_none("file: usr/");
    facts.has("file: etc/berth/agent.toml");
    check_state_stays(facts);
}

fn check_purge(facts: &Facts<'_>) {
    facts.has_none("file: ");
    facts.has_none("enabled: ");
    check_state_stays(facts);
    facts.has("broken: 0");
}

#[track_caller]
fn check_state_stays(facts: &Facts<'_>) {
    facts.has("state: 644 var/lib/berth/agent/vms/disk.raw");
    facts.has("state: 644 var/lib/berth/controller/berth.db");
    for folder in ["/var/lib/berth/agent", "/var/lib/berth/controller"] {
        let told = facts.said.contains(&format!("{folder} stays; it holds"));
        assert!(
            told,
            "{} does not tell that {folder} stays:\n{}",
            facts.step, facts.said
        );
    }
}
