//! `Idempotency-Key`: the same request twice is one change and the same answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use berth_api::rest::ErrorCode;
use berth_controller_store::{IdempotencyKey, Remembered, StoreError, WriteTx};
use ring::digest::{Context, SHA256};
use serde::Serialize;

use crate::api_error::ApiError;
use crate::app::App;
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
        Ok(Self(Some((key.to_owned(), parts.uri.path().to_owned()))))
    }
}

impl Idempotency {
    /// The key under which this caller's request is remembered.
    pub(crate) fn key(self, caller: &Scoped, body: &[u8]) -> Option<IdempotencyKey> {
        let (key, path) = self.0?;
        let mut digest = Context::new(&SHA256);
        digest.update(path.as_bytes());
        digest.update(&[0]);
        digest.update(body);
        let scope = caller
            .namespace()
            .map_or_else(|| "_platform".to_owned(), ToString::to_string);
        Some(IdempotencyKey {
            scope,
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
    Replayed(Response),
}

/// Do a change once per key. `shown` is what the caller is told and what is remembered; a refusal is
/// not remembered. All of it is one transaction.
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
    Ok(match outcome {
        Ok(done) => Once::Done(done),
        Err((status, body)) => Once::Replayed(replay(status, body)),
    })
}

fn conflict() -> ApiError {
    ApiError::new(
        ErrorCode::IdempotencyConflict,
        "the Idempotency-Key was used for another request",
        "Use a new key for a new request.",
    )
}

fn replay(status: u16, body: String) -> Response {
    let mut response = Body::from(body).into_response();
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}
