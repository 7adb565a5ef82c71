//! Tenants and their projects: what operators do with them, what they may do themselves.

use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, tenant_body, usage_of, vm_body};

fn tenant_with(controller: &Controller, id: &str, more: &Value) -> Client {
    let mut body = tenant_body(id, 10);
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    controller.admin().post("/v1/tenants", &body).expect(201);
    controller.token(id, "service:tenant-admin")
}

fn patch(controller: &Controller, id: &str, change: &Value) -> Value {
    let path = format!("/v1/tenants/{id}");
    let admin = controller.admin();
    admin.send_json("PATCH", &path, change).expect(200).json()
}

fn stop(tenant: &Client, agent: &mut SimulatedAgent, vm: &str) {
    tenant
        .post(&format!("/v1/vms/{vm}/stop"), &json!({}))
        .expect(202);
    agent.settle().unwrap();
}

#[test]
fn a_stopped_vm_gives_back_what_it_took_to_run_and_its_start_is_charged_again() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 64 * 1024);
    let more = json!({ "max_running_vms": 1, "max_vcpus": 2, "max_memory_mb": 256 });
    let tenant = tenant_with(&controller, "acme", &more);
    tenant.post("/v1/vms", &vm_body("first")).expect(201);
    agent.settle().unwrap();
    let body = tenant
        .post("/v1/vms", &vm_body("second"))
        .refused(429, "quota_exceeded");
    assert_eq!(body["quota"]["resource"], "running_vms");
    stop(&tenant, &mut agent, "first");
    for (resource, used) in [
        ("vms", 1),
        ("running_vms", 0),
        ("vcpus", 0),
        ("memory_mb", 0),
    ] {
        assert_eq!(usage_of(&tenant, resource)["used"], used, "{resource}");
    }
    tenant.post("/v1/vms", &vm_body("second")).expect(201);
    agent.settle().unwrap();
    let refused = tenant.post("/v1/vms/first/start", &json!({}));
    let body = refused.refused(429, "quota_exceeded");
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(
        body["quota"],
        json!({ "resource": "running_vms", "limit": 1, "used": 1, "requested": 1, "remaining": 0,
            "scope": "tenant/acme", "counted": { "running": 1 } })
    );
    let denied = &audit_bodies(&tenant, "event_type=VM_START_DENIED")[0];
    assert_eq!(denied["detail"]["quota"]["used"], 1);
    stop(&tenant, &mut agent, "second");
    tenant.post("/v1/vms/first/start", &json!({})).expect(202);
    agent.settle().unwrap();
    assert_eq!(usage_of(&tenant, "memory_mb")["used"], 128);
    controller.assert_sound();
}

#[test]
fn creates_of_one_day_have_a_ceiling_that_deleting_does_not_lift() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = tenant_with(&controller, "acme", &json!({ "max_creates_per_day": 2 }));
    // Both on one day, or the second pair begins a new one.
    for name in ["a", "b", "c", "d"] {
        let reply = tenant.post("/v1/vms", &vm_body(name));
        if reply.status == 429 {
            let body = reply.refused(429, "quota_exceeded");
            assert_eq!(body["quota"]["resource"], "creates_per_day");
            controller.assert_sound();
            return;
        }
        reply.expect(201);
        agent.settle().unwrap();
        tenant.delete(&format!("/v1/vms/{name}")).expect(202);
        agent.settle().unwrap();
    }
    panic!("four creates are more than two a day, on two days at most");
}

