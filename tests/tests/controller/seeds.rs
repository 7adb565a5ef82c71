//! What tenants give their guests: keys, user data, and tokens that end with their run.

use std::time::{Duration, Instant};

use berth_api::agent::{Seed, SyncReply};
use berth_api::ids::{AgentInstanceId, VmId};
use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, token_body, usage_of, vm_body};
use crate::holders::{Signed, issued};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ops";
/// What `ssh-keygen -l` says of it.
const FINGERPRINT: &str = "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA";
const USER_DATA: &str = "#cloud-config\nwrite_files: [{path: /etc/motd, content: tuesday}]\n";
const METADATA: &str = "/v1/vms/web/metadata";

fn given() -> Value {
    let mut body = vm_body("web");
    body["ssh_keys"] = json!([KEY]);
    body["user_data"] = json!(USER_DATA);
    body["guest_token"] = json!(true);
    body
}

/// What the only guest of a host was given.
#[track_caller]
fn seed(agent: &SimulatedAgent) -> &Seed {
    assert_eq!(agent.seeds.len(), 1);
    agent.seeds.values().next().unwrap()
}

#[track_caller]
fn token(agent: &SimulatedAgent) -> String {
    seed(agent).guest_access.clone().unwrap().token
}

#[test]
fn a_guest_is_given_keys_user_data_and_a_token_and_others_see_their_hashes() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    let tokens = usage_of(&tenant, "tokens")["used"].as_u64().unwrap();
    let made = tenant.post("/v1/vms", &given()).expect(201);
    let vm = made.json();
    assert_eq!(vm["ssh_keys"], json!([KEY]));
    let hash = vm["user_data_sha256"].as_str().unwrap().to_owned();
    assert_eq!(hash.len(), 64);
    assert_eq!(vm["guest_token"], true);
    agent.settle().unwrap();
    let seed = seed(&agent);
    assert_eq!(seed.name, "web");
    assert_eq!(json!(seed.vm_id), vm["id"]);
    assert_eq!(seed.ssh_keys, [KEY]);
    assert_eq!(seed.user_data.as_deref(), Some(USER_DATA));
    let access = seed.guest_access.as_ref().unwrap();
    assert_eq!(access.controller_url, controller.url());
    let guest = controller.with_token(&access.token);
    assert_eq!(guest.get(METADATA).expect(200).json()["id"], vm["id"]);
    guest.get("/v1/vms").refused(403, "permission_denied");
    assert_eq!(usage_of(&tenant, "tokens")["used"], tokens + 1);

    // The ledger tells what was given without saying it.
    let accepted = &audit_bodies(&tenant, "event_type=VM_CREATE_ACCEPTED")[0];
    assert_eq!(accepted["detail"]["ssh_keys"], json!([FINGERPRINT]));
    assert_eq!(accepted["detail"]["user_data_sha256"], json!(hash));
    let issued = audit_bodies(&tenant, "event_type=TOKEN_ISSUED");
    assert!(issued.iter().any(|entry| entry["vm_id"] == vm["id"]));
    for path in [
        "/v1/vms",
        "/v1/vms/web",
        "/v1/audit/entries?limit=1000",
        "/v1/vms/web/events",
    ] {
        let text = tenant.get(path).expect(200).text;
        assert!(!text.contains("tuesday"), "{path}");
        assert!(!text.contains(&access.token), "{path}");
    }
    assert!(!made.text.contains("tuesday"));
    controller.database().assert_lacks(&access.token);
    for line in controller.log() {
        assert!(!line.contains(&access.token) && !line.contains("tuesday"));
    }
    controller.assert_sound();
}

