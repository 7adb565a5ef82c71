//! The forms of answers: each knows its status and its headers, and says so in the document.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api_error::ApiError;
use crate::http::describe::{Answers, Sheet};
use crate::http::once::Replay;

/// Bytes of a digest that make a tag: enough that nobody meets another object's by chance.
const TAG_BYTES: usize = 16;

/// The tag of a representation, quotes and all: two that differ in a byte differ in it.
pub(crate) fn tag_of(body: &[u8]) -> String {
    let digest = digest(&SHA256, body);
    let short = digest.as_ref().get(..TAG_BYTES).unwrap_or_default();
    let mut tag = String::from("\"");
    for byte in short {
        tag.push_str(&format!("{byte:02x}"));
    }
    tag.push('"');
    tag
}

/// One object as JSON, with its tag.
fn tagged(status: StatusCode, object: &impl Serialize) -> Response {
    let Ok(body) = serde_json::to_vec(object) else {
        return ApiError::internal().into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::ETAG, tag_of(&body)),
    ];
    (status, headers, body).into_response()
}

/// 200: one object as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Shown<T> {
    fn into_response(self) -> Response {
        tagged(StatusCode::OK, &self.0)
    }
}

impl<T: JsonSchema> Answers for Shown<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.json_answer::<T>(200, &["ETag"]);
    }
}

/// The object after a change, or what was answered when the change was done under the same key.
#[derive(Debug)]
pub(crate) enum Changed<T, const STATUS: u16> {
    /// It was done by this request.
    Fresh {
        object: Box<T>,
        location: Option<String>,
    },
    /// It had been done.
    Replayed(Replay),
}

/// 200 after a change that is complete.
pub(crate) type Done<T> = Changed<T, 200>;
/// 201: the object was made.
pub(crate) type Created<T> = Changed<T, 201>;
/// 202: the change goes on after the answer.
pub(crate) type Accepted<T> = Changed<T, 202>;

impl<T, const STATUS: u16> Changed<T, STATUS> {
    /// The object, with no address of its own.
    pub(crate) fn new(object: T) -> Self {
        Self::Fresh {
            object: Box::new(object),
            location: None,
        }
    }

    /// The object, and where it is read.
    pub(crate) fn at(object: T, location: String) -> Self {
        Self::Fresh {
            object: Box::new(object),
            location: Some(location),
        }
    }
}

impl<T: Serialize, const STATUS: u16> IntoResponse for Changed<T, STATUS> {
    fn into_response(self) -> Response {
        let (object, location) = match self {
            Self::Replayed(replay) => return replay.into_response(),
            Self::Fresh { object, location } => (object, location),
        };
        let status = StatusCode::from_u16(STATUS).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = tagged(status, &object);
        if let Some(value) = location.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(header::LOCATION, value);
        }
        response
    }
}

impl<T: JsonSchema, const STATUS: u16> Answers for Changed<T, STATUS> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.json_answer::<T>(STATUS, &["ETag", "Location", "Idempotency-Replayed"]);
    }
}

/// 204.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl Answers for NoContent {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.answer(204, &[], None);
    }
}

/// A guest's own bytes: plain text to whoever looks, never anything that is run.
#[derive(Clone, Debug)]
pub(crate) struct ConsoleText {
    /// Where they begin in all that the guest ever wrote.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

impl IntoResponse for ConsoleText {
    fn into_response(self) -> Response {
        (
            [
                (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
                (
                    HeaderName::from_static("x-console-offset"),
                    self.offset.to_string(),
                ),
            ],
            Body::from(self.bytes),
        )
            .into_response()
    }
}

impl Answers for ConsoleText {
    fn describe(sheet: &mut Sheet<'_>) {
        let text = schemars::json_schema!({ "type": "string" });
        sheet.answer(200, &["X-Console-Offset"], Some(("text/plain", text)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_quoted_and_tells_bytes_apart() {
        assert_eq!(tag_of(b"a"), tag_of(b"a"));
        assert_ne!(tag_of(b"a"), tag_of(b"b"));
        assert_eq!(tag_of(b"a").len(), 2 + 2 * TAG_BYTES);
        assert!(tag_of(b"a").starts_with('"') && tag_of(b"a").ends_with('"'));
    }
}
