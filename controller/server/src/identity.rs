//! The identity provider: says who a person is, and nothing about what the person may do.
//!
//! Its keys come from a file or over HTTPS and are kept; they are asked for again when they are old, or
//! when a token names one that is not there, but not more often than now and then, whoever sends what.

mod jwt;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use ureq::http::Uri;

use crate::https_client::client;
use jwt::{Expected, ProviderKeys, UnverifiedToken};

pub(crate) use jwt::JwtError;

/// How long the provider may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of keys that are read.
const MAX_KEYS_BYTES: u64 = 256 * 1024;
/// After so long keys are asked for again.
const FRESH: Duration = Duration::from_hours(1);
/// Keys that could not be asked for again are used for so long.
const USABLE: Duration = Duration::from_hours(24);
/// Least time between two times of asking.
const PAUSE: Duration = Duration::from_secs(2);

/// `[identity_provider]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityProviderConfig {
    /// The `iss` of its tokens, letter by letter.
    issuer: String,
    /// The `aud` that its tokens must have: what this deployment is called there.
    audience: String,
    /// Where its keys are, as a JWK set; https, or http on this machine.
    jwks_url: Option<String>,
    /// Or a file with them.
    jwks_file: Option<PathBuf>,
    /// PEM of the authorities that may vouch for it; needed for https.
    ca: Option<PathBuf>,
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The token is not good.
    #[error("the identity provider's token is not taken")]
    Token(#[from] JwtError),
    /// The provider's keys are not there.
    #[error("the identity provider's keys cannot be read")]
    Unavailable,
}

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadKeysError {
    #[error("the provider does not answer")]
    Unreachable(#[source] Box<ureq::Error>),
    #[error("the provider answers with status {0}")]
    Status(u16),
    #[error("the file cannot be read")]
    File(#[source] std::io::Error),
    #[error("there is no key in it that can be used: RSA, P-256 or Ed25519")]
    NoKeys,
}

/// The provider, and what is known of its keys.
#[derive(Debug)]
pub(crate) struct IdentityProvider {
    issuer: String,
    audience: String,
    source: Arc<KeySource>,
    known: Mutex<Known>,
    /// Held by the one who asks the provider.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
enum KeySource {
    File(PathBuf),
    Url { url: String, http: ureq::Agent },
}

#[derive(Debug, Default)]
struct Known {
    keys: ProviderKeys,
    read_at: Option<Instant>,
    asked_at: Option<Instant>,
}

impl IdentityProvider {
    /// As the settings name it. Nothing is asked yet: a provider that is away stops nothing else.
    pub(crate) fn open(config: &IdentityProviderConfig) -> anyhow::Result<Self> {
        jwt::use_ring();
        must_be_https("issuer", &config.issuer)?;
        ensure!(!config.audience.is_empty(), "`audience` is empty");
        let source = match (&config.jwks_url, &config.jwks_file) {
            (Some(url), None) => {
                must_be_https("jwks_url", url)?;
                KeySource::Url {
                    url: url.clone(),
                    http: client(url, config.ca.as_deref(), PATIENCE)?,
                }
            }
            (None, Some(path)) => KeySource::File(path.clone()),
            (Some(_), Some(_)) | (None, None) => {
                anyhow::bail!("give one of `jwks_url` and `jwks_file`")
            }
        };
        let is_file = matches!(source, KeySource::File(_));
        let mut known = Known::default();
        if is_file {
            known.keys = source.read().context("`jwks_file`")?;
            known.read_at = Some(Instant::now());
        }
        Ok(Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            source: Arc::new(source),
            known: Mutex::new(known),
            asking: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Who a token is about, if it is good at this second of the epoch.
    pub(crate) async fn subject(&self, token: &str, now_s: i64) -> Result<String, IdentityError> {
        let token = UnverifiedToken::read(token)?;
        let keys = self.keys_for(&token).await?;
        let expected = Expected {
            issuer: &self.issuer,
            audience: &self.audience,
            now_s,
        };
        Ok(token.subject(&keys, &expected)?)
    }

    /// The keys to verify a token with. One asks the provider at a time; who cannot do without the answer waits
    /// for it, and nobody else does.
    async fn keys_for(&self, token: &UnverifiedToken<'_>) -> Result<ProviderKeys, IdentityError> {
        if let Some(keys) = self.known().keys_of(token, FRESH) {
            return Ok(keys);
        }
        let _turn = match self.asking.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                if let Some(keys) = self.known().keys_of(token, USABLE) {
                    return Ok(keys);
                }
                self.asking.lock().await
            }
        };
        if let Some(keys) = self.known().keys_of(token, FRESH) {
            return Ok(keys);
        }
        if self.known().begins_to_ask() {
            let source = Arc::clone(&self.source);
            match tokio::task::spawn_blocking(move || source.read()).await {
                Ok(Ok(keys)) => {
                    let mut known = self.known();
                    known.keys = keys;
                    known.read_at = Some(Instant::now());
                }
                Ok(Err(error)) => {
                    // Those who waited meanwhile are not to wait as long again, one after the other.
                    self.known().asked_at = Some(Instant::now());
                    let error: &(dyn std::error::Error + 'static) = &error;
                    tracing::warn!(error, "the identity provider's keys were not read anew");
                }
                Err(_) => return Err(IdentityError::Unavailable),
            }
        }
        let known = self.known();
        if known.is_younger_than(USABLE) {
            Ok(known.keys.clone())
        } else {
            Err(IdentityError::Unavailable)
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_younger_than(&self, age: Duration) -> bool {
        self.read_at.is_some_and(|read| read.elapsed() < age)
    }

    /// The keys, if the token's is among them and they were read no longer ago than this.
    fn keys_of(&self, token: &UnverifiedToken<'_>, age: Duration) -> Option<ProviderKeys> {
        (self.is_younger_than(age) && self.keys.has(token)).then(|| self.keys.clone())
    }

    /// Whether it is time to ask, which is noted.
    fn begins_to_ask(&mut self) -> bool {
        let begins = self.asked_at.is_none_or(|asked| asked.elapsed() >= PAUSE);
        if begins {
            self.asked_at = Some(Instant::now());
        }
        begins
    }
}

impl KeySource {
    /// Blocks for as long as the provider takes.
    fn read(&self) -> Result<ProviderKeys, ReadKeysError> {
        let text = match self {
            Self::File(path) => std::fs::read(path).map_err(ReadKeysError::File)?,
            Self::Url { url, http } => {
                let failed = |error| ReadKeysError::Unreachable(Box::new(error));
                let mut answer = http.get(url).call().map_err(failed)?;
                if answer.status() != 200 {
                    return Err(ReadKeysError::Status(answer.status().as_u16()));
                }
                let body = answer.body_mut().with_config().limit(MAX_KEYS_BYTES);
                body.read_to_vec().map_err(failed)?
            }
        };
        ProviderKeys::parse(&text)
            .filter(|keys| !keys.is_empty())
            .ok_or(ReadKeysError::NoKeys)
    }
}

/// Nobody else can be asked instead of who was meant: over the network by TLS alone.
fn must_be_https(setting: &str, url: &str) -> anyhow::Result<()> {
    let uri: Uri = url
        .parse()
        .with_context(|| format!("`{setting}` is not an address"))?;
    let host = uri.host().unwrap_or_default();
    let is_here = host == "localhost"
        || host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback());
    let is_plain = uri.scheme_str() == Some("http");
    ensure!(
        uri.scheme_str() == Some("https") || (is_plain && is_here),
        "`{setting}` must begin with https://; http is for this machine alone"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(settings: &str) -> Result<(), String> {
        let config: IdentityProviderConfig = toml::from_str(settings).unwrap();
        IdentityProvider::open(&config)
            .map(drop)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_provider_that_could_be_anybody_is_refused_at_the_start() {
        let issuer = "issuer = \"https://login.example\"\naudience = \"berth\"\n";
        let here = format!("{issuer}jwks_url = \"http://127.0.0.1:1/keys\"\n");
        open(&here).unwrap();
        open(&here.replace("127.0.0.1", "[::1]")).unwrap();
        for (settings, words) in [
            (here.replace("127.0.0.1", "192.0.2.1"), "https"),
            (here.replace("https://login", "http://login"), "`issuer`"),
            (
                here.replace("http://127.0.0.1:1", "https://login.example"),
                "`ca`",
            ),
            (here.replace("\"berth\"", "\"\""), "`audience`"),
            (issuer.to_owned(), "one of"),
            (format!("{here}jwks_file = \"keys\"\n"), "one of"),
            (
                format!("{issuer}jwks_file = \"/nowhere/keys\"\n"),
                "`jwks_file`",
            ),
        ] {
            let refused = open(&settings).unwrap_err();
            assert!(refused.contains(words), "{settings}: {refused}");
        }
    }

    #[test]
    fn a_file_without_a_usable_key_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let settings = format!(
            "issuer = \"https://login.example\"\naudience = \"berth\"\njwks_file = \"{}\"\n",
            path.display()
        );
        for text in [
            "",
            "{}",
            r#"{"keys":[]}"#,
            r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}]}"#,
            r#"{"keys":[{"kty":"new","x":1}, 7]}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let refused = open(&settings).unwrap_err();
            assert!(refused.contains("no key"), "{text}: {refused}");
        }
    }
}
