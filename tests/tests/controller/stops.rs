//! How a VM is stopped: what a tenant may say, and what its node and the ledger are told.

use berth_api::agent::StopMode;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, vm_body};

const STOP: &str = "/v1/vms/web/stop";

/// Every way that was accepted, as the ledger has it.
fn recorded(client: &Client) -> Vec<Value> {
    audit_bodies(client, "event_type=VM_STOP_ACCEPTED")
        .iter()
        .map(|entry| {
            let detail = &entry["detail"];
            json!([detail["mode"], detail["timeout_s"]])
        })
        .collect()
}

#[test]
fn a_vm_is_stopped_in_the_way_that_was_asked_for() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    let json = [("content-type", "application/json")];
    let bodies = [
        (None, &[][..]),
        (Some(""), &[]),
        (Some("{}"), &[]),
        (Some(r#"{"mode":"graceful","timeout_s":3600}"#), &json[..]),
        (Some(r#"{"timeout_s":1}"#), &json),
        (Some(r#"{"mode":"hard"}"#), &json),
    ];
    for (body, headers) in bodies {
        tenant.send("POST", STOP, headers, body).expect(202);
        agent.settle().unwrap();
        let vm = tenant.get("/v1/vms/web").expect(200).json();
        assert_eq!(vm["state"], "stopped", "{body:?}");
        tenant.post("/v1/vms/web/start", &json!({})).expect(202);
        agent.settle().unwrap();
    }
    assert_eq!(
        agent.stops,
        [
            (StopMode::Graceful, 30),
            (StopMode::Graceful, 30),
            (StopMode::Graceful, 30),
            (StopMode::Graceful, 3_600),
            (StopMode::Graceful, 1),
            (StopMode::Hard, 30),
        ]
    );
    assert_eq!(
        recorded(&tenant),
        [
            json!(["graceful", 30]),
            json!(["graceful", 30]),
            json!(["graceful", 30]),
            json!(["graceful", 3600]),
            json!(["graceful", 1]),
            json!(["hard", null]),
        ]
    );
    controller.assert_sound();
}

#[test]
fn a_bad_stop_is_refused_by_field_and_stops_nothing() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    for (body, code, field) in [
        (json!({ "mode": "soft" }), "invalid_request", "mode"),
        (json!({ "mode": 1 }), "invalid_request", "mode"),
        (json!({ "timeout_s": 0 }), "invalid_request", "timeout_s"),
        (json!({ "timeout_s": 3601 }), "invalid_request", "timeout_s"),
        (json!({ "timeout_s": -1 }), "invalid_request", "timeout_s"),
        (json!({ "timeout_s": "9" }), "invalid_request", "timeout_s"),
        (
            json!({ "mode": "hard", "timeout_s": 0 }),
            "invalid_request",
            "timeout_s",
        ),
        (json!({ "force": true }), "unknown_field", "force"),
    ] {
        let error = tenant.post(STOP, &body).refused(400, code);
        assert!(error["fields"][field].is_string(), "{body}: {error}");
    }
    for body in ["[]", "null", "{", "{} {}"] {
        let json = [("content-type", "application/json")];
        tenant
            .send("POST", STOP, &json, Some(body))
            .refused(400, "invalid_request");
    }
    tenant
        .send("POST", STOP, &[], Some(r#"{"mode":"hard"}"#))
        .refused(415, "unsupported_media_type");
    agent.settle().unwrap();
    assert_eq!(agent.stops, []);
    assert!(recorded(&tenant).is_empty());
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
}