#[test]
fn a_suspended_tenant_can_look_and_end_and_nothing_else() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = tenant_with(&controller, "acme", &json!({}));
    for name in ["runs", "stands", "goes"] {
        tenant.post("/v1/vms", &vm_body(name)).expect(201);
    }
    agent.settle().unwrap();
    stop(&tenant, &mut agent, "stands");
    let admin = controller.admin();
    let suspended = admin
        .post("/v1/tenants/acme/suspend", &json!({}))
        .expect(200);
    assert!(suspended.json()["suspended_at"].is_string());
    for (method, path, body) in [
        ("POST", "/v1/vms", vm_body("more")),
        ("POST", "/v1/vms/stands/start", json!({})),
        ("POST", "/v1/projects", json!({ "project_id": "web" })),
        ("PUT", "/v1/tenant", json!({ "display_name": "Other" })),
        (
            "POST",
            "/v1/tenants/acme/tokens",
            crate::harness::token_body("vm.read"),
        ),
    ] {
        tenant
            .send_json(method, path, &body)
            .refused(403, "tenant_suspended");
    }
    for path in ["/v1/vms", "/v1/usage", "/v1/tenant", "/v1/audit/entries"] {
        tenant.get(path).expect(200);
    }
    assert_eq!(
        tenant.get("/v1/status").expect(200).json()["suspended"],
        true
    );
    stop(&tenant, &mut agent, "runs");
    tenant.delete("/v1/vms/goes").expect(202);
    agent.settle().unwrap();
    // The operator's own hand is not bound.
    patch(&controller, "acme", &json!({ "max_vms": 3 }));
    let resumed = admin
        .post("/v1/tenants/acme/resume", &json!({}))
        .expect(200);
    assert_eq!(resumed.json()["suspended_at"], Value::Null);
    tenant.post("/v1/vms/stands/start", &json!({})).expect(202);
    agent.settle().unwrap();
    admin
        .post("/v1/tenants/acme/suspend", &json!({ "stop_vms": true }))
        .expect(200);
    agent.settle().unwrap();
    let stands = tenant.get("/v1/vms/stands").expect(200).json();
    assert_eq!(stands["state"], "stopped");
    for (event_type, count) in [("TENANT_SUSPENDED", 2), ("TENANT_RESUMED", 1)] {
        let entries = audit_bodies(&admin, &format!("event_type={event_type}"));
        assert_eq!(entries.len(), count, "{event_type}");
    }
    controller.assert_sound();
}

#[test]
fn a_tenant_that_owns_vms_is_not_deleted_and_is_told_how_many() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = tenant_with(&controller, "acme", &json!({}));
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    let admin = controller.admin();
    let body = admin
        .delete("/v1/tenants/acme")
        .refused(409, "tenant_not_empty");
    assert_eq!(body["reasons"], json!({ "vms": 1 }));
    tenant.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    admin.delete("/v1/tenants/acme").expect(204);
    admin
        .post("/v1/tenants", &tenant_body("acme", 1))
        .refused(409, "tenant_exists");
}

#[test]
fn an_image_that_is_not_allowed_is_as_one_that_is_not_there() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let more = json!({ "allowed_images": ["other-image"] });
    let tenant = tenant_with(&controller, "acme", &more);
    let free = controller.tenant("free", 1);
    assert_eq!(
        tenant.get("/v1/images").expect(200).json()["items"],
        json!([])
    );
    assert_eq!(
        free.get("/v1/images").expect(200).json()["items"][0]["name"],
        "debian-12"
    );
    let of = |image: &str| {
        let mut body = vm_body("web");
        body["image"] = json!(image);
        let reply = tenant.post("/v1/vms", &body);
        reply.refused(422, "placement_impossible");
        reply.without_request_id()
    };
    assert_eq!(of("debian-12"), of("nothing"));
    patch(&controller, "acme", &json!({ "allowed_images": null }));
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
}

#[test]
fn an_action_that_the_operator_did_not_give_is_refused_whatever_the_token() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let more = json!({ "allowed_actions": ["vm.create"] });
    let tenant = tenant_with(&controller, "acme", &more);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    stop(&tenant, &mut agent, "web");
    for (path, body) in [
        ("/v1/vms/web/start", json!({})),
        ("/v1/projects", json!({ "project_id": "web" })),
        (
            "/v1/tenants/acme/tokens",
            crate::harness::token_body("vm.read"),
        ),
    ] {
        tenant.post(path, &body).refused(403, "permission_denied");
    }
    tenant
        .get("/v1/vms/web/console/log")
        .refused(403, "permission_denied");
    patch(
        &controller,
        "acme",
        &json!({ "allowed_actions": ["vm.start"] }),
    );
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    tenant
        .post("/v1/vms", &vm_body("more"))
        .refused(403, "permission_denied");
    let mut bad = tenant_body("bad", 1);
    bad["allowed_actions"] = json!(["vm.*"]);
    let admin = controller.admin();
    admin
        .post("/v1/tenants", &bad)
        .refused(400, "invalid_request");
}

