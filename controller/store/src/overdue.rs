//! VMs that stay in a state longer than they should: each is told once.

use berth_api::ids::{NodeId, TenantId, VmId};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, parsed_option, rfc3339};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// VMs that one change tells of, so that nobody waits for it long.
const TOLD_AT_ONCE: u32 = 64;

const OVERDUE: &str = "FROM vm WHERE state_deadline IS NOT NULL AND is_overdue_told = 0
    AND state_deadline < ?1";

struct OverdueVm {
    vm_id: String,
    tenant_id: String,
    node_id: Option<String>,
    state: String,
    state_since: i64,
    deadline: i64,
}

impl Db<'_> {
    /// Whether some VM is overdue that was not told of.
    pub fn has_overdue_vms(&self) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(&format!("SELECT EXISTS (SELECT 1 {OVERDUE})"))?
            .query_row([self.now], |row| row.get(0))?)
    }
}

impl WriteTx<'_> {
    /// Write down which VMs are overdue, some at a time; how many it were.
    pub fn tell_overdue_vms(&mut self) -> Result<usize, StoreError> {
        let found = self.overdue_vms()?;
        for vm in &found {
            let vm_id: VmId = parsed(&vm.vm_id, "VM id")?;
            let tenant: TenantId = parsed(&vm.tenant_id, "tenant id")?;
            self.append(
                NewEvent {
                    event_type: "VM_OVERDUE",
                    tenant_id: Some(tenant),
                    vm_id: Some(vm_id),
                    node_id: parsed_option::<NodeId>(vm.node_id.clone(), "node id")?,
                    outcome: "failed",
                    code: Some("overdue".to_owned()),
                    detail: object(json!({
                        "state": vm.state,
                        "state_since": rfc3339(vm.state_since),
                        "state_deadline": rfc3339(vm.deadline),
                    })),
                    ..NewEvent::default()
                },
                &Cause::controller(),
            )?;
            self.conn
                .prepare_cached("UPDATE vm SET is_overdue_told = 1 WHERE vm_id = ?1")?
                .send([&vm.vm_id])?;
        }
        Ok(found.len())
    }

    fn overdue_vms(&self) -> Result<Vec<OverdueVm>, StoreError> {
        let sql = format!(
            "SELECT vm_id, tenant_id, node_id, state, state_since, state_deadline {OVERDUE}
             ORDER BY state_deadline, vm_id LIMIT ?2"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select.query_map((self.now, TOLD_AT_ONCE), |row| {
            Ok(OverdueVm {
                vm_id: row.get(0)?,
                tenant_id: row.get(1)?,
                node_id: row.get(2)?,
                state: row.get(3)?,
                state_since: row.get(4)?,
                deadline: row.get(5)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
