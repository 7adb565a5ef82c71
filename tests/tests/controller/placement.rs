//! Where VMs go: what operators set for nodes, what tenants wish, and plans that change nothing.

use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, usage_of, vm_body};
use crate::slots::{node_with_slots, one, tenant};

const PLAN: &str = "/v1/vms?dry_run=plan";

fn path_of(agent: &SimulatedAgent) -> String {
    format!("/v1/nodes/{}", agent.node_id)
}

#[track_caller]
fn set(controller: &Controller, agent: &SimulatedAgent, change: &Value) -> Value {
    controller
        .admin()
        .send_json("PATCH", &path_of(agent), change)
        .expect(200)
        .json()
}

fn body(name: &str, placement: &Value) -> Value {
    let mut body = vm_body(name);
    body["placement"] = placement.clone();
    body
}

/// The node that a new VM goes to.
#[track_caller]
fn goes_to(client: &Client, name: &str, placement: &Value) -> Value {
    let vm = client.post("/v1/vms", &body(name, placement)).expect(201);
    vm.json()["node_id"].clone()
}

#[track_caller]
fn reasons(client: &Client, placement: &Value, status: u16, code: &str) -> Value {
    let refused = client.post("/v1/vms", &body("refused", placement));
    refused.refused(status, code)["reasons"].clone()
}

#[test]
fn reserved_nodes_come_last_and_dedicated_ones_are_their_tenants_alone() {
    let controller = Controller::start();
    let (acme, other) = (controller.tenant("acme", 9), controller.tenant("other", 9));
    let small = controller.agent("small", 4 * 128);
    let large = controller.agent("large", 64 * 1024);
    let shown = set(&controller, &large, &json!({ "reserved": true }));
    assert_eq!(
        (&shown["reserved"], &shown["revision"]),
        (&json!(true), &json!(2))
    );
    for n in 0..4 {
        assert_eq!(
            goes_to(&acme, &format!("a-{n}"), &json!({})),
            json!(small.node_id)
        );
    }
    assert_eq!(goes_to(&acme, "last", &json!({})), json!(large.node_id));

    let change = json!({ "reserved": false, "dedicated_to": "acme" });
    set(&controller, &large, &change);
    // The shared node is full, and of another tenant's own nobody hears.
    assert_eq!(
        reasons(&other, &json!({}), 503, "no_capacity"),
        json!({ "memory_taken": 1 })
    );
    assert_eq!(goes_to(&acme, "own", &json!({})), json!(large.node_id));
    set(&controller, &large, &json!({ "dedicated_to": null }));
    assert_eq!(goes_to(&other, "shared", &json!({})), json!(large.node_id));
    controller.assert_sound();
}

#[test]
fn a_cordoned_node_gets_nothing_new_and_keeps_what_it_has() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 9);
    let mut agent = controller.agent("node-1", 4096);
    acme.post("/v1/vms", &vm_body("before")).expect(201);
    agent.settle().unwrap();
    let admin = controller.admin();
    let cordon = format!("{}/cordon", path_of(&agent));
    for _ in 0..2 {
        let node = admin.post(&cordon, &json!({})).expect(200).json();
        assert!(node["cordoned_at"].is_string(), "{node}");
        assert_eq!(node["revision"], 2);
    }
    assert_eq!(
        reasons(&acme, &json!({}), 503, "no_capacity"),
        json!({ "cordoned": 1 })
    );
    acme.post("/v1/vms/before/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    acme.post("/v1/vms/before/start", &json!({})).expect(202);
    agent.settle().unwrap();
    let state = acme.get("/v1/vms/before").expect(200).json()["state"].clone();
    assert_eq!(state, "running");
    let uncordon = format!("{}/uncordon", path_of(&agent));
    admin.post(&uncordon, &json!({})).expect(200);
    assert_eq!(goes_to(&acme, "after", &json!({})), json!(agent.node_id));
    for event in ["NODE_CORDONED", "NODE_UNCORDONED"] {
        let entries = audit_bodies(&admin, &format!("event_type={event}"));
        assert_eq!(entries.len(), 1, "{event}");
        assert_eq!(entries[0]["node_id"], json!(agent.node_id));
    }
    controller.assert_sound();
}

