//! Guests' tokens: made for one run of one VM, good for nothing else, and ended with it.

use berth_api::agent::{ObservedState, StoppedReason};
use berth_ledger::keys::SigningKey;
use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, usage_of, vm_body};
use crate::holders::{Signed, Wanted, issued, tenant};

const TOKENS: &str = "/v1/vms/web/guest-tokens";
const METADATA: &str = "/v1/vms/web/metadata";
const CLEANUP: &str = "/v1/vms/web/cleanup";

/// A controller with a VM that runs on a node.
fn running_vm() -> (Controller, SimulatedAgent, Client, Value) {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    let mut body = vm_body("web");
    body["labels"] = json!({ "role": "front" });
    tenant.post("/v1/vms", &body).expect(201);
    agent.settle().unwrap();
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(vm["state"], "running");
    (controller, agent, tenant, vm)
}

fn guest(controller: &Controller, tenant: &Client) -> (Client, Value) {
    let issued = tenant.post(TOKENS, &json!({})).expect(201).json();
    let client = controller.with_token(issued["token"].as_str().unwrap());
    (client, issued)
}

fn record(tenant: &Client, issued: &Value) -> Value {
    let page = tenant.get("/v1/tenants/acme/tokens").expect(200).json();
    let items = page["items"].as_array().unwrap();
    let found = items
        .iter()
        .find(|item| item["token_id"] == issued["token_id"]);
    found.unwrap().clone()
}

#[test]
fn a_guests_token_reaches_its_own_vm_and_nothing_else() {
    let (controller, mut agent, tenant, vm) = running_vm();
    tenant.post("/v1/vms", &vm_body("db")).expect(201);
    agent.settle().unwrap();
    let db = tenant.get("/v1/vms/db").expect(200).json();
    let (guest, issued) = guest(&controller, &tenant);
    assert_eq!(issued["scope"], json!(["vm.guest"]));
    assert_eq!(issued["resources"], json!([vm["id"]]));
    let own = guest.get(METADATA).expect(200).json();
    for field in ["id", "name", "tenant_id", "generation", "image", "labels"] {
        assert_eq!(own[field], vm[field], "{field}");
    }
    assert!(own.get("node_id").is_none(), "{own}");
    let by_id = format!("/v1/vms/{}/metadata", vm["id"].as_str().unwrap());
    assert_eq!(guest.get(&by_id).expect(200).json(), own);
    let other = format!("/v1/vms/{}", db["id"].as_str().unwrap());
    for path in ["/v1/vms/db/metadata", &format!("{other}/metadata")] {
        guest.get(path).refused(404, "not_found");
    }
    for path in [format!("{other}/cleanup"), "/v1/vms/db/cleanup".to_owned()] {
        guest.post(&path, &json!({})).refused(404, "not_found");
    }
    for path in ["/v1/vms", "/v1/vms/web", "/v1/usage", "/v1/events"] {
        guest.get(path).refused(403, "permission_denied");
    }
    for path in ["/v1/vms/web/stop", TOKENS] {
        guest
            .post(path, &json!({}))
            .refused(403, "permission_denied");
    }
    assert_eq!(
        guest.get("/v1/me").expect(200).json()["scope"],
        json!(["vm.guest"])
    );
    // The VM's own history tells of it.
    let history = tenant.get("/v1/vms/web/events").expect(200).text;
    assert!(history.contains(issued["token_id"].as_str().unwrap()));
    controller.assert_sound();
}

#[test]
fn a_guests_token_ends_with_the_run_of_its_vm() {
    let (mut controller, mut agent, tenant, _) = running_vm();
    let before = usage_of(&tenant, "tokens")["used"].clone();
    let (first, issued) = guest(&controller, &tenant);
    assert_ne!(usage_of(&tenant, "tokens")["used"], before);
    first.get(METADATA).expect(200);
    // An order to stop ends it at once, whatever the host does of it.
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    first.get(METADATA).refused(401, "token_revoked");
    assert_eq!(usage_of(&tenant, "tokens")["used"], before);
    assert!(record(&tenant, &issued)["revoked_at"].is_string());
    agent.settle().unwrap();
    tenant
        .post(TOKENS, &json!({}))
        .refused(409, "invalid_state");
    // The next run is not the one that it was made for.
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    first.get(METADATA).refused(401, "token_revoked");
    let (second, _) = guest(&controller, &tenant);
    second.get(METADATA).expect(200);
    controller.kill_and_restart();
    first.get("/v1/me").refused(401, "token_revoked");
    second.get("/v1/me").expect(200);
    let verify = |token: &Value| tenant.post("/v1/tokens/verify", &json!({ "token": token }));
    verify(&issued["token"]).refused(401, "token_revoked");
    // A guest that ended by itself is no guest either.
    for vm in agent.vms.values_mut() {
        vm.state = ObservedState::Stopped {
            reason: StoppedReason::GuestShutdown,
        };
    }
    agent.settle().unwrap();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "stopped"
    );
    second.get(METADATA).refused(401, "token_revoked");
    controller.assert_sound();
}

