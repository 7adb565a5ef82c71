//! The socket that the API is served on: systemd's, or our own on a loopback address.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

/// Where to listen when nothing says otherwise.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:9221";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The address would be reachable from outside, and there is no TLS.
    #[error(
        "{address} is not a loopback address, and without TLS tokens would cross the network in the clear: set tls_certificate and tls_key in controller.toml (or pass the credentials tls-certificate and tls-key), or listen on 127.0.0.1 or ::1"
    )]
    NotLoopback {
        /// Which address.
        address: SocketAddr,
    },
    /// The system refused.
    #[error("could not listen on {address}")]
    Bind {
        /// Which address.
        address: String,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
}

/// Take systemd's socket if there is one, else bind `address`. One that is reachable from outside is
/// for TLS alone.
pub(crate) fn open(address: SocketAddr, has_tls: bool) -> Result<TcpListener, ListenError> {
    let failed = |cause| ListenError::Bind {
        address: address.to_string(),
        cause,
    };
    let passed = listenfd::ListenFd::from_env()
        .take_tcp_listener(0)
        .map_err(failed)?;
    let listener = match passed {
        Some(listener) => listener,
        None => {
            may_be_reached(address, has_tls)?;
            TcpListener::bind(address).map_err(failed)?
        }
    };
    may_be_reached(listener.local_addr().map_err(failed)?, has_tls)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn may_be_reached(address: SocketAddr, has_tls: bool) -> Result<(), ListenError> {
    if has_tls || address.ip().is_loopback() {
        Ok(())
    } else {
        Err(ListenError::NotLoopback { address })
    }
}

/// Tell a waiting program which port was bound: whole or not at all.
pub(crate) fn write_port_file(path: &Path, address: SocketAddr) -> io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{}\n", address.port()))?;
    std::fs::rename(temporary, path)
}
