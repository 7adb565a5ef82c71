//! `If-Match`: a change of what the caller has seen, or none.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use berth_api::rest::ErrorCode;
use serde::Serialize;
use serde_json::json;

use crate::api_error::ApiError;
use crate::http::answer::tag_of;
use crate::http::describe::{Sheet, Takes};

/// Longest header that is read.
const MAX_CHARS: usize = 1024;

/// The tags of the header, if it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IfMatch(Option<Vec<String>>);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut tags = Vec::new();
        let mut sent = false;
        for value in parts.headers.get_all(header::IF_MATCH) {
            sent = true;
            let text = value
                .to_str()
                .ok()
                .filter(|text| text.len() <= MAX_CHARS)
                .ok_or_else(|| ApiError::field("If-Match", "must be a tag as ETag gave it"))?;
            tags.extend(text.split(',').map(|tag| tag.trim().to_owned()));
        }
        Ok(Self(sent.then_some(tags)))
    }
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
