//! The HTTP client by which the controller itself asks others: witnesses, an identity provider.
//!
//! It follows no redirect, takes no proxy from the environment, and trusts no authority but those of one file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// A client for `url`. `ca` is a file of certificates in PEM, and is needed for https; each call ends after
/// `patience`.
pub(crate) fn client(
    url: &str,
    ca: Option<&Path>,
    patience: Duration,
) -> anyhow::Result<ureq::Agent> {
    let roots = ca.map(certificates).transpose()?.unwrap_or_default();
    ensure!(
        !url.starts_with("https://") || !roots.is_empty(),
        "`ca` is needed for https: the other side's own authority, or the system's bundle"
    );
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build();
    Ok(ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .tls_config(tls)
        .timeout_global(Some(patience))
        .user_agent(concat!("berth-controller/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent())
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.context("`ca` is not PEM")? {
            found.push(certificate);
        }
    }
    Ok(found)
}
