//! The outermost layers: the request's id, the error body, the log line, panics.

use std::any::Any;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use berth_api::ids::RequestId;
use berth_api::rest::ErrorCode;

use crate::api_error::ApiError;

/// The header that carries a request's id both ways.
const REQUEST_ID: &str = "x-request-id";

/// This request's id, for everything inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisRequest(pub(crate) RequestId);

/// The layers around all routes.
pub(crate) fn around<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn(survive_panics))
        .layer(from_fn(frame))
}

/// Give the request its id, and the error its body.
async fn frame(mut request: Request, next: Next) -> Response {
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
async fn survive_panics(request: Request, next: Next) -> Response {
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
async fn no_such_route() -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        "there is no such path",
        "The paths begin with /v1; see the API's documentation.",
    )
}

/// The path exists with other methods.
async fn no_such_method() -> ApiError {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        "the path does not take this method",
        "The `Allow` header names the methods that it takes.",
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use axum::routing::get;

    /// The whole answer to a request on a connection of its own.
    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_panic_in_a_handler_is_a_500_for_its_caller_and_nothing_for_the_next() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let routes = Router::new()
            .route("/panics", get(async || -> &str { panic!("told to") }))
            .route("/works", get(async || "fine"));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let server = axum::serve(listener, around(routes)).into_future();
        drop(runtime.spawn(server));
        for _ in 0..3 {
            let answer = ask(address, "/panics");
            assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
            assert!(answer.contains("application/problem+json"), "{answer}");
            assert!(!answer.contains("told to"), "{answer}");
            let answer = ask(address, "/works");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
}
