//! `Idempotency-Key` on actions and on what carries a secret: the same request twice is one change.

use std::sync::mpsc;

use berth_api::agent::StopMode;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply, audit_bodies, token_body, vm_body};

fn post(client: &Client, path: &str, key: &str, body: &Value) -> Reply {
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    client.send("POST", path, &headers, Some(&body.to_string()))
}

fn replayed(reply: &Reply) -> bool {
    reply.header("idempotency-replayed") == Some("true")
}

#[test]
fn a_repeated_action_is_one_operation_and_does_not_act_again() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();

    let hard = json!({ "mode": "hard" });
    let stop = post(&tenant, "/v1/vms/web/stop", "k-1", &hard).expect(202);
    assert!(!replayed(&stop));
    agent.settle().unwrap();
    let start = post(&tenant, "/v1/vms/web/start", "k-1", &json!({})).expect(202);
    agent.settle().unwrap();

    // It runs again: without its key the repeated stop would stop it once more.
    let again = post(&tenant, "/v1/vms/web/stop", "k-1", &hard).expect(202);
    assert!(replayed(&again));
    assert_eq!(again.text, stop.text);
    let again = post(&tenant, "/v1/vms/web/start", "k-1", &json!({})).expect(202);
    assert!(replayed(&again));
    assert_eq!(again.text, start.text);
    post(&tenant, "/v1/vms/web/stop", "k-1", &json!({})).refused(409, "idempotency_conflict");
    agent.settle().unwrap();
    assert_eq!(agent.stops, [(StopMode::Hard, 30)]);
    assert_eq!(
        audit_bodies(&tenant, "event_type=VM_START_ACCEPTED").len(),
        1
    );
    controller.assert_sound();
}

#[test]
fn a_refused_action_may_be_repeated_under_its_key() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    post(&tenant, "/v1/vms/web/stop", "k-1", &json!({})).refused(409, "operation_in_progress");
    agent.settle().unwrap();
    let taken = post(&tenant, "/v1/vms/web/stop", "k-1", &json!({})).expect(202);
    assert!(!replayed(&taken));
}

#[test]
fn a_repeat_never_tells_a_secret() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let admin = controller.admin();

    let body = json!({ "node_name": "rack1-3" });
    let first = post(&admin, "/v1/nodes/join-tokens", "k-1", &body).expect(201);
    assert!(!replayed(&first));
    let first = first.json();
    assert!(first["token"].as_str().is_some_and(|text| !text.is_empty()));
    let again = post(&admin, "/v1/nodes/join-tokens", "k-1", &body).expect(201);
    assert!(replayed(&again));
    let expected = json!({ "token": "", "install_command": "", "expires_at": first["expires_at"] });
    assert_eq!(again.json(), expected);
    assert_eq!(
        audit_bodies(&admin, "event_type=JOIN_TOKEN_ISSUED").len(),
        1
    );
    post(&admin, "/v1/nodes/join-tokens", "k-1", &json!({})).refused(409, "idempotency_conflict");

    let body = token_body("vm.read");
    let mut first = post(&admin, "/v1/tenants/acme/tokens", "k-1", &body)
        .expect(201)
        .json();
    let again = post(&admin, "/v1/tenants/acme/tokens", "k-1", &body).expect(201);
    assert!(replayed(&again));
    first["token"] = json!("");
    assert_eq!(again.json(), first);
}

#[test]
fn one_key_at_once_on_two_controllers_is_one_change_and_one_entry() {
    let controller = Controller::start();
    let second = controller.beside();
    let clients = [controller.admin(), second.admin()];
    let body = crate::harness::tenant_body("acme", 1);
    let replies: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|n| {
                scope.spawn({
                    let (client, body) = (&clients[n % 2], &body);
                    move || post(client, "/v1/tenants", "one", body)
                })
            })
            .collect();
        let replies = threads.into_iter().map(|thread| thread.join().unwrap());
        replies.collect()
    });
    let fresh = replies.iter().filter(|reply| !replayed(reply)).count();
    assert_eq!(fresh, 1, "{replies:?}");
    for reply in &replies {
        assert_eq!(reply.clone().expect(201).text, replies[0].text);
    }
    let created = audit_bodies(&clients[0], "event_type=TENANT_CREATED");
    assert_eq!(created.len(), 1);
    drop(second);
    controller.assert_sound();
}

#[test]
fn a_repeat_of_what_is_still_under_way_is_told_to_come_again() {
    let controller = Controller::start();
    let admin = controller.admin();
    let body = crate::harness::tenant_body("acme", 1);
    let held = controller.database().hold();
    let (answered, answers) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (answered, admin, body) = (answered.clone(), &admin, &body);
            scope.spawn(move || {
                answered
                    .send(post(admin, "/v1/tenants", "one", body))
                    .unwrap()
            });
        }
        // Nothing can be changed, so neither is done; one of them is the first.
        let early = answers.recv().unwrap();
        let error = early.refused(409, "idempotency_in_progress");
        assert_eq!(error["retryable"], true);
        assert_eq!(early.header("retry-after"), Some("1"));
        drop(held);
        let made = answers.recv().unwrap().expect(201);
        assert!(!replayed(&made));
        let again = post(&admin, "/v1/tenants", "one", &body).expect(201);
        assert!(replayed(&again));
        assert_eq!(again.text, made.text);
    });
    controller.assert_sound();
}
