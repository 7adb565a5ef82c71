//! TLS of the API's port: certificate and key from files or from systemd's credentials, read anew when
//! the service is told to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Names of the credentials that systemd passes.
const CREDENTIALS: [&str; 2] = ["tls-certificate", "tls-key"];

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// PEM: the certificate, then those between it and its root.
    pub(crate) certificate: PathBuf,
    /// PEM: its private key.
    pub(crate) key: PathBuf,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// One of the two settings without the other.
    #[error("tls_certificate and tls_key go together: set both or none")]
    Half,
    /// A file is missing or is not PEM.
    #[error("{} does not hold {what} as PEM", path.display())]
    File {
        path: PathBuf,
        what: &'static str,
        #[source]
        cause: rustls::pki_types::pem::Error,
    },
    /// The two do not fit each other, or are of a kind that is not known.
    #[error("the certificate in {} and the key in {} do not make a TLS identity", certificate.display(), key.display())]
    Identity {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        cause: rustls::Error,
    },
}

impl TlsFiles {
    /// From the settings, else from the folder of credentials; `None` if neither names any.
    pub(crate) fn find(
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        credentials: Option<&Path>,
    ) -> Result<Option<Self>, TlsError> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Self { certificate, key })),
            (Some(_), None) | (None, Some(_)) => Err(TlsError::Half),
            (None, None) => {
                let [certificate, key] = CREDENTIALS;
                let found = credentials.map(|folder| Self {
                    certificate: folder.join(certificate),
                    key: folder.join(key),
                });
                Ok(found.filter(|files| files.certificate.exists() || files.key.exists()))
            }
        }
    }

    fn read(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let file = |path: &Path, what, cause| TlsError::File {
            path: path.to_owned(),
            what,
            cause,
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|cause| file(&self.certificate, "a certificate", cause))?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|cause| file(&self.key, "a private key", cause))?;
        let identity = |cause| TlsError::Identity {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            cause,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(identity)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(identity)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The identity that the port shows.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    pub(crate) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let current = RwLock::new(files.read()?);
        Ok(Self { files, current })
    }

    /// Read the files anew. What cannot be read changes nothing: the old identity goes on.
    pub(crate) fn renew(&self) -> Result<(), TlsError> {
        let renewed = self.files.read()?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// The handshake.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(current).accept(stream).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_identity_is_an_error_and_none_is_none() {
        let path = || Some(PathBuf::from("/nonexistent/x.pem"));
        assert!(matches!(
            TlsFiles::find(path(), None, None),
            Err(TlsError::Half)
        ));
        assert_eq!(TlsFiles::find(None, None, None).unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            TlsFiles::find(None, None, Some(folder.path())).unwrap(),
            None
        );
        // One of the two credentials: the other's absence is told when they are read.
        std::fs::write(folder.path().join("tls-key"), "x").unwrap();
        let found = TlsFiles::find(None, None, Some(folder.path())).unwrap();
        let error = Tls::open(found.unwrap()).unwrap_err();
        assert!(error.to_string().contains("tls-certificate"), "{error}");
    }
}
