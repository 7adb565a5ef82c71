//! `/v1/audit`: the ledger as its readers see it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use berth_api::rest::{AuditEntry, AuditHead, AuditQuery, Page};
use berth_controller_store::EntryFilter;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body::QueryOf;
use crate::http::gate::Scoped;
use crate::http::page::{limit_of, page};
use crate::http::tenants::namespace_or_named;

pub(crate) async fn entries(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<AuditQuery>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let vm_id = query
        .vm_id
        .map(|text| text.parse())
        .transpose()
        .map_err(|_| ApiError::field("vm_id", "must be a VM's id"))?;
    let filter = EntryFilter {
        tenant_id: namespace_or_named(&caller, query.tenant_id.as_deref())?,
        event_type: query.event_type,
        vm_id,
        since_index: query.since_index.unwrap_or(0),
        limit: limit + 1,
    };
    let entries = app.read(move |db| db.entries(&filter)).await?;
    // The next page begins with the index after the last one: pass it as `since_index`.
    Ok(page(entries, limit, |entry| {
        entry.index.saturating_add(1).to_string()
    }))
}

pub(crate) async fn head(
    State(app): State<Arc<App>>,
    _caller: Scoped,
) -> Result<Json<AuditHead>, ApiError> {
    let key = app.store.ledger_key();
    app.read(move |db| db.audit_head(&key)).await.map(Json)
}
