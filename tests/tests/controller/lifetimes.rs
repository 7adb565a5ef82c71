//! VMs that end by themselves: at the time that their tenant set, or once they have stopped.

use berth_api::agent::{ObservedState, StoppedReason};
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, usage_of, vm_body};

fn body(name: &str, more: &Value) -> Value {
    let mut body = vm_body(name);
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// Who had VMs deleted, and why.
fn deletions(client: &Client) -> Vec<(Value, Value)> {
    audit_bodies(client, "event_type=VM_DELETE_ACCEPTED")
        .iter()
        .map(|body| (body["actor"]["kind"].clone(), body["code"].clone()))
        .collect()
}

fn by_itself(code: &str) -> (Value, Value) {
    (json!("controller"), json!(code))
}

#[track_caller]
fn await_end(client: &Client, vm: &Value) {
    let id = vm["id"].as_str().unwrap();
    let gone = client.get(&format!("/v1/vms/{id}/wait?state=deleted&timeout=60"));
    assert_eq!(gone.expect(200).json()["state"], "deleted");
}

#[test]
fn a_vm_whose_time_is_over_is_deleted_by_the_controller() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096).run();
    let tenant = controller.tenant("acme", 2);
    let short = body("short", &json!({ "ttl_seconds": 1 }));
    let vm = tenant.post("/v1/vms", &short).expect(201).json();
    assert!(vm["expires_at"].as_str() > vm["created_at"].as_str());
    let stays = tenant.post("/v1/vms", &vm_body("stays")).expect(201).json();
    assert!(stays["expires_at"].is_null());
    await_end(&tenant, &vm);
    assert_eq!(deletions(&tenant), [by_itself("ttl_expired")]);
    assert_eq!(usage_of(&tenant, "vms")["used"], 1);
    tenant.get("/v1/vms/stays").expect(200);
    controller.assert_sound();
}

#[test]
fn a_time_that_ran_out_while_no_controller_served_is_kept_once_by_two() {
    let mut first = Controller::start();
    let second = first.beside();
    let tenant = first.tenant("acme", 8);
    let mut agent = first.agent("node-1", 4096);
    for n in 0..8 {
        let long = body(&format!("vm-{n}"), &json!({ "ttl_seconds": 3600 }));
        tenant.post("/v1/vms", &long).expect(201);
    }
    agent.settle().unwrap();
    let vms = tenant.get("/v1/vms").expect(200).json();
    drop(second);
    first.kill();
    first
        .database()
        .run("UPDATE vm SET expires_at = expires_at - 7200000")
        .unwrap();
    first.restart();
    let _second = first.beside();
    let _agent = agent.run();
    for vm in vms["items"].as_array().unwrap() {
        await_end(&tenant, vm);
    }
    assert_eq!(deletions(&tenant), vec![by_itself("ttl_expired"); 8]);
    first.assert_sound();
}

#[test]
fn a_vm_that_is_to_go_once_it_stops_goes_however_it_stops() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 4);
    let on_stop = json!({ "auto_delete_on_stop": true });
    for name in ["told", "off", "crash"] {
        let made = tenant.post("/v1/vms", &body(name, &on_stop)).expect(201);
        assert_eq!(made.json()["auto_delete_on_stop"], true);
    }
    agent.settle().unwrap();
    let id = |name: &str| {
        let vm = tenant.get(&format!("/v1/vms/{name}")).expect(200).json();
        vm["id"].as_str().unwrap().parse().unwrap()
    };
    agent.vms.get_mut(&id("off")).unwrap().state = ObservedState::Stopped {
        reason: StoppedReason::GuestShutdown,
    };
    // What is to be looked into stays.
    agent.vms.get_mut(&id("crash")).unwrap().state = ObservedState::Failed {
        message: "signal 11".to_owned(),
    };
    let stop = tenant.post("/v1/vms/told/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    for name in ["told", "off"] {
        let gone = tenant.get(&format!("/v1/vms/{name}"));
        gone.refused(404, "not_found");
    }
    let crashed = tenant.get("/v1/vms/crash").expect(200).json();
    assert_eq!(crashed["state"], "failed");
    let operation = stop.json()["id"].as_str().unwrap().to_owned();
    let stopped = tenant.get(&format!("/v1/operations/{operation}"));
    assert_eq!(stopped.expect(200).json()["state"], "done");
    assert_eq!(deletions(&tenant), vec![by_itself("deleted_on_stop"); 2]);
    assert_eq!(usage_of(&tenant, "vms")["used"], 1);
    controller.assert_sound();
}

#[test]
fn when_a_vm_ends_is_its_tenants_to_change() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    let ends = json!({ "ttl_seconds": 3600, "auto_delete_on_stop": true });
    tenant.post("/v1/vms", &body("web", &ends)).expect(201);
    agent.settle().unwrap();
    let patch = |changes: &Value| tenant.send_json("PATCH", "/v1/vms/web", changes);
    for wrong in [0, 315_360_001_u64] {
        let refused = patch(&json!({ "ttl_seconds": wrong })).refused(400, "invalid_request");
        assert!(refused["fields"]["ttl_seconds"].is_string(), "{refused}");
    }
    let longer = patch(&json!({ "ttl_seconds": 7200 })).expect(200).json();
    assert!(longer["expires_at"].as_str() > longer["state_since"].as_str());
    assert_eq!(longer["auto_delete_on_stop"], true);
    let kept = patch(&json!({ "labels": { "a": "b" } })).expect(200).json();
    assert_eq!(kept["expires_at"], longer["expires_at"]);
    let stays = json!({ "ttl_seconds": null, "auto_delete_on_stop": false });
    let stays = patch(&stays).expect(200).json();
    assert!(stays["expires_at"].is_null());
    let changed = audit_bodies(&tenant, "event_type=VM_CHANGED");
    assert_eq!(changed[0]["detail"]["expires_at"], longer["expires_at"]);
    assert_eq!(changed[2]["detail"]["auto_delete_on_stop"], false);
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    // What stops from here on is meant, not what has stopped.
    let late = patch(&json!({ "auto_delete_on_stop": true })).expect(200);
    assert_eq!(late.json()["state"], "stopped");
    agent.settle().unwrap();
    tenant.get("/v1/vms/web").expect(200);
    assert!(deletions(&tenant).is_empty());
    controller.assert_sound();
}
