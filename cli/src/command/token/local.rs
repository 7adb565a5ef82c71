//! What a token's holder does alone: make keys, narrow a token, look into one. No controller is asked.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path as FilePath, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::ids::TokenId;
use berth_ledger::keys::SigningKey;
use berth_token::{Chain, Link, Resources, ScopeSet, SubjectKey, derive};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::limit_text;
use crate::connection::{self, Connection, ConnectionArguments};
use crate::duration::parse_seconds;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

/// What needs no controller.
#[derive(Subcommand, Debug)]
pub(crate) enum LocalTokenCommand {
    /// Narrow your token for somebody else, or for less, and print the new one; works offline
    Derive(Derive),
    /// Show what a token claims, link by link; works offline and proves nothing
    Inspect {
        /// The token, or @FILE [default: your own]
        #[arg(value_name = "TOKEN")]
        given: Option<String>,
    },
    /// Make an Ed25519 key pair for a token's holder and print the public key
    Keygen {
        /// File for the private key; the public one goes beside it with `.pub`
        file: PathBuf,
    },
}

/// `berthctl token derive`
#[derive(clap::Args, Debug)]
pub(crate) struct Derive {
    /// What the new token may do; may be repeated
    #[arg(long, required = true)]
    scope: Vec<String>,
    /// Id of a VM or slot that it is good for, and for no other; may be repeated
    #[arg(long, value_name = "ID")]
    res: Vec<String>,
    /// How long it is good for, and never longer than its parent
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_seconds)]
    ttl: u64,
    /// The new holder's public key: base64, hex or an `ssh-ed25519` line, or @FILE [default: yours]
    #[arg(long, value_name = "KEY")]
    sub: Option<String>,
    /// How often the new token may be narrowed in turn
    #[arg(long, value_name = "N", default_value_t = 0)]
    delegations: u8,
    /// Good for requests alone that the new holder's key has signed
    #[arg(long)]
    require_pop: bool,
    /// The token to narrow, or @FILE [default: your own]
    #[arg(long, value_name = "TOKEN")]
    parent: Option<String>,
    /// Print the token alone, for `$(…)`
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// Run one, with the caller's arguments.
pub(crate) fn run(
    screen: &mut Screen,
    arguments: &ConnectionArguments,
    command: LocalTokenCommand,
) -> Result<(), Failure> {
    match command {
        LocalTokenCommand::Keygen { file } => keygen(screen, &file),
        command @ (LocalTokenCommand::Derive(_) | LocalTokenCommand::Inspect { .. }) => {
            run_with(screen, &connection::resolve(arguments)?, command)
        }
    }
}

/// Run one, with the caller's token and key.
pub(crate) fn run_with(
    screen: &mut Screen,
    connection: &Connection,
    command: LocalTokenCommand,
) -> Result<(), Failure> {
    match command {
        LocalTokenCommand::Keygen { file } => keygen(screen, &file),
        LocalTokenCommand::Inspect { given } => {
            let token = token_text(connection, given.as_deref())?;
            inspect(screen, &token)
        }
        LocalTokenCommand::Derive(wanted) => narrow(screen, connection, wanted),
    }
}

/// A text, or what stands in `@FILE`.
pub(crate) fn text_or_file(argument: &str) -> Result<String, Failure> {
    let Some(file) = argument.strip_prefix('@') else {
        return Ok(argument.to_owned());
    };
    std::fs::read_to_string(file)
        .map(|text| text.trim().to_owned())
        .map_err(Failure::file("reading", FilePath::new(file)))
}

/// The token that was named, or the caller's own.
fn token_text(connection: &Connection, named: Option<&str>) -> Result<String, Failure> {
    if let Some(named) = named {
        return text_or_file(named);
    }
    match &connection.token {
        Some(own) => Ok(own.secret().to_owned()),
        None => Err(Failure::NoToken {
            tried: connection.tried.clone(),
        }),
    }
}

/// The private key in a file that only its owner can read.
pub(crate) fn private_key(path: &FilePath) -> Result<SigningKey, Failure> {
    let refused = |problem| Failure::PrivateKey {
        path: path.to_owned(),
        problem,
    };
    if path.as_os_str().is_empty() {
        return Err(refused("no file is named"));
    }
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refused("there is no such file"));
        }
        Err(error) => return Err(Failure::file("reading", path)(error)),
    };
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refused("other users can read it; chmod 0600 it"));
    }
    let text = std::fs::read_to_string(path).map_err(Failure::file("reading", path))?;
    let seed = STANDARD
        .decode(text.trim())
        .map_err(|_| refused("it is not base64"))?;
    SigningKey::from_seed(&seed).map_err(|_| refused("it does not hold 32 bytes"))
}