#[test]
fn a_nodes_settings_change_under_its_tag_and_heartbeats_leave_the_tag_alone() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let mut agent = controller.agent("node-1", 4096);
    let admin = controller.admin();
    let path = path_of(&agent);
    let tag_now = || {
        let shown = admin.get(&path).expect(200);
        shown.header("etag").unwrap().to_owned()
    };
    let seen = tag_now();
    agent.settle().unwrap();
    assert_eq!(tag_now(), seen);
    let send = |tag: &str, change: &Value| {
        let headers = [("content-type", "application/json"), ("if-match", tag)];
        admin.send("PATCH", &path, &headers, Some(&change.to_string()))
    };
    let change = json!({ "zone": "north", "labels": { "disk": "fast" }, "max_vms_per_node": 3 });
    let changed = send(&seen, &change).expect(200).json();
    for (member, value) in change.as_object().unwrap() {
        assert_eq!(&changed[member], value);
    }
    let stale = send(&seen, &json!({ "zone": null }));
    stale.refused(412, "precondition_failed");
    assert_eq!(stale.header("etag").unwrap(), tag_now());
    send(
        &tag_now(),
        &json!({ "zone": null, "max_vms_per_node": null }),
    )
    .expect(200);
    let node = admin.get(&path).expect(200).json();
    assert_eq!(
        (&node["zone"], &node["max_vms_per_node"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(node["labels"], json!({ "disk": "fast" }));
    for (wrong, field) in [
        (json!({ "dedicated_to": "nobody" }), "dedicated_to"),
        (json!({ "zone": "North" }), "zone"),
        (json!({ "labels": { "": "x" } }), "labels"),
    ] {
        let refused = admin.send_json("PATCH", &path, &wrong);
        let fields = refused.refused(400, "invalid_request")["fields"].clone();
        assert!(fields[field].is_string(), "{fields}");
    }
    let typo = admin.send_json("PATCH", &path, &json!({ "reservd": true }));
    typo.refused(400, "unknown_field");
    let entries = audit_bodies(&admin, "event_type=NODE_CHANGED");
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0]["detail"]["new"]["zone"], "north");
}

#[test]
fn a_tenant_chooses_among_zones_labels_and_its_own_nodes() {
    let controller = Controller::start();
    let (acme, other) = (controller.tenant("acme", 9), controller.tenant("other", 9));
    let north = controller.agent("north", 4096);
    let south = controller.agent("south", 8192);
    set(
        &controller,
        &north,
        &json!({ "zone": "north", "labels": { "disk": "fast" }, "dedicated_to": "acme" }),
    );
    set(&controller, &south, &json!({ "zone": "south" }));
    let (in_north, in_south) = (json!({ "zone": "north" }), json!({ "zone": "south" }));
    assert_eq!(goes_to(&acme, "n", &in_north), json!(north.node_id));
    assert_eq!(goes_to(&acme, "s", &in_south), json!(south.node_id));
    let fast = json!({ "node_labels": { "disk": "fast" } });
    assert_eq!(goes_to(&acme, "fast", &fast), json!(north.node_id));
    let named = json!({ "node": north.node_id });
    assert_eq!(goes_to(&acme, "named", &named), json!(north.node_id));
    let vm = acme.get("/v1/vms/named").expect(200).json();
    assert_eq!(vm["placement"], named);

    let impossible = (422, "placement_impossible");
    let said = |placement: &Value| reasons(&other, placement, impossible.0, impossible.1);
    assert_eq!(said(&in_north), json!({ "other_zone": 1 }));
    assert_eq!(said(&fast), json!({ "label_missing": 1 }));
    // A shared node, another tenant's and none at all are one answer.
    let absent = json!({ "node": berth_api::ids::NodeId::generate() });
    for placement in [named, json!({ "node": south.node_id }), absent] {
        assert_eq!(said(&placement), json!({ "other_node": 1 }));
    }
    controller.assert_sound();
}

