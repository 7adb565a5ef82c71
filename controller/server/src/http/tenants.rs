//! `/v1/tenants`: what operators do with tenants, and `/v1/tenant`, what a tenant does with itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::TenantId;
use berth_api::rest::{
    ChangeOwnTenant, CreateTenant, ErrorCode, ListQuery, OverrideQuota, Page, SuspendTenant,
    TENANT_ACTIONS, Tenant, UsageReport,
};
use berth_controller_core::quota::{Ceilings, MAX_CEILING, QuotaScope, Resource};
use berth_controller_core::seed::{SSH_KEYS_RULE, are_ssh_keys};
use berth_controller_core::shape::{is_image_name, validate_names};
use berth_controller_core::slot::is_class_name;
use berth_controller_store::{
    CreateTenantDenied, NewOverride, NewTenant, Revoked, TenantChange, TenantProfile, Tier,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent, Shown};
use crate::http::body::{self, OptionalJson, QueryOf};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;

const MAX_DISPLAY_NAME_CHARS: usize = 200;
const MAX_EMAIL_CHARS: usize = 254;
const MAX_SLOT_CLASSES: usize = 64;
const MAX_IMAGES: usize = 1000;
const MAX_REASON_CHARS: usize = 500;
const OVERRIDE_S: std::ops::RangeInclusive<u64> = 60..=2_592_000;

/// `PATCH /v1/tenants/{tenant}`: what is not named stays; `null` takes a ceiling or a limit away.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeTenant {
    display_name: Option<String>,
    max_vms: Option<u32>,
    storage_quota_gb: Option<u32>,
    api_rate_limit_rpm: Option<u32>,
    slot_limits: Option<BTreeMap<String, u32>>,
    /// The ceilings that are not the tenant's own become this tier's.
    tier: Option<String>,
    #[serde(default, deserialize_with = "given")]
    max_running_vms: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    max_vcpus: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    max_memory_mb: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    max_images: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    max_tokens: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    max_creates_per_day: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    allowed_images: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "given")]
    allowed_actions: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "given")]
    email: Option<Option<String>>,
    labels: Option<BTreeMap<String, String>>,
    #[schemars(skip)]
    tenant_id: Option<serde::de::IgnoredAny>,
}