fn narrow(screen: &mut Screen, connection: &Connection, wanted: Derive) -> Result<(), Failure> {
    let usage = |sentence: String| Failure::Usage {
        sentence,
        remedy: "See `berthctl token inspect` for what the parent allows.".to_owned(),
    };
    let parent = token_text(connection, wanted.parent.as_deref())?;
    let key = private_key(&connection.key_file)?;
    let holder = match &wanted.sub {
        Some(text) => text_or_file(text)?,
        None => key.public().to_base64(),
    };
    let chain = Chain::read_unverified(&parent).map_err(Failure::NotAToken)?;
    let resources = match wanted.res.as_slice() {
        // Who asks for no other limit keeps the parent's.
        [] => chain.last().resources.clone(),
        ids => Some(Resources::parse(ids).map_err(|error| usage(format!("--res: {error}")))?),
    };
    let now = jiff::Timestamp::now().as_second();
    let ttl = i64::try_from(wanted.ttl).unwrap_or(i64::MAX);
    let child = Link {
        token_id: TokenId::generate(),
        holder: SubjectKey::parse(&holder).map_err(|error| usage(format!("--sub: {error}")))?,
        scopes: ScopeSet::parse(&wanted.scope)
            .map_err(|error| usage(format!("--scope: {error}")))?,
        resources,
        not_before: now,
        expires_at: now.saturating_add(ttl).min(chain.last().expires_at),
        delegations: wanted.delegations,
        requires_pop: wanted.require_pop,
    };
    let token = derive(&parent, &key, &child)?;
    if wanted.raw {
        return screen.write(format!("{token}\n").as_bytes());
    }
    let shown = LinkView::of(&child);
    let value = json!({ "token": token, "link": shown });
    screen.show(&value, || {
        Table::of_object([
            ("token", token.into()),
            ("token id", shown.token_id.into()),
            ("scope", shown.scope.join(" ").into()),
            ("limited to", limit_text(shown.resources.as_deref()).into()),
            ("signed requests only", shown.require_pop.into()),
            ("subject key", shown.subject_pubkey.into()),
            ("expires", shown.expires_at.into()),
        ])
    })
}

/// One link as it is shown. Nothing in it opens anything.
#[derive(Serialize)]
struct LinkView {
    token_id: TokenId,
    scope: Vec<String>,
    resources: Option<Vec<String>>,
    require_pop: bool,
    delegations: u8,
    subject_pubkey: String,
    not_before: String,
    expires_at: String,
}

impl LinkView {
    fn of(link: &Link) -> Self {
        Self {
            token_id: link.token_id,
            scope: link.scopes.to_texts(),
            resources: link.resources.as_ref().map(Resources::to_texts),
            require_pop: link.requires_pop,
            delegations: link.delegations,
            subject_pubkey: link.holder.to_base64url(),
            not_before: rfc3339(link.not_before),
            expires_at: rfc3339(link.expires_at),
        }
    }
}

fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn inspect(screen: &mut Screen, token: &str) -> Result<(), Failure> {
    let chain = Chain::read_unverified(token).map_err(Failure::NotAToken)?;
    let links: Vec<LinkView> = chain.links().map(LinkView::of).collect();
    let value = json!({
        "verified": false,
        "controller_id": chain.controller,
        "tenant_id": chain.tenant,
        "links": links,
    });
    screen.note(
        "Not verified: this is what the token claims. `berthctl token verify` asks the controller.",
    );
    screen.show(&value, || inspect_table(&chain, &links))
}

fn inspect_table(chain: &Chain, links: &[LinkView]) -> Table {
    let mut table = Table::new(&[
        "TOKEN ID",
        "TENANT",
        "SCOPE",
        "LIMITED TO",
        "POP",
        "NARROWS",
        "SUBJECT KEY",
        "FROM",
        "UNTIL",
    ]);
    let tenant = chain
        .tenant
        .as_ref()
        .map_or_else(|| "-".to_owned(), ToString::to_string);
    for link in links {
        table.row([
            link.token_id.into(),
            (&tenant).into(),
            link.scope.join(" ").into(),
            limit_text(link.resources.as_deref()).into(),
            link.require_pop.into(),
            link.delegations.into(),
            (&link.subject_pubkey).into(),
            (&link.not_before).into(),
            (&link.expires_at).into(),
        ]);
    }
    table
}

/// Make a key pair and print the public key.
fn keygen(screen: &mut Screen, file: &FilePath) -> Result<(), Failure> {
    let pair = write_pair(file)?;
    screen.say(&pair, &pair.public_key)
}

/// Where a new key pair is.
#[derive(serde::Serialize)]
struct KeyPair {
    private_key_file: PathBuf,
    public_key_file: PathBuf,
    public_key: String,
}

/// Two new files; an existing one is never overwritten.
fn write_pair(file: &FilePath) -> Result<KeyPair, Failure> {
    let key = SigningKey::generate().map_err(Failure::GenerateKey)?;
    let public = key.public().to_base64();
    let mut public_file = file.as_os_str().to_owned();
    public_file.push(".pub");
    let public_file = PathBuf::from(public_file);
    write_new(file, &STANDARD.encode(key.seed()), 0o600)?;
    write_new(&public_file, &public, 0o644)?;
    Ok(KeyPair {
        private_key_file: file.to_owned(),
        public_key_file: public_file,
        public_key: public,
    })
}

fn write_new(path: &FilePath, line: &str, mode: u32) -> Result<(), Failure> {
    let failed = |cause| Failure::File {
        doing: "writing",
        path: path.to_owned(),
        cause,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    writeln!(file, "{line}").map_err(failed)?;
    file.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_pair_is_private_and_never_overwrites_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let pair = write_pair(&file).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let seed = STANDARD
            .decode(std::fs::read_to_string(&file).unwrap().trim())
            .unwrap();
        let public = std::fs::read_to_string(folder.path().join("key.pub")).unwrap();
        assert_eq!(
            SigningKey::from_seed(&seed).unwrap().public().to_base64(),
            public.trim()
        );
        assert_eq!(pair.public_key, public.trim());
        let again = write_pair(&file).map(|pair| pair.public_key).unwrap_err();
        assert!(again.to_text().contains("File exists"), "{again:?}");
        assert_eq!(
            STANDARD.encode(seed),
            std::fs::read_to_string(&file).unwrap().trim()
        );
    }

    #[test]
    fn a_key_can_come_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pub");
        std::fs::write(&file, "abc=\n").unwrap();
        assert_eq!(
            text_or_file(&format!("@{}", file.display())).unwrap(),
            "abc="
        );
        assert_eq!(text_or_file("abc=").unwrap(), "abc=");
        assert!(matches!(
            text_or_file("@/nonexistent/key"),
            Err(Failure::File { .. })
        ));
    }
}
