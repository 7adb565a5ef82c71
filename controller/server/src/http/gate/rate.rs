//! How often: requests are taken from buckets, and answers say how those stand.

use axum::http::HeaderValue;
use axum::response::Response;
use berth_controller_core::rate::Standing;
use berth_token::Grant;

use super::Access;
use super::authenticate::revoked;
use crate::api_error::ApiError;
use crate::app::App;

/// Take one request from the tenant's bucket. Operators have none.
pub(super) async fn rated(
    app: &App,
    access: Access,
    grant: &Grant,
) -> Result<Option<(u32, Standing)>, ApiError> {
    let Some(tenant) = grant.tenant.as_ref().filter(|_| access.is_rated()) else {
        return Ok(None);
    };
    if let Some(standing) = app.rates.take(tenant) {
        return Ok(Some(standing));
    }
    let id = tenant.clone();
    match app.read(move |db| db.tenant(&id)).await? {
        None => Err(revoked()),
        Some(found) => {
            app.rates.set(tenant, found.api_rate_limit_rpm);
            Ok(app.rates.take(tenant))
        }
    }
}

/// `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10.
pub(super) fn show(response: &mut Response, rpm: u32, standing: Standing) {
    let policy = format!("\"tenant\";q={rpm};w=60");
    let limit = format!(
        "\"tenant\";r={};t={}",
        standing.remaining, standing.retry_after_s
    );
    for (name, text) in [("ratelimit-policy", policy), ("ratelimit", limit)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(name, value);
        }
    }
}
