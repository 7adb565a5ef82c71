//! Where PostgreSQL is, and on which ways its traffic may go.
//!
//! Bearer tokens are not stored, but everything else is: rows go in clear over a Unix socket or the
//! loopback interface, and nowhere else. To any other host they go over TLS, and whoever answers there
//! shows that it is that host.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How soon a server that has gone silent is noticed.
const SILENCE_NOTICED: Duration = Duration::from_secs(10);

/// A PostgreSQL server and a database on it.
#[derive(Clone)]
pub struct PostgresServer(Arc<Way>);

/// How a server is reached.
struct Way {
    config: Config,
    /// By whose certificates it is known; without, the way is a local one.
    tls: Option<MakeRustlsConnect>,
}

/// Why a URL does not name a database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It is none.
    #[error("the database's url must look like postgres:///NAME?host=/run/postgresql&user=USER")]
    Url(#[source] tokio_postgres::Error),
    /// It lacks a part.
    #[error("the database's url must name {part}")]
    Missing {
        /// Which part.
        part: &'static str,
    },
    /// The server is on another machine.
    #[error(
        "the database {host} is on another machine and its traffic would not be encrypted: name the \
         authority of its certificate with `ca`, or use a Unix socket"
    )]
    NotLocal {
        /// Which host.
        host: String,
    },
    /// An authority for a way on which there is no TLS.
    #[error(
        "there is no TLS on a Unix socket: leave out `ca`, or name the host by the name that its \
         certificate has"
    )]
    SocketWithAuthority,
    /// No authority is found where one should be.
    #[error("`ca` does not hold certificates as PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// A certificate cannot be an authority's.
    #[error("`ca` holds no certificate that others can be checked by")]
    Authority(#[source] Option<rustls::Error>),
    /// TLS cannot be had.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl PostgresServer {
    /// Read a `postgres://` URL. With `ca`, certificates of authorities as PEM, there is no way but TLS, and
    /// the server's certificate has to be one of theirs for the host that the URL names.
    pub fn parse(url: &str, ca: Option<&[u8]>) -> Result<Self, DatabaseUrlError> {
        let mut config: Config = url.parse().map_err(DatabaseUrlError::Url)?;
        let missing = |part| DatabaseUrlError::Missing { part };
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(missing("a host"));
        }
        if config.get_dbname().is_none() {
            return Err(missing("a database"));
        }
        if config.get_user().is_none() {
            return Err(missing("a user"));
        }
        let tls = match ca {
            Some(ca) => Some(known_by(ca, &config)?),
            None => {
                if let Some(host) = foreign_host(&config) {
                    return Err(DatabaseUrlError::NotLocal { host });
                }
                None
            }
        };
        config
            .application_name("berth-controller")
            .ssl_mode(if tls.is_some() {
                SslMode::Require
            } else {
                SslMode::Disable
            })
            .connect_timeout(SILENCE_NOTICED)
            .tcp_user_timeout(SILENCE_NOTICED)
            .keepalives_idle(SILENCE_NOTICED);
        Ok(Self(Arc::new(Way { config, tls })))
    }

    pub(super) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(super) fn tls(&self) -> Option<&MakeRustlsConnect> {
        self.0.tls.as_ref()
    }
}

/// TLS with servers that these authorities vouch for.
fn known_by(ca: &[u8], config: &Config) -> Result<MakeRustlsConnect, DatabaseUrlError> {
    let is_socket = |host: &Host| matches!(host, Host::Unix(_));
    if config.get_hosts().iter().any(is_socket) {
        return Err(DatabaseUrlError::SocketWithAuthority);
    }
    if config.get_hosts().is_empty() {
        return Err(DatabaseUrlError::Missing {
            part: "the host that the server's certificate is for",
        });
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(DatabaseUrlError::Pem)?;
        roots
            .add(certificate)
            .map_err(|cause| DatabaseUrlError::Authority(Some(cause)))?;
    }
    if roots.is_empty() {
        return Err(DatabaseUrlError::Authority(None));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(DatabaseUrlError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(tls))
}

/// A host or an address that is not this machine's.
fn foreign_host(config: &Config) -> Option<String> {
    let names = config.get_hosts().iter().filter_map(foreign_name);
    let addresses = config
        .get_hostaddrs()
        .iter()
        .filter(|address| !address.is_loopback())
        .map(IpAddr::to_string);
    names.chain(addresses).next()
}

/// A host that is not this one.
fn foreign_name(host: &Host) -> Option<String> {
    match host {
        Host::Unix(_) => None,
        Host::Tcp(name) if name == "localhost" => None,
        Host::Tcp(name) => match name.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => None,
            Ok(_) | Err(_) => Some(name.clone()),
        },
    }
}

/// Without the password.
impl fmt::Display for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.config.get_dbname().unwrap_or_default();
        write!(f, "{name} of PostgreSQL")
    }
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_loopback_are_taken() {
        for url in [
            "postgres:///berth?host=/run/postgresql&user=berth",
            "postgres://berth:secret@127.0.0.1:5433/berth",
            "postgresql://berth@localhost/berth",
            "postgres://berth@[::1]/berth",
        ] {
            let server = PostgresServer::parse(url, None).unwrap();
            assert!(!format!("{server:?} {server}").contains("secret"));
        }
    }

    #[test]
    fn traffic_in_clear_to_another_machine_is_refused_with_the_remedy() {
        for url in [
            "postgres://berth@db.example/berth",
            "postgres://berth@192.0.2.1/berth",
            "postgres://berth@localhost,192.0.2.1/berth",
            "postgres://berth@localhost/berth?hostaddr=192.0.2.1",
            "postgres://berth@db.example/berth?sslmode=require",
        ] {
            let refused = PostgresServer::parse(url, None).unwrap_err();
            assert!(refused.to_string().contains("Unix socket"), "{refused}");
        }
    }

    #[test]
    fn what_a_url_lacks_is_named() {
        for (url, part) in [
            ("postgres:///berth?user=berth", "a host"),
            ("postgres://berth@localhost", "a database"),
            ("postgres://localhost/berth", "a user"),
            ("sqlite:berth.db", "look like"),
        ] {
            let refused = PostgresServer::parse(url, None).unwrap_err();
            assert!(refused.to_string().contains(part), "{url}: {refused}");
        }
    }

    #[test]
    fn an_authority_is_one_and_has_somebody_to_vouch_for() {
        let url = "postgres://berth@db.example/berth";
        for ca in [
            "",
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\nAA",
        ] {
            let refused = PostgresServer::parse(url, Some(ca.as_bytes())).unwrap_err();
            assert!(refused.to_string().contains("`ca`"), "{ca}: {refused}");
        }
        let socket = "postgres:///berth?host=/run/postgresql&user=berth";
        let refused = PostgresServer::parse(socket, Some(b"")).unwrap_err();
        assert!(refused.to_string().contains("leave out `ca`"), "{refused}");
        let address = "postgres:///berth?hostaddr=192.0.2.1&user=berth";
        let refused = PostgresServer::parse(address, Some(b"")).unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
}
