//! VMs on a node, and what is said when there is none.

use std::sync::Arc;

use crate::bench::{Answer, Bench};
use crate::node::{CONSOLE, IMAGE, Node};

/// A controller, a node, a tenant with room for two VMs.
struct Site {
    bench: Arc<Bench>,
    token: String,
    _node: Node,
}

impl Site {
    fn new() -> Self {
        let bench = Arc::new(Bench::start());
        bench.tenant("acme-corp", "2");
        Self {
            token: bench.tenant_token("acme-corp"),
            _node: Node::join(&bench),
            bench,
        }
    }

    fn vm(&self, arguments: &[&str]) -> Answer {
        let arguments: Vec<&str> = ["vm"].iter().chain(arguments).copied().collect();
        self.bench.berthctl_as(&self.token, &arguments)
    }
}

#[test]
fn a_vm_is_created_stopped_started_and_deleted_with_waiting() {
    let site = Site::new();
    let made = site.vm(&[
        "create", "web-1", "--image", IMAGE, "--label", "tier=web", "--wait",
    ]);
    made.expect(0)
        .shows("state:        running")
        .shows("tier=web");
    site.vm(&["list"]).expect(0).shows("web-1").shows("running");
    let stopped = site.vm(&["stop", "web-1", "--wait", "--json"]);
    assert_eq!(stopped.expect(0).json()["state"], "stopped");
    let started = site.vm(&["start", "web-1", "--wait=running", "--json"]);
    assert_eq!(started.expect(0).json()["state"], "running");
    let id = started.json()["id"].as_str().unwrap().to_owned();
    site.vm(&["show", &id]).expect(0).shows("web-1");
    site.vm(&["wait", "web-1"]).expect(0);
    let operation = site.vm(&["delete", "web-1", "--json"]).expect(0).json();
    let operation = operation["id"].as_str().unwrap();
    let shown = site
        .bench
        .berthctl_as(&site.token, &["operation", "show", operation]);
    shown.expect(0).shows("delete").shows(&id);
    let gone = site.vm(&["wait", &id, "--state", "deleted"]);
    gone.expect(0).shows("state:        deleted");
    let nobody = "vm_01kb000000000000000000000b";
    site.vm(&["wait", nobody, "--state", "deleted"]).expect(3);
    site.vm(&["show", "web-1"]).expect(3);
}

#[test]
fn a_vm_is_stopped_in_the_way_that_was_asked_for() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    site.vm(&["stop", "web-1", "--stop-timeout", "90s", "--wait"])
        .expect(0);
    site.vm(&["start", "web-1", "--wait"]).expect(0);
    site.vm(&["stop", "web-1", "--hard", "--wait"]).expect(0);
    let read = ["ledger", "read", "--event-type", "VM_STOP_ACCEPTED"];
    let read = [&read[..], &["--json"]].concat();
    let kept = site.bench.berthctl(&read).expect(0).json();
    let detail = |n: usize| -> serde_json::Value {
        let body: serde_json::Value =
            serde_json::from_str(kept[n]["body"].as_str().unwrap()).unwrap();
        body["detail"].clone()
    };
    assert_eq!(detail(0)["timeout_s"], 90, "{kept}");
    assert_eq!(detail(1)["mode"], "hard", "{kept}");
    for wrong in [
        &["--stop-timeout", "0"][..],
        &["--stop-timeout", "61m"],
        &["--stop-timeout", "5s", "--hard"],
    ] {
        let arguments: Vec<&str> = ["stop", "web-1"].iter().chain(wrong).copied().collect();
        site.vm(&arguments).expect(2).complains("--stop-timeout");
    }
}

#[test]
fn waiting_for_a_delete_ends_when_the_vm_is_gone() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    site.vm(&["delete", "web-1", "--wait"])
        .expect(0)
        .shows("deleted");
    site.vm(&["show", "web-1"]).expect(3);
}

#[test]
fn a_wait_shows_the_phases_and_gives_up_in_time() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    let waited = site.vm(&["wait", "web-1", "--state", "stopped", "--timeout", "1s"]);
    waited
        .expect(7)
        .complains("0 s  running\n")
        .complains("code: wait_timeout");
}

#[test]
fn a_wait_outlives_a_restart_of_the_controller() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    let wait = ["vm", "wait", "web-1", "--state", "stopped"];
    let mut waiting = site.bench.follow(&site.token, &wait);
    waiting.until("running");
    site.bench
        .without_controller(|| waiting.until("waiting for the controller"));
    site.vm(&["stop", "web-1"]).expect(0);
    assert_eq!(waiting.code(), Some(0));
    assert!(waiting.line().starts_with("VM:"));
}

