//! `berthctl person`: who of the identity provider's people may sign in for a tenant.

use berth_api::rest::{LinkPerson, OneOrMany, Person};
use clap::Subcommand;
use serde_json::json;

use crate::client::Path;
use crate::command::slot::remote::yes_no;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::Table;

/// What can be done with people.
#[derive(Subcommand, Debug)]
pub(crate) enum PersonCommand {
    /// Let a person sign in for a tenant, with these scopes and no others
    Add {
        /// The tenant
        tenant_id: String,
        /// Who it is to the identity provider: the `sub` of its tokens
        subject: String,
        /// What the person may do; may be repeated
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<String>,
        /// Name for people [default: the subject]
        #[arg(long)]
        display_name: Option<String>,
    },
    /// List the people who may sign in for a tenant
    List {
        /// The tenant
        tenant_id: String,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one person's link to a tenant
    Show {
        /// Its id, `person_…`
        person: String,
    },
    /// Let a person sign in no more, and end the person's tokens
    Remove {
        /// Its id, `person_…`
        person: String,
    },
}

fn of_tenant(tenant: &str) -> Path {
    Path::of(&["v1", "tenants", tenant, "persons"])
}

fn path(person: &str) -> Path {
    Path::of(&["v1", "persons", person])
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: PersonCommand) -> Result<(), Failure> {
    let reply = match command {
        PersonCommand::Add {
            tenant_id,
            subject,
            scopes,
            display_name,
        } => {
            let body = json!(LinkPerson {
                subject,
                scope: OneOrMany::Many(scopes),
                display_name,
            });
            session.client.post(of_tenant(&tenant_id), Some(&body))?
        }
        PersonCommand::List { tenant_id, limit } => {
            let items = session.client.list(&of_tenant(&tenant_id), limit)?;
            return session.show_list(&items, list_table);
        }
        PersonCommand::Show { person } => session.client.get(path(&person))?,
        PersonCommand::Remove { person } => {
            session.client.delete(path(&person))?;
            let gone = json!({ "id": person, "removed": true });
            let said = format!("{person} signs in no more, and its tokens have ended");
            return session.screen.say(&gone, &said);
        }
    };
    session.show(&reply, object_table)
}

/// Many people.
#[must_use]
pub(crate) fn list_table(persons: &[Person]) -> Table {
    let mut table = Table::new(&["PERSON", "NAME", "SUBJECT", "SCOPE", "LINKED"]);
    for person in persons {
        table.row([
            person.id.into(),
            (&person.display_name).into(),
            (&person.subject).into(),
            person.scope.join(" ").into(),
            (&person.created_at).into(),
        ]);
    }
    table
}

/// One person.
#[must_use]
pub(crate) fn object_table(person: &Person) -> Table {
    Table::of_object([
        ("person", person.id.into()),
        ("tenant", (&person.tenant_id).into()),
        ("name", (&person.display_name).into()),
        ("identity provider", (&person.issuer).into()),
        ("subject", (&person.subject).into()),
        ("scope", person.scope.join(" ").into()),
        ("signed requests", yes_no(person.require_pop).into()),
        ("linked", (&person.created_at).into()),
        ("ledger entry", person.audit_index.into()),
    ])
}
