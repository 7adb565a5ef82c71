//! Reading VMs, always inside a tenant's namespace or explicitly in all of them.

use berth_api::ids::{NodeId, TenantId, VmId};
use berth_api::rest::{StateReason, Vm, VmState};
use berth_controller_core::liveness::{Liveness, shown_state};

use crate::error::StoreError;
use crate::rows::{parsed, parsed_option, rfc3339, state_of};
use crate::seeds::key_list;
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;

const SELECT: &str =
    "SELECT vm.vm_id, vm.tenant_id, vm.name, vm.state, reason_code, reason_message,
    state_since, desired_state, generation, vm.vcpus, memory_mb, disk_gb, image, vm.node_id, vm.labels,
    created_at, operation_id, last_sync_at, audit_index, project_id, vm.placement, state_deadline,
    vm.size, expires_at, is_deleted_on_stop, vm.ssh_keys, vm.user_data_sha256, vm.guest_holder, vm.booted_at
    FROM vm LEFT JOIN node ON node.node_id = vm.node_id";

/// How a caller names a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmRef {
    /// By its id.
    Id(VmId),
    /// By its name, which is unique among a tenant's live VMs.
    Name(String),
}

impl VmRef {
    /// Read a path segment.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Id)
    }
}

/// A VM as stored: not coloured by its node's silence, and without its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredVm {
    pub(crate) vm: Vm,
    pub(crate) audit_index: u64,
    /// The key that its guests' tokens hang on, if they get any.
    pub(crate) guest_holder: Option<String>,
}

impl Db<'_> {
    /// A live VM of this tenant, or of any if `tenant` is `None`.
    pub fn vm(&self, tenant: Option<&TenantId>, vm: &VmRef) -> Result<Option<Vm>, StoreError> {
        let found = self
            .find_vm(tenant, vm)?
            .filter(|(row, _)| row.vm.state != VmState::Deleted);
        found
            .map(|(row, last_sync)| self.shown(row.vm, last_sync))
            .transpose()
    }

    /// A VM by its id, even a deleted one.
    pub fn vm_or_tombstone(&self, id: VmId) -> Result<Option<Vm>, StoreError> {
        self.find_vm(None, &VmRef::Id(id))?
            .map(|(row, last_sync)| self.shown(row.vm, last_sync))
            .transpose()
    }

    /// Live VMs after an id, in the order of their making.
    pub fn vms(
        &self,
        tenant: Option<&TenantId>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Vm>, StoreError> {
        let filter = match tenant {
            Some(_) => "vm.tenant_id = ?1",
            None => "?1 IS NULL",
        };
        let sql = format!(
            "{SELECT} WHERE {filter} AND vm.vm_id > ?2 AND vm.state <> 'deleted' ORDER BY vm.vm_id LIMIT ?3"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((tenant.map(TenantId::as_str), after, limit), vm_row)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|row| {
                let last_sync = row.last_sync_at;
                self.shown(row.into_stored(self.now)?.vm, last_sync)
            })
            .collect()
    }

    pub(crate) fn stored_vm(&self, id: VmId) -> Result<Option<StoredVm>, StoreError> {
        Ok(self.find_vm(None, &VmRef::Id(id))?.map(|(row, _)| row))
    }

    /// Whether a live VM of the tenant has this name.
    pub(crate) fn is_name_taken(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM vm
                   WHERE tenant_id = ?1 AND name = ?2 AND state <> 'deleted')",
            )?
            .query_row((tenant.as_str(), name), |row| row.get(0))?)
    }

    pub(crate) fn find_vm(
        &self,
        tenant: Option<&TenantId>,
        vm: &VmRef,
    ) -> Result<Option<(StoredVm, Option<i64>)>, StoreError> {
        let (filter, text) = match vm {
            VmRef::Id(id) => (
                "vm.vm_id = ?1 AND (?2 IS NULL OR vm.tenant_id = ?2)",
                id.to_string(),
            ),
            // A plain comparison of both, as the index of live names needs it.
            VmRef::Name(name) => (
                "vm.tenant_id = ?2 AND vm.name = ?1 AND vm.state <> 'deleted'",
                name.clone(),
            ),
        };
        // A name means nothing outside one namespace.
        if tenant.is_none() && matches!(vm, VmRef::Name(_)) {
            return Ok(None);
        }
        let sql = format!("{SELECT} WHERE {filter}");
        let row = self
            .conn
            .prepare_cached(&sql)?
            .query_row((text, tenant.map(TenantId::as_str)), vm_row)
            .optional()?;
        row.map(|row| {
            let last_sync = row.last_sync_at;
            Ok((row.into_stored(self.now)?, last_sync))
        })
        .transpose()
    }

    fn shown(&self, mut vm: Vm, last_sync: Option<i64>) -> Result<Vm, StoreError> {
        vm.slots = self.vm_slots(vm.id)?;
        let liveness = vm.node_id.map(|_| Liveness::judge(last_sync, self.now));
        vm.state = shown_state(vm.state, liveness);
        if vm.state == VmState::Unreachable {
            vm.state_reason = Some(StateReason {
                code: "node_unreachable".to_owned(),
                message: "its node is silent; the VM may well be running".to_owned(),
            });
        }
        Ok(vm)
    }
}

