//! Who calls: the bearer token of a request, checked. Namespace and permission are the gate's.

use axum::http::{HeaderMap, header};
use berth_api::rest::ErrorCode;
use berth_token::{Grant, VerifyError};

use crate::api_error::ApiError;
use crate::app::App;

/// What the request's bearer token allows.
pub(super) fn authenticate(app: &App, headers: &HeaderMap) -> Result<Grant, ApiError> {
    let invalid = || {
        ApiError::new(
            ErrorCode::InvalidToken,
            "Invalid token",
            "Use a token that this controller issued.",
        )
    };
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
    let now = jiff::Timestamp::now().as_second();
    let grant = app
        .verifier
        .verify(token, now)
        .map_err(|error| match error {
            VerifyError::Expired { .. } => ApiError::new(
                ErrorCode::TokenExpired,
                "the token has expired",
                "Ask for a new token.",
            ),
            VerifyError::Malformed
            | VerifyError::Signature
            | VerifyError::Claims
            | VerifyError::Audience
            | VerifyError::NotYetValid => invalid(),
        })?;
    if grant.token_ids.iter().any(|id| app.is_revoked(*id)) {
        return Err(revoked());
    }
    Ok(grant)
}

/// The token was revoked, or its tenant is gone.
pub(super) fn revoked() -> ApiError {
    ApiError::new(
        ErrorCode::TokenRevoked,
        "the token was revoked",
        "Ask for a new token.",
    )
}
