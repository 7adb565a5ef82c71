//! Where PostgreSQL is, and on which ways its traffic may go.
//!
//! Bearer tokens are not stored, but everything else is: rows go in clear over a Unix socket or the
//! loopback interface, and nowhere else.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// How soon a server that has gone silent is noticed.
const SILENCE_NOTICED: Duration = Duration::from_secs(10);

/// A PostgreSQL server and a database on it.
#[derive(Clone)]
pub struct PostgresServer(Arc<Config>);

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
        "the database {host} is on another machine and its traffic would not be encrypted: use a Unix \
         socket, or a tunnel that ends at a loopback address"
    )]
    NotLocal {
        /// Which host.
        host: String,
    },
}

impl PostgresServer {
    /// Read a `postgres://` URL.
    pub fn parse(url: &str) -> Result<Self, DatabaseUrlError> {
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
        let names = config.get_hosts().iter().filter_map(foreign_name);
        let addresses = config
            .get_hostaddrs()
            .iter()
            .filter(|address| !address.is_loopback())
            .map(IpAddr::to_string);
        if let Some(host) = names.chain(addresses).next() {
            return Err(DatabaseUrlError::NotLocal { host });
        }
        config
            .application_name("berth-controller")
            .ssl_mode(SslMode::Disable)
            .connect_timeout(SILENCE_NOTICED)
            .tcp_user_timeout(SILENCE_NOTICED)
            .keepalives_idle(SILENCE_NOTICED);
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self) -> &Config {
        &self.0
    }
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
        let name = self.0.get_dbname().unwrap_or_default();
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
            let server = PostgresServer::parse(url).unwrap();
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
            let refused = PostgresServer::parse(url).unwrap_err();
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
            let refused = PostgresServer::parse(url).unwrap_err();
            assert!(refused.to_string().contains(part), "{url}: {refused}");
        }
    }
}
