//! Every route against every kind of wrong caller.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use berth_api::ids::{ControllerId, TokenId};
use berth_ledger::keys::SigningKey;
use berth_token::{NewLink, RootKey, Scope, ScopeSet, SubjectKey};

use crate::harness::{Client, Controller, Reply};

/// Routes, and whom they are for.
const ROUTES: &[(&str, &str, For)] = &[
    ("GET", "/v1/me", For::Anybody),
    ("POST", "/v1/tenants", For::Operator),
    ("GET", "/v1/tenants", For::Operator),
    ("PATCH", "/v1/tenants/acme", For::Operator),
    ("DELETE", "/v1/tenants/acme", For::Operator),
    ("POST", "/v1/nodes/join-tokens", For::Operator),
    ("GET", "/v1/nodes", For::Operator),
    (
        "GET",
        "/v1/nodes/node_01m80z84dd4m7ep9mfv5cx9n06",
        For::Operator,
    ),
    ("GET", "/v1/slots", For::Operator),
    (
        "GET",
        "/v1/slots/slot_01m80z84dd4m7ep9mfv5cx9n06",
        For::Operator,
    ),
    (
        "POST",
        "/v1/slots/slot_01m80z84dd4m7ep9mfv5cx9n06/approve",
        For::Operator,
    ),
    (
        "POST",
        "/v1/slots/slot_01m80z84dd4m7ep9mfv5cx9n06/quarantine",
        For::Operator,
    ),
    (
        "POST",
        "/v1/slots/slot_01m80z84dd4m7ep9mfv5cx9n06/release-quarantine",
        For::Operator,
    ),
    (
        "POST",
        "/v1/slots/slot_01m80z84dd4m7ep9mfv5cx9n06/wipe",
        For::Operator,
    ),
    ("GET", "/v1/slot-classes", For::Tenant),
    ("GET", "/v1/vms/x/receipts", For::Tenant),
    ("GET", "/v1/tenants/acme", For::Path),
    ("POST", "/v1/tenants/acme/tokens", For::Path),
    ("GET", "/v1/tenants/acme/tokens", For::Path),
    (
        "DELETE",
        "/v1/tokens/tok_01m80z84dd4m7ep9mfv5cx9n06",
        For::Tenant,
    ),
    ("POST", "/v1/vms", For::Tenant),
    ("GET", "/v1/vms", For::Tenant),
    ("GET", "/v1/vms/x", For::Tenant),
    ("DELETE", "/v1/vms/x", For::Tenant),
    ("POST", "/v1/vms/x/start", For::Tenant),
    ("POST", "/v1/vms/x/stop", For::Tenant),
    ("GET", "/v1/vms/x/wait?state=running", For::Tenant),
    ("GET", "/v1/vms/x/console/log", For::Tenant),
    (
        "GET",
        "/v1/operations/op_01m80z84dd4m7ep9mfv5cx9n06",
        For::Tenant,
    ),
    ("GET", "/v1/images", For::Tenant),
    ("GET", "/v1/usage", For::Tenant),
    ("GET", "/v1/audit/entries", For::Tenant),
    ("GET", "/v1/audit/head", For::Tenant),
    ("GET", "/v1/audit/export", For::Tenant),
    ("GET", "/v1/audit/proof/inclusion?index=0", For::Tenant),
    ("GET", "/v1/audit/proof/consistency?from=1", For::Tenant),
];

