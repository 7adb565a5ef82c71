//! `/v1/usage`, `/v1/status`: ceilings, and what is charged against them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use berth_api::ids::ProjectId;
use berth_api::rest::{Tenant, TenantStatus, UsageReport};
use berth_controller_core::authority::Permission;
use berth_controller_core::quota::QuotaScope;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body::QueryOf;
use crate::http::gate::Scoped;
use crate::http::owned::Owned;
use crate::http::tenants::namespace_or_named;

/// `GET /v1/usage`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsageQuery {
    /// Required of operators: which tenant's.
    tenant_id: Option<String>,
    /// Only what this project is charged for.
    project_id: Option<String>,
}

pub(crate) async fn usage(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<UsageQuery>,
) -> Result<Json<UsageReport>, ApiError> {
    let tenant = namespace_or_named(&caller, query.tenant_id.as_deref())?
        .ok_or_else(|| ApiError::field("tenant_id", "is required of an operator"))?;
    let project = query.project_id.as_deref().map(project_named).transpose()?;
    match &project {
        Some(project) => caller.permits(project, Permission::VmRead)?,
        None if caller.only_projects().is_some() => {
            return Err(ApiError::field(
                "project_id",
                "is required of a service account",
            ));
        }
        None => {}
    }
    report(&app, QuotaScope { tenant, project }).await
}

pub(crate) async fn of_tenant(
    State(app): State<Arc<App>>,
    tenant: Owned<Tenant>,
) -> Result<Json<UsageReport>, ApiError> {
    let scope = QuotaScope {
        tenant: tenant.tenant_id.clone(),
        project: None,
    };
    report(&app, scope).await
}

async fn report(app: &Arc<App>, scope: QuotaScope) -> Result<Json<UsageReport>, ApiError> {
    app.read(move |db| db.usage(&scope))
        .await?
        .map(Json)
        .ok_or_else(ApiError::not_found)
}

/// What is no project's id is no project.
fn project_named(text: &str) -> Result<ProjectId, ApiError> {
    text.parse().map_err(|_| ApiError::not_found())
}

/// In short, for a glance or a monitor.
pub(crate) async fn status(
    State(app): State<Arc<App>>,
    caller: Scoped,
) -> Result<Json<TenantStatus>, ApiError> {
    let tenant = caller.tenant()?.clone();
    let scope = QuotaScope {
        tenant: tenant.clone(),
        project: None,
    };
    let found = app
        .read(move |db| {
            let Some(standing) = db.tenant_standing(&scope.tenant)? else {
                return Ok(None);
            };
            let vms = db.vm_counts(&scope.tenant)?;
            Ok(db.usage(&scope)?.map(|usage| (standing, vms, usage)))
        })
        .await?;
    let (standing, vms, usage) = found.ok_or_else(ApiError::not_found)?;
    let running = vms.get("running").copied().unwrap_or(0);
    Ok(Json(TenantStatus {
        tenant_id: tenant,
        suspended: standing.is_suspended,
        vms_running: running,
        vms_total: vms.values().sum(),
        vms,
        over_limit: usage.over_limit,
        items: usage.items,
    }))
}
