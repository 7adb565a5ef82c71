//! Ceilings hold, whoever races whom.

use std::collections::BTreeMap;

use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::json;

use crate::harness::{Client, Controller, audit_bodies, tenant_body, usage_of, vm_body};

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