#[test]
fn a_project_has_ceilings_inside_its_tenants_and_its_id_is_never_used_again() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 64 * 1024);
    let tenant = tenant_with(&controller, "acme", &json!({}));
    let body = json!({ "project_id": "web", "department": "shop", "quotas": { "vms": 1 } });
    let made = tenant.post("/v1/projects", &body).expect(201);
    assert_eq!(made.header("location"), Some("/v1/projects/web"));
    assert_eq!(made.json()["quotas"], json!({ "vms": 1 }));
    tenant
        .post("/v1/projects", &body)
        .refused(409, "already_exists");
    let in_project = |name: &str, project: &str| {
        let mut body = vm_body(name);
        body["project_id"] = json!(project);
        tenant.post("/v1/vms", &body)
    };
    let vm = in_project("first", "web").expect(201).json();
    assert_eq!(vm["project_id"], "web");
    let full = in_project("second", "web").refused(429, "quota_exceeded");
    assert_eq!(full["quota"]["scope"], "project/acme/web");
    in_project("second", "nowhere").refused(404, "not_found");
    in_project("second", "default").expect(201);
    agent.settle().unwrap();
    let usage = tenant.get("/v1/usage?project_id=web").expect(200).json();
    let vms = usage["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["resource"] == "vms");
    assert_eq!(
        (&vms.unwrap()["used"], &vms.unwrap()["limit"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(usage_of(&tenant, "vms")["used"], 2);
    let patched = tenant.send_json(
        "PATCH",
        "/v1/projects/web",
        &json!({ "quotas": { "vms": null } }),
    );
    assert_eq!(patched.expect(200).json()["quotas"], json!({}));
    in_project("third", "web").expect(201);
    agent.settle().unwrap();
    let body = tenant
        .delete("/v1/projects/web")
        .refused(409, "invalid_state");
    assert_eq!(body["reasons"], json!({ "vms": 2 }));
    tenant
        .delete("/v1/projects/default")
        .refused(409, "protected");
    for vm in ["first", "third"] {
        tenant.delete(&format!("/v1/vms/{vm}")).expect(202);
    }
    agent.settle().unwrap();
    tenant.delete("/v1/projects/web").expect(204);
    tenant.get("/v1/projects/web").refused(404, "not_found");
    in_project("late", "web").refused(404, "not_found");
    tenant
        .post("/v1/projects", &json!({ "project_id": "web" }))
        .refused(409, "already_exists");
    let listed = tenant.get("/v1/projects").expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    for event_type in ["PROJECT_CREATED", "PROJECT_CHANGED", "PROJECT_DELETED"] {
        let entries = audit_bodies(&tenant, &format!("event_type={event_type}"));
        assert_eq!(entries[0]["detail"]["project_id"], "web", "{event_type}");
    }
    controller.assert_sound();
}

#[test]
fn projects_of_the_same_id_in_two_tenants_are_two() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 1);
    let other = controller.tenant("other", 1);
    let web = json!({ "project_id": "web", "display_name": "Ours" });
    acme.post("/v1/projects", &web).expect(201);
    other.get("/v1/projects/web").refused(404, "not_found");
    other
        .post("/v1/projects", &json!({ "project_id": "web" }))
        .expect(201);
    other.delete("/v1/projects/web").expect(204);
    let kept = acme.get("/v1/projects/web").expect(200).json();
    assert_eq!(
        (&kept["display_name"], &kept["tenant_id"]),
        (&json!("Ours"), &json!("acme"))
    );
}

#[test]
fn an_operator_grants_more_for_a_while_and_a_tenant_cannot() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("a")).expect(201);
    tenant
        .post("/v1/vms", &vm_body("b"))
        .refused(429, "quota_exceeded");
    let path = "/v1/tenants/acme/quota-overrides";
    let grant =
        json!({ "resource": "vms", "limit": 2, "expires_in_seconds": 3600, "reason": "a move" });
    tenant.post(path, &grant).refused(403, "permission_denied");
    let admin = controller.admin();
    let report = admin.post(path, &grant).expect(200).json();
    assert_eq!(report["overrides"][0]["reason"], "a move");
    tenant.post("/v1/vms", &vm_body("b")).expect(201);
    tenant
        .post("/v1/vms", &vm_body("c"))
        .refused(429, "quota_exceeded");
    let mut end = grant.clone();
    end["expires_in_seconds"] = json!(0);
    let report = admin.post(path, &end).expect(200).json();
    assert_eq!(
        (&report["over_limit"], &report["overrides"]),
        (&json!(true), &json!([]))
    );
    assert_eq!(
        tenant.get("/v1/tenant").expect(200).json()["over_limit"],
        true
    );
    for (name, wrong) in [
        ("resource", json!("vmz")),
        ("expires_in_seconds", json!(59)),
        ("reason", json!("")),
        ("limit", json!(u64::MAX)),
    ] {
        let mut bad = grant.clone();
        bad[name] = wrong;
        let body = admin.post(path, &bad).refused(400, "invalid_request");
        assert!(body["fields"][name].is_string(), "{body}");
    }
    assert_eq!(
        audit_bodies(&admin, "event_type=QUOTA_OVERRIDE_SET").len(),
        1
    );
    assert_eq!(
        audit_bodies(&admin, "event_type=QUOTA_OVERRIDE_ENDED").len(),
        1
    );
}

