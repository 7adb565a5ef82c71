//! Pages of lists.

use axum::Json;
use berth_api::rest::Page;

use crate::api_error::ApiError;

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// A limit within its bounds.
pub(crate) fn limit_of(asked: Option<u32>) -> Result<u32, ApiError> {
    match asked {
        None => Ok(DEFAULT_LIMIT),
        Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::field("limit", "must be 1 to 1000")),
    }
}

/// One page of `items`, which were read with one more than `limit`.
pub(crate) fn page<T>(
    mut items: Vec<T>,
    limit: u32,
    token: impl Fn(&T) -> String,
) -> Json<Page<T>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next_page_token = items.last().filter(|_| more).map(token);
    Json(Page {
        items,
        next_page_token,
    })
}
