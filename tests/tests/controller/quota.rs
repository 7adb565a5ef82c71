//! Ceilings hold, whoever races whom.

use std::collections::BTreeMap;

use berth_ledger::keys::SigningKey;
use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::json;

use crate::database::TestDatabase;
use crate::harness::{
    Client, Controller, Reply, audit_bodies, tenant_body, token_body, usage_of, vm_body,
};

fn statuses_of_concurrent_creates(clients: &[&Client], count: usize) -> BTreeMap<u16, usize> {
    let threads: Vec<_> = (0..count)
        .map(|n| {
            let client = clients[n % clients.len()].clone();
            std::thread::spawn(move || client.post("/v1/vms", &vm_body(&format!("vm-{n}"))).status)
        })
        .collect();
    let mut statuses = BTreeMap::new();
    for thread in threads {
        *statuses.entry(thread.join().unwrap()).or_default() += 1;
    }
    statuses
}

#[test]
fn concurrent_creates_fill_the_quota_exactly() {
    let controller = Controller::start();
    let _agent: SimulatedAgent = controller.agent("node-1", 64 * 1024);
    let tenant = controller.tenant("acme", 7);
    let statuses = statuses_of_concurrent_creates(&[&tenant], 40);
    assert_eq!(statuses, BTreeMap::from([(201, 7), (429, 33)]));
    assert_eq!(
        audit_bodies(&tenant, "event_type=VM_CREATE_ACCEPTED").len(),
        7
    );
    assert_eq!(
        audit_bodies(&tenant, "event_type=VM_CREATE_DENIED").len(),
        33
    );
    controller.assert_sound();
}

#[test]
fn two_controllers_on_one_database_fill_the_quota_exactly() {
    let first = Controller::start();
    let _agent: SimulatedAgent = first.agent("node-1", 64 * 1024);
    let tenant = first.tenant("acme", 7);
    let second = first.beside();
    let token = tenant.authorization.clone().unwrap();
    let there = second.with_token(token.trim_start_matches("Bearer "));
    let statuses = statuses_of_concurrent_creates(&[&tenant, &there], 40);
    assert_eq!(statuses, BTreeMap::from([(201, 7), (429, 33)]));
    first.assert_sound();
}

/// Ask one controller after the other until somebody says whether the VM is accepted.
fn create_somewhere(clients: &[Client; 2], n: usize) -> Reply {
    let body = vm_body(&format!("vm-{n}")).to_string();
    let key = format!("create-{n}");
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", key.as_str()),
    ];
    clients
        .iter()
        .cycle()
        .skip(n % 2)
        .find_map(|client| {
            client
                .try_send("POST", "/v1/vms", &headers, Some(&body))
                // Cut off or unavailable: nothing was promised, and the key makes it safe to ask again.
                .filter(|reply| reply.status == 201 || reply.status == 429)
        })
        .unwrap()
}

#[test]
fn creates_fill_the_quota_exactly_though_one_of_two_controllers_is_killed() {
    const CREATES: usize = 32;
    let mut first = Controller::start_on(|_| TestDatabase::postgres());
    let _agent: SimulatedAgent = first.agent("node-1", 64 * 1024);
    let tenant = first.tenant("acme", 7);
    let second = first.beside();
    let token = tenant.authorization.clone().unwrap();
    let there = second.with_token(token.trim_start_matches("Bearer "));
    let clients = [tenant, there.clone()];
    let random = SigningKey::generate().unwrap();
    let kill_after = usize::from(random.public().as_bytes()[0]) % CREATES;
    let (sender, answers) = std::sync::mpsc::channel();
    for n in 0..CREATES {
        let (clients, sender) = (clients.clone(), sender.clone());
        std::thread::spawn(move || sender.send(create_somewhere(&clients, n)).unwrap());
    }
    let mut statuses = BTreeMap::<u16, usize>::new();
    for (answered, reply) in answers.iter().take(CREATES).enumerate() {
        if answered == kill_after {
            first.kill();
        }
        *statuses.entry(reply.status).or_default() += 1;
    }
    let expected = BTreeMap::from([(201, 7), (429, CREATES - 7)]);
    assert_eq!(statuses, expected, "killed after {kill_after} answers");
    let listed = there.get("/v1/vms").expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 7);
    second.assert_sound();
}

#[test]
fn what_one_controller_changes_the_other_sees() {
    let first = Controller::start();
    let tenant = first.tenant("acme", 1);
    let second = first.beside();
    // The agent talks to the one, the tenant to the other.
    let agent = second.agent("node-1", 4096).run();
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    let seen = tenant.get("/v1/vms/web/wait?state=running&timeout=60");
    assert_eq!(seen.expect(200).json()["state"], "running");
    agent.stop().unwrap();
    let token = tenant.authorization.clone().unwrap();
    let there = second.with_token(token.trim_start_matches("Bearer "));
    let id = there.get("/v1/me").expect(200).json()["token_id"].clone();
    let path = format!("/v1/tokens/{}", id.as_str().unwrap());
    let gone = first.admin().delete(&path);
    assert!(gone.status < 300, "{}", gone.text);
    // It looks once a second.
    while there.get("/v1/me").status == 200 {}
    there.get("/v1/me").refused(401, "token_revoked");
}

#[test]
fn concurrent_creates_never_promise_memory_twice() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 5 * 128 + 127);
    let tenant = controller.tenant("acme", 100);
    let statuses = statuses_of_concurrent_creates(&[&tenant], 16);
    assert_eq!(statuses, BTreeMap::from([(201, 5), (503, 11)]));
    let body = tenant
        .post("/v1/vms", &vm_body("late"))
        .refused(503, "no_capacity");
    assert_eq!(body["reasons"], json!({ "memory_taken": 1 }));
    assert_eq!(body["retryable"], true);
    controller.assert_sound();
}