#[test]
fn a_tenant_changes_what_it_says_of_itself_and_not_what_binds_it() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let said = json!({ "display_name": "Acme", "email": "ops@acme.example",
        "default_ssh_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ops"] });
    let changed = tenant
        .send_json("PUT", "/v1/tenant", &said)
        .expect(200)
        .json();
    for (name, value) in said.as_object().unwrap() {
        assert_eq!(&changed[name], value, "{name}");
    }
    let mut greedy = said.clone();
    greedy["max_vms"] = json!(99);
    tenant
        .send_json("PUT", "/v1/tenant", &greedy)
        .refused(400, "unknown_field");
    for (name, wrong) in [
        ("email", json!("nobody")),
        ("display_name", json!("")),
        ("default_ssh_keys", json!(["nonsense"])),
    ] {
        let mut bad = said.clone();
        bad[name] = wrong;
        let body = tenant
            .send_json("PUT", "/v1/tenant", &bad)
            .refused(400, "invalid_request");
        assert!(body["fields"][name].is_string(), "{body}");
    }
    let entry = &audit_bodies(&tenant, "event_type=TENANT_CHANGED")[0];
    assert_eq!(entry["detail"]["new"]["email"], "ops@acme.example");
    let status = tenant.get("/v1/status").expect(200).json();
    assert_eq!(
        (&status["tenant_id"], &status["vms_running"]),
        (&json!("acme"), &json!(0))
    );
    let admin = controller.admin();
    let usage = admin.get("/v1/tenants/acme/usage").expect(200).json();
    assert_eq!(usage["quotas"]["vms"], 1);
    tenant.get("/v1/tenants/acme/usage").expect(200);
    tenant
        .get("/v1/tenants/nobody/usage")
        .refused(404, "not_found");
}

#[test]
fn a_ceiling_is_set_and_taken_away_again() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let changed = patch(
        &controller,
        "acme",
        &json!({ "max_vcpus": 4, "labels": { "a": "b" } }),
    );
    assert_eq!(
        (&changed["max_vcpus"], &changed["labels"]),
        (&json!(4), &json!({ "a": "b" }))
    );
    assert_eq!(usage_of(&tenant, "vcpus")["remaining"], 4);
    let changed = patch(&controller, "acme", &json!({ "max_vcpus": null }));
    assert_eq!(changed["max_vcpus"], Value::Null);
    assert_eq!(changed["labels"], json!({ "a": "b" }));
    assert_eq!(usage_of(&tenant, "vcpus")["remaining"], Value::Null);
    let admin = controller.admin();
    for wrong in [
        json!({ "tier": "gold" }),
        json!({ "max_memory_mb": u64::MAX }),
    ] {
        admin
            .send_json("PATCH", "/v1/tenants/acme", &wrong)
            .refused(400, "invalid_request");
    }
    admin
        .send_json(
            "PATCH",
            "/v1/tenants/acme",
            &json!({ "tenant_id": "other" }),
        )
        .refused(400, "field_immutable");
}
