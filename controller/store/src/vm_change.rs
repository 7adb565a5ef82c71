//! Changing what a tenant calls a VM, and when it ends by itself. What the VM is made of does not change here.

use std::collections::BTreeMap;

use berth_api::ids::{TenantId, VmId};
use berth_api::rest::Vm;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::lifetime::expiry_ms;
use crate::rows::rfc3339;
use crate::tenants::object;
use crate::vms::VmRef;
use crate::writer::WriteTx;

/// What is to be different; `None` leaves a thing as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmChange {
    /// The new name.
    pub name: Option<String>,
    /// All labels from here on.
    pub labels: Option<BTreeMap<String, String>>,
    /// Seconds from now until it is deleted; `None` inside is never.
    pub ttl_s: Option<Option<u64>>,
    /// Whether it is deleted once it stops.
    pub is_deleted_on_stop: Option<bool>,
}

/// Why a VM was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeVmDenied {
    /// There is no such VM in this namespace.
    #[error("there is no such VM")]
    NotFound,
    /// Another live VM of the tenant has the name.
    #[error("a VM of that name exists already")]
    NameTaken,
}

impl WriteTx<'_> {
    /// Change a live VM of this tenant. What is as wished already is no change and no event.
    pub fn change_vm(
        &mut self,
        tenant: &TenantId,
        id: VmId,
        change: VmChange,
        cause: &Cause,
    ) -> Result<Result<Vm, ChangeVmDenied>, StoreError> {
        let named = VmRef::Id(id);
        let Some(vm) = self.vm(Some(tenant), &named)? else {
            return Ok(Err(ChangeVmDenied::NotFound));
        };
        let name = change.name.unwrap_or_else(|| vm.name.clone());
        let labels = change.labels.unwrap_or_else(|| vm.labels.clone());
        let is_deleted_on_stop = change.is_deleted_on_stop.unwrap_or(vm.auto_delete_on_stop);
        let expiry = change
            .ttl_s
            .map(|ttl_s| ttl_s.map(|ttl_s| expiry_ms(self.now, ttl_s)));
        let expires_at = match expiry {
            None => vm.expires_at.clone(),
            Some(at) => at.map(rfc3339),
        };
        let is_as_wished = name == vm.name
            && labels == vm.labels
            && expires_at == vm.expires_at
            && is_deleted_on_stop == vm.auto_delete_on_stop;
        if is_as_wished {
            return Ok(Ok(vm));
        }
        let taken = self.vm(Some(tenant), &VmRef::Name(name.clone()))?;
        if taken.is_some_and(|found| found.id != id) {
            return Ok(Err(ChangeVmDenied::NameTaken));
        }
        let index = self.append(
            NewEvent {
                event_type: "VM_CHANGED",
                tenant_id: Some(tenant.clone()),
                vm_id: Some(id),
                node_id: vm.node_id,
                outcome: "accepted",
                detail: object(json!({
                    "name": name,
                    "labels": labels,
                    "expires_at": expires_at,
                    "auto_delete_on_stop": is_deleted_on_stop,
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        let labels = serde_json::to_string(&labels)
            .map_err(|_| StoreError::Unstorable { what: "label list" })?;
        self.conn
            .prepare_cached(
                "UPDATE vm SET name = ?2, labels = ?3, audit_index = ?4, is_deleted_on_stop = ?5
                 WHERE vm_id = ?1",
            )?
            .send((id.to_string(), &name, &labels, index, is_deleted_on_stop))?;
        if let Some(at) = expiry {
            self.conn
                .prepare_cached("UPDATE vm SET expires_at = ?2 WHERE vm_id = ?1")?
                .send((id.to_string(), at))?;
        }
        let changed = self.vm(Some(tenant), &named)?;
        Ok(changed.ok_or(ChangeVmDenied::NotFound))
    }
}