#[test]
fn a_given_token_ends_with_its_run_and_the_next_run_has_another() {
    let mut controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    agent.settle().unwrap();
    let first = token(&agent);
    let used = usage_of(&tenant, "tokens")["used"].as_u64().unwrap();
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    let over = controller.with_token(&first);
    over.get(METADATA).refused(401, "token_revoked");
    assert_eq!(usage_of(&tenant, "tokens")["used"], used - 1);
    agent.settle().unwrap();

    // Ordered by one process and minted by the next: only the record was kept between them.
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    controller.kill_and_restart();
    agent.settle().unwrap();
    let second = token(&agent);
    assert_ne!(second, first);
    over.get(METADATA).refused(401, "token_revoked");
    controller.with_token(&second).get(METADATA).expect(200);
    assert_eq!(usage_of(&tenant, "tokens")["used"], used);
    assert_eq!(seed(&agent).user_data.as_deref(), Some(USER_DATA));

    tenant.delete("/v1/vms/web").expect(202);
    controller
        .with_token(&second)
        .get("/v1/me")
        .refused(401, "token_revoked");
    agent.settle().unwrap();
    let left = controller
        .database()
        .value("SELECT COUNT(*) FROM vm_user_data");
    assert_eq!(left, "0", "user data goes with its VM");
    controller.assert_sound();
}

/// The seeds of one answer that is lost on its way.
fn lost(agent: &mut SimulatedAgent) -> Vec<Seed> {
    let request = agent.next_sync(0);
    let (status, body) = agent.send(&agent.seal(&request).unwrap()).unwrap();
    assert_eq!(status, 200, "{body}");
    let reply: SyncReply = serde_json::from_str(&body).unwrap();
    agent.seeds_of(&reply).unwrap().into_values().collect()
}

#[test]
fn a_seed_that_is_sent_again_is_the_same() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    let first = lost(&mut agent);
    assert_eq!(first.len(), 1);
    agent.instance = AgentInstanceId::generate();
    assert_eq!(lost(&mut agent), first);
    agent.instance = AgentInstanceId::generate();
    agent.settle().unwrap();
    assert_eq!(seed(&agent), &first[0]);
}

#[test]
fn more_seeds_than_one_answer_carries_come_with_the_next() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 64 * 1024);
    let tenant = controller.tenant("acme", 30);
    let mut body = vm_body("web");
    body["user_data"] = json!(format!("#{}", "x".repeat(64 * 1024 - 1)));
    for n in 0..20 {
        body["name"] = json!(format!("web-{n}"));
        tenant.post("/v1/vms", &body).expect(201);
    }
    let first = agent.sync(0).unwrap();
    assert!((1..20).contains(&first), "{first} tasks at once");
    agent.settle().unwrap();
    assert_eq!(agent.seeds.len(), 20);
    assert!(agent.seeds.values().all(|seed| {
        seed.user_data.as_ref().map(String::len) == Some(64 * 1024) && seed.guest_access.is_none()
    }));
}

#[test]
fn a_tenants_own_keys_are_given_unless_others_are_named() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 9);
    let keys_of = |name: &str, keys: Option<Value>| {
        let mut body = vm_body(name);
        if let Some(keys) = keys {
            body["ssh_keys"] = keys;
        }
        tenant.post("/v1/vms", &body).expect(201).json()["ssh_keys"].clone()
    };
    assert_eq!(keys_of("nobody", None), json!([]));
    agent.settle().unwrap();
    assert!(agent.seeds.is_empty(), "who is given nothing gets no drive");
    let profile = json!({ "display_name": "Acme", "email": "ops@acme.example",
        "default_ssh_keys": [KEY] });
    tenant.send_json("PUT", "/v1/tenant", &profile).expect(200);
    assert_eq!(keys_of("ours", None), json!([KEY]));
    let other = KEY.replace(" ops", " desk");
    assert_eq!(keys_of("theirs", Some(json!([other]))), json!([other]));
    assert_eq!(keys_of("none", Some(json!([]))), json!([]));
    agent.settle().unwrap();
    assert_eq!(agent.seeds.len(), 2);
}