/// A member that is there, `null` or not; one that is not there is `None`.
pub(crate) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<CreateTenant>,
) -> Result<Created<Tenant>, ApiError> {
    let new = new_tenant(&app, body.value)?;
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

fn new_tenant(app: &App, asked: CreateTenant) -> Result<NewTenant, ApiError> {
    let tenant_id: TenantId = asked.tenant_id.parse().map_err(|_| bad_tenant_id())?;
    must_be_display_name(&asked.display_name)?;
    must_be_rate(asked.api_rate_limit_rpm)?;
    must_be_slot_limits(&asked.slot_limits)?;
    must_be_email(asked.email.as_deref())?;
    validate_names(None, Some(&asked.labels))?;
    must_be_images(asked.allowed_images.as_deref())?;
    must_be_actions(asked.allowed_actions.as_deref())?;
    must_be_ceiling("max_memory_mb", asked.max_memory_mb)?;
    let named = [
        (Resource::RunningVms, asked.max_running_vms.map(u64::from)),
        (Resource::Vcpus, asked.max_vcpus.map(u64::from)),
        (Resource::MemoryMb, asked.max_memory_mb),
        (Resource::Images, asked.max_images.map(u64::from)),
        (Resource::Tokens, asked.max_tokens.map(u64::from)),
        (
            Resource::CreatesPerDay,
            asked.max_creates_per_day.map(u64::from),
        ),
    ];
    let given = |(resource, ceiling): (Resource, Option<u64>)| Some((resource, Some(ceiling?)));
    Ok(NewTenant {
        tenant_id,
        display_name: asked.display_name,
        max_vms: asked.max_vms,
        storage_quota_gb: asked.storage_quota_gb,
        api_rate_limit_rpm: asked.api_rate_limit_rpm,
        slot_limits: asked.slot_limits,
        ceilings: named.into_iter().filter_map(given).collect(),
        profile: TenantProfile {
            tier: tier_of(app, asked.tier.as_deref())?,
            email: asked.email,
            labels: asked.labels,
            allowed_images: asked.allowed_images,
            allowed_actions: asked.allowed_actions,
        },
    })
}

fn tier_of(app: &App, name: Option<&str>) -> Result<Tier, ApiError> {
    app.tiers.named(name).cloned().ok_or_else(|| {
        let names = app.tiers.names().join(", ");
        ApiError::field("tier", &format!("must be one of: {names}"))
    })
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

pub(crate) fn must_be_display_name(name: &str) -> Result<(), ApiError> {
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

fn must_be_ceiling(field: &str, ceiling: Option<u64>) -> Result<(), ApiError> {
    match ceiling {
        Some(ceiling) if ceiling > MAX_CEILING => Err(ApiError::field(
            field,
            &format!("must be at most {MAX_CEILING}"),
        )),
        Some(_) | None => Ok(()),
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

fn must_be_email(email: Option<&str>) -> Result<(), ApiError> {
    let fits = |text: &str| {
        text.len() <= MAX_EMAIL_CHARS
            && !text.chars().any(|c| c.is_control() || c.is_whitespace())
            && text.split_once('@').is_some_and(|(name, host)| {
                !name.is_empty() && !host.is_empty() && !host.contains('@')
            })
    };
    match email {
        Some(text) if !fits(text) => Err(ApiError::field("email", "must be name@host")),
        Some(_) | None => Ok(()),
    }
}

fn must_be_images(images: Option<&[String]>) -> Result<(), ApiError> {
    match images {
        Some(names)
            if names.len() > MAX_IMAGES || names.iter().any(|name| !is_image_name(name)) =>
        {
            Err(ApiError::field(
                "allowed_images",
                "must name at most 1000 images",
            ))
        }
        Some(_) | None => Ok(()),
    }
}

fn must_be_actions(actions: Option<&[String]>) -> Result<(), ApiError> {
    let known = |name: &String| TENANT_ACTIONS.contains(&name.as_str());
    match actions {
        Some(names) if !names.iter().all(known) => Err(ApiError::field(
            "allowed_actions",
            &format!("must be of: {}", TENANT_ACTIONS.join(", ")),
        )),
        Some(_) | None => Ok(()),
    }
}

fn must_be_ssh_keys(keys: &[String]) -> Result<(), ApiError> {
    if are_ssh_keys(keys) {
        Ok(())
    } else {
        Err(ApiError::field("default_ssh_keys", SSH_KEYS_RULE))
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
    let change = change_of(&app, body.value)?;
    let tenant = apply(&app, &caller, tenant.tenant_id.clone(), if_match, change).await?;
    app.rates.set(&tenant.tenant_id, tenant.api_rate_limit_rpm);
    Ok(Shown(tenant))
}

fn change_of(app: &App, asked: ChangeTenant) -> Result<TenantChange, ApiError> {
    if asked.tenant_id.is_some() {
        return Err(ApiError::field_as(
            ErrorCode::FieldImmutable,
            "tenant_id",
            "a tenant's id never changes",
        ));
    }
    let display_name = asked.display_name.as_deref();
    display_name.map_or(Ok(()), must_be_display_name)?;
    asked.api_rate_limit_rpm.map_or(Ok(()), must_be_rate)?;
    let limits = asked.slot_limits.as_ref();
    limits.map_or(Ok(()), must_be_slot_limits)?;
    must_be_email(asked.email.as_ref().and_then(|email| email.as_deref()))?;
    validate_names(None, asked.labels.as_ref())?;
    must_be_images(
        asked
            .allowed_images
            .as_ref()
            .and_then(|list| list.as_deref()),
    )?;
    must_be_actions(
        asked
            .allowed_actions
            .as_ref()
            .and_then(|list| list.as_deref()),
    )?;
    let whole = |ceiling: Option<Option<u32>>| ceiling.map(|ceiling| ceiling.map(u64::from));
    let named = [
        (Resource::Vms, whole(asked.max_vms.map(Some))),
        (Resource::StorageGb, whole(asked.storage_quota_gb.map(Some))),
        (Resource::RunningVms, whole(asked.max_running_vms)),
        (Resource::Vcpus, whole(asked.max_vcpus)),
        (Resource::MemoryMb, asked.max_memory_mb),
        (Resource::Images, whole(asked.max_images)),
        (Resource::Tokens, whole(asked.max_tokens)),
        (Resource::CreatesPerDay, whole(asked.max_creates_per_day)),
    ];
    must_be_ceiling("max_memory_mb", asked.max_memory_mb.flatten())?;
    let ceilings: Ceilings = named
        .into_iter()
        .filter_map(|(resource, ceiling)| Some((resource, ceiling?)))
        .collect();
    Ok(TenantChange {
        display_name: asked.display_name,
        api_rate_limit_rpm: asked.api_rate_limit_rpm,
        ceilings,
        slot_limits: asked.slot_limits,
        tier: match asked.tier.as_deref() {
            None => None,
            name => Some(tier_of(app, name)?),
        },
        email: asked.email,
        labels: asked.labels,
        allowed_images: asked.allowed_images,
        allowed_actions: asked.allowed_actions,
        default_ssh_keys: None,
    })
}

async fn apply(
    app: &Arc<App>,
    caller: &Scoped,
    id: TenantId,
    if_match: IfMatch,
    change: TenantChange,
) -> Result<Tenant, ApiError> {
    let cause = caller.cause();
    app.write(move |tx| {
        if let Some(current) = tx.tenant(&id)?
            && let Err(stale) = if_match.check(&current)
        {
            return Ok(Err(stale));
        }
        let changed = tx.change_tenant(&id, change, &cause)?;
        Ok(changed.ok_or_else(ApiError::not_found))
    })
    .await?
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
    app.write(move |tx| {
        if let Some(current) = tx.tenant(&deleted)?
            && let Err(stale) = if_match.check(&current)
        {
            return Ok(Err(stale));
        }
        Ok(tx.delete_tenant(&deleted, &cause)?.map_err(ApiError::from))
    })
    .await??;
    app.rates.forget(&id);
    app.tokens.revoke(Some(id), &Revoked::Before(i64::MAX));
    Ok(NoContent)
}

pub(crate) async fn suspend(
    State(app): State<Arc<App>>,
    caller: Scoped,
    tenant: Owned<Tenant>,
    body: OptionalJson<SuspendTenant>,
) -> Result<Shown<Tenant>, ApiError> {
    set_suspended(&app, &caller, tenant, true, body.value.stop_vms).await
}

pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    caller: Scoped,
    tenant: Owned<Tenant>,
    _: body::NoBody,
) -> Result<Shown<Tenant>, ApiError> {
    set_suspended(&app, &caller, tenant, false, false).await
}

async fn set_suspended(
    app: &Arc<App>,
    caller: &Scoped,
    tenant: Owned<Tenant>,
    is_suspended: bool,
    stop_vms: bool,
) -> Result<Shown<Tenant>, ApiError> {
    let id = tenant.tenant_id.clone();
    let cause = caller.cause();
    let (tenant, wake) = app
        .write(move |tx| tx.suspend_tenant(&id, is_suspended, stop_vms, &cause))
        .await?
        .ok_or_else(ApiError::not_found)?;
    app.vms_changed(wake);
    Ok(Shown(tenant))
}

/// Another ceiling for a while; with no time it ends.
pub(crate) async fn override_quota(
    State(app): State<Arc<App>>,
    caller: Scoped,
    tenant: Owned<Tenant>,
    body: body::Json<OverrideQuota>,
) -> Result<Json<UsageReport>, ApiError> {
    let asked = body.value;
    let resource = Resource::of_name(&asked.resource)
        .ok_or_else(|| ApiError::field("resource", "name one that GET /v1/usage lists"))?;
    must_be_ceiling("limit", Some(asked.limit))?;
    if !(1..=MAX_REASON_CHARS).contains(&asked.reason.chars().count()) {
        return Err(ApiError::field("reason", "must be 1 to 500 characters"));
    }
    let new = match asked.expires_in_seconds {
        0 => None,
        seconds if OVERRIDE_S.contains(&seconds) => {
            let ms = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
            Some(NewOverride {
                limit: asked.limit,
                until: jiff::Timestamp::now().as_millisecond().saturating_add(ms),
                reason: asked.reason,
            })
        }
        _ => {
            return Err(ApiError::field(
                "expires_in_seconds",
                "must be 60 to 2592000, or 0 to end the override",
            ));
        }
    };
    let scope = QuotaScope {
        tenant: tenant.tenant_id.clone(),
        project: None,
    };
    let cause = caller.cause();
    app.write(move |tx| {
        if !tx.override_quota(&scope.tenant, &resource, new.as_ref(), &cause)? {
            return Ok(Err(ApiError::field(
                "resource",
                "the tenant has no such resource; set its ceiling first",
            )));
        }
        Ok(tx.usage(&scope)?.ok_or_else(ApiError::not_found))
    })
    .await?
    .map(Json)
}

/// The caller's own tenant.
pub(crate) async fn own(
    State(app): State<Arc<App>>,
    caller: Scoped,
) -> Result<Shown<Tenant>, ApiError> {
    let id = caller.tenant()?.clone();
    app.read(move |db| db.tenant(&id))
        .await?
        .map(Shown)
        .ok_or_else(ApiError::not_found)
}

/// What a tenant may change of itself: nothing that it is bound by.
pub(crate) async fn change_own(
    State(app): State<Arc<App>>,
    caller: Scoped,
    if_match: IfMatch,
    body: body::Json<ChangeOwnTenant>,
) -> Result<Shown<Tenant>, ApiError> {
    let asked = body.value;
    must_be_display_name(&asked.display_name)?;
    must_be_email(asked.email.as_deref())?;
    must_be_ssh_keys(&asked.default_ssh_keys)?;
    let change = TenantChange {
        display_name: Some(asked.display_name),
        email: Some(asked.email),
        default_ssh_keys: Some(asked.default_ssh_keys),
        ..TenantChange::default()
    };
    let id = caller.tenant()?.clone();
    apply(&app, &caller, id, if_match, change).await.map(Shown)
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