#[test]
fn the_console_is_printed_whole_in_part_and_as_it_grows() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    assert_eq!(site.vm(&["console", "web-1"]).expect(0).stdout, CONSOLE);
    let tail = site.vm(&["console", "web-1", "--tail", "2"]);
    assert_eq!(tail.expect(0).stdout, "two\nthree\n");
    let mut following = site
        .bench
        .follow(&site.token, &["vm", "console", "web-1", "--follow"]);
    assert_eq!(following.line(), "one");
    site.vm(&["console", "web-9"]).expect(3);
}

#[test]
fn the_quota_is_refused_with_its_own_exit_code() {
    let site = Site::new();
    for name in ["web-1", "web-2"] {
        site.vm(&["create", name, "--image", IMAGE]).expect(0);
    }
    site.vm(&["create", "web-3", "--image", IMAGE])
        .expect(5)
        .complains("code: quota_exceeded");
    let usage = site.bench.berthctl_as(&site.token, &["usage", "--json"]);
    let usage = usage.expect(0).json();
    let vms = usage["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["resource"] == "vms");
    assert_eq!(vms.unwrap()["remaining"], 0);
}

#[test]
fn another_tenants_vm_is_not_there() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    site.bench.tenant("rival", "1");
    let rival = site.bench.tenant_token("rival");
    for verb in ["show", "stop", "delete", "console"] {
        site.bench
            .berthctl_as(&rival, &["vm", verb, "web-1"])
            .expect(3);
    }
    let listed = site
        .bench
        .berthctl_as(&rival, &["vm", "list", "--no-headers"]);
    assert_eq!(listed.expect(0).stdout, "");
}

#[test]
fn what_cannot_be_is_refused_with_its_own_exit_code() {
    let site = Site::new();
    site.vm(&["create", "web-1", "--image", IMAGE, "--wait"])
        .expect(0);
    site.vm(&["create", "web-1", "--image", IMAGE])
        .expect(8)
        .complains("code: already_exists");
    site.vm(&["create", "web-2", "--image", "no-such"])
        .expect(6);
    let small = site.vm(&["create", "web-2", "--image", IMAGE, "--memory-mb", "1"]);
    small.expect(2).complains("memory_mb");
    site.vm(&["start", "no-such"]).expect(3);
}

#[test]
fn without_a_node_there_is_no_capacity() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    let token = bench.tenant_token("acme-corp");
    bench
        .berthctl_as(&token, &["vm", "create", "--image", IMAGE])
        .expect(6);
    bench
        .berthctl(&["node", "list", "--json"])
        .expect(0)
        .shows("[]");
}

#[test]
fn nodes_and_images_are_listed() {
    let site = Site::new();
    let nodes = site.bench.berthctl(&["node", "list"]);
    nodes.expect(0).shows("rack1-3  online    yes");
    let node = site.bench.berthctl(&["node", "list", "--json"]).json();
    let id = node[0]["id"].as_str().unwrap();
    site.bench
        .berthctl(&["node", "show", id])
        .expect(0)
        .shows("agent version:   0.1.0");
    let images = site.bench.berthctl_as(&site.token, &["image", "list"]);
    images.expect(0).shows(IMAGE);
}

#[test]
fn isolation_is_verified_from_both_sides_and_nothing_is_left_behind() {
    let bench = Arc::new(Bench::start());
    bench.tenant("acme", "2");
    bench.tenant("globex", "2");
    let verify = ["verify", "isolation", "acme", "globex"];
    bench
        .berthctl(&verify)
        .expect(0)
        .shows("holds")
        .complains("neither tenant has a VM yet");
    let _node = Node::join(&bench);
    let mut tokens = Vec::new();
    for tenant in ["acme", "globex"] {
        let token = bench.tenant_token(tenant);
        bench
            .berthctl_as(&token, &["vm", "create", "web-1", "--image", IMAGE])
            .expect(0);
        tokens.push(token);
    }
    let seen = bench.berthctl(&[&verify[..], &["--json"]].concat());
    let report = seen.expect(0).json();
    assert_eq!(report["findings"], serde_json::json!([]));
    // Two VMs and their creations, each from the other side.
    assert!(report["asked"].as_u64().unwrap() >= 14, "{report}");
    let listed = bench.berthctl(&["token", "list", "acme", "--json"]);
    let own = listed.expect(0).json();
    let left = own.as_array().unwrap().iter();
    let left =
        left.filter(|token| token["label"] == "verify isolation" && token["revoked_at"].is_null());
    assert_eq!(left.count(), 0, "{own}");
    bench
        .berthctl_as(&tokens[0], &verify)
        .expect(3)
        .complains("code: not_found");
    bench
        .berthctl(&["verify", "isolation", "acme", "acme"])
        .expect(2);
}
