//! Is the controller alive, ready, and which one; who am I.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use berth_api::rest::{Me, Version};
use serde_json::json;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::gate::Scoped;
use crate::http::tokens::rfc3339_s;

/// What clients may ask for by name; grows, never shrinks.
const API_FEATURES: &[&str] = &[
    "audit-chain-v1",
    "idempotency-key",
    "vm-wait",
    "vm-stop-mode",
    "console-log",
    "slots",
];

pub(crate) async fn healthz() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok" }))
}

/// Ready when the database can be read and the ledger's transaction can be written. The keys were
/// read before the socket was opened.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let database = app.read(|db| db.log_head()).await.is_ok();
    let ledger = app.write(|_| Ok(())).await.is_ok();
    let word = |good: bool| if good { "ok" } else { "failing" };
    let body = Json(json!({
        "status": word(database && ledger),
        "checks": { "database": word(database), "ledger": word(ledger), "keys": "ok" },
    }));
    if database && ledger {
        body.into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
    }
}

pub(crate) async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api_features: API_FEATURES.iter().map(|&name| name.to_owned()).collect(),
    })
}

pub(crate) async fn me(caller: Scoped) -> Result<Json<Me>, ApiError> {
    Ok(Json(Me {
        tenant_id: caller.namespace().cloned(),
        token_id: caller.token_id()?,
        scope: caller.grant.scopes.to_texts(),
        expires_at: rfc3339_s(caller.grant.expires_at),
    }))
}
