//! Tenants and their ceilings. A deleted tenant's id is never free again.

use std::collections::BTreeMap;

use berth_api::ids::TenantId;
use berth_api::rest::Tenant;
use berth_controller_core::quota::{Counter, Resource};
use serde_json::{Map, Value, json};

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::writer::WriteTx;

const SELECT: &str = "SELECT tenant_id, display_name,
    (SELECT ceiling FROM quota q WHERE q.tenant_id = t.tenant_id AND resource = 'vms'),
    (SELECT ceiling FROM quota q WHERE q.tenant_id = t.tenant_id AND resource = 'storage_gb'),
    api_rate_limit_rpm, created_at, revision, audit_index
    FROM tenant t WHERE deleted_at IS NULL";

/// A tenant to be made.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its id, for ever.
    pub tenant_id: TenantId,
    /// For people.
    pub display_name: String,
    /// VMs that may exist at once.
    pub max_vms: u32,
    /// Storage of all disks together, in GiB.
    pub storage_quota_gb: u32,
    /// Requests per minute.
    pub api_rate_limit_rpm: u32,
    /// Slots that may be held at once, by class.
    pub slot_limits: BTreeMap<String, u32>,
}

/// What to change of a tenant.
#[derive(Clone, Debug, Default)]
pub struct TenantChange {
    /// For people.
    pub display_name: Option<String>,
    /// VMs that may exist at once.
    pub max_vms: Option<u32>,
    /// Storage of all disks together, in GiB.
    pub storage_quota_gb: Option<u32>,
    /// Requests per minute.
    pub api_rate_limit_rpm: Option<u32>,
    /// Slots that may be held at once, all classes anew.
    pub slot_limits: Option<BTreeMap<String, u32>>,
}

/// Why a tenant was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateTenantDenied {
    /// It exists.
    #[error("tenant {0} exists already")]
    Exists(TenantId),
    /// It existed.
    #[error("tenant {0} existed and its id is never used again")]
    Tombstone(TenantId),
}

/// Why a tenant was not deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteTenantDenied {
    /// There is none.
    #[error("there is no such tenant")]
    NotFound,
    /// It still owns VMs.
    #[error("the tenant still owns {vms} VMs")]
    NotEmpty {
        /// How many.
        vms: u64,
    },
}

