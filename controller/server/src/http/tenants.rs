//! `/v1/tenants` and `/v1/usage`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::TenantId;
use berth_api::rest::{CreateTenant, ErrorCode, ListQuery, Page, Tenant, UsageReport};
use berth_controller_core::quota::{Ceilings, QuotaScope, Resource};
use berth_controller_core::slot::is_class_name;
use berth_controller_store::{CreateTenantDenied, NewTenant, TenantChange, TenantProfile};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent, Shown};
use crate::http::body::{self, QueryOf};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;

const MAX_DISPLAY_NAME_CHARS: usize = 200;
const MAX_SLOT_CLASSES: usize = 64;

/// `PATCH /v1/tenants/{tenant}`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeTenant {
    display_name: Option<String>,
    max_vms: Option<u32>,
    storage_quota_gb: Option<u32>,
    api_rate_limit_rpm: Option<u32>,
    slot_limits: Option<BTreeMap<String, u32>>,
    #[schemars(skip)]
    tenant_id: Option<serde::de::IgnoredAny>,
}

/// `GET /v1/usage`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsageQuery {
    tenant_id: Option<String>,
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<CreateTenant>,
) -> Result<Created<Tenant>, ApiError> {
    let tenant_id: TenantId = body.value.tenant_id.parse().map_err(|_| bad_tenant_id())?;
    must_be_display_name(&body.value.display_name)?;
    must_be_rate(body.value.api_rate_limit_rpm)?;
    must_be_slot_limits(&body.value.slot_limits)?;
    let new = NewTenant {
        tenant_id,
        display_name: body.value.display_name,
        max_vms: body.value.max_vms,
        storage_quota_gb: body.value.storage_quota_gb,
        api_rate_limit_rpm: body.value.api_rate_limit_rpm,
        slot_limits: body.value.slot_limits,
        ceilings: Ceilings::new(),
        profile: TenantProfile::default(),
    };
    let key = idempotency.key(&caller, &body.bytes);
    let cause = caller.cause();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| Ok(tx.create_tenant(new, &cause)?.map_err(exists)),
        Clone::clone,
    )
    .await?;
    Ok(done.answer(|tenant| {
        let location = format!("/v1/tenants/{}", tenant.tenant_id);
        Created::at(tenant, location)
    }))
}

fn exists(denied: CreateTenantDenied) -> ApiError {
    match denied {
        CreateTenantDenied::Exists(_) => ApiError::new(
            ErrorCode::TenantExists,
            "a tenant of that id exists already",
            "Choose another id, or change the tenant with PATCH.",
        ),
        CreateTenantDenied::Tombstone(_) => ApiError::new(
            ErrorCode::TenantExists,
            "a tenant of that id existed, and ids are never used again",
            "Choose another id.",
        ),
    }
}

fn bad_tenant_id() -> ApiError {
    let rule = berth_api::ids::ParseTenantIdError.to_string();
    ApiError::field_as(ErrorCode::InvalidTenantId, "tenant_id", &rule)
}

fn must_be_display_name(name: &str) -> Result<(), ApiError> {
    let fits = (1..=MAX_DISPLAY_NAME_CHARS).contains(&name.chars().count());
    if fits && !name.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(ApiError::field(
            "display_name",
            "must be 1 to 200 characters, none of them control characters",
        ))
    }
}

fn must_be_rate(rpm: u32) -> Result<(), ApiError> {
    if rpm == 0 {
        Err(ApiError::field("api_rate_limit_rpm", "must be at least 1"))
    } else {
        Ok(())
    }
}

fn must_be_slot_limits(limits: &BTreeMap<String, u32>) -> Result<(), ApiError> {
    if limits.len() > MAX_SLOT_CLASSES {
        return Err(ApiError::field(
            "slot_limits",
            "must name at most 64 classes",
        ));
    }
    match limits.keys().find(|class| !is_class_name(class)) {
        None => Ok(()),
        Some(_) => Err(ApiError::field(
            "slot_limits",
            "a class has 1 to 64 lower-case letters, digits, dots, hyphens and underscores, and begins with one of the first two",
        )),
    }
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Tenant>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenants = app.read(move |db| db.tenants(&after, limit + 1)).await?;
    Ok(page(tenants, limit, |tenant| tenant.tenant_id.to_string()))
}