#[test]
fn what_is_no_key_or_no_user_data_is_refused_by_its_field() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 3);
    for (field, wrong) in [
        ("ssh_keys", json!(["nonsense"])),
        ("ssh_keys", json!([KEY, "ssh-ed25519 AAAA"])),
        ("ssh_keys", json!([format!("{KEY}\n{KEY}")])),
        ("ssh_keys", json!([format!("command=\"reboot\" {KEY}")])),
        ("ssh_keys", json!(vec![KEY; 33])),
        ("user_data", json!("")),
        ("user_data", json!("packages: [nginx]")),
        ("user_data", json!("#!/bin/sh\n\u{0}")),
        ("user_data", json!(format!("#{}", "x".repeat(64 * 1024)))),
    ] {
        let mut body = vm_body("web");
        body[field] = wrong;
        let refused = tenant
            .post("/v1/vms", &body)
            .refused(400, "invalid_request");
        let problem = refused["fields"][field].as_str().unwrap();
        assert!(problem.contains("must be at most"), "{problem}");
        assert!(problem.contains("; "), "a remedy: {problem}");
    }
    let nothing = tenant.get("/v1/vms").expect(200).json();
    assert_eq!(nothing["items"], json!([]));
}

#[test]
fn a_guests_token_is_within_its_tenants_ceiling_or_nothing_is_made() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    let ceiling = |most: u64| {
        controller
            .admin()
            .send_json("PATCH", "/v1/tenants/acme", &json!({ "max_tokens": most }))
            .expect(200);
    };
    ceiling(1);
    let refused = tenant
        .post("/v1/vms", &given())
        .refused(429, "quota_exceeded");
    assert_eq!(refused["quota"]["resource"], "tokens");
    let plan = |client: &Client| {
        let plan = client.post("/v1/vms?dry_run=plan", &given()).expect(200);
        plan.json()
    };
    let refused = plan(&tenant);
    assert_eq!(refused["outcome"], "refused");
    assert_eq!(refused["charges"]["tokens"], 1);
    assert_eq!(usage_of(&tenant, "vms")["used"], 0);
    controller.assert_sound();

    ceiling(2);
    assert_eq!(plan(&tenant)["outcome"], "accepted");
    tenant.post("/v1/vms", &given()).expect(201);
    agent.settle().unwrap();
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    // Somebody else has taken its place.
    let other = tenant.post("/v1/tokens", &token_body("vm.read"));
    let other = other.expect(201).json();
    let refused = tenant
        .post("/v1/vms/web/start", &json!({}))
        .refused(429, "quota_exceeded");
    assert_eq!(refused["quota"]["resource"], "tokens");
    assert_eq!(usage_of(&tenant, "running_vms")["used"], 0);
    let path = format!("/v1/tokens/{}", other["token_id"].as_str().unwrap());
    tenant.delete(&path).expect(204);
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    let guest = controller.with_token(&token(&agent));
    guest.get(METADATA).expect(200);
    controller.assert_sound();
}

#[test]
fn a_guest_that_is_set_up_says_so_and_is_given_no_user_data_again() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    agent.settle().unwrap();
    controller
        .token("acme", "vm.control")
        .post(REPORT, &json!({}))
        .refused(403, "permission_denied");
    assert!(tenant.get("/v1/vms/web").expect(200).json()["booted_at"].is_null());
    let guest = controller.with_token(&token(&agent));
    guest.post(REPORT, &json!({})).expect(204);
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    assert!(vm["booted_at"].is_string(), "{vm}");
    assert!(vm["user_data_sha256"].is_string(), "the hash stays");
    let left = controller
        .database()
        .value("SELECT COUNT(*) FROM vm_user_data");
    assert_eq!(left, "0");
    guest.post(REPORT, &json!({})).expect(204);
    let again = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(again["booted_at"], vm["booted_at"]);
    let told = audit_bodies(&tenant, "event_type=VM_BOOT_REPORTED");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["actor"]["kind"], "guest");

    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    assert_eq!(seed(&agent).user_data, None);
    assert_eq!(seed(&agent).ssh_keys, [KEY]);
    controller
        .with_token(&token(&agent))
        .get(METADATA)
        .expect(200);
    controller.assert_sound();
}

