//! Enrolment and syncs, honest and not.

use berth_api::agent::{ENROLL_PAYLOAD_TYPE, SYNC_PAYLOAD_TYPE, SignedEnvelope};
use berth_api::ids::{AgentInstanceId, NodeId};
use berth_ledger::envelope;
use berth_ledger::keys::SigningKey;
use berth_tests::simulated_agent::{Host, SimulatedAgent, enroll_request, read_join_token};
use serde_json::{Value, json};

use crate::harness::{Controller, Reply, audit_bodies, vm_body};

fn enroll(controller: &Controller, sealed: &SignedEnvelope) -> Reply {
    let body = serde_json::to_value(sealed).unwrap();
    controller.stranger().post("/v1/agent/enroll", &body)
}

#[test]
fn a_join_token_is_good_for_one_node_once() {
    let controller = Controller::start();
    let token = controller.join_token();
    let read = read_join_token(&token).unwrap();
    assert_eq!(read.controller_url, controller.url());
    let key = SigningKey::generate().unwrap();
    let host = Host::new("node-1", 1024);
    let sealed = envelope::seal(
        &key,
        ENROLL_PAYLOAD_TYPE,
        &enroll_request(&read, &key, &host),
    )
    .unwrap();
    let first = enroll(&controller, &sealed).expect(201).json();
    // The answer may have been lost: the same host may ask again.
    assert_eq!(enroll(&controller, &sealed).expect(201).json(), first);
    let second = SimulatedAgent::enroll(&token, Host::new("node-2", 1024)).unwrap_err();
    assert!(second.to_string().contains("invalid_token"), "{second}");
    let nodes = controller.admin().get("/v1/nodes").expect(200).json();
    assert_eq!(nodes["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        audit_bodies(&controller.admin(), "event_type=NODE_ENROLLED").len(),
        1
    );
    controller.database().assert_lacks(&read.secret);
}

#[test]
fn a_wrong_enrolment_is_refused_and_leaves_nothing() {
    let controller = Controller::start();
    let admin = controller.admin();
    let bound = admin
        .post("/v1/nodes/join-tokens", &json!({ "node_name": "right" }))
        .expect(201)
        .json();
    let read = read_join_token(bound["token"].as_str().unwrap()).unwrap();
    let key = SigningKey::generate().unwrap();
    let other = SigningKey::generate().unwrap();
    let seal = |key: &SigningKey, change: &dyn Fn(&mut Value)| {
        let request = enroll_request(&read, &other, &Host::new("right", 1024));
        let mut request = serde_json::to_value(request).unwrap();
        request["node_public_key"] = json!(key.public().to_base64());
        change(&mut request);
        envelope::seal(key, ENROLL_PAYLOAD_TYPE, &request).unwrap()
    };
    enroll(
        &controller,
        &seal(&key, &|r| r["node_name"] = json!("wrong")),
    )
    .refused(401, "invalid_token");
    enroll(&controller, &seal(&key, &|r| r["secret"] = json!("guess")))
        .refused(401, "invalid_token");
    enroll(
        &controller,
        &seal(&key, &|r| r["protocol_version"] = json!(2)),
    )
    .refused(400, "invalid_request");
    enroll(&controller, &seal(&key, &|r| r["extra"] = json!(2))).refused(400, "invalid_request");
    enroll(
        &controller,
        &seal(&key, &|r| r["node_name"] = json!("../x")),
    )
    .refused(400, "invalid_request");
    let named = |r: &mut Value| r["node_public_key"] = json!(other.public().to_base64());
    enroll(&controller, &seal(&key, &named)).refused(400, "invalid_request");
    let mut forged = seal(&key, &|_| {});
    forged.signatures[0].keyid = other.public().to_base64();
    enroll(&controller, &forged).refused(401, "invalid_token");
    let mut unsigned = seal(&key, &|_| {});
    unsigned.signatures.clear();
    enroll(&controller, &unsigned).refused(401, "invalid_token");
    assert_eq!(
        admin.get("/v1/nodes").expect(200).json()["items"],
        json!([])
    );
    enroll(&controller, &seal(&key, &|_| {})).expect(201);
}

#[test]
fn a_node_is_seen_as_soon_as_it_has_joined_and_is_known_by_its_name() {
    let controller = Controller::start();
    let admin = controller.admin();
    let agent = controller.agent("rack1-3", 4096);
    let shown = admin.get("/v1/nodes/rack1-3").expect(200).json();
    assert_eq!(shown["id"], json!(agent.node_id));
    let words = [&shown["state"], &shown["liveness"]];
    assert_eq!(words, [&json!("ready"), &json!("online")]);
    assert!(shown["last_heartbeat"].is_string(), "{shown}");
    let capacity = [&shown["vcpus"], &shown["memory_mb"], &shown["disk_mb"]];
    assert_eq!(capacity, [&json!(8), &json!(4096), &json!(1 << 20)]);
    let same = Host::new("rack1-3", 64);
    let again = SimulatedAgent::enroll(&controller.join_token(), same).unwrap_err();
    assert!(again.to_string().contains("already_exists"), "{again}");
    let cordoned = admin.post("/v1/nodes/rack1-3/cordon", &json!({}));
    assert_eq!(cordoned.expect(200).json()["state"], "cordoned");
    admin.get("/v1/nodes/rack1-4").refused(404, "not_found");
    let alive = controller.stranger().get("/healthz").expect(200).json();
    assert_eq!(alive, json!({ "status": "ok" }));
}

#[track_caller]
fn refused(agent: &SimulatedAgent, sealed: &SignedEnvelope, status: u16, code: &str) {
    let (found, body) = agent.send(sealed).unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (found, body["code"].as_str()),
        (status, Some(code)),
        "{body}"
    );
}

