//! One tenant's things are for another as if they were not.

use serde_json::json;

use crate::harness::{Controller, audit_bodies, vm_body};

#[test]
fn a_foreign_vm_answers_like_one_that_does_not_exist() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let acme = controller.tenant("acme", 2);
    let other = controller.tenant("other", 2);
    let vm = acme.post("/v1/vms", &vm_body("secret")).expect(201).json();
    agent.settle().unwrap();
    let (id, operation) = (
        vm["id"].as_str().unwrap(),
        vm["operation"].as_str().unwrap(),
    );
    let absent = berth_api::ids::VmId::generate().to_string();
    let before = audit_bodies(&controller.admin(), "").len();
    for (method, path) in [
        ("GET", "/v1/vms/{vm}"),
        ("DELETE", "/v1/vms/{vm}"),
        ("POST", "/v1/vms/{vm}/start"),
        ("POST", "/v1/vms/{vm}/stop"),
        ("GET", "/v1/vms/{vm}/console/log"),
        ("GET", "/v1/vms/{vm}/wait?state=running&timeout=0"),
        ("GET", "/v1/vms/{vm}/wait?state=deleted&timeout=0"),
    ] {
        let send = |vm: &str| {
            let body = (method == "POST").then_some("{}");
            let reply = other.send(method, &path.replace("{vm}", vm), &[], body);
            reply.refused(404, "not_found");
            reply.without_request_id()
        };
        assert_eq!(send(id), send(&absent), "{method} {path}");
        assert_eq!(send("secret"), send("nothing"), "{method} {path}");
    }
    other
        .get(&format!("/v1/operations/{operation}"))
        .refused(404, "not_found");
    other.get("/v1/tenants/acme").refused(404, "not_found");
    assert_eq!(
        other.get("/v1/tenants/acme").without_request_id(),
        other.get("/v1/tenants/nobody").without_request_id()
    );
    assert_eq!(other.get("/v1/vms").expect(200).json()["items"], json!([]));
    assert_eq!(other.get("/v1/tenants/acme/tokens").status, 404);
    // Nothing of it was written down in anybody's name.
    assert_eq!(audit_bodies(&controller.admin(), "").len(), before);
    assert_eq!(
        acme.get("/v1/vms/secret").expect(200).json()["state"],
        "running"
    );
}

#[test]
fn a_tenant_named_in_a_body_or_query_never_counts() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let acme = controller.tenant("acme", 2);
    controller.tenant("other", 2);
    let mut body = vm_body("web");
    body["tenant_id"] = json!("other");
    acme.post("/v1/vms", &body).refused(400, "tenant_mismatch");
    body["tenant_id"] = json!("acme");
    acme.post("/v1/vms", &body).expect(201);
    for path in ["/v1/vms", "/v1/usage", "/v1/audit/entries"] {
        acme.get(&format!("{path}?tenant_id=other"))
            .refused(400, "tenant_mismatch");
        acme.get(&format!("{path}?tenant_id=acme")).expect(200);
    }
}

#[test]
fn the_same_name_in_two_tenants_is_two_vms() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let acme = controller.tenant("acme", 2);
    let other = controller.tenant("other", 2);
    let ours = acme.post("/v1/vms", &vm_body("web")).expect(201).json();
    let theirs = other.post("/v1/vms", &vm_body("web")).expect(201).json();
    assert_ne!(ours["id"], theirs["id"]);
    acme.post("/v1/vms", &vm_body("web"))
        .refused(409, "already_exists");
    assert_eq!(acme.get("/v1/vms/web").expect(200).json()["id"], ours["id"]);
    assert_eq!(
        other.get("/v1/vms/web").expect(200).json()["id"],
        theirs["id"]
    );
    // An operator sees both, by id.
    let admin = controller.admin();
    assert_eq!(
        admin.get("/v1/vms").expect(200).json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        admin.get("/v1/vms?tenant_id=other").expect(200).json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    admin
        .post("/v1/vms", &vm_body("mine"))
        .refused(403, "permission_denied");
}

#[test]
fn a_tenant_reads_its_own_ledger_entries_alone() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 2);
    controller.tenant("other", 2);
    let entries = audit_bodies(&acme, "");
    assert!(!entries.is_empty());
    assert!(entries.iter().all(|entry| entry["tenant_id"] == "acme"));
    assert!(
        audit_bodies(&controller.admin(), "")
            .iter()
            .any(|entry| entry["tenant_id"] == "other")
    );
}
