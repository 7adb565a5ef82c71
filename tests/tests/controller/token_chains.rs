//! Tokens that holders narrow by themselves, and everything that ends them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, token_body, vm_body};
use crate::holders::{Holder, Wanted, issued, tenant};

fn listed(client: &Client, tenant: &str, id: &str) -> Value {
    let page = client
        .get(&format!("/v1/tenants/{tenant}/tokens"))
        .expect(200)
        .json();
    let items = page["items"].as_array().unwrap();
    let found = items.iter().find(|item| item["token_id"] == id);
    found.unwrap_or(&Value::Null).clone()
}

#[test]
fn a_holder_narrows_its_token_without_asking_and_the_first_use_is_recorded_once() {
    let mut controller = Controller::start();
    let admin = tenant(&controller, "acme");
    let session = admin.narrowed(&Wanted {
        delegations: 1,
        ..Wanted::default()
    });
    let job = session.narrowed(&Wanted::default());
    let acme = admin.client(&controller);
    assert_eq!(
        listed(&acme, "acme", &job.id),
        Value::Null,
        "nobody was asked"
    );
    let me = job.client(&controller).get("/v1/me").expect(200).json();
    assert_eq!(me["scope"], json!(["vm.read"]));
    assert_eq!(me["tenant_id"], "acme");
    for _ in 0..3 {
        job.client(&controller).get("/v1/vms").expect(200);
    }
    job.client(&controller)
        .post("/v1/vms", &vm_body("web"))
        .refused(403, "permission_denied");
    controller.kill_and_restart();
    job.client(&controller).get("/v1/vms").expect(200);
    let events = audit_bodies(&acme, "event_type=TOKEN_FIRST_USED");
    assert_eq!(events.len(), 1, "{events:?}");
    let detail = &events[0]["detail"];
    assert_eq!(detail["token_id"], job.id.as_str());
    assert_eq!(detail["parent_ids"], json!([admin.id, session.id]));
    let record = listed(&acme, "acme", &job.id);
    assert_eq!(record["parent_ids"], json!([admin.id, session.id]));
    assert!(record["last_used_at"].is_string() && record["revoked_at"].is_null());
    controller.assert_sound();
}

#[test]
fn revoking_any_link_a_holder_or_everything_ends_what_hangs_on_it() {
    let mut controller = Controller::start();
    let operator = controller.admin();
    let acme = tenant(&controller, "acme");
    let other = tenant(&controller, "other");
    let fresh = || issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let chain = |root: &Holder| {
        let middle = root.narrowed(&Wanted {
            delegations: 1,
            ..Wanted::default()
        });
        let last = middle.narrowed(&Wanted::default());
        (middle, last)
    };
    let client = acme.client(&controller);
    let revoke = |by: &Client, body: Value| by.post("/v1/tokens/revoke", &body);
    // The root by DELETE.
    let one = fresh();
    let (one_middle, one_last) = chain(&one);
    one_last.client(&controller).get("/v1/vms").expect(200);
    client.delete(&format!("/v1/tokens/{}", one.id)).expect(204);
    // A link in the middle that the controller never saw: unknown to DELETE, not to POST.
    let two = fresh();
    let (two_middle, two_last) = chain(&two);
    client
        .delete(&format!("/v1/tokens/{}", two_middle.id))
        .refused(404, "not_found");
    revoke(
        &client,
        json!({ "token_id": two_middle.id, "reason": "lost" }),
    )
    .expect(204);
    // A holder, in another spelling of its key.
    let three = fresh();
    let (three_middle, three_last) = chain(&three);
    let key = hex::encode(three_middle.key.public().as_bytes());
    revoke(&client, json!({ "subject_pubkey": key })).expect(204);
    let mut again = token_body("vm.read");
    again["subject_pubkey"] = json!(key);
    client
        .post("/v1/tokens", &again)
        .refused(400, "invalid_request");
    // Another tenant's word ends nothing here.
    let four = fresh();
    let (_, four_last) = chain(&four);
    let theirs = other.client(&controller);
    revoke(&theirs, json!({ "token_id": four.id })).expect(204);
    revoke(
        &theirs,
        json!({ "subject_pubkey": four.key.public().to_base64() }),
    )
    .expect(204);
    revoke(&theirs, json!({ "token_id": four.id, "tenant_id": "acme" }))
        .refused(400, "tenant_mismatch");
    let check = |controller: &Controller| {
        for dead in [
            &one,
            &one_middle,
            &one_last,
            &two_middle,
            &two_last,
            &three_middle,
            &three_last,
        ] {
            let reply = dead.client(controller).get("/v1/vms");
            reply.refused(401, "token_revoked");
        }
        for alive in [&two, &three, &four, &four_last, &acme] {
            alive.client(controller).get("/v1/vms").expect(200);
        }
    };
    check(&controller);
    controller.kill_and_restart();
    check(&controller);
    // Everything so far; not what is issued afterwards, even in the same second.
    revoke(&acme.client(&controller), json!({ "all": true })).expect(204);
    for dead in [&acme, &two, &four_last] {
        dead.client(&controller)
            .get("/v1/vms")
            .refused(401, "token_revoked");
    }
    let new = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    new.client(&controller).get("/v1/vms").expect(200);
    other.client(&controller).get("/v1/vms").expect(200);
    for (event, count) in [
        ("TOKEN_REVOKED", 2),
        ("TOKEN_HOLDER_REVOKED", 1),
        ("TOKENS_ALL_REVOKED", 1),
    ] {
        let query = format!("tenant_id=acme&event_type={event}");
        assert_eq!(audit_bodies(&operator, &query).len(), count, "{event}");
    }
    for bad in [
        json!({}),
        json!({ "all": false }),
        json!({ "all": true, "token_id": four.id }),
        json!({ "subject_pubkey": "nonsense" }),
    ] {
        revoke(&new.client(&controller), bad).refused(400, "invalid_request");
    }
    controller.assert_sound();
}