#[test]
fn forged_and_replayed_syncs_are_refused_and_change_nothing() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 2);
    let mut agent = controller.agent("node-1", 4096);
    let mut other = controller.agent("node-2", 64);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();

    let captured = agent.next_sync(0);
    let captured = agent.seal(&captured).unwrap();
    assert_eq!(agent.send(&captured).unwrap().0, 200);
    refused(&agent, &captured, 409, "invalid_state");
    let mut older = agent.next_sync(0);
    older.seq = 1;
    refused(&agent, &agent.seal(&older).unwrap(), 409, "invalid_state");
    let mut epoch = agent.next_sync(0);
    epoch.node_epoch = 0;
    refused(&agent, &agent.seal(&epoch).unwrap(), 409, "invalid_state");

    let of_agent = agent.next_sync(0);
    refused(
        &agent,
        &other.seal(&of_agent).unwrap(),
        401,
        "invalid_token",
    );
    let thief = SigningKey::generate().unwrap();
    let forged = envelope::seal(&thief, SYNC_PAYLOAD_TYPE, &of_agent).unwrap();
    refused(&agent, &forged, 401, "invalid_token");
    let mut unknown = agent.next_sync(0);
    unknown.node_id = NodeId::generate();
    refused(&agent, &agent.seal(&unknown).unwrap(), 401, "invalid_token");
    let as_enrolment = envelope::seal(&thief, ENROLL_PAYLOAD_TYPE, &of_agent).unwrap();
    refused(&agent, &as_enrolment, 401, "invalid_token");

    // A node speaks for its own VMs alone: this one's silence or lies about others change nothing.
    other.vms = agent.vms.clone();
    other.sync(0).unwrap();
    other.vms.clear();
    other.sync(0).unwrap();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );

    // After a restart of the agent its earlier run is not listened to any more.
    let first_run = agent.instance;
    agent.instance = AgentInstanceId::generate();
    agent.sync(0).unwrap();
    agent.instance = first_run;
    let old_run = agent.next_sync(0);
    refused(&agent, &agent.seal(&old_run).unwrap(), 409, "invalid_state");
    controller.assert_sound();
}

