//! The door: connections are accepted, bounded in what they may send and for how long, and encrypted
//! where the door can be reached from outside. What a request means is `http`'s.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::app::App;
use crate::tls::Tls;

/// How long a client may take for a request's headers, and for a handshake.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Most bytes of a request's line and headers. A token has at most 6 KiB.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Requests on one connection; then the client connects anew, which spreads them over controllers.
const MAX_REQUESTS: u32 = 10_000;
/// Connections at once; the unit's `LimitNOFILE` is above it.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// Rest after `accept` failed, which it does when descriptors are short.
const REST: Duration = Duration::from_millis(100);
/// The first byte of every TLS connection: a handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What a client gets that speaks plain HTTP to a TLS port.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
content-type: application/problem+json\r\n\
content-length: 186\r\n\
connection: close\r\n\r\n\
{\"type\":\"urn:berth:error:invalid_request\",\"title\":\"Invalid request\",\"status\":400,\
\"code\":\"invalid_request\",\"error\":\"this port speaks TLS alone\",\"detail\":\"Use https://.\",\"retryable\":false}";

/// Serve until the service is stopped and the requests of then have ended.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    app: Arc<App>,
) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            break;
        };
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            },
            () = app.stopped() => break,
        };
        let watcher = graceful.watcher();
        let router = router.clone();
        let tls = tls.clone();
        tokio::spawn(async move {
            welcome(stream, peer, tls, router, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<Tls>>,
    router: Router,
    watcher: Watcher,
) {
    // Answers are small and wait for nobody.
    drop(stream.set_nodelay(true));
    let Some(tls) = tls else {
        return converse(stream, peer, router, watcher).await;
    };
    let handshake = async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first != [TLS_HANDSHAKE] {
            refuse_plain(stream).await;
            return Ok(None);
        }
        tls.accept(stream).await.map(Some)
    };
    match tokio::time::timeout(HEADER_TIME, handshake).await {
        Ok(Ok(Some(stream))) => converse(stream, peer, router, watcher).await,
        Ok(Ok(None)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, %peer, "no handshake"),
    }
}

/// Tell the client, and read what it sent so that it gets to see the answer.
async fn refuse_plain(mut stream: TcpStream) {
    if stream.write_all(SPEAK_TLS).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = [0; 1024];
    for _ in 0..MAX_HEADER_BYTES / rest.len() {
        match stream.read(&mut rest).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn converse<S>(stream: S, peer: SocketAddr, router: Router, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(router);
    let served = AtomicU32::new(0);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let is_last = served.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_REQUESTS;
        let answer = routes.call(request);
        async move {
            let mut response: Response<Body> = answer.await?;
            if is_last {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, %peer, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_whole() {
        let text = std::str::from_utf8(SPEAK_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], "invalid_request");
    }
}
