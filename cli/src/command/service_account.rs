//! `berthctl service-account`: holders of tokens that are no persons, and their roles in projects.

use berth_api::rest::{
    ChangeServiceAccount, CreateServiceAccount, ProjectMember, Role, ServiceAccount, SetMember,
};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::client::{Path, Reply};
use crate::command::token::local;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with service accounts.
#[derive(Subcommand, Debug)]
pub(crate) enum ServiceAccountCommand {
    /// Make a service account of a project; neither its id nor its key is ever used again
    Create {
        /// 1 to 63 lower-case letters, digits and inner hyphens
        account_id: String,
        #[command(flatten)]
        place: Place,
        /// Its Ed25519 public key: base64, hex or an `ssh-ed25519` line, or @FILE
        #[arg(long, value_name = "KEY")]
        subject_pubkey: String,
        /// Name for people [default: the id]
        #[arg(long)]
        display_name: Option<String>,
    },
    /// List the tenant's service accounts
    List {
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one service account
    Show {
        /// Its id
        account_id: String,
    },
    /// Switch a service account off: its tokens open nothing until it is enabled
    Disable {
        /// Its id
        account_id: String,
    },
    /// Switch a service account on again
    Enable {
        /// Its id
        account_id: String,
    },
    /// Give a service account a role in a project, in place of the one that it has there
    Grant {
        /// Its id
        account_id: String,
        #[command(flatten)]
        place: Place,
    },
    /// End a service account's membership of a project
    Revoke {
        /// Its id
        account_id: String,
        /// The project
        #[arg(long)]
        project: String,
    },
    /// Delete a service account: its tokens open nothing ever again
    Delete {
        /// Its id
        account_id: String,
    },
}

/// What it is, and where.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The project
    #[arg(long)]
    project: String,
    /// viewer looks; runner starts, stops, deletes and reads consoles too; editor creates too
    #[arg(long, value_parser = parse_role)]
    role: Role,
}

fn parse_role(text: &str) -> Result<Role, String> {
    text.parse()
        .map_err(|error: berth_api::rest::ParseRoleError| error.to_string())
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: ServiceAccountCommand) -> Result<(), Failure> {
    let all = || Path::of(&["v1", "service-accounts"]);
    let path = |id: &str| Path::of(&["v1", "service-accounts", id]);
    let member = |project: &str, id: &str| Path::of(&["v1", "projects", project, "members", id]);
    let reply = match command {
        ServiceAccountCommand::Create {
            account_id,
            place,
            subject_pubkey,
            display_name,
        } => {
            let body = json!(CreateServiceAccount {
                account_id,
                display_name,
                subject_pubkey: local::text_or_file(&subject_pubkey)?,
                role: place.role,
            });
            let path = Path::of(&["v1", "projects", &place.project, "service-accounts"]);
            session.client.post(path, Some(&body))?
        }
        ServiceAccountCommand::List { limit } => {
            let items = session.client.list(&all(), limit)?;
            return session.show_list(&items, list_table);
        }
        ServiceAccountCommand::Show { account_id } => session.client.get(path(&account_id))?,
        ServiceAccountCommand::Disable { account_id } => switch(session, path(&account_id), true)?,
        ServiceAccountCommand::Enable { account_id } => switch(session, path(&account_id), false)?,
        ServiceAccountCommand::Grant { account_id, place } => {
            let path = member(&place.project, &account_id);
            let body = json!(SetMember { role: place.role });
            let reply = session.client.call("PUT", &path, Some(&body))?;
            return session.show(&reply, member_table);
        }
        ServiceAccountCommand::Revoke {
            account_id,
            project,
        } => {
            session.client.delete(member(&project, &account_id))?;
            let gone = json!({ "account_id": account_id, "project_id": project, "removed": true });
            let said = format!("{account_id} is no member of {project} any more");
            return session.screen.say(&gone, &said);
        }
        ServiceAccountCommand::Delete { account_id } => {
            session.client.delete(path(&account_id))?;
            let gone = json!({ "account_id": account_id, "deleted": true });
            return session.screen.say(&gone, &format!("deleted {account_id}"));
        }
    };
    session.show(&reply, object_table)
}

fn switch(session: &Session, path: Path, disabled: bool) -> Result<Reply, Failure> {
    let change = ChangeServiceAccount {
        disabled: Some(disabled),
        ..ChangeServiceAccount::default()
    };
    session.client.patch(path, &json!(change))
}

/// Many service accounts.
#[must_use]
pub(crate) fn list_table(accounts: &[ServiceAccount]) -> Table {
    let mut table = Table::new(&["SERVICE ACCOUNT", "PROJECT", "ROLES", "STATE", "CREATED"]);
    for account in accounts {
        table.row([
            (&account.account_id).into(),
            (&account.project_id).into(),
            optional(roles(account)),
            state(account),
            (&account.created_at).into(),
        ]);
    }
    table
}

/// One service account.
#[must_use]
pub(crate) fn object_table(account: &ServiceAccount) -> Table {
    Table::of_object([
        ("service account", (&account.account_id).into()),
        ("tenant", (&account.tenant_id).into()),
        ("project", (&account.project_id).into()),
        ("display name", (&account.display_name).into()),
        ("roles", optional(roles(account))),
        ("state", state(account)),
        ("subject key", (&account.subject_pubkey).into()),
        ("created", (&account.created_at).into()),
        ("revision", account.revision.into()),
        ("ledger entry", account.audit_index.into()),
    ])
}

/// What it is in one project.
#[must_use]
pub(crate) fn member_table(member: &ProjectMember) -> Table {
    Table::of_object([
        ("service account", (&member.account_id).into()),
        ("project", (&member.project_id).into()),
        ("role", member.role.as_str().into()),
    ])
}

fn state(account: &ServiceAccount) -> Cell {
    if account.disabled {
        Cell::toned("disabled", Tone::Bad)
    } else {
        Cell::toned("enabled", Tone::Good)
    }
}

fn roles(account: &ServiceAccount) -> Option<String> {
    let texts: Vec<String> = account
        .roles
        .iter()
        .map(|(project, role)| format!("{project}={role}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join(" "))
}
