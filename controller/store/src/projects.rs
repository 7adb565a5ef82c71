//! Projects: the parts of a tenant. A deleted project's id is never free again in its tenant.

use crate::sql::OptionalExtension as _;
use berth_api::ids::{ProjectId, TenantId};

use crate::error::StoreError;
use crate::store::Db;
use crate::writer::WriteTx;

impl Db<'_> {
    /// Whether a tenant has this project and it is not deleted.
    pub fn has_project(&self, tenant: &TenantId, project: &ProjectId) -> Result<bool, StoreError> {
        let found: Option<bool> = self
            .conn
            .prepare_cached(
                "SELECT deleted_at IS NULL FROM project WHERE tenant_id = ?1 AND project_id = ?2",
            )?
            .query_row((tenant.as_str(), project.as_str()), |row| row.get(0))
            .optional()?;
        Ok(found == Some(true))
    }
}

impl WriteTx<'_> {
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
            (tenant.as_str(), project.as_str(), display_name, self.now, audit_index),
        )?;
        self.fill_projects(tenant)
    }
}