#[test]
fn a_task_comes_again_until_its_result_does_and_is_done_once() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let mut agent = controller.agent("node-1", 4096);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    // The agent is killed with the task in its hands; the next run is sent it again.
    assert_eq!(agent.sync(0).unwrap(), 1);
    agent.results.clear();
    agent.vms.clear();
    agent.instance = AgentInstanceId::generate();
    agent.settle().unwrap();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
    // A result that is told twice counts once.
    let completed = || audit_bodies(&tenant, "event_type=TASK_COMPLETED").len();
    assert_eq!(completed(), 1);
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.sync(0).unwrap();
    let results = agent.results.clone();
    agent.sync(0).unwrap();
    agent.results = results;
    agent.settle().unwrap();
    assert_eq!(completed(), 2);
}

#[test]
fn a_long_poll_returns_as_soon_as_there_is_work() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let mut agent = controller.agent("node-1", 4096);
    let begun = std::time::Instant::now();
    let poll = std::thread::spawn(move || agent.sync(25).unwrap());
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    assert_eq!(poll.join().unwrap(), 1);
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn a_poll_that_its_agent_turned_away_from_takes_no_task_with_it() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let mut agent = controller.agent("node-1", 4096);
    let node = agent.node_id;
    let abandoned = agent.next_sync(25);
    let abandoned = agent.seal(&abandoned).unwrap();
    agent.abandon(&abandoned, std::time::Duration::from_millis(300));
    let heartbeat = || {
        let path = format!("/v1/nodes/{node}");
        controller.admin().get(&path).expect(200).json()["last_heartbeat"].clone()
    };
    let before = heartbeat();
    let poll = std::thread::spawn(move || {
        let tasks = agent.sync(25).unwrap();
        (agent, tasks)
    });
    // The second poll is there once the node has been heard again.
    while heartbeat() == before {}
    heartbeat();
    let begun = std::time::Instant::now();
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    let (mut agent, tasks) = poll.join().unwrap();
    assert_eq!(tasks, 1);
    assert!(
        begun.elapsed().as_secs() < 8,
        "it was sent at once, not sent again"
    );
    agent.settle().unwrap();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
}

#[test]
fn a_vm_waits_for_a_node_that_could_take_it_and_was_not_seen_since_enrolment() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 3);
    let body = tenant
        .post("/v1/vms", &vm_body("none"))
        .refused(422, "placement_impossible");
    assert_eq!(body["reasons"], json!({ "no_nodes": 0 }));
    let mut agent = controller.agent("node-1", 4096);
    let mut wrong = vm_body("wrong");
    wrong["image"] = json!("plan-9");
    let body = tenant
        .post("/v1/vms", &wrong)
        .refused(422, "placement_impossible");
    assert_eq!(body["reasons"], json!({ "image_unknown": 1 }));
    let mut large = vm_body("large");
    large["memory_mb"] = json!(4097);
    let body = tenant
        .post("/v1/vms", &large)
        .refused(422, "placement_impossible");
    assert_eq!(body["reasons"], json!({ "too_little_memory": 1 }));

    controller.age_nodes();
    let vm = tenant.post("/v1/vms", &vm_body("waits")).expect(201).json();
    assert_eq!(
        (&vm["state"], &vm["node_id"]),
        (&json!("pending"), &Value::Null)
    );
    let node = controller
        .admin()
        .get(&format!("/v1/nodes/{}", agent.node_id))
        .expect(200)
        .json();
    assert_eq!(node["liveness"], "unreachable");
    agent.settle().unwrap();
    assert_eq!(
        tenant.get("/v1/vms/waits").expect(200).json()["state"],
        "running"
    );
    controller.assert_sound();
}

#[test]
fn a_silent_nodes_vms_are_shown_unreachable_and_stay_charged() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let mut agent = controller.agent("node-1", 4096);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    controller.age_nodes();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "unreachable"
    );
    tenant
        .get("/v1/vms/web/console/log")
        .refused(503, "node_unreachable");
    tenant
        .post("/v1/vms", &vm_body("more"))
        .refused(429, "quota_exceeded");
    agent.sync(0).unwrap();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
}
