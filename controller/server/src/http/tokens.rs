//! `/v1/tenants/{tenant}/tokens` and `/v1/tokens`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::{TenantId, TokenId};
use berth_api::rest::{
    ErrorCode, IssueToken, IssuedToken, ListQuery, OneOrMany, Page, RevokeTokens, TokenRecord,
    VerifiedToken, VerifyToken,
};
use berth_controller_store::{NewTokenRecord, RecordTokenDenied, RevokeDenied, Revoked};
use berth_token::{MAX_DELEGATIONS, MintError, NewLink, Resources, Scope, ScopeSet, SubjectKey};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent};
use crate::http::body::{self, QueryOf};
use crate::http::gate::{Scoped, check_guest, check_token};
use crate::http::once::{Idempotency, once};
use crate::http::owned::InNamespace;
use crate::http::page::{limit_of, page};
use crate::http::tenants::namespace_or_named;
use crate::token_book;

const LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=2_592_000;
const MAX_LABEL_CHARS: usize = 200;
const MAX_REASON_CHARS: usize = 500;

/// Seconds since the epoch as RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339_s(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map(|time| format!("{time:.3}"))
        .unwrap_or_default()
}

/// `POST /v1/tenants/{tenant}/tokens`
pub(crate) async fn issue(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<IssueToken>,
) -> Result<Created<IssuedToken>, ApiError> {
    let tenant = caller.tenant()?.clone();
    if body
        .value
        .tenant_id
        .as_deref()
        .is_some_and(|named| named != tenant.as_str())
    {
        return Err(ApiError::field_as(
            ErrorCode::TenantMismatch,
            "tenant_id",
            "names another tenant than the path; leave it out",
        ));
    }
    issue_to(app, caller, tenant, idempotency, body).await
}

/// `POST /v1/tokens`
pub(crate) async fn issue_here(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<IssueToken>,
) -> Result<Created<IssuedToken>, ApiError> {
    let tenant = namespace_or_named(&caller, body.value.tenant_id.as_deref())?
        .ok_or_else(|| ApiError::field("tenant_id", "is required of an operator"))?;
    issue_to(app, caller, tenant, idempotency, body).await
}

async fn issue_to(
    app: Arc<App>,
    caller: Scoped,
    tenant: TenantId,
    idempotency: Idempotency,
    body: body::Json<IssueToken>,
) -> Result<Created<IssuedToken>, ApiError> {
    let key = idempotency.key(&caller, &body.bytes);
    let link = link_for(&app, &caller, &tenant, &body.value)?;
    // A wrong label must not cost a signature.
    let label = checked_text("label", body.value.label, MAX_LABEL_CHARS)?;
    let token = mint(&app, &link)?;
    let record = NewTokenRecord {
        token_id: link.token_id,
        tenant_id: Some(tenant.clone()),
        scope: link.scopes.to_texts(),
        resources: link.resources.as_ref().map(Resources::to_texts),
        requires_pop: link.requires_pop,
        subject_pubkey: link.holder.to_base64url(),
        label,
        issued_at_s: link.not_before,
        expires_at_s: link.expires_at,
        vm_id: None,
    };
    let issued = IssuedToken {
        token,
        token_id: link.token_id,
        tenant_id: tenant,
        scope: record.scope.clone(),
        resources: record.resources.clone(),
        require_pop: link.requires_pop,
        subject_pubkey: record.subject_pubkey.clone(),
        issued_at: rfc3339_s(link.not_before),
        expires_at: rfc3339_s(link.expires_at),
    };
    let cause = caller.cause();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| {
            Ok(match tx.record_token(&record, &cause)? {
                Ok(()) => Ok(issued),
                Err(denied) => Err(not_recorded(denied)),
            })
        },
        // A secret is not kept for a replay: it tells which token the first answer carried.
        |issued| IssuedToken {
            token: String::new(),
            ..issued.clone()
        },
    )
    .await?;
    Ok(done.answer(Created::new))
}

pub(crate) fn not_recorded(denied: RecordTokenDenied) -> ApiError {
    match denied {
        RecordTokenDenied::NoTenant => ApiError::not_found(),
        RecordTokenDenied::Quota(denied) => denied.into(),
    }
}

pub(crate) fn mint(app: &App, link: &NewLink) -> Result<String, ApiError> {
    app.root_key.mint(link).map_err(|error| match error {
        MintError::TooLong => ApiError::field("resources", &error.to_string()),
        MintError::MixedScopes
        | MintError::NoLifetime
        | MintError::Delegations
        | MintError::Claims(_)
        | MintError::Sign(_) => {
            tracing::error!(%error, "a token could not be minted");
            ApiError::internal()
        }
    })
}

