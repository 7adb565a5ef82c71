//! Service accounts: their tokens do what their roles permit, and nothing once they, their membership
//! or their project is gone.

use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, vm_body};
use crate::holders::{Holder, Wanted, issued};

/// A service account, and a token for its key that alone would allow everything.
fn account(
    controller: &Controller,
    admin: &Client,
    project: &str,
    name: &str,
    role: &str,
) -> Holder {
    let holder = issued(controller, "acme", "service:tenant-admin", &json!({}));
    let made = admin
        .post(
            &format!("/v1/projects/{project}/service-accounts"),
            &json!({ "account_id": name, "role": role,
                "subject_pubkey": holder.key.public().to_base64() }),
        )
        .expect(201);
    let path = format!("/v1/service-accounts/{name}");
    assert_eq!(made.header("location"), Some(path.as_str()));
    assert_eq!(made.json()["roles"], json!({ project: role }));
    assert_eq!(admin.get(&path).expect(200).json(), made.json());
    holder
}

fn new_project(admin: &Client, project: &str) {
    admin
        .post("/v1/projects", &json!({ "project_id": project }))
        .expect(201);
}

fn vm_in(project: &str, name: &str) -> Value {
    let mut body = vm_body(name);
    body["project_id"] = json!(project);
    body
}

fn names(client: &Client, path: &str, field: &str) -> Vec<String> {
    let page = client.get(path).expect(200).json();
    let items = page["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item[field].as_str().unwrap().to_owned())
        .collect()
}

fn refused_by_role(reply: &crate::harness::Reply, role: &str) {
    let error = reply.refused(403, "permission_denied");
    let said = error["error"].as_str().unwrap();
    assert!(said.contains(role), "{error}");
}

#[test]
fn a_service_account_does_what_its_role_permits_in_its_project_and_nothing_elsewhere() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let admin = controller.tenant("acme", 10);
    new_project(&admin, "web");
    let [viewer, runner, editor] = ["viewer", "runner", "editor"]
        .map(|role| account(&controller, &admin, "web", role, role).client(&controller));
    admin.post("/v1/vms", &vm_body("hidden")).expect(201);

    refused_by_role(&viewer.post("/v1/vms", &vm_in("web", "one")), "viewer");
    refused_by_role(&runner.post("/v1/vms", &vm_in("web", "one")), "runner");
    let made = editor.post("/v1/vms", &vm_in("web", "one")).expect(201);
    agent.settle().unwrap();
    let operation = format!(
        "/v1/operations/{}",
        made.json()["operation"].as_str().unwrap()
    );
    for client in [&viewer, &runner, &editor] {
        assert_eq!(names(client, "/v1/vms", "name"), ["one"]);
        assert_eq!(names(client, "/v1/projects", "project_id"), ["web"]);
        client.get("/v1/vms/one").expect(200);
        client.get(&operation).expect(200);
        client.get("/v1/usage?project_id=web").expect(200);
        client.get("/v1/vms/hidden").refused(404, "not_found");
        client
            .get("/v1/usage?project_id=default")
            .refused(404, "not_found");
        client.get("/v1/usage").refused(400, "invalid_request");
        client
            .post("/v1/vms", &vm_in("default", "two"))
            .refused(404, "not_found");
        client
            .post("/v1/vms?dry_run=plan", &vm_in("default", "two"))
            .refused(404, "not_found");
        for path in ["/v1/tenant", "/v1/service-accounts", "/v1/audit/entries"] {
            client.get(path).refused(403, "permission_denied");
        }
        client
            .post("/v1/projects", &json!({ "project_id": "mine" }))
            .refused(403, "permission_denied");
    }
    refused_by_role(&viewer.post("/v1/vms/one/stop", &json!({})), "viewer");
    runner.post("/v1/vms/one/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    refused_by_role(&viewer.delete("/v1/vms/one"), "viewer");
    editor.delete("/v1/vms/one").expect(202);
    let deleted = audit_bodies(&admin, "event_type=VM_DELETE_ACCEPTED");
    assert_eq!(deleted[0]["actor"]["kind"], "service_account");
    controller.assert_sound();
}

#[test]
fn what_ends_an_account_a_membership_or_a_project_holds_from_the_next_request_on() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let admin = controller.tenant("acme", 10);
    new_project(&admin, "web");
    new_project(&admin, "db");
    let robot = account(&controller, &admin, "web", "robot", "editor");
    let client = robot.client(&controller);
    let member = "/v1/projects/db/members/robot";
    let role = |role: &str| admin.send_json("PUT", member, &json!({ "role": role }));

    client
        .post("/v1/vms", &vm_in("db", "a"))
        .refused(404, "not_found");
    role("viewer").expect(200);
    refused_by_role(&client.post("/v1/vms", &vm_in("db", "a")), "viewer");
    role("editor").expect(200);
    client.post("/v1/vms", &vm_in("db", "a")).expect(201);
    let path = "/v1/projects/db/members";
    assert_eq!(names(&admin, path, "account_id"), ["robot"]);
    admin.delete(member).expect(204);
    admin.delete(member).refused(404, "not_found");
    client.get("/v1/vms/a").refused(404, "not_found");

    let own = "/v1/service-accounts/robot";
    let switch = |disabled: bool| {
        admin
            .send_json("PATCH", own, &json!({ "disabled": disabled }))
            .expect(200)
    };
    switch(true);
    client.get("/v1/vms").refused(403, "permission_denied");
    switch(false);
    client.get("/v1/vms").expect(200);
    admin.delete("/v1/projects/web").expect(204);
    client.get("/v1/me").refused(403, "permission_denied");
    admin.delete(own).expect(204);
    admin.get(own).refused(404, "not_found");
    client.get("/v1/me").refused(403, "permission_denied");
    for (event_type, count) in [
        ("SERVICE_ACCOUNT_CREATED", 1),
        ("SERVICE_ACCOUNT_CHANGED", 2),
        ("SERVICE_ACCOUNT_DELETED", 1),
        ("PROJECT_MEMBER_SET", 2),
        ("PROJECT_MEMBER_REMOVED", 1),
    ] {
        let found = audit_bodies(&admin, &format!("event_type={event_type}"));
        assert_eq!(found.len(), count, "{event_type}");
    }
    controller.assert_sound();
}

