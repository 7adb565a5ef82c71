//! `berthctl token`: capability tokens and the keys that they are bound to.
//!
//! `issue` and `derive` are the commands that print a token, because nobody can ever ask for it again.

pub(crate) mod local;

use berth_api::rest::{
    IssueToken, IssuedToken, OneOrMany, RevokeTokens, TokenRecord, VerifiedToken,
};
use clap::Subcommand;
use serde_json::json;

use crate::client::Path;
use crate::duration::parse_seconds;
use crate::failure::Failure;
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
        /// Id of a VM or slot that it is good for, and for no other; may be repeated
        #[arg(long, value_name = "ID")]
        res: Vec<String>,
        /// Good for requests alone that the holder's key has signed
        #[arg(long)]
        require_pop: bool,
        /// How often its holders may narrow it [default: 3]
        #[arg(long, value_name = "N")]
        delegations: Option<u8>,
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
    /// Ask the controller whether a token is good, and for what
    Verify {
        /// The token, or @FILE
        #[arg(value_name = "TOKEN")]
        given: String,
    },
    /// Revoke a token, a holder or everything so far, and every token narrowed from it
    Revoke(Revoke),
    #[command(flatten)]
    Local(local::LocalTokenCommand),
}

/// `berthctl token revoke`
#[derive(clap::Args, Debug)]
pub(crate) struct Revoke {
    /// The token's id, `tok_…`
    #[arg(required_unless_present_any = ["holder", "all"])]
    token_id: Option<String>,
    /// All tokens of a holder, by its public key or @FILE
    #[arg(long, value_name = "KEY", conflicts_with = "token_id")]
    holder: Option<String>,
    /// All tokens of the tenant so far, your own too
    #[arg(long, conflicts_with_all = ["token_id", "holder"])]
    all: bool,
    /// Also a token that was derived and that the controller has not seen
    #[arg(long, conflicts_with_all = ["holder", "all"])]
    unseen: bool,
    /// The tenant (operators; without it operators' own tokens are meant)
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Why, for the ledger
    #[arg(long)]
    reason: Option<String>,
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
            res,
            require_pop,
            delegations,
            raw,
        } => {
            let body = json!(IssueToken {
                subject_pubkey: local::text_or_file(&subject_pubkey)?,
                scope: one_or_many(scope),
                expires_in_seconds: expires_in,
                label,
                resources: (!res.is_empty()).then_some(res),
                require_pop: Some(require_pop),
                delegations,
                tenant_id: None,
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
        TokenCommand::Verify { given } => {
            let body = json!({ "token": local::text_or_file(&given)? });
            let path = Path::of(&["v1", "tokens", "verify"]);
            let reply = session.client.post(path, Some(&body))?;
            session.show(&reply, verified_table)
        }
        TokenCommand::Revoke(what) => revoke(session, what),
        TokenCommand::Local(command) => {
            let connection = session.client.connection();
            local::run_with(&mut session.screen, connection, command)
        }
    }
}

fn revoke(session: &mut Session, what: Revoke) -> Result<(), Failure> {
    let mut body = RevokeTokens {
        tenant_id: what.tenant,
        reason: what.reason,
        ..RevokeTokens::default()
    };
    let shown = match (what.token_id, what.holder) {
        (Some(id), _) if !what.unseen && body.tenant_id.is_none() && body.reason.is_none() => {
            session.client.delete(Path::of(&["v1", "tokens", &id]))?;
            let gone = json!({ "token_id": id, "revoked": true });
            return session.screen.say(&gone, &format!("revoked {id}"));
        }
        (Some(id), _) => {
            body.token_id =
                Some(
                    id.parse().map_err(|_| Failure::Usage {
                        sentence: format!("`{id}` is not a token's id"),
                        remedy: "Take it from `berthctl token list` or `berthctl token inspect`."
                            .to_owned(),
                    })?,
                );
            format!("revoked {id}")
        }
        (None, Some(key)) => {
            body.subject_pubkey = Some(local::text_or_file(&key)?);
            "revoked all tokens of that holder".to_owned()
        }
        (None, None) => {
            body.all = Some(true);
            "revoked all tokens so far".to_owned()
        }
    };
    let path = Path::of(&["v1", "tokens", "revoke"]);
    session.client.post(path, Some(&json!(body)))?;
    session.screen.say(&json!({ "revoked": true }), &shown)
}

fn one_or_many(mut scopes: Vec<String>) -> OneOrMany {
    match scopes.len() {
        1 => OneOrMany::One(scopes.remove(0)),
        _ => OneOrMany::Many(scopes),
    }
}

/// A token just issued.
#[must_use]
pub(crate) fn issued_table(issued: &IssuedToken) -> Table {
    Table::of_object([
        ("token", (&issued.token).into()),
        ("token id", issued.token_id.into()),
        ("tenant", (&issued.tenant_id).into()),
        ("scope", issued.scope.join(" ").into()),
        ("limited to", limit_text(issued.resources.as_deref()).into()),
        ("signed requests only", issued.require_pop.into()),
        ("subject key", (&issued.subject_pubkey).into()),
        ("issued", (&issued.issued_at).into()),
        ("expires", (&issued.expires_at).into()),
    ])
}

/// A token that the controller found good.
#[must_use]
pub(crate) fn verified_table(token: &VerifiedToken) -> Table {
    let ids: Vec<String> = token.token_ids.iter().map(ToString::to_string).collect();
    Table::of_object([
        ("token ids", ids.join(" ").into()),
        ("tenant", optional(token.tenant_id.as_ref())),
        ("scope", token.scope.join(" ").into()),
        ("limited to", limit_text(token.resources.as_deref()).into()),
        ("signed requests only", token.require_pop.into()),
        ("subject key", (&token.subject_pubkey).into()),
        ("expires", (&token.expires_at).into()),
    ])
}

/// The VMs and slots that a token is limited to.
fn limit_text(resources: Option<&[String]>) -> String {
    match resources {
        None => "-".to_owned(),
        Some([]) => "nothing".to_owned(),
        Some(ids) => ids.join(" "),
    }
}

/// Many tokens' records.
#[must_use]
pub(crate) fn list_table(tokens: &[TokenRecord]) -> Table {
    let mut table = Table::new(&[
        "TOKEN ID",
        "SCOPE",
        "LABEL",
        "FROM",
        "ISSUED",
        "EXPIRES",
        "LAST USED",
        "REVOKED",
    ]);
    for token in tokens {
        let revoked = token.revoked_at.as_ref();
        table.row([
            token.token_id.into(),
            token.scope.join(" ").into(),
            optional(token.label.as_ref()),
            optional(token.parent_ids.last()),
            (&token.issued_at).into(),
            (&token.expires_at).into(),
            optional(token.last_used_at.as_ref()),
            revoked.map_or_else(|| Cell::from("-"), |at| Cell::toned(at, Tone::Caution)),
        ]);
    }
    table
}
