//! The outermost layers: the request's id, the error body, the log line, panics.

use std::any::Any;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_api::ids::RequestId;
use berth_api::rest::ErrorCode;

use crate::api_error::ApiError;

/// The header that carries a request's id both ways.
const REQUEST_ID: &str = "x-request-id";

/// This request's id, for everything inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisRequest(pub(crate) RequestId);

/// Give the request its id, and the error its body.
pub(crate) async fn frame(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(RequestId::generate);
    let method = request.method().clone();
    request.extensions_mut().insert(ThisRequest(id));
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<ApiError>();
    let code = error.as_ref().map(|error| error.code().as_str());
    if let Some(error) = error {
        write_problem(&mut response, error, id);
    }
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    // The path is left out: a client may put anything there, a token too.
    tracing::debug!(
        request_id = %id,
        %method,
        status = response.status().as_u16(),
        error_code = code,
        duration_ms = begun.elapsed().as_millis(),
        "answered"
    );
    response
}

fn write_problem(response: &mut Response, error: ApiError, id: RequestId) {
    let body = serde_json::to_vec(&error.into_body(id)).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
}

/// A panic in a handler is a 500 for its caller, and nothing for anybody else. The handler runs as
/// a task of its own, so it also ends what it began when the client goes away.
pub(crate) async fn survive_panics(request: Request, next: Next) -> Response {
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => {
            if error.is_panic() {
                tracing::error!(
                    panic = panic_text(error.into_panic().as_ref()),
                    "a handler panicked"
                );
            }
            ApiError::internal().into_response()
        }
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// No route has this path.
pub(crate) async fn no_such_route() -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        "there is no such path",
        "The paths begin with /v1; see the API's documentation.",
    )
}

/// The path exists with other methods.
pub(crate) async fn no_such_method() -> ApiError {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        "the path does not take this method",
        "The `Allow` header names the methods that it takes.",
    )
}
