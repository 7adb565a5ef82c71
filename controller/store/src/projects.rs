//! Projects: the parts of a tenant. A deleted project's id is never free again in its tenant.

use std::collections::BTreeMap;

use berth_api::ids::{DEFAULT_PROJECT, ProjectId, TenantId};
use berth_api::rest::Project;
use berth_controller_core::quota::{Ceilings, QuotaScope};
use serde_json::{Value, json};

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

const SELECT: &str = "SELECT tenant_id, project_id, display_name, department, labels, created_at,
    revision, audit_index FROM project WHERE deleted_at IS NULL AND tenant_id = ?1";

/// Projects that a tenant can ever have, deleted ones included: each keeps its rows.
const MAX_PROJECTS: u32 = 1_000;

/// A project to be made.
#[derive(Clone, Debug)]
pub struct NewProject {
    /// Its id, for ever.
    pub project_id: ProjectId,
    /// For people.
    pub display_name: String,
    /// Where it belongs in its tenant's organisation.
    pub department: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Ceilings inside the tenant's own.
    pub ceilings: Ceilings,
}

/// What to change of a project; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct ProjectChange {
    /// For people.
    pub display_name: Option<String>,
    /// Where it belongs in its tenant's organisation.
    pub department: Option<Option<String>>,
    /// All labels anew.
    pub labels: Option<BTreeMap<String, String>>,
    /// Ceilings; inside, `None` is no ceiling.
    pub ceilings: Ceilings,
}

/// Why a project was not made, changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectDenied {
    /// There is none.
    #[error("there is no such project")]
    NotFound,
    /// It exists.
    #[error("project {0} exists already")]
    Exists(ProjectId),
    /// It existed.
    #[error("project {0} existed and its id is never used again")]
    Tombstone(ProjectId),
    /// The tenant has had as many as it can.
    #[error("a tenant has at most {MAX_PROJECTS} projects, deleted ones included")]
    TooMany,
    /// It is the one that every tenant has.
    #[error("the project `default` is always there")]
    IsDefault,
    /// It still owns VMs.
    #[error("the project still owns {vms} VMs")]
    NotEmpty {
        /// How many.
        vms: u32,
    },
}

fn scope_of(tenant: &TenantId, project: &ProjectId) -> QuotaScope {
    QuotaScope {
        tenant: tenant.clone(),
        project: Some(project.clone()),
    }
}

