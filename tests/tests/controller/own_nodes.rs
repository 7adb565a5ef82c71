//! Nodes that tenants enrol themselves: theirs alone, and worth nothing to anybody else.

use berth_tests::simulated_agent::{Host, SimulatedAgent};
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, tenant_body, vm_body};

const JOIN: &str = "/v1/nodes/join-tokens";

/// A tenant that may enrol nodes of its own.
fn owner(controller: &Controller, id: &str) -> Client {
    let mut body = tenant_body(id, 10);
    body["allowed_actions"] = json!(["vm.create", "vm.start", "node.enroll"]);
    controller.admin().post("/v1/tenants", &body).expect(201);
    controller.token(id, "service:tenant-admin")
}

fn join_token(client: &Client) -> String {
    let issued = client.post(JOIN, &json!({})).expect(201).json();
    issued["token"].as_str().unwrap().to_owned()
}

fn enrolled(client: &Client, host: Host) -> SimulatedAgent {
    let mut agent = SimulatedAgent::enroll(&join_token(client), host).unwrap();
    agent.settle().unwrap();
    agent
}

fn names(client: &Client, path: &str) -> Vec<Value> {
    let page = client.get(path).expect(200).json();
    let items = page["items"].as_array().unwrap();
    items.iter().map(|item| item["name"].clone()).collect()
}

#[test]
fn a_tenant_enrols_a_node_that_is_its_own_for_ever() {
    let controller = Controller::start();
    let operator = controller.admin();
    let acme = owner(&controller, "acme");
    let other = owner(&controller, "other");
    // The same name twice, and an operator's node of that name: three nodes.
    let mut own = enrolled(&acme, Host::new("rack1", 4096));
    let mut theirs = enrolled(&other, Host::new("rack1", 4096));
    let mut shared = controller.agent("rack1", 4096);
    assert_eq!(names(&acme, "/v1/nodes"), ["acme/rack1"]);
    assert_eq!(names(&other, "/v1/nodes"), ["other/rack1"]);
    assert_eq!(names(&operator, "/v1/nodes").len(), 3);
    let path = format!("/v1/nodes/{}", own.node_id);
    let node = acme.get(&path).expect(200).json();
    assert_eq!(
        (&node["owned_by"], &node["dedicated_to"]),
        (&json!("acme"), &json!("acme"))
    );
    other.get(&path).refused(404, "not_found");
    for name in ["rack1", "acme%2Frack1"] {
        let named = acme.get(&format!("/v1/nodes/{name}")).expect(200).json();
        assert_eq!(named["id"], node["id"], "{name}");
    }
    other
        .get("/v1/nodes/acme%2Frack1")
        .refused(404, "not_found");
    acme.get(&format!("/v1/nodes/{}", shared.node_id))
        .refused(404, "not_found");
    // Nobody makes it anybody else's, and its tenant changes nothing that is the operators'.
    for wanted in [json!(null), json!("other")] {
        let change = json!({ "dedicated_to": wanted });
        operator
            .send_json("PATCH", &path, &change)
            .refused(400, "field_immutable");
    }
    let change = json!({ "reserved": true });
    acme.send_json("PATCH", &path, &change)
        .refused(403, "permission_denied");
    operator.send_json("PATCH", &path, &change).expect(200);
    operator
        .send_json("PATCH", &path, &json!({ "reserved": false }))
        .expect(200);
    // Its VMs go there, and no others do, whatever room there is.
    for (client, agent) in [(&acme, &mut own), (&other, &mut theirs)] {
        let vm = client.post("/v1/vms", &vm_body("web")).expect(201).json();
        assert_eq!(vm["node_id"], agent.node_id.to_string());
        agent.settle().unwrap();
    }
    let third = controller.tenant("third", 1);
    let vm = third.post("/v1/vms", &vm_body("web")).expect(201).json();
    assert_eq!(vm["node_id"], shared.node_id.to_string());
    shared.settle().unwrap();
    // Its own ledger has it.
    let entries = audit_bodies(&acme, "event_type=NODE_ENROLLED");
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["node_id"], own.node_id.to_string());
    assert_eq!(audit_bodies(&acme, "event_type=JOIN_TOKEN_ISSUED").len(), 1);
    operator
        .delete("/v1/tenants/acme")
        .refused(409, "tenant_not_empty");
    controller.assert_sound();
}

#[test]
fn who_may_not_enrol_nodes_of_its_own_does_not_by_a_token_of_before() {
    let controller = Controller::start();
    let operator = controller.admin();
    // Nobody may unless it was said by name.
    controller
        .tenant("plain", 1)
        .post(JOIN, &json!({}))
        .refused(403, "permission_denied");
    let acme = owner(&controller, "acme");
    controller
        .token("acme", "vm.read")
        .post(JOIN, &json!({}))
        .refused(403, "permission_denied");
    let refused = |token: &str| {
        let refusal = SimulatedAgent::enroll(token, Host::new("rack1", 1024)).unwrap_err();
        assert!(refusal.to_string().contains("invalid_token"), "{refusal}");
    };
    let token = join_token(&acme);
    operator
        .post("/v1/tenants/acme/suspend", &json!({}))
        .expect(200);
    acme.post(JOIN, &json!({})).refused(403, "tenant_suspended");
    refused(&token);
    operator
        .post("/v1/tenants/acme/resume", &json!({}))
        .expect(200);
    let without = json!({ "allowed_actions": ["vm.create"] });
    operator
        .send_json("PATCH", "/v1/tenants/acme", &without)
        .expect(200);
    refused(&token);
    acme.post(JOIN, &json!({}))
        .refused(403, "permission_denied");
    assert!(names(&operator, "/v1/nodes").is_empty());
    // A ceiling, of which unused tokens are a part.
    let other = owner(&controller, "other");
    for _ in 0..64 {
        join_token(&other);
    }
    let refusal = other.post(JOIN, &json!({})).refused(429, "quota_exceeded");
    assert_eq!(refusal["limit"], 64);
    controller.join_token();
    // Gone with its tenant.
    let doomed = owner(&controller, "doomed");
    let token = join_token(&doomed);
    operator.delete("/v1/tenants/doomed").expect(204);
    refused(&token);
    controller.assert_sound();
}

#[test]
fn what_a_tenants_own_node_says_reaches_no_other_tenant() {
    let controller = Controller::start();
    let acme = owner(&controller, "acme");
    let other = controller.tenant("other", 2);
    let mut shared = controller.agent("node-1", 8192);
    let before = other.get("/v1/images").expect(200).text;
    let mut host = Host::new("rack1", 4096);
    // An image of its own, and another's name with a size that would be charged.
    let mut private = host.images[0].clone();
    private.name = "private".to_owned();
    for image in &mut host.images {
        image.disk_mib = 900 * 1024;
    }
    host.images.push(private);
    let _own = enrolled(&acme, host);
    assert_eq!(other.get("/v1/images").expect(200).text, before);
    assert!(names(&acme, "/v1/images").contains(&json!("private")));
    let vm = other.post("/v1/vms", &vm_body("web")).expect(201).json();
    assert_eq!(vm["disk_gb"], 1);
    assert_eq!(vm["node_id"], shared.node_id.to_string());
    shared.settle().unwrap();
    let mut body = vm_body("db");
    body["image"] = json!("private");
    other
        .post("/v1/vms", &body)
        .refused(422, "placement_impossible");
    controller.assert_sound();
}