#[test]
fn a_guest_has_its_vm_deleted_and_its_token_goes_first() {
    let (controller, mut agent, tenant, vm) = running_vm();
    let (guest, issued) = guest(&controller, &tenant);
    // A suspended tenant's guests may end what costs it, and get no new tokens.
    controller
        .admin()
        .post("/v1/tenants/acme/suspend", &json!({}))
        .expect(200);
    tenant
        .post(TOKENS, &json!({}))
        .refused(403, "tenant_suspended");
    let ended = guest.post(CLEANUP, &json!({})).expect(202);
    let operation = ended.json();
    assert_eq!(operation["kind"], "delete");
    assert_eq!(operation["vm_id"], vm["id"]);
    assert!(ended.header("location").is_some());
    guest
        .post(CLEANUP, &json!({}))
        .refused(401, "token_revoked");
    agent.settle().unwrap();
    tenant.get("/v1/vms/web").refused(404, "not_found");
    guest.get("/v1/me").refused(401, "token_revoked");
    let accepted = audit_bodies(&tenant, "event_type=VM_DELETE_ACCEPTED");
    assert_eq!(accepted.len(), 1, "{accepted:?}");
    assert_eq!(accepted[0]["actor"]["kind"], "guest");
    assert_eq!(accepted[0]["actor"]["token_id"], issued["token_id"]);
    controller.assert_sound();
}

#[test]
fn what_says_that_it_is_a_guests_is_one_only_if_it_was_made_for_a_vm() {
    let (controller, _agent, client, vm) = running_vm();
    let mut body = crate::harness::token_body("vm.guest");
    client
        .post("/v1/tokens", &body)
        .refused(400, "invalid_request");
    // Who may not read a VM makes nobody who may.
    body["scope"] = json!("vm.control");
    let control = client.post("/v1/tokens", &body).expect(201).json();
    let control = controller.with_token(control["token"].as_str().unwrap());
    let refused = control
        .post(TOKENS, &json!({}))
        .refused(403, "permission_denied");
    assert_eq!(refused["required_scope"], "vm.read");
    // A link that a holder makes for itself has no VM's run behind it.
    let admin = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let id = vm["id"].as_str().unwrap();
    let made_up = admin.narrowed(&Wanted {
        scope: "vm.guest",
        resources: Some(&[id]),
        ..Wanted::default()
    });
    let made_up = made_up.client(&controller);
    for path in [METADATA, "/v1/me"] {
        made_up.get(path).refused(401, "token_revoked");
    }
    for bad in [
        json!({ "expires_in_seconds": 59 }),
        json!({ "expires_in_seconds": 2_592_001 }),
        json!({ "subject_pubkey": "nonsense" }),
        json!({ "label": "l".repeat(201) }),
    ] {
        client.post(TOKENS, &bad).refused(400, "invalid_request");
    }
    client
        .post(TOKENS, &json!({ "scope": "vm.read" }))
        .refused(400, "unknown_field");
    // A day unless asked for; a day is less than the caller's own.
    let (_, day) = guest(&controller, &client);
    let limit = |issued: &Value| {
        let at =
            |name: &str| -> jiff::Timestamp { issued[name].as_str().unwrap().parse().unwrap() };
        at("expires_at").as_second() - at("issued_at").as_second()
    };
    assert_eq!(limit(&day), 86_400);
    let other = tenant(&controller, "other");
    other
        .client(&controller)
        .post(&format!("/v1/vms/{id}/guest-tokens"), &json!({}))
        .refused(404, "not_found");
    controller.assert_sound();
}

#[test]
fn what_ends_the_maker_of_a_guests_token_ends_the_token() {
    let (controller, _agent, client, _) = running_vm();
    let admin = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let (of_admin, _) = guest(&controller, &admin.client(&controller));
    of_admin.get(METADATA).expect(200);
    // Who must sign makes what must be signed, by a key that the guest has.
    let strict = issued(
        &controller,
        "acme",
        "service:tenant-admin",
        &json!({ "require_pop": true }),
    );
    let ask = |body: &Value| {
        let body = body.to_string();
        let asked = Signed::new("POST", TOKENS, &body);
        let headers = asked.headers(&controller, &strict.key, &strict.token);
        asked.send(&strict.client(&controller), &headers)
    };
    ask(&json!({ "label": "no key" })).refused(400, "invalid_request");
    let key = SigningKey::generate().unwrap();
    let made = ask(&json!({ "subject_pubkey": key.public().to_base64() }))
        .expect(201)
        .json();
    let token = made["token"].as_str().unwrap();
    let bare = controller.with_token(token);
    bare.get(METADATA).refused(401, "invalid_token");
    let read = Signed::new("GET", METADATA, "");
    read.send(&bare, &read.headers(&controller, &key, token))
        .expect(200);
    // The holder's end.
    client
        .post(
            "/v1/tokens/revoke",
            &json!({ "subject_pubkey": admin.key.public().to_base64() }),
        )
        .expect(204);
    of_admin.get(METADATA).refused(401, "token_revoked");
    controller.assert_sound();
}
