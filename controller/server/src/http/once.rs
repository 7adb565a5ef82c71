//! `Idempotency-Key`: the same request twice is one change and the same answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_api::ids::TenantId;
use berth_api::rest::ErrorCode;
use berth_controller_store::{IdempotencyKey, Remembered, StoreError, WriteTx};
use ring::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::json;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Changed, tag_of};
use crate::http::describe::{Sheet, Takes};
use crate::http::gate::Scoped;

const MAX_KEY_CHARS: usize = 128;

/// The header's value and the request's target, if the header was sent.
#[derive(Clone, Debug)]
pub(crate) struct Idempotency(Option<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Idempotency {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Ok(Self(None));
        };
        let key = value
            .to_str()
            .ok()
            .map(|text| text.trim_matches('"'))
            .filter(|text| (1..=MAX_KEY_CHARS).contains(&text.len()))
            .ok_or_else(|| {
                ApiError::field(
                    "Idempotency-Key",
                    "must be 1 to 128 visible ASCII characters",
                )
            })?;
        let target = parts
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        Ok(Self(Some((key.to_owned(), target.to_owned()))))
    }
}

impl Idempotency {
    /// The key under which this caller's request is remembered.
    pub(crate) fn key(self, caller: &Scoped, body: &[u8]) -> Option<IdempotencyKey> {
        let (key, target) = self.0?;
        let mut digest = Context::new(&SHA256);
        digest.update(target.as_bytes());
        digest.update(&[0]);
        digest.update(body);
        let namespace = caller.namespace().map_or("_platform", TenantId::as_str);
        Some(IdempotencyKey {
            // An old answer is for whoever got it: another holder's key of that name is another key.
            scope: format!("{namespace} {}", caller.grant.holder.to_base64url()),
            route: format!("{} {}", caller.request.method, caller.request.route),
            key,
            digest: digest.finish().as_ref().to_vec(),
        })
    }
}

/// What came of a change that happens once.
#[derive(Debug)]
pub(crate) enum Once<T> {
    /// It happened.
    Done(T),
    /// It had happened; the answer of then.
    Replayed(Replay),
}

/// An answer from memory.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    status: u16,
    body: String,
}

impl<T> Once<T> {
    /// The answer: made of what was done, or the one of then.
    pub(crate) fn answer<V, const STATUS: u16>(
        self,
        fresh: impl FnOnce(T) -> Changed<V, STATUS>,
    ) -> Changed<V, STATUS> {
        match self {
            Self::Done(done) => fresh(done),
            Self::Replayed(replay) => Changed::Replayed(replay),
        }
    }
}

impl Takes for Idempotency {
    fn describe(sheet: &mut Sheet<'_>) {
        let about = "The same key with the same request is the same change, for 24 hours";
        let schema = json!({ "type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS });
        sheet.header("Idempotency-Key", about, &schema);
        sheet.refuses(&[
            ErrorCode::InvalidRequest,
            ErrorCode::IdempotencyConflict,
            ErrorCode::IdempotencyInProgress,
        ]);
    }
}

/// Do a change once per key. `shown` is what the caller is told and what is remembered; a refusal is
/// not remembered. All of it is one transaction. A repeat waits for the first one's end, but not for
/// long: a client may send many.
pub(crate) async fn once<T, V>(
    app: &Arc<App>,
    key: Option<IdempotencyKey>,
    status: StatusCode,
    change: impl FnOnce(&mut WriteTx<'_>) -> Result<Result<T, ApiError>, StoreError> + Send + 'static,
    shown: impl Fn(&T) -> V + Send + 'static,
) -> Result<Once<T>, ApiError>
where
    T: Send + 'static,
    V: Serialize,
{
    let turn = match &key {
        None => None,
        Some(key) => Some(app.turns.take(key).await.ok_or_else(in_progress)?),
    };
    let outcome = app
        .write(move |tx| {
            let Some(key) = key else {
                return Ok(change(tx)?.map(Ok));
            };
            match tx.remembered(&key)? {
                Remembered::Other => Ok(Err(conflict())),
                Remembered::Same { status, body } => Ok(Ok(Err((status, body)))),
                Remembered::New => {
                    let done = match change(tx)? {
                        Ok(done) => done,
                        Err(denied) => return Ok(Err(denied)),
                    };
                    let body = serde_json::to_string(&shown(&done))
                        .map_err(|_| StoreError::Unstorable { what: "answer" })?;
                    tx.remember(&key, status.as_u16(), &body)?;
                    Ok(Ok(Ok(done)))
                }
            }
        })
        .await??;
    drop(turn);
    Ok(match outcome {
        Ok(done) => Once::Done(done),
        Err((status, body)) => Once::Replayed(Replay { status, body }),
    })
}

fn in_progress() -> ApiError {
    ApiError::under_way(
        ErrorCode::IdempotencyInProgress,
        "the same request under this Idempotency-Key is not answered yet",
        "Send it again in a second, word for word and under the same key.",
    )
}

fn conflict() -> ApiError {
    ApiError::new(
        ErrorCode::IdempotencyConflict,
        "the Idempotency-Key was used for another request",
        "Use a new key for a new request.",
    )
}

impl IntoResponse for Replay {
    fn into_response(self) -> Response {
        let tag = tag_of(self.body.as_bytes());
        let mut response = Body::from(self.body).into_response();
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
        if let Ok(tag) = HeaderValue::try_from(tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}
