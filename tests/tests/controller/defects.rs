//! What was wrong in the code that came before berth, and must never be: rows P.1 to P.12 of
//! `docs/requirements.md`. Those that are not here are shown beside the things that they are about.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::rest::DEFAULT_URL;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, usage_of, vm_body};

fn entry_types(client: &Client) -> Vec<Value> {
    audit_bodies(client, "")
        .iter()
        .map(|body| body["event_type"].clone())
        .collect()
}

#[test]
fn an_agent_that_reports_no_vms_frees_no_quota() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    agent.vms.clear();
    for _ in 0..3 {
        agent.sync(0).unwrap();
    }
    assert_eq!(usage_of(&tenant, "vms")["used"], 1);
    tenant
        .post("/v1/vms", &vm_body("more"))
        .refused(429, "quota_exceeded");
    let listed = tenant.get("/v1/vms").expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    controller.assert_sound();
}

#[test]
fn a_node_that_never_answers_holds_up_nobody_elses_create() {
    let controller = Controller::start();
    let _hung = controller.agent("node-1", 128);
    let acme = controller.tenant("acme", 1);
    let other = controller.tenant("other", 1);
    // It never asks for this task, let alone answers it.
    acme.post("/v1/vms", &vm_body("web")).expect(201);
    let waiting = {
        let acme = acme.clone();
        std::thread::spawn(move || acme.get("/v1/vms/web/wait?state=running&timeout=120"))
    };
    let mut agent = controller.agent("node-2", 4096);
    let made = other.post("/v1/vms", &vm_body("web")).expect(201).json();
    agent.settle().unwrap();
    let path = format!("/v1/vms/{}", made["id"].as_str().unwrap());
    assert_eq!(other.get(&path).expect(200).json()["state"], "running");
    assert!(!waiting.is_finished(), "the first tenant still waits");
    acme.delete("/v1/vms/web").expect(202);
}

#[test]
fn vms_that_are_made_at_once_never_share_an_id() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 64 * 1024);
    let tenants = ["acme", "other"].map(|name| controller.tenant(name, 8));
    let threads: Vec<_> = (0..16)
        .map(|n| {
            let tenant = tenants[n % 2].clone();
            std::thread::spawn(move || {
                let made = tenant.post("/v1/vms", &vm_body(&format!("vm-{n}")));
                made.expect(201).json()["id"].as_str().unwrap().to_owned()
            })
        })
        .collect();
    let ids: BTreeSet<String> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert_eq!(ids.len(), 16);
    agent.settle().unwrap();
    let owners: BTreeSet<String> = agent.vms.keys().map(ToString::to_string).collect();
    assert_eq!(owners, ids, "each is a VM of its own on the host");
}

#[test]
fn a_refused_create_is_in_the_ledger_with_who_asked_and_from_where() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 0);
    let refused = tenant
        .post("/v1/vms", &vm_body("web"))
        .refused(429, "quota_exceeded");
    let denied = audit_bodies(&tenant, "event_type=VM_CREATE_DENIED");
    let [entry] = denied.as_slice() else {
        panic!("{denied:?}");
    };
    assert_eq!(entry["outcome"], "denied");
    assert_eq!(entry["code"], "quota_exceeded");
    assert_eq!(entry["request"]["id"], refused["request_id"]);
    assert_eq!(entry["request"]["source_ip"], "127.0.0.1");
    assert_eq!(entry["request"]["route"], "/v1/vms");
    assert_eq!(entry["actor"]["kind"], "tenant");
    assert!(entry["actor"]["token_id"].is_string(), "{entry}");
}

#[test]
fn a_deletion_is_recorded_as_done_when_its_node_has_said_so_and_not_before() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    let operation = tenant.delete("/v1/vms/web").expect(202).json();
    let path = format!("/v1/operations/{}", operation["id"].as_str().unwrap());
    let types = entry_types(&tenant);
    assert!(types.contains(&json!("VM_DELETE_ACCEPTED")), "{types:?}");
    assert!(!types.contains(&json!("VM_DELETED")), "{types:?}");
    assert_eq!(tenant.get(&path).expect(200).json()["state"], "running");
    // The task is out, its result is not in.
    agent.sync(0).unwrap();
    assert!(!entry_types(&tenant).contains(&json!("VM_DELETED")));
    agent.settle().unwrap();
    assert!(entry_types(&tenant).contains(&json!("VM_DELETED")));
    assert_eq!(tenant.get(&path).expect(200).json()["state"], "done");
}

#[test]
fn one_port_stands_in_the_socket_the_settings_and_the_commands() {
    let address = DEFAULT_URL.trim_start_matches("http://");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (file, line) in [
        (
            "systemd/berth-controller.socket",
            format!("ListenStream={address}"),
        ),
        (
            "packaging/etc/controller.toml",
            format!("#listen = \"{address}\""),
        ),
        (
            "packaging/etc/controller.toml",
            format!("#public_url = \"{DEFAULT_URL}\""),
        ),
    ] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(text.lines().any(|found| found == line), "{file}: {line}");
    }
}

#[test]
fn without_a_key_for_tokens_nobody_is_let_in_by_a_name() {
    let mut controller = Controller::start();
    controller.tenant("acme", 1);
    for name in ["acme", "admin", "_platform"] {
        controller
            .with_token(name)
            .get("/v1/vms")
            .refused(401, "invalid_token");
    }
    controller.kill();
    std::fs::remove_file(controller.folder().join("keys/token.key")).unwrap();
    let refused = controller.offline(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(!refused.status.success(), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("token.key"), "{said}");
}

/// Every member's name in a value, at whatever depth.
fn members(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                found.insert(name.clone());
                members(inner, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| members(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn a_vm_is_given_no_port_of_its_host() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 2);
    let made = tenant.post("/v1/vms", &vm_body("web")).expect(201).json();
    let mut named = BTreeSet::new();
    members(&made, &mut named);
    // What its node is told, as it was signed.
    let orders = controller.database().lines("SELECT envelope FROM task");
    assert_eq!(orders.len(), 1);
    for order in orders {
        let envelope: Value = serde_json::from_str(&order).unwrap();
        let payload = STANDARD
            .decode(envelope["payload"].as_str().unwrap())
            .unwrap();
        let order: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(order["vm_id"], made["id"], "{order}");
        members(&order, &mut named);
    }
    agent.settle().unwrap();
    members(&tenant.get("/v1/vms/web").expect(200).json(), &mut named);
    assert!(
        named.contains("vcpus") && named.contains("action"),
        "{named:?}"
    );
    let ports: Vec<_> = named.iter().filter(|name| name.contains("port")).collect();
    assert!(ports.is_empty(), "{ports:?}");
    // Nor can one be asked for.
    for field in ["port", "ssh_port", "ports"] {
        let mut body = vm_body("db");
        body[field] = json!(2222);
        tenant.post("/v1/vms", &body).refused(400, "unknown_field");
    }
    controller.assert_sound();
}
