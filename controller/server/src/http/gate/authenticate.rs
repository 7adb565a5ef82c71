//! Who calls: the bearer token of a request, checked, and the signature of the request where the
//! token demands one. Namespace and permission are the gate's.
//!
//! In this order: what a request costs is bounded, the token's signatures and times, whether it was
//! revoked, the request's own signature. The answer says no more than `invalid_token`, but for a token
//! that was once good.

use std::net::IpAddr;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, header};
use berth_api::rest::ErrorCode;
use berth_controller_store::{Cause, DerivedToken};
use berth_token::pop::{self, NONCE_KEPT_SECONDS, Proof, ProofHeaders, SignedRequest};
use berth_token::{Grant, Resources, VerifyError};

use super::{guests, rate};
use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body;

/// What the request's token allows, and the request as it was.
pub(super) async fn authenticate(
    app: &App,
    source: IpAddr,
    request: Request,
) -> Result<(Grant, Request), ApiError> {
    let token = bearer_token(request.headers())?.to_owned();
    rate::of_address(app, source)?;
    let grant = check(app, &token).map_err(|error| rate::of_failure(app, source, error))?;
    let request = if grant.requires_pop {
        prove(app, &grant, request)
            .await
            .map_err(|error| rate::of_failure(app, source, error))?
    } else {
        request
    };
    guests::alive(app, &grant)
        .await
        .map_err(|error| rate::of_failure(app, source, error))?;
    app.tokens.used(&grant);
    Ok((grant, request))
}

/// What a token allows, or why it allows nothing.
pub(crate) fn check(app: &App, token: &str) -> Result<Grant, ApiError> {
    let now = jiff::Timestamp::now().as_second();
    let grant = app.verifier.verify(token, now).map_err(|error| {
        tracing::debug!(reason = %error, "a token was refused");
        match error {
            VerifyError::Expired { .. } => expired(),
            VerifyError::Malformed
            | VerifyError::Signature
            | VerifyError::Claims
            | VerifyError::NotNarrower(_)
            | VerifyError::Audience
            | VerifyError::NotYetValid => invalid(),
        }
    })?;
    if app.tokens.refuses(&grant) {
        return Err(revoked());
    }
    Ok(grant)
}

/// Whether a token that was good still is; whatever lasts asks this while it lasts.
pub(crate) fn still_good(app: &App, grant: &Grant) -> Result<(), ApiError> {
    if jiff::Timestamp::now().as_second() >= grant.expires_at {
        return Err(expired());
    }
    if app.tokens.refuses(grant) {
        return Err(revoked());
    }
    Ok(())
}

/// Write down a link that its holder derived, the first time that it is used. A read goes on if it
/// cannot be written; a change could not be made either.
pub(super) async fn note_first_use(
    app: &App,
    grant: &Grant,
    method: &Method,
    cause: Cause,
) -> Result<(), ApiError> {
    let Some((token_id, parents)) = grant.token_ids.split_last() else {
        return Ok(());
    };
    if app.tokens.knows(grant) {
        return Ok(());
    }
    let seen = DerivedToken {
        token_id: *token_id,
        tenant_id: grant.tenant.clone(),
        parent_ids: parents.to_vec(),
        scope: grant.scopes.to_texts(),
        resources: grant.resources.as_ref().map(Resources::to_texts),
        requires_pop: grant.requires_pop,
        subject_pubkey: grant.holder.to_base64url(),
        expires_at_s: grant.expires_at,
    };
    match app.write(move |tx| tx.record_derived(&seen, &cause)).await {
        Ok(()) => {
            app.tokens.learn_derived(grant);
            Ok(())
        }
        Err(_) if is_read(method) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

fn bearer_token(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || {
        ApiError::new(
            ErrorCode::Unauthorized,
            "Unauthorized",
            "Send `Authorization: Bearer <token>`.",
        )
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(invalid());
    }
    let text = value.to_str().map_err(|_| invalid())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    Ok(token)
}

fn invalid() -> ApiError {
    ApiError::new(
        ErrorCode::InvalidToken,
        "Invalid token",
        "Use a token that this controller issued.",
    )
}

fn expired() -> ApiError {
    ApiError::new(
        ErrorCode::TokenExpired,
        "the token has expired",
        "Ask for a new token.",
    )
}

/// The token was revoked, or its tenant is gone.
pub(crate) fn revoked() -> ApiError {
    ApiError::new(
        ErrorCode::TokenRevoked,
        "the token was revoked",
        "Ask for a new token.",
    )
}

/// The holder signed this very request, and it was not sent before.
async fn prove(app: &App, grant: &Grant, request: Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let headers = proof_headers(&parts.headers).ok_or_else(unsigned)?;
    let authority = one(&parts.headers, &header::HOST).ok_or_else(unsigned)?;
    let authorization = one(&parts.headers, &header::AUTHORIZATION).ok_or_else(unsigned)?;
    let bytes = body::bounded(body, body::MAX_BODY_BYTES).await?;
    let signed = SignedRequest {
        method: parts.method.as_str(),
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        authorization,
        body: &bytes,
    };
    let now = jiff::Timestamp::now().as_second();
    let proof = pop::verify(&signed, &headers, &grant.holder, now).map_err(|error| {
        tracing::debug!(reason = %error, "a signed request was refused");
        unsigned()
    })?;
    if !is_read(&parts.method) {
        use_nonce(app, grant, proof).await?;
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

async fn use_nonce(app: &App, grant: &Grant, proof: Proof) -> Result<(), ApiError> {
    let holder = grant.holder.to_base64url();
    let kept_until = proof.created.saturating_add(NONCE_KEPT_SECONDS);
    let new = app
        .write(move |tx| tx.use_nonce(&holder, &proof.nonce, kept_until))
        .await?;
    if new { Ok(()) } else { Err(unsigned()) }
}

fn proof_headers(headers: &HeaderMap) -> Option<ProofHeaders> {
    let named = |name| one(headers, &HeaderName::from_static(name)).map(str::to_owned);
    let content_digest = match headers.contains_key("content-digest") {
        true => Some(named("content-digest")?),
        false => None,
    };
    Some(ProofHeaders {
        signature_input: named("signature-input")?,
        signature: named("signature")?,
        content_digest,
    })
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn unsigned() -> ApiError {
    ApiError::new(
        ErrorCode::InvalidToken,
        "Invalid token",
        "This token is good for requests alone that its holder's key has signed, each once and at \
         once: see docs/tokens.md.",
    )
}
