//! Which controller to talk to and with which token: pure choice, thin reading.
//!
//! The token is never printed, logged or put into an error; only where it came from is.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use berth_api::rest::DEFAULT_URL;
use clap::Args;
use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::failure::Failure;

const ADMIN_TOKEN: &str = "/var/lib/berth/controller/admin.token";

/// What every command takes.
#[derive(Args, Clone)]
#[command(next_help_heading = "Global options")]
pub(crate) struct ConnectionArguments {
    /// The controller's address [default: http://127.0.0.1:9221]
    #[arg(long, global = true, env = "BERTH_URL", hide_env_values = true)]
    pub(crate) url: Option<String>,
    /// The bearer token [default: ~/.config/berth/token, then the controller's admin.token]
    ///
    /// Other users of this machine can read a command line: prefer BERTH_TOKEN or a file.
    #[arg(long, global = true, env = "BERTH_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The token holder's private key, for tokens that demand signed requests and to narrow a token
    /// [default: ~/.config/berth/key]
    #[arg(long, global = true, env = "BERTH_HOLDER_KEY", value_name = "FILE")]
    pub(crate) holder_key: Option<PathBuf>,
    /// PEM of the authority that vouches for the controller's certificate; needed for https
    #[arg(
        long,
        global = true,
        env = "BERTH_CA",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) ca: Option<PathBuf>,
}

impl std::fmt::Debug for ConnectionArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionArguments")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A bearer token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self, Failure> {
        let text = text.trim();
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Failure::MalformedToken {
                origin: origin.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// For the `Authorization` header and nothing else.
    #[must_use]
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where to talk to, with what, and what the caller should know about it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Scheme, host and port, without a slash at the end.
    pub(crate) url: String,
    /// The token, if one was found.
    pub(crate) token: Option<Token>,
    /// The file of the holder's key; it is read when it is needed.
    pub(crate) key_file: PathBuf,
    /// Where a token was looked for.
    pub(crate) tried: String,
    /// Who may vouch for the controller; empty without TLS.
    pub(crate) roots: Vec<Certificate<'static>>,
    /// Remarks for standard error.
    pub(crate) warnings: Vec<String>,
}

/// Resolve the arguments, which include the environment, against this user's files.
pub(crate) fn resolve(arguments: &ConnectionArguments) -> Result<Connection, Failure> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let own = |name| {
        config
            .as_ref()
            .map(|folder| folder.join("berth").join(name))
    };
    let mut files: Vec<PathBuf> = own("token").into_iter().collect();
    files.push(PathBuf::from(ADMIN_TOKEN));
    let mut connection = resolve_with(arguments, &files)?;
    if arguments.holder_key.is_none()
        && let Some(file) = own("key")
    {
        connection.key_file = file;
    }
    Ok(connection)
}

fn resolve_with(arguments: &ConnectionArguments, files: &[PathBuf]) -> Result<Connection, Failure> {
    // An empty variable is how some shells unset one.
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let url = checked_url(given(&arguments.url).as_deref().unwrap_or(DEFAULT_URL))?;
    let roots = match (&arguments.ca, url.starts_with("https://")) {
        (Some(file), true) => authorities(file)?,
        (None, true) => {
            return Err(Failure::Usage {
                sentence: format!("{url} needs TLS, and nobody is named who vouches for it"),
                remedy: "Give --ca FILE or BERTH_CA with the PEM of its authority.".to_owned(),
            });
        }
        (_, false) => Vec::new(),
    };
    let mut warnings = Vec::new();
    let token = match &given(&arguments.token) {
        Some(text) => Some(Token::parse(text, "--token or BERTH_TOKEN")?),
        None => token_from_files(files, &mut warnings)?,
    };
    if token.is_some() && roots.is_empty() && !is_loopback(&url) {
        warnings.push(format!(
            "warning: {url} is not this machine and the connection is not encrypted; the token can \
             be read on the way. Use https:// or an SSH tunnel."
        ));
    }
    let places: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    Ok(Connection {
        url,
        token,
        key_file: arguments.holder_key.clone().unwrap_or_default(),
        roots,
        tried: format!("--token, BERTH_TOKEN, {}", places.join(", ")),
        warnings,
    })
}