fn link_for(
    app: &App,
    caller: &Scoped,
    tenant: &TenantId,
    asked: &IssueToken,
) -> Result<NewLink, ApiError> {
    let holder = SubjectKey::parse(&asked.subject_pubkey)
        .map_err(|error| ApiError::field("subject_pubkey", &error.to_string()))?;
    let now = begin_for(app, tenant, &holder)?;
    let delegations = delegations_for(caller, asked)?;
    let scopes = scopes_for(caller, asked.scope.clone())?;
    let resources = asked
        .resources
        .as_deref()
        .map(Resources::parse)
        .transpose()
        .map_err(|error| ApiError::field("resources", &error.to_string()))?;
    Ok(NewLink {
        token_id: TokenId::generate(),
        tenant: Some(tenant.clone()),
        holder,
        scopes,
        resources,
        not_before: now,
        expires_at: expiry_for(caller, asked.expires_in_seconds, now)?,
        delegations,
        // Who must sign its own requests does not issue what need not.
        requires_pop: asked.require_pop.unwrap_or_default() || caller.grant.requires_pop,
    })
}

/// When a token of this holder begins, seconds since the epoch.
pub(crate) fn begin_for(
    app: &App,
    tenant: &TenantId,
    holder: &SubjectKey,
) -> Result<i64, ApiError> {
    let (epoch, is_revoked) = app.tokens.with(|revoked| {
        let is_revoked = revoked.is_holder_revoked(Some(tenant), holder);
        (revoked.epoch(Some(tenant)), is_revoked)
    });
    if is_revoked {
        return Err(ApiError::field(
            "subject_pubkey",
            "this holder was revoked; use a new key",
        ));
    }
    // A token that was revoked together with all before it must not hide one issued in that second.
    Ok(jiff::Timestamp::now().as_second().max(epoch))
}

/// What the caller may give away, all of it covered by what it has itself.
pub(crate) fn scopes_for(caller: &Scoped, asked: OneOrMany) -> Result<ScopeSet, ApiError> {
    let scopes = ScopeSet::parse(&asked.into_vec())
        .map_err(|error| ApiError::field("scope", &error.to_string()))?;
    if scopes.iter().any(Scope::is_platform) {
        return Err(ApiError::field(
            "scope",
            "a tenant's token carries no operator's scope",
        ));
    }
    if scopes.iter().any(|scope| scope == Scope::VmGuest) {
        return Err(ApiError::field(
            "scope",
            "a guest's token is made for one VM: POST /v1/vms/{vm}/guest-tokens",
        ));
    }
    let missing = scopes
        .iter()
        .find(|wanted| !caller.grant.scopes.covers(*wanted));
    match missing {
        Some(missing) => Err(ApiError::permission_denied(missing)),
        None => Ok(scopes),
    }
}

/// When a token ends that shall live for so many seconds from now, seconds since the epoch.
pub(crate) fn expiry_for(caller: &Scoped, lifetime_s: u64, now: i64) -> Result<i64, ApiError> {
    if !LIFETIME_S.contains(&lifetime_s) {
        return Err(ApiError::field(
            "expires_in_seconds",
            "must be 60 to 2592000",
        ));
    }
    let lifetime = i64::try_from(lifetime_s).unwrap_or(i64::MAX);
    let expires_at = now.saturating_add(lifetime);
    if caller.namespace().is_some() && expires_at > caller.grant.expires_at {
        return Err(ApiError::field(
            "expires_in_seconds",
            "the new token may not outlive the one that issues it",
        ));
    }
    Ok(expires_at)
}

/// A tenant's token that cannot be narrowed further cannot be gone round by issuing another.
fn delegations_for(caller: &Scoped, asked: &IssueToken) -> Result<u8, ApiError> {
    let most = match caller.namespace() {
        None => Some(MAX_DELEGATIONS),
        Some(_) => caller
            .grant
            .delegations
            .checked_sub(1)
            .map(|_| caller.grant.delegations),
    };
    let Some(most) = most else {
        return Err(issues_none());
    };
    let wanted = asked.delegations.unwrap_or(most);
    if wanted > most {
        return Err(ApiError::field(
            "delegations",
            &format!("must be 0 to {most}"),
        ));
    }
    Ok(wanted)
}

/// Whether the caller may let others have tokens at all.
pub(crate) fn must_issue(caller: &Scoped) -> Result<(), ApiError> {
    if caller.namespace().is_some() && caller.grant.delegations == 0 {
        Err(issues_none())
    } else {
        Ok(())
    }
}

fn issues_none() -> ApiError {
    ApiError::new(
        ErrorCode::PermissionDenied,
        "the token may not be narrowed, so it issues no others",
        "Ask whoever issued it for another token.",
    )
}

