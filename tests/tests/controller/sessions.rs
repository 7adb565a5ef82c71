//! What lasts ends with what it hangs on: event streams, waits and console reads with their token, its
//! parents, its holder, its tenant and their VM.

use std::thread::JoinHandle;

use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply, vm_body};
use crate::holders::{Holder, Wanted, issued, tenant};
use crate::routes::minted;

const EVENTS: &str = "/v1/events";

/// A stream that has been let in.
fn listening(client: &Client) -> impl Iterator<Item = String> + use<> {
    client.follow(EVENTS, &[])
}

/// What a stream that ends by itself says last, and that it says so as what it is.
fn last_word(stream: impl Iterator<Item = String>) -> Value {
    let lines: Vec<String> = stream.filter(|line| !line.is_empty()).collect();
    let [.., kind, data] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    assert_eq!(kind, "event: end", "{lines:?}");
    let end: Value = serde_json::from_str(data.trim_start_matches("data:")).unwrap();
    for member in ["error", "detail"] {
        assert!(end[member].as_str().is_some_and(|text| !text.is_empty()));
    }
    end
}

fn narrowed(parent: &Holder) -> Holder {
    parent.narrowed(&Wanted {
        scope: "ledger.read",
        ..Wanted::default()
    })
}

#[test]
fn an_event_stream_ends_with_whatever_its_token_hangs_on_and_says_so() {
    let controller = Controller::start();
    let operator = controller.admin();
    let acme = tenant(&controller, "acme");
    let fresh = || issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let revoke = |body: Value| {
        let revoked = acme.client(&controller).post("/v1/tokens/revoke", &body);
        revoked.expect(204);
    };
    // The link that it was narrowed from.
    let (parent, other) = (fresh(), fresh());
    let by_parent = listening(&narrowed(&parent).client(&controller));
    let unconcerned = listening(&narrowed(&other).client(&controller));
    revoke(json!({ "token_id": parent.id }));
    assert_eq!(last_word(by_parent)["code"], "token_revoked");
    // Its holder.
    let child = narrowed(&other);
    let by_holder = listening(&child.client(&controller));
    revoke(json!({ "subject_pubkey": child.key.public().to_base64() }));
    assert_eq!(last_word(by_holder)["code"], "token_revoked");
    // Its time.
    let soon = jiff::Timestamp::now().as_second() + 3;
    let short = controller.with_token(&minted(&controller, "acme", soon, None));
    assert_eq!(last_word(listening(&short))["code"], "token_expired");
    // A suspended tenant may look, so its stream goes on and tells of it.
    let mut watched = listening(&fresh().client(&controller));
    operator
        .post("/v1/tenants/acme/suspend", &json!({}))
        .expect(200);
    assert!(watched.any(|line| line.contains("TENANT_SUSPENDED")));
    // Its tenant: what did not end until now does.
    operator.delete("/v1/tenants/acme").expect(204);
    for stream in [unconcerned.collect::<Vec<_>>(), watched.collect()] {
        assert_eq!(last_word(stream.into_iter())["code"], "token_revoked");
    }
    controller.assert_sound();
}

#[test]
fn an_event_stream_of_a_controller_that_ends_says_that_it_can_go_on_later() {
    let mut controller = Controller::start();
    let stream = listening(&controller.admin());
    assert!(controller.terminate().success());
    let end = last_word(stream);
    assert_eq!(
        (&end["code"], &end["retryable"]),
        (&json!("starting"), &json!(true))
    );
}

/// A request that takes its time, once the controller has let its token in.
fn under_way(controller: &Controller, holder: &Holder, path: &str) -> JoinHandle<Reply> {
    let (client, path) = (holder.client(controller), path.to_owned());
    let waiting = std::thread::spawn(move || client.get(&path));
    let is_in = || {
        let tokens = controller
            .admin()
            .get("/v1/tenants/acme/tokens")
            .expect(200)
            .json();
        let items = tokens["items"].as_array().unwrap().clone();
        items.iter().any(|token| {
            token["token_id"] == holder.id.as_str() && token["last_used_at"].is_string()
        })
    };
    while !is_in() {
        std::thread::yield_now();
    }
    waiting
}