#[test]
fn a_group_is_kept_apart_and_the_node_is_free_for_it_again() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 9);
    let mut agents = [
        controller.agent("node-1", 4096),
        controller.agent("node-2", 4096),
    ];
    let group = |mode: &str| json!({ "anti_affinity": { "group": "web", "mode": mode } });
    let first = goes_to(&acme, "web-1", &group("preferred"));
    let second = goes_to(&acme, "web-2", &group("required"));
    assert_ne!(first, second);
    assert_eq!(
        reasons(&acme, &group("required"), 503, "no_capacity"),
        json!({ "anti_affinity": 2 })
    );
    // Beside the one that does not mind, never beside the one that does.
    assert_eq!(goes_to(&acme, "web-3", &group("preferred")), first);
    // Another tenant's group of the same name is another group.
    let other = controller.tenant("other", 9);
    other
        .post("/v1/vms", &body("web-1", &group("required")))
        .expect(201);
    for agent in &mut agents {
        agent.settle().unwrap();
    }
    acme.delete("/v1/vms/web-2").expect(202);
    for agent in &mut agents {
        agent.settle().unwrap();
    }
    assert_eq!(goes_to(&acme, "web-4", &group("required")), second);
    controller.assert_sound();
}

#[test]
fn tenants_that_wait_take_turns() {
    let controller = Controller::start();
    let (acme, other) = (controller.tenant("acme", 99), controller.tenant("other", 9));
    let north = controller.agent("north", 64 * 1024);
    let mut south = controller.agent("south", 64 * 1024);
    set(&controller, &north, &json!({ "zone": "north" }));
    set(&controller, &south, &json!({ "zone": "south" }));
    controller.age_nodes();
    // More than are looked at in one go.
    for n in 0..40 {
        let wish = body(&format!("a-{n}"), &json!({ "zone": "north" }));
        let vm = acme.post("/v1/vms", &wish).expect(201).json();
        assert_eq!(vm["state"], "pending");
    }
    let late = body("late", &json!({ "zone": "south" }));
    other.post("/v1/vms", &late).expect(201);
    south.settle().unwrap();
    let vm = other.get("/v1/vms/late").expect(200).json();
    assert_eq!(
        (&vm["state"], &vm["node_id"]),
        (&json!("running"), &json!(south.node_id))
    );
    controller.assert_sound();
}