#[test]
fn what_a_service_account_derives_is_bound_by_its_role_too() {
    let controller = Controller::start();
    let admin = controller.tenant("acme", 10);
    new_project(&admin, "web");
    let robot = account(&controller, &admin, "web", "robot", "viewer");
    let job = robot.narrowed(&Wanted {
        scope: "vm.create",
        ..Wanted::default()
    });
    refused_by_role(
        &job.client(&controller).post("/v1/vms", &vm_in("web", "a")),
        "viewer",
    );
    admin.delete("/v1/service-accounts/robot").expect(204);
    job.client(&controller)
        .post("/v1/vms", &vm_in("web", "a"))
        .refused(403, "permission_denied");
}

#[test]
fn ids_and_keys_of_service_accounts_are_used_once_in_a_tenant() {
    let controller = Controller::start();
    let admin = controller.tenant("acme", 10);
    let other = controller.tenant("other", 10);
    let robot = account(&controller, &admin, "default", "robot", "viewer");
    let key = robot.key.public().to_base64();
    let path = "/v1/projects/default/service-accounts";
    let body = |name: &str, key: &str| json!({ "account_id": name, "role": "viewer", "subject_pubkey": key });
    let fresh = berth_ledger::keys::SigningKey::generate().unwrap();
    let fresh = fresh.public().to_base64();
    for _ in 0..2 {
        admin
            .post(path, &body("robot", &fresh))
            .refused(409, "already_exists");
        admin
            .post(path, &body("second", &key))
            .refused(409, "already_exists");
        // The second time it is deleted.
        admin.delete("/v1/service-accounts/robot");
    }
    // In another tenant both mean nothing.
    other.post(path, &body("robot", &key)).expect(201);
    for (bad, field) in [
        (body("Robot", &fresh), "account_id"),
        (body("second", "nonsense"), "subject_pubkey"),
    ] {
        let error = admin.post(path, &bad).refused(400, "invalid_request");
        assert!(error["fields"][field].is_string(), "{error}");
    }
    let mut owner = body("second", &fresh);
    owner["role"] = json!("owner");
    admin.post(path, &owner).refused(400, "invalid_request");
    assert_eq!(
        names(&admin, "/v1/service-accounts", "account_id"),
        [] as [&str; 0]
    );
}