fn running_vm() -> (Controller, SimulatedAgent, Holder) {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let acme = tenant(&controller, "acme");
    acme.client(&controller)
        .post("/v1/vms", &vm_body("web"))
        .expect(201);
    agent.settle().unwrap();
    (controller, agent, acme)
}

#[test]
fn a_wait_ends_with_its_token_and_with_its_vm() {
    let (controller, mut agent, acme) = running_vm();
    let client = acme.client(&controller);
    let reader = |seconds: u32| {
        let reader = issued(&controller, "acme", "vm.read", &json!({}));
        let path = format!("/v1/vms/web/wait?state=stopped&timeout={seconds}");
        let waiting = under_way(&controller, &reader, &path);
        (reader, waiting)
    };
    let (revoked, by_revocation) = reader(120);
    let (_, by_end) = reader(120);
    client
        .delete(&format!("/v1/tokens/{}", revoked.id))
        .expect(204);
    let ended = by_revocation.join().unwrap();
    ended.refused(401, "token_revoked");
    // Of an operation likewise.
    let operation = client.delete("/v1/vms/web").expect(202).json();
    let path = format!(
        "/v1/operations/{}/wait?timeout=120",
        operation["id"].as_str().unwrap()
    );
    let holder = issued(&controller, "acme", "vm.read", &json!({}));
    let of_operation = under_way(&controller, &holder, &path);
    client
        .delete(&format!("/v1/tokens/{}", holder.id))
        .expect(204);
    of_operation.join().unwrap().refused(401, "token_revoked");
    // What was waited for cannot come any more.
    agent.settle().unwrap();
    let ended = by_end.join().unwrap().refused(408, "wait_timeout");
    assert!(ended["error"].as_str().unwrap().contains("deleted"));
    controller.assert_sound();
}

#[test]
fn a_wait_of_a_service_account_ends_with_the_account() {
    let (controller, _agent, acme) = running_vm();
    let client = acme.client(&controller);
    let robot = issued(&controller, "acme", "vm.read", &json!({}));
    client
        .post(
            "/v1/projects/default/service-accounts",
            &json!({ "account_id": "robot", "role": "viewer",
                "subject_pubkey": robot.key.public().to_base64() }),
        )
        .expect(201);
    let path = "/v1/vms/web/wait?state=stopped&timeout=120";
    let waiting = under_way(&controller, &robot, path);
    client
        .send_json(
            "PATCH",
            "/v1/service-accounts/robot",
            &json!({ "disabled": true }),
        )
        .expect(200);
    waiting.join().unwrap().refused(403, "permission_denied");
    controller.assert_sound();
}

#[test]
fn a_console_that_is_read_meanwhile_is_not_shown_to_whom_it_is_closed() {
    let (controller, mut agent, acme) = running_vm();
    agent.console = b"secret of the guest".to_vec();
    let reader = issued(&controller, "acme", "vm.console", &json!({}));
    let reading = under_way(&controller, &reader, "/v1/vms/web/console/log");
    while agent.sync(30).unwrap() == 0 {}
    acme.client(&controller)
        .delete(&format!("/v1/tokens/{}", reader.id))
        .expect(204);
    agent.settle().unwrap();
    let reply = reading.join().unwrap();
    reply.refused(401, "token_revoked");
    controller.assert_sound();
}

#[test]
fn what_was_ordered_is_answered_though_its_token_ends_in_the_wait() {
    let (controller, _agent, _acme) = running_vm();
    let maker = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let client = maker.client(&controller);
    let ordering = std::thread::spawn(move || {
        let path = "/v1/vms?wait=running&timeout=120";
        client.post(path, &vm_body("db"))
    });
    let operator = controller.admin();
    while !operator.get("/v1/vms").expect(200).text.contains("\"db\"") {
        std::thread::yield_now();
    }
    operator
        .delete(&format!("/v1/tokens/{}", maker.id))
        .expect(204);
    let made = ordering.join().unwrap().expect(201).json();
    assert_eq!(made["name"], "db");
    assert_ne!(made["state"], "running");
    controller.assert_sound();
}
