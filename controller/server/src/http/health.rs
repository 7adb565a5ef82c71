//! Is the controller alive, ready, and which one; who am I.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_api::rest::{Health, Me, Readiness, Version};
use berth_token::Scope;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::describe::{Answers, Sheet};
use crate::http::gate::Scoped;
use crate::http::tokens::rfc3339_s;
use crate::metrics::{CONTENT_TYPE, LedgerGauges};
use crate::publisher::Publisher;

/// What clients may ask for by name; grows, never shrinks.
const API_FEATURES: &[&str] = &[
    "audit-chain-v1",
    "idempotency-key",
    "vm-wait",
    "vm-stop-mode",
    "console-log",
    "slots",
    "openapi",
    "etag-if-match",
    "etag-if-none-match",
    "service-accounts",
    "vm-deadlines",
    "guest-tokens",
    "own-nodes",
    "guest-seeds",
];

pub(crate) async fn healthz() -> Json<Health> {
    Json(Health {
        status: "ok".to_owned(),
    })
}

/// Ready when the database can be read and the ledger's transaction can be written. The keys were
/// read before the socket was opened.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Ready {
    let database = app.read(|db| db.log_head()).await.is_ok();
    let ledger = app.write(|_| Ok(())).await.is_ok();
    let word = |good: bool| if good { "ok" } else { "failing" }.to_owned();
    let mut checks = BTreeMap::from([
        ("database".to_owned(), word(database)),
        ("ledger".to_owned(), word(ledger)),
        ("keys".to_owned(), word(true)),
        // For whoever looks; a counter that is wrong is no reason to serve nobody.
        ("counters".to_owned(), word(app.metrics.counters_agree())),
    ]);
    // An old public copy keeps nobody from working.
    if let Some(publisher) = &app.publisher {
        let is_well = !publisher.progress().is_failing;
        checks.insert("publication".to_owned(), word(is_well));
    }
    Ready(Readiness {
        status: word(database && ledger),
        checks,
    })
}

/// What monitoring reads.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<MetricsPage, ApiError> {
    let gauges = app.read(|db| db.gauges()).await?;
    let ledger = LedgerGauges {
        shown: app.ledger.shown(),
        witnesses: app.ledger.witnesses(),
        publication: app.publisher.as_ref().map(Publisher::progress),
    };
    let page = app.metrics.page(&gauges, &ledger);
    page.map(MetricsPage).map_err(|_| ApiError::internal())
}

/// OpenMetrics text.
#[derive(Clone, Debug)]
pub(crate) struct MetricsPage(String);

impl IntoResponse for MetricsPage {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], self.0).into_response()
    }
}

impl Answers for MetricsPage {
    fn describe(sheet: &mut Sheet<'_>) {
        let text = schemars::json_schema!({ "type": "string" });
        sheet.answer(200, &[], Some(("application/openmetrics-text", text)));
    }
}

/// 200 if all is well, 503 with the same body if not.
#[derive(Clone, Debug)]
pub(crate) struct Ready(Readiness);

impl IntoResponse for Ready {
    fn into_response(self) -> Response {
        if self.0.status == "ok" {
            Json(self.0).into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, Json(self.0)).into_response()
        }
    }
}

impl Answers for Ready {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.json_answer::<Readiness>(200, &[]);
        sheet.json_answer::<Readiness>(503, &[]);
    }
}

pub(crate) async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api_features: API_FEATURES.iter().map(|&name| name.to_owned()).collect(),
        scopes: Scope::ALL
            .iter()
            .map(|scope| scope.as_str().to_owned())
            .collect(),
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