/// The first of the files that can be read.
fn token_from_files(
    files: &[PathBuf],
    warnings: &mut Vec<String>,
) -> Result<Option<Token>, Failure> {
    for file in files {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        let open = std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
        if open {
            warnings.push(format!(
                "warning: other users can read the token in {0}; run `chmod 600 {0}`",
                file.display()
            ));
        }
        return Token::parse(&text, &file.display().to_string()).map(Some);
    }
    Ok(None)
}

fn checked_url(text: &str) -> Result<String, Failure> {
    let usage = |sentence: String, remedy: &str| {
        Err(Failure::Usage {
            sentence,
            remedy: remedy.to_owned(),
        })
    };
    let parts = ["http", "https"].iter().find_map(|scheme| {
        let rest = text.strip_prefix(scheme)?.strip_prefix("://")?;
        Some((scheme, rest.strip_suffix('/').unwrap_or(rest)))
    });
    match parts {
        Some((scheme, host)) if !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']) => {
            Ok(format!("{scheme}://{host}"))
        }
        _ => usage(
            format!("`{text}` is not a controller's URL"),
            "Write it as http://HOST:PORT or https://HOST:PORT.",
        ),
    }
}

/// The certificates of a PEM file.
fn authorities(file: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let unusable = |why: String| Failure::Usage {
        sentence: format!("{} holds no certificate: {why}", file.display()),
        remedy: "Give the PEM of the authority that signed the controller's certificate."
            .to_owned(),
    };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| unusable(error.to_string()))?
        {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(unusable("there is none in it".to_owned()));
    }
    Ok(found)
}

fn is_loopback(url: &str) -> bool {
    let authority = url.strip_prefix("http://").unwrap_or(url);
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(url: Option<&str>, token: Option<&str>) -> ConnectionArguments {
        ConnectionArguments {
            url: url.map(str::to_owned),
            token: token.map(str::to_owned),
            holder_key: None,
            ca: None,
        }
    }

    fn token_file(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, format!("{name}-token\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_first_readable_token_wins() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            folder.path().join("absent"),
            token_file(folder.path(), "own", 0o600),
            token_file(folder.path(), "admin", 0o600),
        ];
        let found = resolve_with(&arguments(None, None), &files).unwrap();
        assert_eq!(found.token, Some(Token("own-token".to_owned())));
        assert_eq!(found.url, DEFAULT_URL);
        assert!(found.warnings.is_empty());
        let given = resolve_with(&arguments(None, Some("given")), &files).unwrap();
        assert_eq!(given.token, Some(Token("given".to_owned())));
    }

    #[test]
    fn a_token_file_that_others_can_read_is_used_with_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let files = [token_file(folder.path(), "own", 0o644)];
        let found = resolve_with(&arguments(None, None), &files).unwrap();
        assert!(found.token.is_some());
        assert!(found.warnings[0].contains("chmod 600"), "{found:?}");
    }

    #[test]
    fn a_far_controller_in_clear_text_is_warned_about() {
        for (url, warns) in [
            ("http://127.0.0.1:1", false),
            ("http://localhost:1/", false),
            ("http://[::1]:1", false),
            ("http://192.0.2.1:1", true),
            ("http://127.0.0.1.example:1", true),
        ] {
            let found = resolve_with(&arguments(Some(url), Some("t")), &[]).unwrap();
            assert_eq!(!found.warnings.is_empty(), warns, "{url}");
        }
    }

    #[test]
    fn https_needs_somebody_who_vouches() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, "not PEM").unwrap();
        for ca in [None, Some(file), Some(folder.path().join("absent"))] {
            let asked = ConnectionArguments {
                ca,
                ..arguments(Some("https://berth.example:9221"), None)
            };
            let refused = resolve_with(&asked, &[]);
            assert!(matches!(refused, Err(Failure::Usage { .. })), "{refused:?}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_a_usage_error() {
        for url in [
            "127.0.0.1:1",
            "ftp://a",
            "http://",
            "http://a/v1",
            "http://u@a",
        ] {
            let refused = resolve_with(&arguments(Some(url), None), &[]);
            assert!(matches!(refused, Err(Failure::Usage { .. })), "{url}");
        }
    }

    #[test]
    fn neither_a_bad_token_nor_a_good_one_is_ever_shown() {
        let refused = resolve_with(&arguments(None, Some("sec ret\nX")), &[]).unwrap_err();
        assert!(!refused.to_text().contains("ret"), "{refused:?}");
        let found = resolve_with(&arguments(None, Some("secret")), &[]).unwrap();
        assert!(!format!("{found:?}").contains("secret"));
    }
}
