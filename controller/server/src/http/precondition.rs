//! `If-Match`: a change of what the caller has seen, or none. `If-None-Match`: an answer that the caller
//! does not have, or none.

use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use berth_api::rest::ErrorCode;
use serde::Serialize;
use serde_json::json;

use crate::api_error::ApiError;
use crate::http::answer::tag_of;
use crate::http::describe::{Sheet, Takes};

/// Longest header that is read.
const MAX_CHARS: usize = 1024;

/// The tags of the header, if it was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IfMatch(Option<Vec<String>>);

/// The tags of a header; `None` if it was not sent.
fn tags_of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Vec<String>>, Unreadable> {
    let mut tags = Vec::new();
    let mut sent = false;
    for value in headers.get_all(name) {
        sent = true;
        let text = value
            .to_str()
            .ok()
            .filter(|text| text.len() <= MAX_CHARS)
            .ok_or(Unreadable)?;
        tags.extend(text.split(',').map(|tag| tag.trim().to_owned()));
    }
    Ok(sent.then_some(tags))
}

/// A header that holds no tags.
struct Unreadable;

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        tags_of(&parts.headers, &header::IF_MATCH)
            .map(Self)
            .map_err(|Unreadable| ApiError::field("If-Match", "must be a tag as ETag gave it"))
    }
}

/// 304 for a read of what the caller has as it is. A tag that cannot be read is one that nothing has.
pub(crate) async fn leave_out_what_is_known(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = tags_of(request.headers(), &header::IF_NONE_MATCH);
    let mut response = next.run(request).await;
    let Ok(Some(known)) = known else {
        return response;
    };
    let tag = response.headers().get(header::ETAG);
    let has = |tag: &str| {
        // The comparison is the weak one (RFC 9110, 13.1.2).
        known
            .iter()
            .any(|one| one == "*" || one.trim_start_matches("W/") == tag)
    };
    let is_known = tag.and_then(|tag| tag.to_str().ok()).is_some_and(has);
    if is_read && is_known && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

impl IfMatch {
    /// Refuse if the object is not as the caller has seen it. To be asked in the transaction of the
    /// change.
    pub(crate) fn check(&self, current: &impl Serialize) -> Result<(), ApiError> {
        let Some(tags) = &self.0 else {
            return Ok(());
        };
        let body = serde_json::to_vec(current).map_err(|_| ApiError::internal())?;
        let current = tag_of(&body);
        if tags.iter().any(|tag| tag == "*" || *tag == current) {
            Ok(())
        } else {
            Err(ApiError::precondition_failed(current))
        }
    }
}

impl Takes for IfMatch {
    fn describe(sheet: &mut Sheet<'_>) {
        let about = "Change only what still has this tag, as ETag gave it";
        sheet.header("If-Match", about, &json!({ "type": "string" }));
        sheet.refuses(&[ErrorCode::PreconditionFailed, ErrorCode::InvalidRequest]);
    }
}