#[test]
fn storage_has_its_own_ceiling() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 64 * 1024);
    let mut record = tenant_body("acme", 10);
    record["storage_quota_gb"] = json!(5);
    controller.admin().post("/v1/tenants", &record).expect(201);
    let tenant = controller.token("acme", "service:tenant-admin");
    let mut big = vm_body("big");
    big["disk_gb"] = json!(4);
    tenant.post("/v1/vms", &big).expect(201);
    let mut second = vm_body("second");
    second["disk_gb"] = json!(2);
    let body = tenant
        .post("/v1/vms", &second)
        .refused(429, "quota_exceeded");
    assert_eq!(body["quota"]["resource"], "storage_gb");
    assert_eq!(body["quota"]["remaining"], 1);
    tenant.post("/v1/vms", &vm_body("small")).expect(201);
    for (resource, limit, used) in [("vms", 10, 2), ("storage_gb", 5, 5)] {
        let expected = json!({ "resource": resource, "limit": limit, "used": used, "reserved": used,
            "remaining": limit - used, "over_limit": false });
        assert_eq!(usage_of(&tenant, resource), expected);
    }
    let usage = tenant.get("/v1/usage").expect(200).json();
    assert_eq!(usage["quotas"]["vms"], 10);
    assert_eq!(usage["quotas"]["vcpus"], json!(null));
    assert!(
        usage["period_end"]
            .as_str()
            .unwrap()
            .ends_with("T00:00:00.000Z")
    );
}

#[test]
fn tokens_are_charged_from_their_mint_until_they_are_revoked() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    assert_eq!(usage_of(&tenant, "tokens")["used"], 1);
    let admin = controller.admin();
    let ceiling = json!({ "max_tokens": 3 });
    admin
        .send_json("PATCH", "/v1/tenants/acme", &ceiling)
        .expect(200);
    let issue = || tenant.post("/v1/tokens", &token_body("vm.read"));
    let issued: Vec<_> = (0..2).map(|_| issue().expect(201).json()).collect();
    let body = issue().refused(429, "quota_exceeded");
    assert_eq!(body["quota"]["resource"], "tokens");
    assert_eq!(
        (&body["quota"]["used"], &body["quota"]["limit"]),
        (&json!(3), &json!(3))
    );
    // An operator's mint for the tenant is the tenant's too.
    admin
        .post("/v1/tenants/acme/tokens", &token_body("vm.read"))
        .refused(429, "quota_exceeded");
    assert_eq!(
        audit_bodies(&admin, "event_type=TOKEN_ISSUE_DENIED").len(),
        2
    );
    let path = format!("/v1/tokens/{}", issued[0]["token_id"].as_str().unwrap());
    for _ in 0..2 {
        tenant.delete(&path).expect(204);
        assert_eq!(usage_of(&tenant, "tokens")["used"], 2);
    }
    issue().expect(201);
    let holder = json!({ "subject_pubkey": issued[1]["subject_pubkey"] });
    tenant.post("/v1/tokens/revoke", &holder).expect(204);
    assert_eq!(usage_of(&tenant, "tokens")["used"], 2);
    controller.assert_sound();
    admin
        .post(
            "/v1/tokens/revoke",
            &json!({ "tenant_id": "acme", "all": true }),
        )
        .expect(204);
    let usage = admin.get("/v1/tenants/acme/usage").expect(200).json();
    let tokens = usage["items"].as_array().unwrap();
    let tokens = tokens.iter().find(|item| item["resource"] == "tokens");
    assert_eq!(tokens.unwrap()["used"], 0);
    controller.assert_sound();
}

#[test]
fn a_ceiling_lowered_below_use_stops_nothing_and_admits_nothing() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 64 * 1024);
    let tenant = controller.tenant("acme", 3);
    for n in 0..3 {
        tenant
            .post("/v1/vms", &vm_body(&format!("vm-{n}")))
            .expect(201);
    }
    let admin = controller.admin();
    let changed = admin
        .send_json("PATCH", "/v1/tenants/acme", &json!({ "max_vms": 1 }))
        .expect(200)
        .json();
    assert_eq!(
        (&changed["max_vms"], &changed["revision"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(
        tenant.get("/v1/vms").expect(200).json()["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    tenant
        .post("/v1/vms", &vm_body("more"))
        .refused(429, "quota_exceeded");
    let entry = &audit_bodies(&admin, "event_type=TENANT_QUOTA_CHANGED")[0];
    assert_eq!(entry["detail"]["old"]["max_vms"], 3);
    assert_eq!(entry["detail"]["new"]["max_vms"], 1);
}

#[test]
fn each_tenant_has_its_own_rate() {
    let controller = Controller::start();
    let mut record = tenant_body("slow", 1);
    record["api_rate_limit_rpm"] = json!(60);
    controller.admin().post("/v1/tenants", &record).expect(201);
    let slow = controller.token("slow", "service:tenant-admin");
    let other = controller.tenant("other", 1);
    let mut limited = None;
    // A burst of 10, and one a second while the loop runs.
    for _ in 0..200 {
        let reply = slow.get("/v1/vms");
        if reply.status == 429 {
            limited = Some(reply);
            break;
        }
        assert!(reply.header("ratelimit").is_some());
    }
    let limited = limited.expect("200 requests at once are more than 60 a minute");
    let body = limited.refused(429, "rate_limited");
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!((&body["limit"], &body["reset"]), (&json!(60), &json!(wait)));
    slow.get("/v1/me").expect(200);
    other.get("/v1/vms").expect(200);
}
