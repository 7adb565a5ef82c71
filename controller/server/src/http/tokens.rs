//! `/v1/tenants/{tenant}/tokens` and `/v1/tokens/{token}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::TokenId;
use berth_api::rest::{IssueToken, IssuedToken, ListQuery, Page, TokenRecord};
use berth_controller_store::NewTokenRecord;
use berth_token::{NewLink, Scope, ScopeSet, SubjectKey};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent};
use crate::http::body::{self, QueryOf};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::InNamespace;
use crate::http::page::{limit_of, page};

const LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=2_592_000;
const MAX_LABEL_CHARS: usize = 200;

/// Seconds since the epoch as RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339_s(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map(|time| format!("{time:.3}"))
        .unwrap_or_default()
}

pub(crate) async fn issue(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<IssueToken>,
) -> Result<Created<IssuedToken>, ApiError> {
    let key = idempotency.key(&caller, &body.bytes);
    let link = link_for(&caller, body.value.clone())?;
    // A wrong label must not cost a signature.
    let label = checked_label(body.value.label)?;
    let token = app.root_key.mint(&link).map_err(|error| {
        tracing::error!(%error, "a token could not be minted");
        ApiError::internal()
    })?;
    let tenant = caller.tenant()?.clone();
    let record = NewTokenRecord {
        token_id: link.token_id,
        tenant_id: Some(tenant.clone()),
        scope: link.scopes.to_texts(),
        subject_pubkey: link.holder.to_base64url(),
        label,
        issued_at_s: link.not_before,
        expires_at_s: link.expires_at,
    };
    let issued = IssuedToken {
        token,
        token_id: link.token_id,
        tenant_id: tenant,
        scope: record.scope.clone(),
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
                true => Ok(issued),
                false => Err(ApiError::not_found()),
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

fn link_for(caller: &Scoped, asked: IssueToken) -> Result<NewLink, ApiError> {
    let holder = SubjectKey::parse(&asked.subject_pubkey)
        .map_err(|error| ApiError::field("subject_pubkey", &error.to_string()))?;
    let scopes = ScopeSet::parse(&asked.scope.into_vec())
        .map_err(|error| ApiError::field("scope", &error.to_string()))?;
    if scopes.iter().any(Scope::is_platform) {
        return Err(ApiError::field(
            "scope",
            "a tenant's token carries no operator's scope",
        ));
    }
    if let Some(missing) = scopes
        .iter()
        .find(|wanted| !caller.grant.scopes.covers(*wanted))
    {
        return Err(ApiError::permission_denied(missing));
    }
    if !LIFETIME_S.contains(&asked.expires_in_seconds) {
        return Err(ApiError::field(
            "expires_in_seconds",
            "must be 60 to 2592000",
        ));
    }
    let now = jiff::Timestamp::now().as_second();
    let lifetime = i64::try_from(asked.expires_in_seconds).unwrap_or(i64::MAX);
    let expires_at = now.saturating_add(lifetime);
    if caller.namespace().is_some() && expires_at > caller.grant.expires_at {
        return Err(ApiError::field(
            "expires_in_seconds",
            "the new token may not outlive the one that issues it",
        ));
    }
    Ok(NewLink {
        token_id: TokenId::generate(),
        tenant: Some(caller.tenant()?.clone()),
        holder,
        scopes,
        not_before: now,
        expires_at,
    })
}

fn checked_label(label: Option<String>) -> Result<Option<String>, ApiError> {
    match label {
        Some(text) if text.chars().count() > MAX_LABEL_CHARS => {
            Err(ApiError::field("label", "must be at most 200 characters"))
        }
        Some(_) | None => Ok(label),
    }
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<TokenRecord>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = caller.tenant()?.clone();
    let tokens = app
        .read(move |db| match db.tenant(&tenant)? {
            None => Ok(None),
            Some(_) => db.tokens(&tenant, &after, limit + 1).map(Some),
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(page(tokens, limit, |token| token.token_id.to_string()))
}

pub(crate) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Scoped,
    token: InNamespace<TokenId>,
) -> Result<NoContent, ApiError> {
    let InNamespace { namespace, id } = token;
    let cause = caller.cause();
    let found = app
        .write(move |tx| tx.revoke_token(namespace.as_ref(), id, &cause))
        .await?;
    if !found {
        return Err(ApiError::not_found());
    }
    app.revoke([id]);
    Ok(NoContent)
}
