//! Bad input: each kind has its documented error and leaves nothing behind.

use serde_json::{Value, json};

use crate::harness::{Controller, audit_bodies, tenant_body, token_body, vm_body};

#[test]
fn bad_tenants_are_refused_field_by_field() {
    let controller = Controller::start();
    let admin = controller.admin();
    let refuse = |change: &dyn Fn(&mut Value), code: &str, field: &str| {
        let mut body = tenant_body("acme", 1);
        change(&mut body);
        let error = admin.post("/v1/tenants", &body).refused(400, code);
        assert!(error["fields"][field].is_string(), "{error}");
    };
    for bad in ["", "Acme", "-a", "a_b", "a.b", "_platform", "ä"] {
        refuse(
            &|b| b["tenant_id"] = json!(bad),
            "invalid_tenant_id",
            "tenant_id",
        );
    }
    refuse(&|b| b["max_vmz"] = json!(1), "unknown_field", "max_vmz");
    refuse(
        &|b| b["max_vms"] = json!("10"),
        "invalid_request",
        "max_vms",
    );
    refuse(&|b| b["max_vms"] = json!(-1), "invalid_request", "max_vms");
    refuse(
        &|b| drop(b.as_object_mut().unwrap().remove("max_vms")),
        "invalid_request",
        "max_vms",
    );
    refuse(
        &|b| b["display_name"] = json!(""),
        "invalid_request",
        "display_name",
    );
    refuse(
        &|b| b["display_name"] = json!("a\nb"),
        "invalid_request",
        "display_name",
    );
    refuse(
        &|b| b["api_rate_limit_rpm"] = json!(0),
        "invalid_request",
        "api_rate_limit_rpm",
    );
    assert_eq!(
        admin.get("/v1/tenants").expect(200).json()["items"],
        json!([])
    );
    assert!(audit_bodies(&admin, "event_type=TENANT_CREATED").is_empty());
    controller.tenant("acme", 1);
    let change = admin.send_json(
        "PATCH",
        "/v1/tenants/acme",
        &json!({ "tenant_id": "other" }),
    );
    assert!(change.refused(400, "field_immutable")["fields"]["tenant_id"].is_string());
    admin
        .send_json("PATCH", "/v1/tenants/nobody", &json!({ "max_vms": 1 }))
        .refused(404, "not_found");
}

#[test]
fn bad_vms_are_refused_and_charge_nothing() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 5);
    let refuse = |change: &dyn Fn(&mut Value), status: u16, code: &str| {
        let mut body = vm_body("web");
        change(&mut body);
        tenant.post("/v1/vms", &body).refused(status, code);
    };
    refuse(&|b| b["vcpus"] = json!(255), 400, "shape_not_supported");
    refuse(&|b| b["vcpus"] = json!(0), 400, "invalid_request");
    refuse(
        &|b| b["memory_mb"] = json!(8_u64 << 20),
        400,
        "shape_not_supported",
    );
    refuse(&|b| b["memory_mb"] = json!(64), 400, "invalid_request");
    refuse(
        &|b| b["disk_gb"] = json!(4_000_000),
        400,
        "shape_not_supported",
    );
    refuse(&|b| b["name"] = json!("Web 1"), 400, "invalid_request");
    refuse(
        &|b| b["image"] = json!("../../etc/shadow"),
        400,
        "invalid_request",
    );
    refuse(
        &|b| b["image"] = json!("plan-9"),
        422,
        "placement_impossible",
    );
    refuse(&|b| b["command"] = json!("rm"), 400, "unknown_field");
    assert_eq!(
        tenant.get("/v1/usage").expect(200).json()["items"][0]["used"],
        0
    );
    assert_eq!(tenant.get("/v1/vms").expect(200).json()["items"], json!([]));
    tenant
        .post("/v1/vms?wait=flying", &vm_body("web"))
        .refused(400, "invalid_request");
    tenant
        .post("/v1/vms?wait=running&timeout=121", &vm_body("web"))
        .refused(400, "invalid_request");
    tenant
        .get("/v1/vms?limit=0")
        .refused(400, "invalid_request");
    tenant.get("/v1/vms?lmit=1").refused(400, "unknown_field");
}

