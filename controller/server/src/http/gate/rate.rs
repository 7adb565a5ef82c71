//! How often: requests are taken from buckets, and answers say how those stand.

use std::net::IpAddr;

use axum::http::{HeaderValue, Method};
use axum::response::Response;
use berth_api::rest::ErrorCode;
use berth_token::Grant;

use super::Access;
use super::authenticate::revoked;
use crate::api_error::ApiError;
use crate::app::App;
use crate::rates::{Kind, Taken};

/// Last parts of paths that end something, beside everything that is deleted.
const ENDS: &[&str] = &[
    "cleanup",
    "cordon",
    "quarantine",
    "revoke",
    "stop",
    "suspend",
    "wipe",
];

fn kind_of(method: &Method, route: &str) -> Kind {
    let last = route.rsplit('/').next().unwrap_or_default();
    if *method == Method::DELETE || ENDS.contains(&last) {
        Kind::Ends
    } else {
        Kind::Other
    }
}

/// Take one request of its address, before anything is computed for it.
pub(super) fn of_address(app: &App, address: IpAddr) -> Result<(), ApiError> {
    match app.rates.take_address(address) {
        Some(taken) if !taken.standing.allowed => Err(too_many(taken)),
        Some(_) | None => Ok(()),
    }
}

/// What is answered to a token that is refused: that, or that it was tried too often. A good token
/// from the same address is not asked.
pub(super) fn of_failure(app: &App, address: IpAddr, error: ApiError) -> ApiError {
    if error.code().status() != 401 || error.code() == ErrorCode::Unauthorized {
        return error;
    }
    match app.rates.take_failure(address) {
        Some(taken) if !taken.standing.allowed => too_many(taken),
        Some(_) | None => error,
    }
}

/// Take one request from the buckets that a token's requests are taken from.
pub(super) async fn rated(
    app: &App,
    access: Access,
    grant: &Grant,
    method: &Method,
    route: &str,
) -> Result<Option<Taken>, ApiError> {
    // The first use of a derived token is written down, which nobody does for free.
    if !access.is_rated() && app.tokens.knows(grant) {
        return Ok(None);
    }
    let kind = kind_of(method, route);
    if let Some(taken) = app.rates.take(grant, kind) {
        return Ok(Some(taken));
    }
    let Some(id) = grant.tenant.clone() else {
        return Ok(None);
    };
    let tenant = id.clone();
    match app.read(move |db| db.tenant(&id)).await? {
        None => Err(revoked()),
        Some(found) => {
            app.rates.set(&tenant, found.api_rate_limit_rpm);
            Ok(app.rates.take(grant, kind))
        }
    }
}

/// The refusal of one request too many.
pub(super) fn too_many(taken: Taken) -> ApiError {
    ApiError::rate_limited(taken.rpm, taken.standing.retry_after_s.max(1))
}

/// `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10.
pub(super) fn show(response: &mut Response, taken: Taken) {
    let Taken {
        policy,
        rpm,
        standing,
    } = taken;
    let limit = format!(
        "\"{policy}\";r={};t={}",
        standing.remaining, standing.retry_after_s
    );
    let policy = format!("\"{policy}\";q={rpm};w=60");
    for (name, text) in [("ratelimit-policy", policy), ("ratelimit", limit)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_something_is_told_by_method_and_path() {
        for (method, route, kind) in [
            (Method::DELETE, "/v1/vms/{vm}", Kind::Ends),
            (Method::POST, "/v1/vms/{vm}/stop", Kind::Ends),
            (Method::POST, "/v1/vms/{vm}/cleanup", Kind::Ends),
            (Method::POST, "/v1/slots/{slot}/wipe", Kind::Ends),
            (Method::POST, "/v1/tokens/revoke", Kind::Ends),
            (Method::POST, "/v1/vms/{vm}/start", Kind::Other),
            (Method::GET, "/v1/vms", Kind::Other),
        ] {
            assert_eq!(kind_of(&method, route), kind, "{method} {route}");
        }
    }
}