#[test]
fn another_controller_on_the_same_database_learns_of_a_revocation() {
    let controller = Controller::start();
    let beside = controller.beside();
    let acme = tenant(&controller, "acme");
    let reader = acme.narrowed(&Wanted::default());
    reader.client(&beside).get("/v1/vms").expect(200);
    let body = json!({ "token_id": reader.id });
    acme.client(&controller)
        .post("/v1/tokens/revoke", &body)
        .expect(204);
    reader
        .client(&controller)
        .get("/v1/vms")
        .refused(401, "token_revoked");
    let deadline = Instant::now() + Duration::from_secs(60);
    while reader.client(&beside).get("/v1/vms").status == 200 {
        assert!(Instant::now() < deadline, "it never learned");
    }
}

#[test]
fn a_limited_token_reaches_its_vms_and_nothing_else() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let admin = tenant(&controller, "acme");
    let acme = admin.client(&controller);
    let make = |name: &str| acme.post("/v1/vms", &vm_body(name)).expect(201).json();
    let (ours, theirs) = (make("ours"), make("theirs"));
    agent.settle().unwrap();
    let id = |vm: &Value| vm["id"].as_str().unwrap().to_owned();
    let (ours_id, theirs_id) = (id(&ours), id(&theirs));
    let only = issued(
        &controller,
        "acme",
        "service:tenant-admin",
        &json!({ "resources": [ours_id] }),
    );
    let derived = admin.narrowed(&Wanted {
        scope: "service:tenant-admin",
        resources: Some(&[ours_id.as_str()]),
        ..Wanted::default()
    });
    for limited in [&only, &derived] {
        let client = limited.client(&controller);
        let list = client.get("/v1/vms").expect(200).json();
        let names: Vec<&Value> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|vm| &vm["name"])
            .collect();
        assert_eq!(names, ["ours"]);
        for vm in [ours_id.as_str(), "ours"] {
            client.get(&format!("/v1/vms/{vm}")).expect(200);
        }
        let operation =
            |vm: &Value| format!("/v1/operations/{}", vm["operation"].as_str().unwrap());
        client.get(&operation(&ours)).expect(200);
        let absent = berth_api::ids::VmId::generate().to_string();
        for vm in [theirs_id.as_str(), "theirs", absent.as_str(), "nothing"] {
            for (method, path) in [
                ("GET", "/v1/vms/{vm}"),
                ("DELETE", "/v1/vms/{vm}"),
                ("POST", "/v1/vms/{vm}/stop"),
                ("POST", "/v1/vms/{vm}/start"),
                ("GET", "/v1/vms/{vm}/console/log"),
                ("GET", "/v1/vms/{vm}/receipts"),
                ("GET", "/v1/vms/{vm}/passport"),
                ("GET", "/v1/vms/{vm}/wait?state=running&timeout=0"),
            ] {
                let body = (method == "POST").then_some("{}");
                let reply = client.send(method, &path.replace("{vm}", vm), &[], body);
                reply.refused(404, "not_found");
            }
        }
        client.get(&operation(&theirs)).refused(404, "not_found");
        for (method, path) in [
            ("POST", "/v1/vms"),
            ("GET", "/v1/usage"),
            ("GET", "/v1/audit/entries"),
            ("GET", "/v1/tenants/acme"),
            ("GET", "/v1/tenants/acme/tokens"),
            ("POST", "/v1/tenants/acme/tokens"),
            ("POST", "/v1/tokens"),
            ("POST", "/v1/tokens/revoke"),
        ] {
            client
                .send(method, path, &[], None)
                .refused(403, "permission_denied");
        }
    }
    // Nothing is a list too.
    let nothing = admin.narrowed(&Wanted {
        resources: Some(&[]),
        ..Wanted::default()
    });
    let client = nothing.client(&controller);
    assert_eq!(client.get("/v1/vms").expect(200).json()["items"], json!([]));
    client.get("/v1/vms/ours").refused(404, "not_found");
    derived
        .client(&controller)
        .delete("/v1/vms/ours")
        .expect(202);
    controller.assert_sound();
}

