//! The REST surface over blocking HTTP.
//!
//! One request at a time; it retries nothing, follows no redirect and uses no proxy, so a token
//! goes to the controller that was named and nowhere else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::connection::{Connection, Token};
use crate::failure::{Failure, Refusal};
use crate::proof;

/// What may stand in a path segment or query value as it is.
const LITERAL: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The largest reply read: a whole console log, with room.
const MAX_REPLY_BYTES: u64 = 256 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// More than the longest wait that the API offers (120 s).
const REPLY_TIMEOUT: Duration = Duration::from_secs(130);

/// A path with its parts encoded, and a query.
#[derive(Clone, Debug)]
pub(crate) struct Path(String);

impl Path {
    /// `/v1/vms/web-1` from `["v1", "vms", "web-1"]`; no part can break out of its place.
    #[must_use]
    pub(crate) fn of(parts: &[&str]) -> Self {
        Self(parts.iter().fold(String::new(), |path, part| {
            // As a whole segment, dots would mean the folder itself or the one above.
            let encoded = match *part {
                "." => "%2E".to_owned(),
                ".." => "%2E%2E".to_owned(),
                _ => utf8_percent_encode(part, LITERAL).to_string(),
            };
            path + "/" + &encoded
        }))
    }

    /// A path as the caller typed it.
    #[must_use]
    pub(crate) fn raw(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Add `name=value` to the query; nothing if there is no value.
    #[must_use]
    pub(crate) fn with<T: ToString>(mut self, name: &str, value: Option<T>) -> Self {
        if let Some(value) = value {
            let text = value.to_string();
            let mark = if self.0.contains('?') { '&' } else { '?' };
            let value = utf8_percent_encode(&text, LITERAL);
            self.0 = format!("{}{mark}{name}={value}", self.0);
        }
        self
    }
}

/// A successful reply.
#[derive(Debug)]
pub(crate) struct Reply {
    request: String,
    headers: http::HeaderMap,
    bytes: Vec<u8>,
}

impl Reply {
    /// The body as it came.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The body as it came, for keeps.
    #[must_use]
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A header that is a number.
    #[must_use]
    pub(crate) fn number(&self, header: &str) -> Option<u64> {
        self.headers.get(header)?.to_str().ok()?.parse().ok()
    }

    /// The body as JSON with every member that the controller sent; `null` if it is empty.
    pub(crate) fn value(&self) -> Result<Value, Failure> {
        if self.bytes.is_empty() {
            return Ok(Value::Null);
        }
        self.read()
    }

    /// The body as one of the API's types.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.bytes).map_err(|cause| Failure::Reply {
            request: self.request.clone(),
            cause,
        })
    }
}

/// A connection to one controller.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    connection: Connection,
}

