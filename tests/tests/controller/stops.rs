//! How a VM is stopped: what a tenant may say, and what its node and the ledger are told.

use berth_api::agent::{FailureCode, StopMode, TaskOutcome};
use berth_tests::simulated_agent::SimulatedAgent;
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

/// A VM whose guest is deaf, and which its node was told to stop within an hour; that operation.
fn stopping_slowly(tenant: &Client, agent: &mut SimulatedAgent) -> Value {
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    agent.deaf = true;
    let slow = json!({ "mode": "graceful", "timeout_s": 3600 });
    let operation = tenant.post(STOP, &slow).expect(202).json();
    assert_eq!(agent.sync(0).unwrap(), 1);
    // Its node works on it, and would for an hour.
    agent.settle().unwrap();
    assert_eq!(state(tenant), "stopping");
    operation
}

fn state(tenant: &Client) -> Value {
    tenant.get("/v1/vms/web").expect(200).json()["state"].clone()
}

fn generation(tenant: &Client) -> u64 {
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    vm["generation"].as_u64().unwrap()
}

/// How an operation ended.
fn end(tenant: &Client, operation: &Value) -> (Value, Value) {
    let path = format!("/v1/operations/{}", operation["id"].as_str().unwrap());
    let operation = tenant.get(&path).expect(200).json();
    (operation["state"].clone(), operation["error"].clone())
}

#[track_caller]
fn assert_overtaken(tenant: &Client, operation: &Value, why: &str) {
    let error = json!({ "code": "overtaken", "message": why });
    assert_eq!(end(tenant, operation), (json!("failed"), error));
}

/// The stop's result is on its way to the controller, which is not surprised by it.
#[track_caller]
fn assert_answers_the_overtaken(agent: &SimulatedAgent) {
    let overtaken = agent.results.iter().filter(|result| {
        matches!(
            result.outcome,
            TaskOutcome::Failed {
                code: FailureCode::Overtaken,
                ..
            }
        )
    });
    assert_eq!((overtaken.count(), agent.results.len()), (1, 2));
}

#[test]
fn a_deletion_does_not_wait_for_a_deaf_guest() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    let stop = stopping_slowly(&tenant, &mut agent);
    let before = generation(&tenant);
    let delete = tenant.delete("/v1/vms/web").expect(202).json();
    assert_overtaken(&tenant, &stop, "the VM is being deleted");
    assert_eq!(generation(&tenant), before + 1);
    assert_eq!(agent.sync(0).unwrap(), 1, "the order is there at once");
    assert!(agent.vms.is_empty());
    assert_answers_the_overtaken(&agent);
    agent.settle().unwrap();
    tenant.get("/v1/vms/web").refused(404, "not_found");
    assert_eq!(end(&tenant, &delete), (json!("done"), Value::Null));
    let usage = tenant.get("/v1/usage").expect(200).json();
    for item in usage["items"].as_array().unwrap() {
        // What was created today stays counted, and so does the token.
        if item["resource"] != "creates_per_day" && item["resource"] != "tokens" {
            assert_eq!(item["used"], 0, "{usage}");
        }
    }
    assert_eq!(audit_bodies(&tenant, "event_type=VM_DELETED").len(), 1);
    controller.assert_sound();
}

#[test]
fn a_hard_stop_overtakes_a_graceful_one_and_nothing_else_does() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    let slow = stopping_slowly(&tenant, &mut agent);
    let before = generation(&tenant);
    for body in [json!({}), json!({ "mode": "graceful", "timeout_s": 1 })] {
        let denied = tenant
            .post(STOP, &body)
            .refused(409, "operation_in_progress");
        assert_eq!(denied["operation_id"], slow["id"]);
        assert_eq!(denied["retryable"], true);
        assert_eq!(
            denied["detail"],
            "Wait for the operation. Possible while it is: running."
        );
    }
    assert_eq!(end(&tenant, &slow), (json!("running"), Value::Null));
    let body = json!({ "mode": "hard" });
    let hard = tenant.post(STOP, &body).expect(202).json();
    assert_ne!(hard["id"], slow["id"]);
    assert_overtaken(&tenant, &slow, "the VM is being stopped hard");
    let again = tenant.post(STOP, &body).expect(202).json();
    assert_eq!(again["id"], hard["id"], "a repeat is the same operation");
    assert_eq!(generation(&tenant), before + 1);
    assert_eq!(agent.sync(0).unwrap(), 1, "the order is there at once");
    assert_answers_the_overtaken(&agent);
    agent.settle().unwrap();
    assert_eq!(state(&tenant), "stopped");
    assert_eq!(end(&tenant, &hard), (json!("done"), Value::Null));
    assert_eq!(
        agent.stops,
        [(StopMode::Graceful, 3_600), (StopMode::Hard, 30)]
    );
    assert_eq!(
        recorded(&tenant),
        [json!(["graceful", 3600]), json!(["hard", null])]
    );
    let denied = tenant.post(STOP, &body).refused(409, "invalid_state");
    assert_eq!(denied["detail"], "Possible while it is: running, stopping.");
    controller.assert_sound();
}