#[test]
fn a_plan_says_what_a_create_would_and_leaves_no_trace() {
    let controller = Controller::start();
    let (agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    set(&controller, &agent, &json!({ "zone": "north" }));
    let mut wish = vm_body("web");
    wish["slots"] = one();
    let entries = audit_bodies(&controller.admin(), "").len();
    for _ in 0..2 {
        let plan = acme.post(PLAN, &wish).expect(200).json();
        assert_eq!(plan["outcome"], "accepted");
        assert_eq!(plan["node_id"], json!(agent.node_id));
        assert_eq!(
            (&plan["zone"], &plan["slots"]),
            (&json!("north"), &json!(slots))
        );
        assert_eq!(
            (&plan["disk_gb"], &plan["charges"]["slots.nvme"]),
            (&json!(1), &json!(1))
        );
        assert!(plan.get("candidates").is_none(), "{plan}");
    }
    assert_eq!(usage_of(&acme, "vms")["used"], 0);
    assert_eq!(audit_bodies(&controller.admin(), "").len(), entries);
    let vm = acme.post("/v1/vms", &wish).expect(201).json();
    assert_eq!(vm["slots"][0]["slot_id"], json!(slots[0]));

    let mut again = wish.clone();
    again["name"] = json!("web-2");
    let refused = acme.post(PLAN, &again).expect(200).json();
    assert_eq!(refused["outcome"], "refused");
    let refusal = &refused["refusal"];
    assert_eq!(
        (&refusal["code"], &refusal["status"]),
        (&json!("quota_exceeded"), &json!(429))
    );
    assert_eq!(refusal["quota"]["resource"], "slots.nvme");
    // What is no request at all is answered as always.
    acme.post(PLAN, &json!({ "image": "debian-12", "vcpus": 0 }))
        .refused(400, "invalid_request");
    acme.post("/v1/vms?dry_run=perhaps", &wish)
        .refused(400, "invalid_request");
    controller.age_nodes();
    let waits = acme.post(PLAN, &vm_body("waits")).expect(200).json();
    assert_eq!(
        (&waits["outcome"], &waits["node_id"]),
        (&json!("waits"), &Value::Null)
    );
    controller.assert_sound();
}

#[test]
fn an_operator_sees_every_nodes_verdict_and_creates_nothing() {
    let controller = Controller::start();
    controller.tenant("acme", 9);
    controller.tenant("other", 9);
    let good = controller.agent("good", 4096);
    let small = controller.agent("small", 64);
    let foreign = controller.agent("foreign", 4096);
    set(&controller, &foreign, &json!({ "dedicated_to": "other" }));
    let admin = controller.admin();
    let mut wish = vm_body("web");
    admin.post(PLAN, &wish).refused(400, "invalid_request");
    wish["tenant_id"] = json!("acme");
    admin
        .post("/v1/vms", &wish)
        .refused(403, "permission_denied");
    let plan = admin.post(PLAN, &wish).expect(200).json();
    assert_eq!(
        (&plan["outcome"], &plan["nodes"]),
        (&json!("accepted"), &json!(3))
    );
    let said: Vec<_> = plan["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|verdict| (verdict["name"].clone(), verdict["rejection"].clone()))
        .collect();
    let expected = [
        ("good", Value::Null),
        ("small", json!("too_little_memory")),
        ("foreign", json!("dedicated")),
    ];
    assert_eq!(said, expected.map(|(name, why)| (json!(name), why)));
    assert_eq!(plan["node_id"], json!(good.node_id));
    let score = json!({ "reserved": false, "group_vms": 0, "dedicated": false, "numa_local": true,
        "memory_left_mb": 4096 - 128 });
    assert_eq!(plan["candidates"][0]["score"], score);
    // A tenant that names itself sees what it always sees.
    let acme = controller.token("acme", "vm.create");
    let plan = acme.post(PLAN, &wish).expect(200).json();
    assert!(plan.get("candidates").is_none() && plan.get("nodes").is_none());
    wish["tenant_id"] = json!("other");
    acme.post(PLAN, &wish).refused(400, "tenant_mismatch");
    assert!(
        admin.get("/v1/vms").expect(200).json()["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    drop(small);
}

#[test]
fn a_node_shows_its_slots_by_class_and_state() {
    let controller = Controller::start();
    let (mut agent, _) = node_with_slots(&controller, 2);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 2 }));
    let mut wish = vm_body("web");
    wish["slots"] = one();
    acme.post("/v1/vms", &wish).expect(201);
    agent.settle().unwrap();
    let node = controller.admin().get(&path_of(&agent)).expect(200).json();
    assert_eq!(node["slots"], json!({ "nvme": { "free": 1, "in_use": 1 } }));
    let listed = controller.admin().get("/v1/nodes").expect(200).json();
    assert_eq!(listed["items"][0]["slots"], node["slots"]);
}

#[test]
fn a_tenant_with_a_node_of_its_own_is_not_empty() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let agent = controller.agent("node-1", 4096);
    set(&controller, &agent, &json!({ "dedicated_to": "acme" }));
    let admin = controller.admin();
    let refused = admin
        .delete("/v1/tenants/acme")
        .refused(409, "tenant_not_empty");
    assert_eq!(refused["reasons"], json!({ "nodes": 1 }));
    set(&controller, &agent, &json!({ "dedicated_to": null }));
    admin.delete("/v1/tenants/acme").expect(204);
    controller.assert_sound();
}
