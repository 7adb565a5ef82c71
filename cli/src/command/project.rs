//! `berthctl project`: the parts of a tenant and their members.

use std::collections::BTreeMap;

use berth_api::rest::{CreateProject, Project, ProjectMember};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::client::Path;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Table, optional};

/// What can be done with projects.
#[derive(Subcommand, Debug)]
pub(crate) enum ProjectCommand {
    /// Make a project; its id is never changed and never used again in its tenant
    Create {
        /// 1 to 63 lower-case letters, digits and inner hyphens
        project_id: String,
        /// Name for people [default: the id]
        #[arg(long)]
        display_name: Option<String>,
        #[command(flatten)]
        more: ProjectDetails,
    },
    /// List the tenant's projects
    List {
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one project
    Show {
        /// Its id
        project_id: String,
    },
    /// Change a project; a ceiling below what is in use stops nothing
    Update {
        /// Its id
        project_id: String,
        /// Name for people
        #[arg(long)]
        display_name: Option<String>,
        #[command(flatten)]
        more: ProjectDetails,
    },
    /// Delete a project that owns nothing any more
    Delete {
        /// Its id
        project_id: String,
    },
    /// List a project's members and their roles
    Members {
        /// The project's id
        project_id: String,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
}

/// What a project may have beside its name.
#[derive(Args, Debug)]
pub(crate) struct ProjectDetails {
    /// Where it belongs in its tenant's organisation
    #[arg(long)]
    department: Option<String>,
    /// A ceiling inside the tenant's, by a resource of `usage`, or `none`; may be repeated
    #[arg(long = "quota", value_name = "RESOURCE=N", value_parser = parse_quota)]
    quotas: Vec<(String, Option<u64>)>,
}

fn parse_quota(text: &str) -> Result<(String, Option<u64>), String> {
    let wrong = || "write it as RESOURCE=N, such as vms=4, or RESOURCE=none".to_owned();
    let (resource, ceiling) = text.split_once('=').ok_or_else(wrong)?;
    if resource.is_empty() {
        return Err(wrong());
    }
    let ceiling = match ceiling {
        "none" => None,
        number => Some(number.parse().map_err(|_| wrong())?),
    };
    Ok((resource.to_owned(), ceiling))
}

fn changes(display_name: Option<String>, more: ProjectDetails) -> Result<Value, Failure> {
    let quotas: BTreeMap<_, _> = more.quotas.into_iter().collect();
    let members = [
        ("display_name", display_name.map(Value::from)),
        ("department", more.department.map(Value::from)),
        ("quotas", (!quotas.is_empty()).then(|| json!(quotas))),
    ];
    let given: Map<String, Value> = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
    if given.is_empty() {
        return Err(Failure::Usage {
            sentence: "nothing was given that could be changed".to_owned(),
            remedy: "Give --display-name, --department or --quota.".to_owned(),
        });
    }
    Ok(Value::Object(given))
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: ProjectCommand) -> Result<(), Failure> {
    let all = || Path::of(&["v1", "projects"]);
    let path = |id: &str| Path::of(&["v1", "projects", id]);
    let reply = match command {
        ProjectCommand::Create {
            project_id,
            display_name,
            more,
        } => {
            let body = json!(CreateProject {
                project_id,
                display_name,
                department: more.department,
                labels: BTreeMap::new(),
                quotas: more.quotas.into_iter().collect(),
            });
            session.client.post(all(), Some(&body))?
        }
        ProjectCommand::List { limit } => {
            let items = session.client.list(&all(), limit)?;
            return session.show_list(&items, list_table);
        }
        ProjectCommand::Show { project_id } => session.client.get(path(&project_id))?,
        ProjectCommand::Update {
            project_id,
            display_name,
            more,
        } => {
            let body = changes(display_name, more)?;
            session.client.patch(path(&project_id), &body)?
        }
        ProjectCommand::Delete { project_id } => {
            session.client.delete(path(&project_id))?;
            let gone = json!({ "project_id": project_id, "deleted": true });
            let said = format!("deleted {project_id}");
            return session.screen.say(&gone, &said);
        }
        ProjectCommand::Members { project_id, limit } => {
            let members = Path::of(&["v1", "projects", &project_id, "members"]);
            let items = session.client.list(&members, limit)?;
            return session.show_list(&items, members_table);
        }
    };
    session.show(&reply, object_table)
}

/// Many projects.
#[must_use]
pub(crate) fn list_table(projects: &[Project]) -> Table {
    let mut table = Table::new(&["PROJECT", "NAME", "DEPARTMENT", "QUOTAS", "CREATED"]);
    for project in projects {
        table.row([
            (&project.project_id).into(),
            (&project.display_name).into(),
            optional(project.department.as_ref()),
            optional(quotas(project)),
            (&project.created_at).into(),
        ]);
    }
    table
}

/// One project.
#[must_use]
pub(crate) fn object_table(project: &Project) -> Table {
    Table::of_object([
        ("project", (&project.project_id).into()),
        ("tenant", (&project.tenant_id).into()),
        ("display name", (&project.display_name).into()),
        ("department", optional(project.department.as_ref())),
        ("quotas", optional(quotas(project))),
        ("created", (&project.created_at).into()),
        ("revision", project.revision.into()),
        ("ledger entry", project.audit_index.into()),
    ])
}

/// A project's members.
#[must_use]
pub(crate) fn members_table(members: &[ProjectMember]) -> Table {
    let mut table = Table::new(&["SERVICE ACCOUNT", "ROLE"]);
    for member in members {
        table.row([(&member.account_id).into(), member.role.as_str().into()]);
    }
    table
}

fn quotas(project: &Project) -> Option<String> {
    let texts: Vec<String> = project
        .quotas
        .iter()
        .map(|(resource, ceiling)| format!("{resource}={ceiling}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_resource_and_a_number_or_none() {
        assert_eq!(parse_quota("vms=4"), Ok(("vms".to_owned(), Some(4))));
        assert_eq!(
            parse_quota("slots.nvme=none"),
            Ok(("slots.nvme".to_owned(), None))
        );
        for wrong in ["vms", "vms=", "=4", "vms=x", "vms=-1", ""] {
            assert!(parse_quota(wrong).is_err(), "{wrong}");
        }
    }
}
