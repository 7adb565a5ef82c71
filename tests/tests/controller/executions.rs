//! What was run is in the ledger: by whom, the digest of what was asked, how it ended, how long it took.

use berth_api::agent::FailureCode;
use berth_ledger::merkle::Hash;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, vm_body};

#[track_caller]
fn only(client: &Client, event_type: &str) -> Value {
    let mut found = audit_bodies(client, &format!("event_type={event_type}"));
    assert_eq!(found.len(), 1, "{event_type}: {found:?}");
    found.remove(0)
}

#[test]
fn an_execution_says_who_asked_for_what_how_it_ended_and_how_long_it_took() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 2);
    let body = vm_body("web");
    let made = tenant.post("/v1/vms", &body).expect(201).json();
    let asked = only(&tenant, "VM_CREATE_ACCEPTED");
    let me = tenant.get("/v1/me").expect(200).json();
    assert_eq!(asked["actor"]["token_id"], me["token_id"]);
    assert_eq!(asked["tenant_id"], "acme");
    let digest = Hash::of_bytes(body.to_string().as_bytes()).to_string();
    assert_eq!(asked["request"]["digest_sha256"], digest);
    agent.settle().unwrap();
    let ran = only(&tenant, "TASK_COMPLETED");
    assert_eq!(ran["outcome"], "completed");
    assert!(ran["duration_ms"].is_u64(), "{ran}");
    let started = only(&tenant, "VM_STARTED");
    assert_eq!(started["outcome"], "completed");
    assert_eq!(started["detail"]["operation_id"], made["operation"]);
    assert!(started["duration_ms"].is_u64(), "{started}");

    agent.fail_next = Some(FailureCode::NoRoom);
    tenant.post("/v1/vms", &vm_body("db")).expect(201);
    agent.settle().unwrap();
    let failed = only(&tenant, "VM_FAILED");
    assert_eq!(failed["outcome"], "failed");
    assert!(failed["duration_ms"].is_u64(), "{failed}");

    // Without a body there is nothing to digest, and what ends by itself is no operation's work.
    let order = tenant.delete("/v1/vms/web").expect(202).json();
    let database = controller.database();
    let longer_ago = "UPDATE operation SET created_at = created_at - 5000";
    database.run(longer_ago).unwrap();
    agent.settle().unwrap();
    let wished = only(&tenant, "VM_DELETE_ACCEPTED");
    assert!(wished["request"].get("digest_sha256").is_none(), "{wished}");
    assert!(wished.get("duration_ms").is_none(), "{wished}");
    let deleted = only(&tenant, "VM_DELETED");
    assert_eq!(deleted["detail"]["operation_id"], order["id"]);
    assert!(
        deleted["duration_ms"].as_u64().unwrap() >= 5000,
        "{deleted}"
    );
    controller.assert_sound();
}

#[test]
fn a_refused_change_is_in_the_ledger_with_the_digest_of_what_was_asked() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &json!({ "image": "none-such" }));
    let refused = only(&tenant, "VM_CREATE_DENIED");
    let digest = Hash::of_bytes(br#"{"image":"none-such"}"#).to_string();
    assert_eq!(refused["request"]["digest_sha256"], digest);
    assert_eq!(refused["outcome"], "denied");
}