pub(crate) async fn get(tenant: Owned<Tenant>) -> Shown<Tenant> {
    Shown(tenant.into_inner())
}

pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Scoped,
    tenant: Owned<Tenant>,
    if_match: IfMatch,
    body: body::Json<ChangeTenant>,
) -> Result<Shown<Tenant>, ApiError> {
    let asked = body.value;
    if asked.tenant_id.is_some() {
        return Err(ApiError::field_as(
            ErrorCode::FieldImmutable,
            "tenant_id",
            "a tenant's id never changes",
        ));
    }
    asked
        .display_name
        .as_deref()
        .map_or(Ok(()), must_be_display_name)?;
    asked.api_rate_limit_rpm.map_or(Ok(()), must_be_rate)?;
    asked
        .slot_limits
        .as_ref()
        .map_or(Ok(()), must_be_slot_limits)?;
    let id = tenant.tenant_id.clone();
    let named = [
        (Resource::Vms, asked.max_vms),
        (Resource::StorageGb, asked.storage_quota_gb),
    ];
    let change = TenantChange {
        display_name: asked.display_name,
        api_rate_limit_rpm: asked.api_rate_limit_rpm,
        ceilings: named
            .into_iter()
            .filter_map(|(resource, ceiling)| Some((resource, Some(ceiling?.into()))))
            .collect(),
        slot_limits: asked.slot_limits,
        ..TenantChange::default()
    };
    let cause = caller.cause();
    let tenant = app
        .write(move |tx| {
            if let Some(current) = tx.tenant(&id)?
                && let Err(stale) = if_match.check(&current)
            {
                return Ok(Err(stale));
            }
            let changed = tx.change_tenant(&id, change, &cause)?;
            Ok(changed.ok_or_else(ApiError::not_found))
        })
        .await??;
    app.rates.set(&tenant.tenant_id, tenant.api_rate_limit_rpm);
    Ok(Shown(tenant))
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Scoped,
    tenant: Owned<Tenant>,
    if_match: IfMatch,
) -> Result<NoContent, ApiError> {
    let id = tenant.tenant_id.clone();
    let cause = caller.cause();
    let deleted = id.clone();
    let tokens = app
        .write(move |tx| {
            if let Some(current) = tx.tenant(&deleted)?
                && let Err(stale) = if_match.check(&current)
            {
                return Ok(Err(stale));
            }
            let outcome = tx.delete_tenant(&deleted, &cause)?;
            let tokens = tx.token_ids(&deleted)?;
            Ok(outcome.map(|()| tokens).map_err(ApiError::from))
        })
        .await??;
    app.revoke(tokens);
    app.rates.forget(&id);
    Ok(NoContent)
}

pub(crate) async fn usage(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<UsageQuery>,
) -> Result<Json<UsageReport>, ApiError> {
    let tenant = namespace_or_named(&caller, query.tenant_id.as_deref())?
        .ok_or_else(|| ApiError::field("tenant_id", "is required of an operator"))?;
    let scope = QuotaScope {
        tenant,
        project: None,
    };
    app.read(move |db| db.usage(&scope))
        .await?
        .map(Json)
        .ok_or_else(ApiError::not_found)
}

/// The namespace of a read: a tenant's own, whatever it names; for an operator the one it names, or
/// all.
pub(crate) fn namespace_or_named(
    caller: &Scoped,
    named: Option<&str>,
) -> Result<Option<TenantId>, ApiError> {
    match (caller.namespace(), named) {
        (Some(own), Some(named)) if own.as_str() != named => Err(ApiError::field_as(
            ErrorCode::TenantMismatch,
            "tenant_id",
            "names another tenant than the token; leave it out",
        )),
        (Some(own), _) => Ok(Some(own.clone())),
        (None, Some(named)) => named.parse().map(Some).map_err(|_| bad_tenant_id()),
        (None, None) => Ok(None),
    }
}