impl Client {
    /// A client; nothing is sent yet.
    #[must_use]
    pub(crate) fn new(connection: Connection) -> Self {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::new_with_certs(&connection.roots))
            .build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(REPLY_TIMEOUT))
            .timeout_global(Some(REPLY_TIMEOUT * 2))
            .user_agent(concat!("berthctl/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            connection,
        }
    }

    /// The same controller, with another token.
    pub(crate) fn holding(&self, token: &str) -> Result<Self, Failure> {
        Ok(Self {
            agent: self.agent.clone(),
            connection: Connection {
                token: Some(Token::parse(token, "the controller")?),
                ..self.connection.clone()
            },
        })
    }

    /// Where it talks to, with what.
    #[must_use]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Read something.
    pub(crate) fn get(&self, path: Path) -> Result<Reply, Failure> {
        self.call("GET", &path, None)
    }

    /// Read something as it comes, without an end to its length or to the time that it takes.
    pub(crate) fn open(&self, path: &Path) -> Result<Box<dyn io::BufRead>, Failure> {
        let Some(token) = &self.connection.token else {
            return Err(Failure::NoToken {
                tried: self.connection.tried.clone(),
            });
        };
        let response = self
            .agent
            .get(format!("{}{}", self.connection.url, path.0))
            .config()
            .timeout_global(None)
            .build()
            .header("authorization", format!("Bearer {}", token.secret()))
            .call()
            .map_err(|error| self.transport_failure(error))?;
        let status = response.status();
        let mut body = response.into_body();
        if status.is_success() {
            return Ok(Box::new(io::BufReader::new(body.into_reader())));
        }
        let bytes = body
            .read_to_vec()
            .map_err(|error| self.transport_failure(error))?;
        Err(Failure::Refused(Box::new(Refusal {
            status: status.as_u16(),
            request: format!("GET {}", path.0),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        })))
    }

    /// Make something or act on it.
    pub(crate) fn post(&self, path: Path, body: Option<&Value>) -> Result<Reply, Failure> {
        self.call("POST", &path, body)
    }

    /// Change something.
    pub(crate) fn patch(&self, path: Path, body: &Value) -> Result<Reply, Failure> {
        self.call("PATCH", &path, Some(body))
    }

    /// Remove something.
    pub(crate) fn delete(&self, path: Path) -> Result<Reply, Failure> {
        self.call("DELETE", &path, None)
    }

    /// Any call that needs a token.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &Path,
        body: Option<&Value>,
    ) -> Result<Reply, Failure> {
        if self.connection.token.is_none() {
            return Err(Failure::NoToken {
                tried: self.connection.tried.clone(),
            });
        }
        self.call_as_is(method, path, body)
    }

    /// Any call, with a token if there is one.
    pub(crate) fn call_as_is(
        &self,
        method: &str,
        path: &Path,
        body: Option<&Value>,
    ) -> Result<Reply, Failure> {
        let request = format!("{method} {}", path.0);
        let mut builder = http::Request::builder()
            .method(method)
            .uri(format!("{}{}", self.connection.url, path.0));
        let body = body.map(Value::to_string);
        if let Some(token) = &self.connection.token {
            let authorization = format!("Bearer {}", token.secret());
            let about = (method, path.0.as_str(), body.as_deref().unwrap_or_default());
            for (name, value) in proof::headers(&self.connection, token, &authorization, about)? {
                builder = builder.header(name, value);
            }
            builder = builder.header("authorization", authorization);
        }
        let sent = match body {
            Some(body) => builder
                .header("content-type", "application/json")
                .body(body)
                .map_err(ureq::Error::Http)
                .and_then(|request| self.agent.run(request)),
            None => builder
                .body(())
                .map_err(ureq::Error::Http)
                .and_then(|request| self.agent.run(request)),
        };
        let response = sent.map_err(|error| self.transport_failure(error))?;
        let status = response.status();
        let headers = response.headers().clone();
        let bytes = response
            .into_body()
            .into_with_config()
            .limit(MAX_REPLY_BYTES)
            .read_to_vec()
            .map_err(|error| self.transport_failure(error))?;
        if status.is_success() {
            return Ok(Reply {
                request,
                headers,
                bytes,
            });
        }
        Err(Failure::Refused(Box::new(Refusal {
            status: status.as_u16(),
            request,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        })))
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's list of errors is open"
    )]
    fn transport_failure(&self, error: ureq::Error) -> Failure {
        let url = self.connection.url.clone();
        match error {
            ureq::Error::Io(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
                Failure::NotReachable { url, cause }
            }
            ureq::Error::ConnectionFailed => Failure::NotReachable {
                url,
                cause: io::ErrorKind::ConnectionRefused.into(),
            },
            ureq::Error::HostNotFound => Failure::NotReachable {
                url,
                cause: io::Error::new(io::ErrorKind::NotFound, "no such host"),
            },
            ureq::Error::Timeout(ureq::Timeout::Connect) => Failure::NotReachable {
                url,
                cause: io::ErrorKind::TimedOut.into(),
            },
            ureq::Error::Timeout(_) => Failure::NoAnswer { url },
            other => Failure::Transport {
                url,
                cause: Box::new(other),
            },
        }
    }

    /// A list's items over as many pages as there are, up to `limit`.
    pub(crate) fn list(&self, path: &Path, limit: Option<u32>) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut page_token: Option<String> = None;
        loop {
            let wanted = limit.map(|all| all.saturating_sub(count(&items)));
            if wanted == Some(0) {
                return Ok(items);
            }
            let page = path
                .clone()
                .with("limit", Some(wanted.unwrap_or(PAGE).min(PAGE)))
                .with("page_token", page_token.as_deref());
            let page: berth_api::rest::Page<Value> = self.get(page)?.read()?;
            items.extend(page.items);
            // A controller that repeats a page would keep us here for ever.
            if page.next_page_token.is_none() || page.next_page_token == page_token {
                items.truncate(
                    limit.map_or(usize::MAX, |all| usize::try_from(all).unwrap_or(usize::MAX)),
                );
                return Ok(items);
            }
            page_token = page.next_page_token;
        }
    }
}

/// The most that the API gives at once.
pub(crate) const PAGE: u32 = 1000;

fn count(items: &[Value]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_breaks_out_of_its_place_in_a_path() {
        let path = Path::of(&["v1", "vms", "../tenants?x=1#y z/ä%2f"])
            .with("state", Some("a&b=c"))
            .with("limit", None::<u32>)
            .with("timeout", Some(5));
        assert_eq!(
            path.0,
            "/v1/vms/..%2Ftenants%3Fx%3D1%23y%20z%2F%C3%A4%252f?state=a%26b%3Dc&timeout=5"
        );
        assert_eq!(Path::of(&["v1", "vms", ".."]).0, "/v1/vms/%2E%2E");
    }
}