#[test]
fn bad_tokens_are_not_issued() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let admin = controller.admin();
    let refuse = |field: &str, value: Value| {
        let mut body = token_body("vm.read");
        body[field] = value;
        let error = admin
            .post("/v1/tenants/acme/tokens", &body)
            .refused(400, "invalid_request");
        assert!(error["fields"][field].is_string(), "{error}");
    };
    refuse("subject_pubkey", json!("<tenant-admin-pubkey>"));
    refuse(
        "subject_pubkey",
        json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    );
    refuse("scope", json!("vm.*"));
    refuse("scope", json!([]));
    refuse("scope", json!("service:platform-admin"));
    refuse("expires_in_seconds", json!(59));
    refuse("expires_in_seconds", json!(2_592_001));
    admin
        .post("/v1/tenants/nobody/tokens", &token_body("vm.read"))
        .refused(404, "not_found");
}

#[test]
fn the_frame_of_a_request_is_checked_before_its_content() {
    let controller = Controller::start();
    let admin = controller.admin();
    let good = tenant_body("acme", 1).to_string();
    admin
        .send("POST", "/v1/tenants", &[], Some(&good))
        .refused(415, "unsupported_media_type");
    let text = [("content-type", "text/plain")];
    admin
        .send("POST", "/v1/tenants", &text, Some(&good))
        .refused(415, "unsupported_media_type");
    let json = [("content-type", "application/json; charset=utf-8")];
    let long = format!("{{\"x\":\"{}\"}}", "a".repeat(300 * 1024));
    admin
        .send("POST", "/v1/tenants", &json, Some(&long))
        .refused(413, "payload_too_large");
    for broken in ["", "{", "[]", "null", "{} {}", "\u{feff}{}"] {
        admin
            .send("POST", "/v1/tenants", &json, Some(broken))
            .refused(400, "invalid_request");
    }
    let deep = format!("{{\"x\":{}}}", "[".repeat(100_000));
    assert_eq!(
        admin.send("POST", "/v1/tenants", &json, Some(&deep)).status,
        400
    );
    admin.get("/v2/vms").refused(404, "not_found");
    let wrong = admin.send("PUT", "/v1/vms", &[], Some(""));
    wrong.refused(405, "method_not_allowed");
    assert!(wrong.header("allow").unwrap().contains("POST"));
    admin
        .send("POST", "/v1/tenants", &json, Some(&good))
        .expect(201);
}

#[test]
fn a_request_id_is_taken_if_it_is_one_and_always_given_back() {
    let controller = Controller::start();
    let id = berth_api::ids::RequestId::generate().to_string();
    let admin = controller.admin();
    let json = ("content-type", "application/json");
    let headers = [json, ("x-request-id", id.as_str())];
    let body = tenant_body("acme", 1).to_string();
    let reply = admin
        .send("POST", "/v1/tenants", &headers, Some(&body))
        .expect(201);
    assert_eq!(reply.header("x-request-id"), Some(id.as_str()));
    let entry = &audit_bodies(&admin, "event_type=TENANT_CREATED")[0];
    assert_eq!(entry["request"]["id"], json!(id));
    let reply = admin
        .send("GET", "/v1/me", &[("x-request-id", "x' OR 1=1")], None)
        .expect(200);
    assert!(reply.header("x-request-id").unwrap().starts_with("req_"));
}

#[test]
fn a_tenant_with_vms_is_not_deleted() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    let admin = controller.admin();
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    admin
        .delete("/v1/tenants/acme")
        .refused(409, "tenant_not_empty");
    tenant.delete("/v1/vms/web").expect(202);
    admin
        .delete("/v1/tenants/acme")
        .refused(409, "tenant_not_empty");
    agent.settle().unwrap();
    admin.delete("/v1/tenants/acme").expect(204);
}