const REPORT: &str = "/v1/vms/web/boot-report";

/// The id of the tenant's only VM.
fn web(tenant: &Client) -> VmId {
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    vm["id"].as_str().unwrap().parse().unwrap()
}

#[test]
fn the_node_of_a_guest_that_is_set_up_takes_the_medium_of_that_run_away() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let mut other = controller.agent("node-2", 1024);
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    let mut plain = vm_body("plain");
    plain["memory_mb"] = json!(1024);
    tenant.post("/v1/vms", &plain).expect(201);
    agent.settle().unwrap();
    other.settle().unwrap();
    let vm = web(&tenant);
    assert_eq!(agent.ejections, [], "nobody has said anything");
    let guest = controller.with_token(&token(&agent));
    guest.post(REPORT, &json!({})).expect(204);
    guest.post(REPORT, &json!({})).expect(204);
    let before = tenant.get("/v1/vms/web").expect(200).json();
    agent.settle().unwrap();
    other.settle().unwrap();
    assert_eq!(agent.ejections, [(vm, 1)], "once for both reports");
    assert_eq!(other.ejections, []);
    assert!(agent.seeds.is_empty());
    let told = audit_bodies(&tenant, "event_type=VM_SEED_EJECTED");
    assert_eq!((told.len(), &told[0]["outcome"]), (1, &json!("completed")));
    assert_eq!(told[0]["detail"]["generation"], 1);
    assert_eq!(told[0]["actor"]["kind"], "node");
    let after = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(before, after, "the VM is as it was");
    guest.get(METADATA).expect(200);

    // The next run has a medium of its own, for as long as its guest needs it.
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    guest.post(REPORT, &json!({})).refused(401, "token_revoked");
    agent.settle().unwrap();
    assert_eq!(agent.ejections, [(vm, 1)]);
    let guest = controller.with_token(&token(&agent));
    guest.post(REPORT, &json!({})).expect(204);
    agent.settle().unwrap();
    assert_eq!(agent.ejections, [(vm, 1), (vm, 3)]);
    let told = audit_bodies(&tenant, "event_type=VM_BOOT_REPORTED");
    let runs: Vec<_> = told.iter().map(|it| &it["detail"]["generation"]).collect();
    assert_eq!(runs, [&json!(1), &json!(3)]);
    assert_eq!(
        audit_bodies(&tenant, "event_type=VM_BOOT_REPORTED")[0]["actor"]["kind"],
        "guest"
    );
    tenant.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    let left = controller
        .database()
        .value("SELECT COUNT(*) FROM seed_ejection");
    assert_eq!(left, "0");
    controller.assert_sound();
}

#[test]
fn a_node_is_told_to_take_a_medium_away_until_it_answers_and_not_after_its_run() {
    let mut controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    agent.settle().unwrap();
    let vm = web(&tenant);
    let report = |controller: &Controller, agent: &SimulatedAgent| {
        let guest = controller.with_token(&token(agent));
        guest.post(REPORT, &json!({})).expect(204);
    };
    report(&controller, &agent);
    // The answers that carry it are lost, and so is the controller; each agent is told anew.
    let tasks = |agent: &mut SimulatedAgent| {
        agent.instance = AgentInstanceId::generate();
        let request = agent.next_sync(0);
        let (status, body) = agent.send(&agent.seal(&request).unwrap()).unwrap();
        assert_eq!(status, 200, "{body}");
        let reply: SyncReply = serde_json::from_str(&body).unwrap();
        reply.tasks.len()
    };
    assert_eq!(tasks(&mut agent), 1);
    controller.kill_and_restart();
    assert_eq!(tasks(&mut agent), 1);
    // What it does about it is lost as well.
    agent.instance = AgentInstanceId::generate();
    agent.sync(0).unwrap();
    agent.results.clear();
    agent.instance = AgentInstanceId::generate();
    agent.settle().unwrap();
    assert_eq!(agent.ejections, [(vm, 1); 2]);
    assert_eq!(tasks(&mut agent), 0);
    assert_eq!(audit_bodies(&tenant, "event_type=VM_SEED_EJECTED").len(), 1);

    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    report(&controller, &agent);
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    assert_eq!(agent.ejections.len(), 2, "the order ended the run");
    controller.assert_sound();
}

