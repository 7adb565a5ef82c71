//! `berthctl token`: capability tokens and the keys that they are bound to.
//!
//! `issue` is the one command that prints a token, because nobody can ever ask for it again.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path as FilePath, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::rest::{IssueToken, IssuedToken, OneOrMany, TokenRecord};
use berth_ledger::keys::SigningKey;
use clap::Subcommand;
use serde_json::json;

use crate::client::Path;
use crate::duration::parse_seconds;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with tokens.
#[derive(Subcommand, Debug)]
pub(crate) enum TokenCommand {
    /// Issue a token to the holder of a key and print it, this once
    Issue {
        /// The tenant that it speaks for
        tenant_id: String,
        /// The holder's Ed25519 public key: base64, hex or an `ssh-ed25519` line, or @FILE
        #[arg(long, value_name = "KEY")]
        subject_pubkey: String,
        /// What it may do, such as service:tenant-admin; may be repeated
        #[arg(long, required = true)]
        scope: Vec<String>,
        /// How long it is good for, at most 30d
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_seconds)]
        expires_in: u64,
        /// Name for people
        #[arg(long)]
        label: Option<String>,
        /// Print the token alone, for `$(…)`
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    /// List a tenant's tokens, without the tokens themselves
    List {
        /// The tenant
        tenant_id: String,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Revoke a token and every token narrowed from it
    Revoke {
        /// Its id, `tok_…`
        token_id: String,
    },
    /// Make an Ed25519 key pair for a token's holder and print the public key
    Keygen {
        /// File for the private key; the public one goes beside it with `.pub`
        file: PathBuf,
    },
}

/// Run one of those that talk to the controller.
pub(crate) fn run(session: &mut Session, command: TokenCommand) -> Result<(), Failure> {
    let of_tenant = |tenant: &str| Path::of(&["v1", "tenants", tenant, "tokens"]);
    match command {
        TokenCommand::Issue {
            tenant_id,
            subject_pubkey,
            scope,
            expires_in,
            label,
            raw,
        } => {
            let body = json!(IssueToken {
                subject_pubkey: key_text(&subject_pubkey)?,
                scope: one_or_many(scope),
                expires_in_seconds: expires_in,
                label,
            });
            let reply = session.client.post(of_tenant(&tenant_id), Some(&body))?;
            if raw {
                let issued: IssuedToken = reply.read()?;
                return session
                    .screen
                    .write(format!("{}\n", issued.token).as_bytes());
            }
            session.show(&reply, issued_table)
        }
        TokenCommand::List { tenant_id, limit } => {
            let items = session.client.list(&of_tenant(&tenant_id), limit)?;
            session.show_list(&items, list_table)
        }
        TokenCommand::Revoke { token_id } => {
            session
                .client
                .delete(Path::of(&["v1", "tokens", &token_id]))?;
            let gone = json!({ "token_id": token_id, "revoked": true });
            session.screen.say(&gone, &format!("revoked {token_id}"))
        }
        TokenCommand::Keygen { file } => keygen(&mut session.screen, &file),
    }
}

fn one_or_many(mut scopes: Vec<String>) -> OneOrMany {
    match scopes.len() {
        1 => OneOrMany::One(scopes.remove(0)),
        _ => OneOrMany::Many(scopes),
    }
}

/// A key given as text, or as `@FILE`.
fn key_text(argument: &str) -> Result<String, Failure> {
    let Some(file) = argument.strip_prefix('@') else {
        return Ok(argument.to_owned());
    };
    std::fs::read_to_string(file)
        .map(|text| text.trim().to_owned())
        .map_err(|cause| Failure::File {
            doing: "reading",
            path: file.into(),
            cause,
        })
}

/// Make a key pair and print the public key.
pub(crate) fn keygen(screen: &mut Screen, file: &FilePath) -> Result<(), Failure> {
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

/// A token just issued.
#[must_use]
pub(crate) fn issued_table(issued: &IssuedToken) -> Table {
    Table::of_object([
        ("token", (&issued.token).into()),
        ("token id", issued.token_id.into()),
        ("tenant", (&issued.tenant_id).into()),
        ("scope", issued.scope.join(" ").into()),
        ("subject key", (&issued.subject_pubkey).into()),
        ("issued", (&issued.issued_at).into()),
        ("expires", (&issued.expires_at).into()),
    ])
}

/// Many tokens' records.
#[must_use]
pub(crate) fn list_table(tokens: &[TokenRecord]) -> Table {
    let mut table = Table::new(&["TOKEN ID", "SCOPE", "LABEL", "ISSUED", "EXPIRES", "REVOKED"]);
    for token in tokens {
        let revoked = token.revoked_at.as_ref();
        table.row([
            token.token_id.into(),
            token.scope.join(" ").into(),
            optional(token.label.as_ref()),
            (&token.issued_at).into(),
            (&token.expires_at).into(),
            revoked.map_or_else(|| Cell::from("-"), |at| Cell::toned(at, Tone::Caution)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

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
        assert_eq!(key_text(&format!("@{}", file.display())).unwrap(), "abc=");
        assert_eq!(key_text("abc=").unwrap(), "abc=");
        assert!(matches!(
            key_text("@/nonexistent/key"),
            Err(Failure::File { .. })
        ));
    }
}
