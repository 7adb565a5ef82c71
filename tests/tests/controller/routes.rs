//! The routes that need no token, and tokens that the controller itself would not issue.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::ids::{ControllerId, TokenId};
use berth_ledger::keys::SigningKey;
use berth_token::{NewLink, RootKey, Scope, ScopeSet, SubjectKey};

use crate::harness::Controller;

/// Mint with the controller's own key what the controller itself would not.
pub(crate) fn minted(
    controller: &Controller,
    tenant: &str,
    expires_at: i64,
    audience: Option<ControllerId>,
) -> String {
    mint(
        controller,
        Some(tenant),
        Scope::TenantAdmin,
        expires_at,
        audience,
    )
}

/// An operator's token that may read the metrics and nothing else.
pub(crate) fn minted_operator(controller: &Controller) -> String {
    mint(controller, None, Scope::Metrics, 4_000_000_000, None)
}

fn mint(
    controller: &Controller,
    tenant: Option<&str>,
    scope: Scope,
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
        tenant: tenant.map(|tenant| tenant.parse().unwrap()),
        holder: SubjectKey::from_bytes(key.public().as_bytes()).unwrap(),
        scopes: ScopeSet::new([scope]).unwrap(),
        not_before: 1_000_000_000,
        expires_at,
    };
    RootKey::new(&key, audience.unwrap_or(id.parse().unwrap()))
        .unwrap()
        .mint(&link)
        .unwrap()
}

#[test]
fn a_token_of_a_tenant_that_is_no_more_opens_nothing() {
    let controller = Controller::start();
    controller.tenant("doomed", 1);
    controller.admin().delete("/v1/tenants/doomed").expect(204);
    // Signed by us, and no record says that it was revoked.
    let orphan = controller.with_token(&minted(&controller, "doomed", 4_000_000_000, None));
    for path in ["/v1/vms", "/v1/usage", "/v1/audit/entries"] {
        orphan.get(path).refused(401, "token_revoked");
    }
    assert!(matches!(orphan.get("/v1/tenants/doomed").status, 401 | 404));
    controller.assert_sound();
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