#[test]
fn a_node_that_cannot_take_a_medium_away_says_so_once_and_all_goes_on() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    agent.is_old = true;
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    agent.settle().unwrap();
    let guest = controller.with_token(&token(&agent));
    guest.post(REPORT, &json!({})).expect(204);
    agent.settle().unwrap();
    agent.instance = AgentInstanceId::generate();
    agent.settle().unwrap();
    assert_eq!(agent.ejections.len(), 1);
    let told = audit_bodies(&tenant, "event_type=VM_SEED_EJECTED");
    assert_eq!((told.len(), &told[0]["outcome"]), (1, &json!("failed")));
    assert_eq!(told[0]["code"], "unsupported");
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(vm["state"], "running");
    guest.get(METADATA).expect(200);
    controller.assert_sound();
}

#[test]
fn a_long_poll_is_answered_when_a_guest_is_set_up() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    tenant.post("/v1/vms", &given()).expect(201);
    agent.settle().unwrap();
    let guest = controller.with_token(&token(&agent));
    let polling = std::thread::spawn(move || {
        agent.sync(25).unwrap();
        agent
    });
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    guest.post(REPORT, &json!({})).expect(204);
    let agent = polling.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(agent.ejections.len(), 1);
}

#[test]
fn who_could_not_make_a_guests_token_does_not_have_one_given() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 9);
    let creator = controller.token("acme", "vm.create");
    let refused = creator
        .post("/v1/vms", &given())
        .refused(403, "permission_denied");
    assert_eq!(refused["required_scope"], "vm.control");
    let forbidden = controller.tenant("forbidden", 3);
    let change = json!({ "allowed_actions": ["vm.create"] });
    controller
        .admin()
        .send_json("PATCH", "/v1/tenants/forbidden", &change)
        .expect(200);
    forbidden
        .post("/v1/vms", &given())
        .refused(403, "permission_denied");
    // A guest cannot sign with a key that it does not have.
    let strict = issued(
        &controller,
        "acme",
        "service:tenant-admin",
        &json!({ "require_pop": true }),
    );
    let body = given().to_string();
    let asked = Signed::new("POST", "/v1/vms", &body);
    let headers = asked.headers(&controller, &strict.key, &strict.token);
    let refused = asked
        .send(&strict.client(&controller), &headers)
        .refused(400, "invalid_request");
    assert!(refused["fields"]["guest_token"].is_string(), "{refused}");

    // What ends the maker ends its guests' tokens, and none is given after that.
    let maker = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let made = maker.client(&controller).post("/v1/vms", &given());
    made.expect(201);
    agent.settle().unwrap();
    let guest = controller.with_token(&token(&agent));
    guest.get(METADATA).expect(200);
    tenant
        .post(
            "/v1/tokens/revoke",
            &json!({ "subject_pubkey": maker.key.public().to_base64() }),
        )
        .expect(204);
    guest.get(METADATA).refused(401, "token_revoked");
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    assert_eq!(seed(&agent).guest_access, None);
    assert_eq!(seed(&agent).user_data.as_deref(), Some(USER_DATA));
    let denied = audit_bodies(&tenant, "event_type=TOKEN_ISSUE_DENIED");
    assert_eq!(denied[0]["code"], "token_revoked");
    controller.assert_sound();
}
