//! Long actions that callers can wait for.

use berth_api::ids::{OperationId, TenantId, VmId};
use berth_api::rest::{Operation, StateReason, Vm};
use berth_controller_core::vm::TaskKind;

use crate::error::StoreError;
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::vms::StoredVm;
use crate::writer::WriteTx;

/// Which operations to read.
#[derive(Clone, Debug, Default)]
pub struct OperationFilter {
    /// Only this tenant's.
    pub tenant_id: Option<TenantId>,
    /// Only those in this state.
    pub state: Option<String>,
    /// Those after this id.
    pub after: String,
    /// At most so many.
    pub limit: u32,
}

const COLUMNS: &str =
    "operation_id, vm_id, kind, state, phase, error_code, error_message, created_at";

struct OperationRow {
    operation_id: String,
    vm_id: String,
    kind: String,
    state: String,
    phase: String,
    error_code: Option<String>,
    error_message: Option<String>,
    created_at: i64,
}

impl Db<'_> {
    /// An operation of this tenant, or of any if `tenant` is `None`.
    pub fn operation(
        &self,
        tenant: Option<&TenantId>,
        id: OperationId,
    ) -> Result<Option<Operation>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM operation
             WHERE operation_id = ?1 AND (?2 IS NULL OR tenant_id = ?2)"
        );
        let row = self
            .conn
            .prepare_cached(&sql)?
            .query_row(
                (id.to_string(), tenant.map(TenantId::as_str)),
                operation_row,
            )
            .optional()?;
        row.map(OperationRow::into_operation).transpose()
    }

    /// The operation that works on a VM, if one is running, and since when.
    pub(crate) fn running_operation(
        &self,
        vm_id: VmId,
    ) -> Result<Option<(OperationId, i64)>, StoreError> {
        let row: Option<(String, i64)> = self
            .conn
            .prepare_cached(
                "SELECT operation_id, created_at FROM operation
                 WHERE operation_id = (SELECT operation_id FROM vm WHERE vm_id = ?1) AND state = 'running'",
            )?
            .query_row([vm_id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        row.map(|(id, since)| Ok((parsed(&id, "operation id")?, since)))
            .transpose()
    }

    /// Operations in the order of their beginning.
    pub fn operations(&self, filter: &OperationFilter) -> Result<Vec<Operation>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM operation
             WHERE (?1 IS NULL OR tenant_id = ?1) AND (?2 IS NULL OR state = ?2)
             AND operation_id > ?3 ORDER BY operation_id LIMIT ?4"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map(
                (
                    filter.tenant_id.as_ref().map(TenantId::as_str),
                    filter.state.as_deref(),
                    filter.after.as_str(),
                    filter.limit,
                ),
                operation_row,
            )?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(OperationRow::into_operation).collect()
    }
}

fn operation_row(row: &Row<'_>) -> crate::sql::Result<OperationRow> {
    Ok(OperationRow {
        operation_id: row.get(0)?,
        vm_id: row.get(1)?,
        kind: row.get(2)?,
        state: row.get(3)?,
        phase: row.get(4)?,
        error_code: row.get(5)?,
        error_message: row.get(6)?,
        created_at: row.get(7)?,
    })
}

impl OperationRow {
    fn into_operation(self) -> Result<Operation, StoreError> {
        Ok(Operation {
            id: parsed(&self.operation_id, "operation id")?,
            vm_id: parsed(&self.vm_id, "VM id")?,
            kind: self.kind,
            state: self.state,
            phase: self.phase,
            // A signed order is its node's to carry out.
            may_cancel: false,
            error: self.error_code.map(|code| StateReason {
                code,
                message: self.error_message.unwrap_or_default(),
            }),
            created_at: rfc3339(self.created_at),
        })
    }
}

impl WriteTx<'_> {
    /// Begin an operation and make it the one that works on the VM.
    pub(crate) fn begin_operation(
        &mut self,
        stored: &mut StoredVm,
        kind: TaskKind,
        phase: &str,
    ) -> Result<(), StoreError> {
        let id = OperationId::generate();
        self.insert_operation(id, &stored.vm, kind, phase)?;
        self.conn
            .prepare_cached("UPDATE vm SET operation_id = ?2 WHERE vm_id = ?1")?
            .send((stored.vm.id.to_string(), id.to_string()))?;
        stored.vm.operation = Some(id);
        Ok(())
    }

    /// Begin the operation that the VM's row names.
    pub(crate) fn insert_operation(
        &mut self,
        id: OperationId,
        vm: &Vm,
        kind: TaskKind,
        phase: &str,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO operation (operation_id, tenant_id, vm_id, kind, state, phase, created_at)
                 VALUES (?1, ?2, ?3, ?4, 'running', ?5, ?6)",
            )?
            .send((
                id.to_string(),
                vm.tenant_id.as_str(),
                vm.id.to_string(),
                kind.as_str(),
                phase,
                self.now,
            ))
            .map_err(StoreError::from)
    }

    /// End the operation that works on the VM, if one is running.
    pub(crate) fn end_operation(
        &mut self,
        vm_id: VmId,
        error: Option<&StateReason>,
    ) -> Result<(), StoreError> {
        let state = if error.is_some() { "failed" } else { "done" };
        self.conn
            .prepare_cached(
                "UPDATE operation SET state = ?2, phase = ?2, error_code = ?3, error_message = ?4
                 WHERE operation_id = (SELECT operation_id FROM vm WHERE vm_id = ?1) AND state = 'running'",
            )?
            .send((
                vm_id.to_string(),
                state,
                error.map(|reason| &reason.code),
                error.map(|reason| &reason.message),
            ))?;
        Ok(())
    }

    /// Show where the operation that works on the VM stands.
    pub(crate) fn show_phase(&mut self, vm_id: VmId, phase: &str) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE operation SET phase = ?2
                 WHERE operation_id = (SELECT operation_id FROM vm WHERE vm_id = ?1) AND state = 'running'",
            )?
            .send((vm_id.to_string(), phase))?;
        Ok(())
    }
}
