//! The controller as this agent sees it: two calls over HTTP.
//!
//! Bounds what a controller can send, and reads its errors. Plain HTTP goes to loopback addresses
//! and nowhere else: the rule is checked here, where the connection is made.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_api::agent::{EnrollReply, SignedEnvelope, SyncReply};
use berth_api::rest::ErrorBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;

/// Longest reply that is read, in bytes.
const MAX_REPLY_BYTES: usize = 4 * 1024 * 1024;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A controller's address that this agent may talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerUrl(String);

/// Why an address is refused.
#[derive(Debug, thiserror::Error)]
pub enum ControllerUrlDenied {
    /// It is not an address of a controller.
    #[error("{url:?} is not an address such as http://127.0.0.1:9221")]
    Malformed {
        /// What was given.
        url: String,
    },
    /// Plain HTTP over a network.
    #[error(
        "{url} would send this node's secrets over a network without TLS; plain http is allowed to a loopback address only: run the agent beside its controller, or forward a loopback port to it, for example with ssh -L 9221:127.0.0.1:9221"
    )]
    PlainOverNetwork {
        /// What was given.
        url: String,
    },
    /// Nobody vouches for it.
    #[error(
        "{url} needs TLS, and nobody is named who vouches for its certificate: set controller_ca in agent.toml to the PEM of its authority"
    )]
    NoAuthority {
        /// What was given.
        url: String,
    },
    /// The authority cannot be read.
    #[error("{} does not hold the certificate of an authority", path.display())]
    Authority {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: pem::Error,
    },
    /// The authority is none.
    #[error("the certificate in {} cannot vouch for others", path.display())]
    NotAuthority {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: rustls::Error,
    },
}

impl ControllerUrl {
    /// Check an address.
    pub fn parse(url: &str) -> Result<Self, ControllerUrlDenied> {
        let malformed = || ControllerUrlDenied::Malformed {
            url: url.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| malformed())?;
        let host = uri.host().ok_or_else(malformed)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || url.contains('@') {
            return Err(malformed());
        }
        let url = url.trim_end_matches('/').to_owned();
        match uri.scheme_str() {
            Some("http") if is_loopback(host) => Ok(Self(url)),
            Some("http") => Err(ControllerUrlDenied::PlainOverNetwork { url }),
            Some("https") => Ok(Self(url)),
            Some(_) | None => Err(malformed()),
        }
    }

    /// The address as text, without a final slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, ControllerUrlDenied> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|cause| ControllerUrlDenied::Authority {
            path: path.to_owned(),
            cause,
        })?;
    let mut roots = RootCertStore::empty();
    for certificate in found {
        roots
            .add(certificate)
            .map_err(|cause| ControllerUrlDenied::NotAuthority {
                path: path.to_owned(),
                cause,
            })?;
    }
    Ok(roots)
}

fn tls_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for every version that rustls has")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Why a call brought no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The controller could not be reached, or the connection broke.
    #[error("could not reach the controller at {url}")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why not.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("the controller at {url} did not answer within {} s", waited.as_secs())]
    TimedOut {
        /// Its address.
        url: String,
        /// How long we waited.
        waited: Duration,
    },
    /// It refused.
    #[error("the controller answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The code, the sentence and the remedy of its error body.
        message: String,
    },
    /// It answered with something else.
    #[error("the controller's answer does not fit this version of the contract")]
    Reply {
        /// Where it does not fit.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A client for one controller.
#[derive(Debug, Clone)]
pub struct Controller {
    url: ControllerUrl,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Controller {
    /// A client that connects when it is first used. `authority` is the PEM file of whoever vouches for
    /// the controller's certificate; over TLS there has to be one.
    pub fn new(url: ControllerUrl, authority: Option<&Path>) -> Result<Self, ControllerUrlDenied> {
        let roots = match authority {
            Some(path) => authorities(path)?,
            None if url.as_str().starts_with("https:") => {
                return Err(ControllerUrlDenied::NoAuthority { url: url.0 });
            }
            None => RootCertStore::empty(),
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(roots))
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(2)
            .build(connector);
        Ok(Self { url, client })
    }

    /// Enrol. Waits at most `timeout`.
    pub async fn enroll(
        &self,
        request: &SignedEnvelope,
        timeout: Duration,
    ) -> Result<EnrollReply, CallError> {
        self.call("/v1/agent/enroll", request, timeout).await
    }

    /// Sync. Waits at most `timeout`; dropping the future abandons the call.
    pub async fn sync(
        &self,
        request: &SignedEnvelope,
        timeout: Duration,
    ) -> Result<SyncReply, CallError> {
        self.call("/v1/agent/sync", request, timeout).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &SignedEnvelope,
        timeout: Duration,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(timeout, self.exchange(path, body)).await {
            Ok(answered) => answered,
            Err(_) => Err(CallError::TimedOut {
                url: self.url.as_str().to_owned(),
                waited: timeout,
            }),
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &SignedEnvelope,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(body).map_err(|cause| CallError::Reply {
            cause: cause.into(),
        })?;
        let request = Request::post(format!("{}{path}", self.url.as_str()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .map_err(|cause| self.unreachable(cause))?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|cause| self.unreachable(cause))?;
        let status = response.status();
        let content = Limited::new(response.into_body(), MAX_REPLY_BYTES)
            .collect()
            .await
            .map_err(|cause| CallError::Unreachable {
                url: self.url.as_str().to_owned(),
                cause,
            })?
            .to_bytes();
        if !status.is_success() {
            return Err(CallError::Refused {
                status: status.as_u16(),
                message: refusal(&content),
            });
        }
        serde_json::from_slice(&content).map_err(|cause| CallError::Reply {
            cause: cause.into(),
        })
    }

    fn unreachable(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
        CallError::Unreachable {
            url: self.url.as_str().to_owned(),
            cause: cause.into(),
        }
    }
}

/// An error body in one line; a foreign one, from a proxy for example, is not repeated.
fn refusal(content: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(content) {
        Ok(body) => format!("{} ({})", body.error, body.detail),
        Err(_) => "no explanation that this version understands".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_tls_somebody_has_to_vouch() {
        let url = || ControllerUrl::parse("https://berth.example").unwrap();
        let denied = Controller::new(url(), None).unwrap_err().to_string();
        assert!(denied.contains("controller_ca"), "{denied}");
        let absent = Controller::new(url(), Some(Path::new("/nonexistent/ca.pem")));
        assert!(matches!(absent, Err(ControllerUrlDenied::Authority { .. })));
    }

    #[test]
    fn plain_http_goes_to_loopback_alone() {
        for good in [
            "http://127.0.0.1:9221",
            "http://localhost:9221/",
            "http://[::1]:9221",
            "http://127.9.9.9",
            "https://berth.example",
        ] {
            assert!(ControllerUrl::parse(good).is_ok(), "{good}");
        }
        for (bad, words) in [
            (
                "http://10.0.0.1:9221",
                "plain http is allowed to a loopback",
            ),
            ("http://127.0.0.1.example.com", "plain http is allowed"),
            ("http://localhost@10.0.0.1:9221", "is not an address"),
            ("ftp://127.0.0.1", "is not an address"),
            ("127.0.0.1:9221", "is not an address"),
            ("http://127.0.0.1/path", "is not an address"),
            ("", "is not an address"),
        ] {
            let denied = ControllerUrl::parse(bad).unwrap_err().to_string();
            assert!(denied.contains(words), "{bad}: {denied}");
        }
    }
}