impl Db<'_> {
    /// A live tenant.
    pub fn tenant(&self, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
        let sql = format!("{SELECT} AND tenant_id = ?1");
        let row = self
            .conn
            .prepare_cached(&sql)?
            .query_row([id.as_str()], tenant_row)
            .optional()?;
        row.map(|row| row.into_tenant(self)).transpose()
    }

    /// Live tenants after an id, in the order of their ids.
    pub fn tenants(&self, after: &str, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!("{SELECT} AND tenant_id > ?1 ORDER BY tenant_id LIMIT ?2");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((after, limit), tenant_row)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(|row| row.into_tenant(self)).collect()
    }

    /// A tenant's ceilings and charges: VMs, storage, then each class of slots that it may use or
    /// is charged for.
    pub fn counters(&self, id: &TenantId) -> Result<Vec<Counter>, StoreError> {
        let mut counters = [Resource::Vms, Resource::StorageGb]
            .into_iter()
            .map(|resource| {
                let (limit, used) = self
                    .conn
                    .prepare_cached(
                        "SELECT ceiling, used FROM quota WHERE tenant_id = ?1 AND resource = ?2",
                    )?
                    .query_row((id.as_str(), resource.name()), |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })?;
                Ok(Counter {
                    resource,
                    limit,
                    used,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        let mut select = self.conn.prepare_cached(
            "SELECT class, ceiling, used FROM slot_quota
             WHERE tenant_id = ?1 AND (ceiling > 0 OR used > 0) ORDER BY class",
        )?;
        let of_slots = select.query_map([id.as_str()], |row| {
            Ok(Counter {
                resource: Resource::Slots(row.get(0)?),
                limit: row.get(1)?,
                used: row.get(2)?,
            })
        })?;
        for counter in of_slots {
            counters.push(counter?);
        }
        Ok(counters)
    }

    /// Classes of slots that a tenant may use, and how many of each.
    pub(crate) fn slot_limits(&self, id: &TenantId) -> Result<BTreeMap<String, u32>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT class, ceiling FROM slot_quota WHERE tenant_id = ?1 AND ceiling > 0",
        )?;
        let limits = select
            .query_map([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(limits)
    }
}

impl WriteTx<'_> {
    /// Make a tenant.
    pub fn create_tenant(
        &mut self,
        new: NewTenant,
        cause: &Cause,
    ) -> Result<Result<Tenant, CreateTenantDenied>, StoreError> {
        let known: Option<Option<i64>> = self
            .conn
            .query_row(
                "SELECT deleted_at FROM tenant WHERE tenant_id = ?1",
                [new.tenant_id.as_str()],
                |row| row.get(0),
            )
            .optional()?;
        match known {
            Some(None) => return Ok(Err(CreateTenantDenied::Exists(new.tenant_id))),
            Some(Some(_)) => return Ok(Err(CreateTenantDenied::Tombstone(new.tenant_id))),
            None => {}
        }
        let detail = json!({
            "display_name": new.display_name,
            "max_vms": new.max_vms,
            "storage_quota_gb": new.storage_quota_gb,
            "api_rate_limit_rpm": new.api_rate_limit_rpm,
            "slot_limits": new.slot_limits,
        });
        let audit_index = self.append(
            NewEvent {
                event_type: "TENANT_CREATED",
                tenant_id: Some(new.tenant_id.clone()),
                outcome: "completed",
                detail: object(detail),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "INSERT INTO tenant (tenant_id, display_name, api_rate_limit_rpm, created_at, revision, audit_index)
             VALUES (?1, ?2, ?3, ?4, 1, ?5)",
            (
                new.tenant_id.as_str(),
                &new.display_name,
                new.api_rate_limit_rpm,
                self.now,
                audit_index,
            ),
        )?;
        for (resource, ceiling) in [
            (Resource::Vms, new.max_vms),
            (Resource::StorageGb, new.storage_quota_gb),
        ] {
            self.conn.execute(
                "INSERT INTO quota (tenant_id, resource, ceiling, used) VALUES (?1, ?2, ?3, 0)",
                (new.tenant_id.as_str(), resource.name(), ceiling),
            )?;
        }
        self.set_slot_limits(&new.tenant_id, &new.slot_limits)?;
        self.tenant(&new.tenant_id)?
            .map(Ok)
            .ok_or(StoreError::Corrupt { what: "new tenant" })
    }

    /// Change a tenant; `None` if there is none. A ceiling below what is charged stops nothing that
    /// exists.
    pub fn change_tenant(
        &mut self,
        id: &TenantId,
        change: TenantChange,
        cause: &Cause,
    ) -> Result<Option<Tenant>, StoreError> {
        let Some(old) = self.tenant(id)? else {
            return Ok(None);
        };
        let new = Tenant {
            display_name: change
                .display_name
                .unwrap_or_else(|| old.display_name.clone()),
            max_vms: change.max_vms.unwrap_or(old.max_vms),
            storage_quota_gb: change.storage_quota_gb.unwrap_or(old.storage_quota_gb),
            api_rate_limit_rpm: change.api_rate_limit_rpm.unwrap_or(old.api_rate_limit_rpm),
            slot_limits: change
                .slot_limits
                .unwrap_or_else(|| old.slot_limits.clone()),
            ..old.clone()
        };
        let audit_index = self.append(
            NewEvent {
                event_type: "TENANT_QUOTA_CHANGED",
                tenant_id: Some(id.clone()),
                outcome: "completed",
                detail: object(json!({ "old": changeable(&old), "new": changeable(&new) })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "UPDATE tenant SET display_name = ?2, api_rate_limit_rpm = ?3, revision = revision + 1,
             audit_index = ?4 WHERE tenant_id = ?1",
            (
                id.as_str(),
                &new.display_name,
                new.api_rate_limit_rpm,
                audit_index,
            ),
        )?;
        for (resource, ceiling) in [
            (Resource::Vms, new.max_vms),
            (Resource::StorageGb, new.storage_quota_gb),
        ] {
            self.conn.execute(
                "UPDATE quota SET ceiling = ?3 WHERE tenant_id = ?1 AND resource = ?2",
                (id.as_str(), resource.name(), ceiling),
            )?;
        }
        self.set_slot_limits(id, &new.slot_limits)?;
        self.tenant(id)
    }

    /// Rows stay, as claims refer to them; a class that is not named may not be used.
    fn set_slot_limits(
        &mut self,
        id: &TenantId,
        limits: &BTreeMap<String, u32>,
    ) -> Result<(), StoreError> {
        self.conn.execute(
            "UPDATE slot_quota SET ceiling = 0 WHERE tenant_id = ?1",
            [id.as_str()],
        )?;
        for (class, ceiling) in limits {
            self.conn.execute(
                "INSERT INTO slot_quota (tenant_id, class, ceiling, used) VALUES (?1, ?2, ?3, 0)
                 ON CONFLICT (tenant_id, class) DO UPDATE SET ceiling = excluded.ceiling",
                (id.as_str(), class, ceiling),
            )?;
        }
        Ok(())
    }

    /// Delete an empty tenant: its tokens end with it, its row stays as a tombstone.
    pub fn delete_tenant(
        &mut self,
        id: &TenantId,
        cause: &Cause,
    ) -> Result<Result<(), DeleteTenantDenied>, StoreError> {
        if self.tenant(id)?.is_none() {
            return Ok(Err(DeleteTenantDenied::NotFound));
        }
        let vms: u64 = self.conn.query_row(
            "SELECT COUNT(*) FROM vm WHERE tenant_id = ?1 AND state <> 'deleted'",
            [id.as_str()],
            |row| row.get(0),
        )?;
        if vms > 0 {
            return Ok(Err(DeleteTenantDenied::NotEmpty { vms }));
        }
        let audit_index = self.append(
            NewEvent {
                event_type: "TENANT_DELETED",
                tenant_id: Some(id.clone()),
                outcome: "completed",
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "UPDATE tenant SET deleted_at = ?2, revision = revision + 1, audit_index = ?3
             WHERE tenant_id = ?1",
            (id.as_str(), self.now, audit_index),
        )?;
        self.end_all_tokens(id)?;
        Ok(Ok(()))
    }
}

fn changeable(tenant: &Tenant) -> Value {
    json!({
        "display_name": tenant.display_name,
        "max_vms": tenant.max_vms,
        "storage_quota_gb": tenant.storage_quota_gb,
        "api_rate_limit_rpm": tenant.api_rate_limit_rpm,
        "slot_limits": tenant.slot_limits,
    })
}

/// A JSON object's map; of anything else, an empty one.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value {
        map
    } else {
        Map::new()
    }
}

struct TenantRow {
    tenant_id: String,
    display_name: String,
    max_vms: u32,
    storage_quota_gb: u32,
    api_rate_limit_rpm: u32,
    created_at: i64,
    revision: u64,
    audit_index: u64,
}

fn tenant_row(row: &Row<'_>) -> crate::sql::Result<TenantRow> {
    Ok(TenantRow {
        tenant_id: row.get(0)?,
        display_name: row.get(1)?,
        max_vms: row.get(2)?,
        storage_quota_gb: row.get(3)?,
        api_rate_limit_rpm: row.get(4)?,
        created_at: row.get(5)?,
        revision: row.get(6)?,
        audit_index: row.get(7)?,
    })
}

impl TenantRow {
    fn into_tenant(self, db: &Db<'_>) -> Result<Tenant, StoreError> {
        let tenant_id = parsed(&self.tenant_id, "tenant id")?;
        Ok(Tenant {
            slot_limits: db.slot_limits(&tenant_id)?,
            tenant_id,
            display_name: self.display_name,
            max_vms: self.max_vms,
            storage_quota_gb: self.storage_quota_gb,
            api_rate_limit_rpm: self.api_rate_limit_rpm,
            created_at: rfc3339(self.created_at),
            revision: self.revision,
            audit_index: self.audit_index,
        })
    }
}