pub(crate) fn checked_text(
    field: &str,
    text: Option<String>,
    max_chars: usize,
) -> Result<Option<String>, ApiError> {
    match text {
        Some(text) if text.chars().count() > max_chars => Err(ApiError::field(
            field,
            &format!("must be at most {max_chars} characters"),
        )),
        Some(_) | None => Ok(text),
    }
}

/// `GET /v1/tenants/{tenant}/tokens`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<TokenRecord>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = caller.tenant()?.clone();
    // What this process has seen is shown at once.
    token_book::write_uses(&app).await;
    let tokens = app
        .read(move |db| match db.tenant(&tenant)? {
            None => Ok(None),
            Some(_) => db.tokens(&tenant, &after, limit + 1).map(Some),
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(page(tokens, limit, |token| token.token_id.to_string()))
}

/// `POST /v1/tokens/verify`
pub(crate) async fn verify(
    State(app): State<Arc<App>>,
    caller: Scoped,
    body: body::Json<VerifyToken>,
) -> Result<Json<VerifiedToken>, ApiError> {
    let grant = check_token(&app, &body.value.token)?;
    let guest = check_guest(&app, &grant).await;
    // Of another tenant's token nobody learns more than that it is none of theirs.
    if caller.namespace().is_some() && grant.tenant.as_ref() != caller.namespace() {
        return Err(ApiError::new(
            ErrorCode::InvalidToken,
            "Invalid token",
            "Use a token that this controller issued.",
        ));
    }
    guest?;
    Ok(Json(VerifiedToken {
        valid: true,
        tenant_id: grant.tenant,
        scope: grant.scopes.to_texts(),
        resources: grant.resources.as_ref().map(Resources::to_texts),
        require_pop: grant.requires_pop,
        subject_pubkey: grant.holder.to_base64url(),
        token_ids: grant.token_ids,
        expires_at: rfc3339_s(grant.expires_at),
    }))
}

/// `DELETE /v1/tokens/{token}`
pub(crate) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Scoped,
    token: InNamespace<TokenId>,
) -> Result<NoContent, ApiError> {
    let InNamespace { namespace, id } = token;
    let cause = caller.cause();
    let owner = app
        .write(move |tx| tx.revoke_token(namespace.as_ref(), id, None, &cause))
        .await?
        .map_err(|denied| not_revoked(&denied))?;
    app.tokens.revoke(owner, &Revoked::Link(id));
    Ok(NoContent)
}

/// `POST /v1/tokens/revoke`
pub(crate) async fn revoke_any(
    State(app): State<Arc<App>>,
    caller: Scoped,
    body: body::Json<RevokeTokens>,
) -> Result<NoContent, ApiError> {
    let asked = body.value;
    let tenant = namespace_or_named(&caller, asked.tenant_id.as_deref())?;
    let reason = checked_text("reason", asked.reason.clone(), MAX_REASON_CHARS)?;
    let revoked = what_to_revoke(&asked)?;
    let cause = caller.cause();
    let (of, what) = (tenant.clone(), revoked.clone());
    let done = app
        .write(move |tx| {
            if let Some(tenant) = &of
                && tx.tenant(tenant)?.is_none()
            {
                return Ok(Err(RevokeDenied::NotFound));
            }
            tx.revoke(of.as_ref(), &what, reason.as_deref(), &cause)
        })
        .await?;
    done.map_err(|denied| not_revoked(&denied))?;
    app.tokens.revoke(tenant, &revoked);
    Ok(NoContent)
}

fn what_to_revoke(asked: &RevokeTokens) -> Result<Revoked, ApiError> {
    match (asked.token_id, &asked.subject_pubkey, asked.all) {
        (Some(id), None, None) => Ok(Revoked::Link(id)),
        (None, Some(key), None) => SubjectKey::parse(key)
            .map(|key| Revoked::Holder(key.to_base64url()))
            .map_err(|error| ApiError::field("subject_pubkey", &error.to_string())),
        // Tokens of this very second are meant too.
        (None, None, Some(true)) => Ok(Revoked::Before(
            jiff::Timestamp::now().as_second().saturating_add(1),
        )),
        _ => Err(ApiError::field(
            "token_id",
            "give exactly one of `token_id`, `subject_pubkey` and `\"all\": true`",
        )),
    }
}

pub(crate) fn not_revoked(denied: &RevokeDenied) -> ApiError {
    match denied {
        RevokeDenied::NotFound => ApiError::not_found(),
        RevokeDenied::TooMany => ApiError::new(
            ErrorCode::InvalidState,
            denied.to_string(),
            "Revoke all tokens at once with `\"all\": true` and issue those that are still wanted.",
        ),
    }
}
