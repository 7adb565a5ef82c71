//! Sub-tokens, revocation, expiry.

use serde_json::json;

use crate::harness::{Controller, audit_bodies, token_body};

#[test]
fn a_tenant_admin_issues_narrower_tokens_for_its_own_tenant_alone() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 1);
    controller.tenant("other", 1);
    let issued = acme
        .post("/v1/tenants/acme/tokens", &token_body("vm.read"))
        .expect(201)
        .json();
    let reader = controller.with_token(issued["token"].as_str().unwrap());
    reader.get("/v1/vms").expect(200);
    let denied = reader
        .get("/v1/audit/entries")
        .refused(403, "permission_denied");
    assert_eq!(denied["required_scope"], "ledger.read");
    reader
        .post("/v1/tenants/acme/tokens", &token_body("vm.read"))
        .refused(403, "permission_denied");
    acme.post("/v1/tenants/other/tokens", &token_body("vm.read"))
        .refused(404, "not_found");
    let body = acme.post(
        "/v1/tenants/acme/tokens",
        &token_body("service:platform-admin"),
    );
    assert_eq!(
        body.refused(400, "invalid_request")["fields"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
    let mut longer = token_body("vm.read");
    longer["expires_in_seconds"] = json!(86_400 * 3);
    let refused = acme
        .post("/v1/tenants/acme/tokens", &longer)
        .refused(400, "invalid_request");
    assert!(refused["fields"]["expires_in_seconds"].is_string());
}

#[test]
fn a_revoked_token_opens_nothing_from_then_on_even_after_a_crash() {
    let mut controller = Controller::start();
    let acme = controller.tenant("acme", 1);
    let issued = acme
        .post("/v1/tenants/acme/tokens", &token_body("vm.read"))
        .expect(201)
        .json();
    let reader = controller.with_token(issued["token"].as_str().unwrap());
    let path = format!("/v1/tokens/{}", issued["token_id"].as_str().unwrap());
    let other = controller.tenant("other", 1);
    other.delete(&path).refused(404, "not_found");
    reader.get("/v1/vms").expect(200);
    acme.delete(&path).expect(204);
    reader.get("/v1/vms").refused(401, "token_revoked");
    acme.delete(&path).expect(204);
    controller.kill_and_restart();
    reader.get("/v1/vms").refused(401, "token_revoked");
    assert_eq!(audit_bodies(&acme, "event_type=TOKEN_REVOKED").len(), 1);
    let records = acme.get("/v1/tenants/acme/tokens").expect(200).json();
    let record = records["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["token_id"] == issued["token_id"])
        .unwrap();
    assert!(record["revoked_at"].is_string() && record.get("token").is_none());
}

#[test]
fn a_deleted_tenants_tokens_and_name_are_gone_for_ever() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 1);
    let admin = controller.admin();
    admin.delete("/v1/tenants/acme").expect(204);
    acme.get("/v1/vms").refused(401, "token_revoked");
    admin.get("/v1/tenants/acme").refused(404, "not_found");
    let body = crate::harness::tenant_body("acme", 1);
    admin
        .post("/v1/tenants", &body)
        .refused(409, "tenant_exists");
    let entries = audit_bodies(&admin, "tenant_id=acme&event_type=TENANT_DELETED");
    assert_eq!(entries.len(), 1);
}

#[test]
fn one_more_administrator_token_can_be_minted_while_the_controller_serves() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let minted = controller.offline(&["admin-token", "--days", "1"]);
    assert!(minted.status.success(), "{minted:?}");
    let token = String::from_utf8(minted.stdout).unwrap();
    let second = controller.with_token(token.trim());
    second
        .post("/v1/tenants", &crate::harness::tenant_body("other", 1))
        .expect(201);
    controller.admin().get("/v1/tenants").expect(200);
    controller.assert_sound();
}

#[test]
fn no_token_is_ever_in_the_log_the_database_or_the_ledger() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 1);
    acme.get("/v1/vms").expect(200);
    acme.get("/v1/vms/v4.public.in-a-path")
        .refused(404, "not_found");
    let secret = acme.authorization.clone().unwrap();
    let secret = secret.trim_start_matches("Bearer ");
    assert!(
        controller
            .log()
            .iter()
            .all(|line| !line.contains("v4.public"))
    );
    controller.database().assert_lacks(secret);
}