#[test]
fn a_token_is_verified_for_whoever_may_know() {
    let controller = Controller::start();
    let acme = tenant(&controller, "acme");
    let other = tenant(&controller, "other");
    let reader = acme.narrowed(&Wanted::default());
    let ask =
        |client: &Client, token: &str| client.post("/v1/tokens/verify", &json!({ "token": token }));
    for client in [
        acme.client(&controller),
        controller.admin(),
        reader.client(&controller),
    ] {
        let answer = ask(&client, &reader.token).expect(200).json();
        assert_eq!(answer["valid"], true);
        assert_eq!(answer["tenant_id"], "acme");
        assert_eq!(answer["scope"], json!(["vm.read"]));
        assert_eq!(answer["token_ids"], json!([acme.id, reader.id]));
        assert!(answer["expires_at"].is_string() && answer["subject_pubkey"].is_string());
    }
    let nosy = ask(&other.client(&controller), &reader.token);
    let nonsense = ask(&other.client(&controller), "v4.public.AAAA");
    assert_eq!(nosy.without_request_id(), nonsense.without_request_id());
    nonsense.refused(401, "invalid_token");
    ask(&controller.stranger(), &reader.token).refused(401, "unauthorized");
    let path = format!("/v1/tokens/{}", reader.id);
    acme.client(&controller).delete(&path).expect(204);
    ask(&acme.client(&controller), &reader.token).refused(401, "token_revoked");
}

#[test]
fn a_rotated_root_key_counts_until_it_is_dropped() {
    let mut controller = Controller::start();
    let old = tenant(&controller, "acme");
    let narrowed = old.narrowed(&Wanted::default());
    let operator = controller.admin();
    let run = |controller: &Controller, what: &str| {
        let output = controller.offline(&["keys", what]);
        assert!(output.status.success(), "{output:?}");
    };
    run(&controller, "rotate-token");
    // Twice at once there is no room for.
    assert!(
        !controller
            .offline(&["keys", "rotate-token"])
            .status
            .success()
    );
    controller.kill_and_restart();
    let new = issued(&controller, "acme", "vm.read", &json!({}));
    for token in [&old, &narrowed, &new] {
        token.client(&controller).get("/v1/vms").expect(200);
    }
    let administrator = controller.offline(&["admin-token", "--days", "1"]);
    let administrator = String::from_utf8(administrator.stdout).unwrap();
    operator.get("/v1/tenants").expect(200);
    run(&controller, "drop-token");
    controller.kill_and_restart();
    for token in [&old, &narrowed] {
        let reply = token.client(&controller).get("/v1/vms");
        reply.refused(401, "invalid_token");
    }
    operator.get("/v1/tenants").refused(401, "invalid_token");
    new.client(&controller).get("/v1/vms").expect(200);
    let operator = controller.with_token(administrator.trim());
    assert_eq!(audit_bodies(&operator, "event_type=KEY_ROTATED").len(), 2);
    run(&controller, "drop-token");
    controller.assert_sound();
}

#[test]
fn an_issued_token_is_within_what_its_issuer_may_do() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let leaf = issued(
        &controller,
        "acme",
        "service:tenant-admin",
        &json!({ "delegations": 0 }),
    );
    leaf.client(&controller)
        .post("/v1/tokens", &token_body("vm.read"))
        .refused(403, "permission_denied");
    let admin = issued(
        &controller,
        "acme",
        "service:tenant-admin",
        &json!({ "delegations": 1 }),
    );
    let client = admin.client(&controller);
    let mut body = token_body("vm.read");
    body["expires_in_seconds"] = json!(600);
    body["delegations"] = json!(2);
    let refused = client
        .post("/v1/tokens", &body)
        .refused(400, "invalid_request");
    assert!(refused["fields"]["delegations"].is_string());
    body["delegations"] = json!(1);
    client.post("/v1/tokens", &body).expect(201);
    body["resources"] = json!(["web-1"]);
    let refused = client
        .post("/v1/tokens", &body)
        .refused(400, "invalid_request");
    assert!(refused["fields"]["resources"].is_string());
    // An operator says for whom.
    let operator = controller.admin();
    let mut body = token_body("vm.read");
    operator
        .post("/v1/tokens", &body)
        .refused(400, "invalid_request");
    body["tenant_id"] = json!("nobody");
    operator.post("/v1/tokens", &body).refused(404, "not_found");
    body["tenant_id"] = json!("acme");
    let issued = operator.post("/v1/tokens", &body).expect(201).json();
    assert_eq!(issued["tenant_id"], "acme");
    client
        .post(
            "/v1/tenants/acme/tokens",
            &json!({ "tenant_id": "other", "scope": "vm.read",
            "subject_pubkey": body["subject_pubkey"], "expires_in_seconds": 600 }),
        )
        .refused(400, "tenant_mismatch");
}
