//! The witness's HTTP surface: `POST /add-checkpoint`, and `GET /<hash of origin>/checkpoint`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use berth_ledger::witness::{AddCheckpoint, MAX_REQUEST_BYTES, Refusal, SIZE_CONTENT_TYPE};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::memory::{CosignError, Memory};

const TEXT: &str = "text/plain; charset=utf-8";

/// Serve until SIGTERM.
pub(crate) fn run(config: Config) -> Result<()> {
    let vkey = config.cosigner.vkey().to_string();
    let memory = Memory::open(&config.state_dir, config.cosigner, config.logs)?;
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("listening on {}", config.listen))?;
        let mut stop = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        tracing::info!(address = %config.listen, %vkey, "serving");
        axum::serve(listener, routes(Arc::new(memory)))
            .with_graceful_shutdown(async move {
                stop.recv().await;
            })
            .await
            .context("serving")
    })
}

/// All routes.
pub(crate) fn routes(memory: Arc<Memory>) -> Router {
    Router::new()
        .route("/add-checkpoint", post(add_checkpoint))
        .route("/{log}/checkpoint", get(checkpoint))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(memory)
}

async fn add_checkpoint(State(memory): State<Arc<Memory>>, body: Bytes) -> Response {
    let request = match AddCheckpoint::parse(&body) {
        Ok(request) => request,
        Err(error) => return text(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now_s.map_or(0, |since| since.as_secs());
    // It waits for the disk, which no other request has to.
    let decided = tokio::task::spawn_blocking(move || memory.cosign(&request, now_s)).await;
    match decided {
        Ok(Ok(line)) => text(StatusCode::OK, TEXT, line.to_string()),
        Ok(Err(error)) => refuse(&error),
        Err(error) => {
            tracing::error!(%error, "a decision ended in a panic");
            text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, String::new())
        }
    }
}

fn refuse(error: &CosignError) -> Response {
    match error {
        CosignError::Refused(Refusal::OtherSize { seen, .. }) => {
            text(StatusCode::CONFLICT, SIZE_CONTENT_TYPE, format!("{seen}\n"))
        }
        CosignError::Refused(refusal) => {
            if matches!(refusal, Refusal::Inconsistent(_)) {
                tracing::error!(%refusal, "a log has signed what contradicts its past");
            }
            let status = StatusCode::from_u16(refusal.status());
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            text(status, TEXT, format!("{refusal}\n"))
        }
        CosignError::Memory(cause) => {
            tracing::error!(%error, %cause, "restart when the disk is well again");
            text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n"))
        }
        CosignError::Unsure => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n")),
    }
}

async fn checkpoint(State(memory): State<Arc<Memory>>, Path(log): Path<String>) -> Response {
    let read = tokio::task::spawn_blocking(move || memory.newest(&log)).await;
    match read {
        Ok(Some(note)) => (StatusCode::OK, [(header::CONTENT_TYPE, TEXT)], note).into_response(),
        Ok(None) | Err(_) => text(
            StatusCode::NOT_FOUND,
            TEXT,
            "nothing was cosigned\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests;