struct VmRow {
    vm_id: String,
    tenant_id: String,
    name: String,
    state: String,
    reason_code: Option<String>,
    reason_message: Option<String>,
    state_since: i64,
    desired_state: String,
    generation: u64,
    vcpus: u32,
    memory_mb: u64,
    disk_gb: u32,
    image: String,
    node_id: Option<String>,
    labels: String,
    created_at: i64,
    operation_id: Option<String>,
    last_sync_at: Option<i64>,
    audit_index: u64,
    project_id: String,
    placement: Option<String>,
    state_deadline: Option<i64>,
    ssh_keys: String,
    user_data_sha256: Option<String>,
    guest_holder: Option<String>,
    booted_at: Option<i64>,
    size: Option<String>,
    expires_at: Option<i64>,
    is_deleted_on_stop: bool,
}

fn vm_row(row: &Row<'_>) -> crate::sql::Result<VmRow> {
    Ok(VmRow {
        vm_id: row.get(0)?,
        tenant_id: row.get(1)?,
        name: row.get(2)?,
        state: row.get(3)?,
        reason_code: row.get(4)?,
        reason_message: row.get(5)?,
        state_since: row.get(6)?,
        desired_state: row.get(7)?,
        generation: row.get(8)?,
        vcpus: row.get(9)?,
        memory_mb: row.get(10)?,
        disk_gb: row.get(11)?,
        image: row.get(12)?,
        node_id: row.get(13)?,
        labels: row.get(14)?,
        created_at: row.get(15)?,
        operation_id: row.get(16)?,
        last_sync_at: row.get(17)?,
        audit_index: row.get(18)?,
        project_id: row.get(19)?,
        placement: row.get(20)?,
        state_deadline: row.get(21)?,
        size: row.get(22)?,
        expires_at: row.get(23)?,
        is_deleted_on_stop: row.get(24)?,
        ssh_keys: row.get(25)?,
        user_data_sha256: row.get(26)?,
        guest_holder: row.get(27)?,
        booted_at: row.get(28)?,
    })
}

impl VmRow {
    fn into_stored(self, now: i64) -> Result<StoredVm, StoreError> {
        let vm = Vm {
            id: parsed(&self.vm_id, "VM id")?,
            name: self.name,
            tenant_id: parsed(&self.tenant_id, "tenant id")?,
            project_id: parsed(&self.project_id, "project id")?,
            state: state_of(&self.state)?,
            state_reason: self.reason_code.map(|code| StateReason {
                code,
                message: self.reason_message.unwrap_or_default(),
            }),
            state_since: rfc3339(self.state_since),
            state_deadline: self.state_deadline.map(rfc3339),
            overdue: self.state_deadline.is_some_and(|deadline| deadline < now),
            desired_state: state_of(&self.desired_state)?,
            generation: self.generation,
            size: self.size,
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            disk_gb: self.disk_gb,
            image: self.image,
            node_id: parsed_option::<NodeId>(self.node_id, "node id")?,
            slots: Vec::new(),
            placement: self
                .placement
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(|_| StoreError::Corrupt {
                    what: "VM's placement",
                })?,
            ssh_keys: key_list(&self.ssh_keys)?,
            user_data_sha256: self.user_data_sha256,
            guest_token: self.guest_holder.is_some(),
            booted_at: self.booted_at.map(rfc3339),
            expires_at: self.expires_at.map(rfc3339),
            auto_delete_on_stop: self.is_deleted_on_stop,
            labels: serde_json::from_str(&self.labels)
                .map_err(|_| StoreError::Corrupt { what: "label list" })?,
            created_at: rfc3339(self.created_at),
            operation: parsed_option(self.operation_id, "operation id")?,
        };
        Ok(StoredVm {
            vm,
            audit_index: self.audit_index,
            guest_holder: self.guest_holder,
        })
    }
}