/// Routes that need no token: probes, and what agents sign.
const PUBLIC: &[&str] = &[
    "/healthz",
    "/readyz",
    "/v1/version",
    "/v1/audit/checkpoint",
    "/v1/audit/tile/{*path}",
    "/v1/agent/enroll",
    "/v1/agent/sync",
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum For {
    Anybody,
    Operator,
    Path,
    Tenant,
}

fn call(client: &Client, method: &str, path: &str) -> Reply {
    client.send(
        method,
        path,
        &[],
        (method != "GET" && method != "DELETE").then_some(""),
    )
}

/// Mint with the controller's own key what the controller itself would not.
fn minted(
    controller: &Controller,
    tenant: &str,
    expires_at: i64,
    audience: Option<ControllerId>,
) -> String {
    let text = std::fs::read_to_string(controller.folder().join("keys/token.key")).unwrap();
    let key = SigningKey::from_seed(&STANDARD.decode(text.trim()).unwrap()).unwrap();
    let id = controller
        .database()
        .value("SELECT controller_id FROM controller");
    let link = NewLink {
        token_id: TokenId::generate(),
        tenant: Some(tenant.parse().unwrap()),
        holder: SubjectKey::from_bytes(key.public().as_bytes()).unwrap(),
        scopes: ScopeSet::new([Scope::TenantAdmin]).unwrap(),
        not_before: 1_000_000_000,
        expires_at,
    };
    RootKey::new(&key, audience.unwrap_or(id.parse().unwrap()))
        .unwrap()
        .mint(&link)
        .unwrap()
}

#[test]
fn without_a_good_token_every_route_says_401_and_why() {
    let controller = Controller::start();
    let acme = controller.tenant("acme", 1);
    let token = acme
        .authorization
        .clone()
        .unwrap()
        .trim_start_matches("Bearer ")
        .to_owned();
    let far = 4_000_000_000;
    let expired = minted(&controller, "acme", 1_000_000_100, None);
    let elsewhere = minted(&controller, "acme", far, Some(ControllerId::generate()));
    let doomed = controller.tenant("doomed", 1);
    controller.admin().delete("/v1/tenants/doomed").expect(204);
    let orphan = minted(&controller, "doomed", far, None);
    let mut bent = URL_SAFE_NO_PAD
        .decode(token.trim_start_matches("v4.public."))
        .unwrap();
    bent[20] ^= 1;
    let bent = format!("v4.public.{}", URL_SAFE_NO_PAD.encode(bent));
    let long = "a".repeat(7000);
    let kinds = [
        (None, "unauthorized"),
        (Some(token.clone()), "unauthorized"),
        (Some(format!("Basic {token}")), "unauthorized"),
        (Some("Bearer".to_owned()), "unauthorized"),
        (Some("Bearer nonsense".to_owned()), "invalid_token"),
        (Some(format!("Bearer {long}")), "invalid_token"),
        (Some(format!("Bearer {bent}")), "invalid_token"),
        (Some(format!("Bearer {token}~{token}")), "invalid_token"),
        (Some(format!("Bearer {elsewhere}")), "invalid_token"),
        (Some(format!("Bearer {expired}")), "token_expired"),
        (doomed.authorization.clone(), "token_revoked"),
    ];
    for (method, path, kind) in ROUTES {
        for (authorization, code) in &kinds {
            let mut client = controller.stranger();
            client.authorization.clone_from(authorization);
            let reply = call(&client, method, path);
            reply.refused(401, code);
            assert!(
                reply
                    .header("www-authenticate")
                    .unwrap()
                    .starts_with("Bearer"),
                "{method} {path}"
            );
        }
        // Signed by us, but its tenant is no more, and no record says that it was revoked.
        let reply = call(&controller.with_token(&orphan), method, path);
        if *kind == For::Tenant && !path.contains("console") {
            reply.refused(401, "token_revoked");
        } else if *kind != For::Anybody {
            assert!(
                matches!(reply.status, 403 | 404),
                "{method} {path}: {}",
                reply.text
            );
        }
    }
    controller.assert_sound();
}

#[test]
fn a_token_opens_only_what_its_scope_and_tenant_cover() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let other = controller.tenant("other", 1);
    let metrics_free = controller.token("acme", "token.revoke");
    let narrow = controller.token("acme", "vm.console");
    for (method, path, kind) in ROUTES {
        let foreign = call(&other, method, path);
        match kind {
            For::Operator => drop(foreign.refused(403, "permission_denied")),
            For::Path => drop(foreign.refused(404, "not_found")),
            For::Anybody | For::Tenant => assert_ne!(foreign.status, 403, "{method} {path}"),
        }
        let wrong_scope = if path.contains("console") {
            &metrics_free
        } else {
            &narrow
        };
        let reply = call(wrong_scope, method, path);
        match kind {
            For::Anybody => drop(reply.expect(200)),
            For::Operator | For::Path | For::Tenant => {
                let body = reply.refused(403, "permission_denied");
                assert!(body["required_scope"].is_string(), "{method} {path}");
            }
        }
    }
}

#[test]
fn no_route_is_forgotten_here() {
    let listed: std::collections::BTreeSet<_> = ROUTES
        .iter()
        .map(|(method, path, _)| (*method, path.split('?').next().unwrap()))
        .collect();
    let source = include_str!("../../../controller/server/src/http.rs");
    let declared = source.matches(".add(").count();
    assert_eq!(declared, listed.len() + PUBLIC.len());
}

#[test]
fn the_public_routes_answer_without_a_token() {
    let controller = Controller::start();
    let stranger = controller.stranger();
    assert_eq!(stranger.get("/healthz").expect(200).json()["status"], "ok");
    assert_eq!(
        stranger.get("/readyz").expect(200).json()["checks"]["ledger"],
        "ok"
    );
    assert!(stranger.get("/v1/version").expect(200).json()["api_features"].is_array());
    for path in ["/v1/agent/enroll", "/v1/agent/sync"] {
        stranger
            .post(path, &serde_json::json!({}))
            .refused(400, "invalid_request");
    }
}
