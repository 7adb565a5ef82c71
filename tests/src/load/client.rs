//! A caller of the REST surface that keeps its connections, for requests by the thousand.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

/// After this long a request counts as unanswered.
const PATIENCE: Duration = Duration::from_secs(60);
/// An idle connection is used again for so long: the controller ends those that say nothing for 10 s, and a
/// request that is sent at that moment has no answer.
const IDLE: Duration = Duration::from_secs(5);

/// Somebody with a token, or without one. Copies share their connections.
#[derive(Clone, Debug)]
pub struct Caller {
    http: Client<HttpConnector, Full<Bytes>>,
    url: String,
    authorization: Option<String>,
}

impl Caller {
    /// Nobody in particular, at a controller's URL.
    #[must_use]
    pub fn stranger(url: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            http: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build(connector),
            url: url.to_owned(),
            authorization: None,
        }
    }

    /// The holder of a token, over the same connections.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            authorization: Some(format!("Bearer {}", token.trim())),
            ..self.clone()
        }
    }

    /// Status and body of one answer.
    ///
    /// # Errors
    /// If none comes.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let exchange = async {
            let answer = self.http.request(request.body(Full::new(bytes))?).await?;
            let status = answer.status().as_u16();
            Ok::<_, anyhow::Error>((status, answer.into_body().collect().await?.to_bytes()))
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        answer.context("no answer in a minute")?
    }

    /// The body of an answer that must have this status.
    ///
    /// # Errors
    /// If it has another one, with the body.
    pub async fn expect(
        &self,
        status: u16,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let (found, bytes) = self.send(method.clone(), path, body).await?;
        let text = String::from_utf8_lossy(&bytes);
        ensure!(found == status, "{method} {path}: {found} {text}");
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// One request of a paced run: what was wrong, if the status was another one.
    ///
    /// # Errors
    /// The status, with the problem's code where there is one.
    pub async fn attempt(
        &self,
        status: u16,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, String> {
        match self.send(method, path, body).await {
            Ok((found, bytes)) if found == status => Ok(bytes),
            Ok((found, bytes)) => {
                let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let code = body["code"].as_str().unwrap_or("without a code");
                Err(format!("{found} {code}"))
            }
            Err(error) => Err(format!("no answer: {error:#}")),
        }
    }
}
