//! Guests that are set up, and what their nodes are to be told of that: to take away what they were given.
//!
//! No secret is here. The task is signed for each answer to the node, like a console read: it changes
//! nothing of the VM, so it has no generation of its own and waits for no other task.

use berth_api::agent::{Task, TaskAction, TaskResult};
use berth_api::ids::{NodeId, TaskId, TenantId, VmId};
use berth_api::rest::Vm;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::parsed;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::sync::judged;
use crate::tasks::{MAX_TASKS_PER_SYNC, TASK_LIFETIME_S};
use crate::tenants::object;
use crate::writer::WriteTx;

impl Db<'_> {
    /// What a node has to take away and did not answer yet, as tasks to be signed.
    pub fn pending_ejections(&self, node: NodeId) -> Result<Vec<Task>, StoreError> {
        let rows: Vec<(String, String, String, u64, u64)> = self
            .conn
            .prepare_cached(
                "SELECT task_id, vm_id, tenant_id, generation, audit_index FROM seed_ejection
                 WHERE node_id = ?1 AND outcome IS NULL ORDER BY task_id LIMIT ?2",
            )?
            .query_map((node.to_string(), MAX_TASKS_PER_SYNC), |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                ))
            })?
            .collect::<Result<_, _>>()?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let node_epoch = self.node_epoch(node)?;
        let now_s = self.now.div_euclid(1000);
        rows.into_iter()
            .map(|(task_id, vm_id, tenant_id, generation, ledger_index)| {
                Ok(Task {
                    task_id: parsed(&task_id, "task id")?,
                    node_id: node,
                    node_epoch,
                    vm_id: parsed(&vm_id, "VM id")?,
                    tenant_id: parsed(&tenant_id, "tenant id")?,
                    generation,
                    not_before: now_s,
                    expires_at: now_s.saturating_add(TASK_LIFETIME_S),
                    ledger_index,
                    action: TaskAction::VmEjectSeed {},
                })
            })
            .collect()
    }

    /// Whether the guest of this run has said already that it is set up.
    pub(crate) fn has_ejection(&self, vm: &Vm) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM seed_ejection WHERE vm_id = ?1 AND generation = ?2)",
            )?
            .query_row((vm.id.to_string(), vm.generation), |row| row.get(0))?)
    }
}

impl WriteTx<'_> {
    /// Have a VM's node take away what the guest of its present run was given. Part of that guest's
    /// report, which is entry `audit_index` of the ledger.
    pub(crate) fn eject_seed(&mut self, vm: &Vm, audit_index: u64) -> Result<(), StoreError> {
        let Some(node) = vm.node_id else {
            return Ok(());
        };
        self.forget_ejection(vm.id)?;
        self.conn
            .prepare_cached(
                "INSERT INTO seed_ejection
                 (vm_id, tenant_id, node_id, generation, task_id, audit_index)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .send((
                vm.id.to_string(),
                vm.tenant_id.as_str(),
                node.to_string(),
                vm.generation,
                TaskId::generate().to_string(),
                audit_index,
            ))?;
        Ok(())
    }

    /// The run is over, and what its guest was given with it. Part of the order that ends it.
    pub(crate) fn forget_ejection(&mut self, vm_id: VmId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM seed_ejection WHERE vm_id = ?1")?
            .send([vm_id.to_string()])?;
        Ok(())
    }

    /// Take in what a node says of an ejection. False if it speaks of none. A node that could not do it
    /// is not asked again: the guest keeps what it has until its run ends, as it did of old.
    pub(crate) fn take_ejection_result(
        &mut self,
        node: NodeId,
        result: &TaskResult,
        cause: &Cause,
    ) -> Result<bool, StoreError> {
        let row: Option<(String, String, u64, bool)> = self
            .conn
            .prepare_cached(
                "SELECT vm_id, tenant_id, generation, outcome IS NULL FROM seed_ejection
                 WHERE node_id = ?1 AND task_id = ?2",
            )?
            .query_row((node.to_string(), result.task_id.to_string()), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((vm_id, tenant, generation, is_pending)) = row else {
            return Ok(false);
        };
        if !is_pending {
            return Ok(true);
        }
        let (outcome, reason) = judged(&result.outcome);
        let tenant: TenantId = parsed(&tenant, "tenant id")?;
        self.append(
            NewEvent {
                event_type: "VM_SEED_EJECTED",
                tenant_id: Some(tenant),
                vm_id: Some(parsed(&vm_id, "VM id")?),
                node_id: Some(node),
                outcome: if reason.is_none() {
                    "completed"
                } else {
                    "failed"
                },
                code: reason.as_ref().map(|reason| reason.code.clone()),
                detail: object(json!({
                    "task_id": result.task_id,
                    "generation": generation,
                    "message": reason.as_ref().map(|reason| &reason.message),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn
            .prepare_cached("UPDATE seed_ejection SET outcome = ?2 WHERE vm_id = ?1")?
            .send((vm_id, outcome))?;
        Ok(true)
    }
}