impl Db<'_> {
    /// Whether a tenant has this project and it is not deleted.
    pub fn has_project(&self, tenant: &TenantId, project: &ProjectId) -> Result<bool, StoreError> {
        Ok(self.project_is_live(tenant, project)? == Some(true))
    }

    /// `None` if there never was such a project.
    fn project_is_live(
        &self,
        tenant: &TenantId,
        project: &ProjectId,
    ) -> Result<Option<bool>, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT deleted_at IS NULL FROM project WHERE tenant_id = ?1 AND project_id = ?2",
            )?
            .query_row((tenant.as_str(), project.as_str()), |row| row.get(0))
            .optional()?)
    }

    /// A tenant's live project.
    pub fn project(
        &self,
        tenant: &TenantId,
        project: &ProjectId,
    ) -> Result<Option<Project>, StoreError> {
        let sql = format!("{SELECT} AND project_id = ?2");
        self.conn
            .prepare_cached(&sql)?
            .query_row((tenant.as_str(), project.as_str()), project_row)
            .optional()?
            .map(|row| row.into_project(self))
            .transpose()
    }

    /// A tenant's live projects after an id, in the order of their ids.
    pub fn projects(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Project>, StoreError> {
        let sql = format!("{SELECT} AND project_id > ?2 ORDER BY project_id LIMIT ?3");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((tenant.as_str(), after, limit), project_row)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(|row| row.into_project(self)).collect()
    }

    /// A tenant's VMs by their states as stored.
    pub fn vm_counts(&self, tenant: &TenantId) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT state, COUNT(*) FROM vm WHERE tenant_id = ?1 AND state <> 'deleted' GROUP BY state",
        )?;
        let rows = select.query_map([tenant.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl WriteTx<'_> {
    /// Make a project of a tenant.
    pub fn create_project(
        &mut self,
        tenant: &TenantId,
        new: NewProject,
        cause: &Cause,
    ) -> Result<Result<Project, ProjectDenied>, StoreError> {
        match self.project_is_live(tenant, &new.project_id)? {
            Some(true) => return Ok(Err(ProjectDenied::Exists(new.project_id))),
            Some(false) => return Ok(Err(ProjectDenied::Tombstone(new.project_id))),
            None => {}
        }
        let known: u32 = self
            .conn
            .prepare_cached("SELECT COUNT(*) FROM project WHERE tenant_id = ?1")?
            .query_row([tenant.as_str()], |row| row.get(0))?;
        if known >= MAX_PROJECTS {
            return Ok(Err(ProjectDenied::TooMany));
        }
        let audit_index = self.append(
            NewEvent {
                event_type: "PROJECT_CREATED",
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({
                    "project_id": new.project_id,
                    "display_name": new.display_name,
                    "department": new.department,
                    "quotas": named(&new.ceilings),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.insert_project(tenant, &new.project_id, &new.display_name, audit_index)?;
        self.conn.execute(
            "UPDATE project SET department = ?3, labels = ?4 WHERE tenant_id = ?1 AND project_id = ?2",
            (
                tenant.as_str(),
                new.project_id.as_str(),
                &new.department,
                json!(new.labels).to_string(),
            ),
        )?;
        self.set_project_ceilings(tenant, &new.project_id, &new.ceilings)?;
        self.project(tenant, &new.project_id)?
            .map(Ok)
            .ok_or(StoreError::Corrupt {
                what: "new project",
            })
    }

    /// A class of slots that the tenant has no ceiling for gets one of 0, so that a project's means
    /// something as soon as the tenant's does.
    fn set_project_ceilings(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        ceilings: &Ceilings,
    ) -> Result<(), StoreError> {
        for resource in ceilings.keys() {
            self.conn
                .prepare_cached(
                    "INSERT INTO quota (tenant_id, scope, resource, ceiling, is_own, used)
                     VALUES (?1, '', ?2, 0, 0, 0)
                     ON CONFLICT (tenant_id, scope, resource) DO NOTHING",
                )?
                .send((tenant.as_str(), resource.name()))?;
        }
        self.set_ceilings(&scope_of(tenant, project), ceilings, true)
    }

    /// Change a project. A ceiling below what is charged stops nothing that exists.
    pub fn change_project(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        change: ProjectChange,
        cause: &Cause,
    ) -> Result<Result<Project, ProjectDenied>, StoreError> {
        let Some(old) = self.project(tenant, project)? else {
            return Ok(Err(ProjectDenied::NotFound));
        };
        let display_name = change.display_name.unwrap_or(old.display_name);
        let department = change.department.unwrap_or(old.department);
        let labels = change.labels.unwrap_or(old.labels);
        let audit_index = self.append(
            NewEvent {
                event_type: "PROJECT_CHANGED",
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({
                    "project_id": project,
                    "display_name": display_name,
                    "department": department,
                    "labels": labels,
                    "old_quotas": old.quotas,
                    "quotas": named(&change.ceilings),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "UPDATE project SET display_name = ?3, department = ?4, labels = ?5,
             revision = revision + 1, audit_index = ?6 WHERE tenant_id = ?1 AND project_id = ?2",
            (
                tenant.as_str(),
                project.as_str(),
                &display_name,
                &department,
                json!(labels).to_string(),
                audit_index,
            ),
        )?;
        self.set_project_ceilings(tenant, project, &change.ceilings)?;
        self.project(tenant, project)?
            .map(Ok)
            .ok_or(StoreError::Corrupt { what: "project" })
    }

    /// Delete an empty project; its row stays as a tombstone.
    pub fn delete_project(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        cause: &Cause,
    ) -> Result<Result<(), ProjectDenied>, StoreError> {
        if !self.has_project(tenant, project)? {
            return Ok(Err(ProjectDenied::NotFound));
        }
        if project.as_str() == DEFAULT_PROJECT {
            return Ok(Err(ProjectDenied::IsDefault));
        }
        let vms: u32 = self.conn.query_row(
            "SELECT COUNT(*) FROM vm
             WHERE tenant_id = ?1 AND project_id = ?2 AND state <> 'deleted'",
            (tenant.as_str(), project.as_str()),
            |row| row.get(0),
        )?;
        if vms > 0 {
            return Ok(Err(ProjectDenied::NotEmpty { vms }));
        }
        let audit_index = self.append(
            NewEvent {
                event_type: "PROJECT_DELETED",
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({ "project_id": project })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "UPDATE project SET deleted_at = ?3, revision = revision + 1, audit_index = ?4
             WHERE tenant_id = ?1 AND project_id = ?2",
            (tenant.as_str(), project.as_str(), self.now, audit_index),
        )?;
        Ok(Ok(()))
    }

    /// A project's row, and its counters for all that its tenant has counters for.
    pub(crate) fn insert_project(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        display_name: &str,
        audit_index: u64,
    ) -> Result<(), StoreError> {
        self.conn.execute(
            "INSERT INTO project (tenant_id, project_id, display_name, created_at, revision, audit_index)
             VALUES (?1, ?2, ?3, ?4, 1, ?5)",
            (
                tenant.as_str(),
                project.as_str(),
                display_name,
                self.now,
                audit_index,
            ),
        )?;
        self.fill_projects(tenant)
    }
}

/// Ceilings by the names of their resources.
fn named(ceilings: &Ceilings) -> Value {
    let by_name: BTreeMap<String, Option<u64>> = ceilings
        .iter()
        .map(|(resource, ceiling)| (resource.name(), *ceiling))
        .collect();
    json!(by_name)
}

struct ProjectRow {
    tenant_id: String,
    project_id: String,
    display_name: String,
    department: Option<String>,
    labels: String,
    created_at: i64,
    revision: u64,
    audit_index: u64,
}

fn project_row(row: &Row<'_>) -> crate::sql::Result<ProjectRow> {
    Ok(ProjectRow {
        tenant_id: row.get(0)?,
        project_id: row.get(1)?,
        display_name: row.get(2)?,
        department: row.get(3)?,
        labels: row.get(4)?,
        created_at: row.get(5)?,
        revision: row.get(6)?,
        audit_index: row.get(7)?,
    })
}

impl ProjectRow {
    fn into_project(self, db: &Db<'_>) -> Result<Project, StoreError> {
        let tenant_id: TenantId = parsed(&self.tenant_id, "tenant id")?;
        let project_id: ProjectId = parsed(&self.project_id, "project id")?;
        let ceilings = db.ceilings(&scope_of(&tenant_id, &project_id))?;
        Ok(Project {
            quotas: ceilings
                .into_iter()
                .filter_map(|(resource, ceiling)| Some((resource.name(), ceiling?)))
                .collect(),
            tenant_id,
            project_id,
            display_name: self.display_name,
            department: self.department,
            labels: serde_json::from_str(&self.labels)
                .map_err(|_| StoreError::Corrupt { what: "label list" })?,
            created_at: rfc3339(self.created_at),
            revision: self.revision,
            audit_index: self.audit_index,
        })
    }
}
