//! Tenants: their records, their ceilings, their suspension and their end. A deleted tenant's id is
//! never free again.

use std::collections::BTreeMap;

use berth_api::ids::{NodeId, ProjectId, TenantId};
use berth_api::rest::{ACTIONS_BY_NAME, Tenant, VmState};
use berth_controller_core::quota::{Ceilings, Counter, QuotaScope, Resource};
use berth_controller_core::stop::StopOrder;
use serde_json::{Map, Value, json};

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::vm_events::VmWish;
use crate::vms::VmRef;
use crate::writer::WriteTx;

const SELECT: &str = "SELECT tenant_id, display_name, api_rate_limit_rpm, created_at, revision,
    audit_index, email, labels, tier, suspended_at, allowed_images, allowed_actions, default_ssh_keys
    FROM tenant WHERE deleted_at IS NULL";

/// Named ceilings of the operator's, for what a tenant's record does not set itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// Its ceilings; what is not named has none.
    pub ceilings: Ceilings,
}

/// What a tenant's record says beyond its name and its ceilings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantProfile {
    /// Where ceilings come from that are not given.
    pub tier: Tier,
    /// Where its people are reached.
    pub email: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Images that may be used; `None` is all.
    pub allowed_images: Option<Vec<String>>,
    /// What may be done; `None` is all.
    pub allowed_actions: Option<Vec<String>>,
}

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
    /// Other ceilings of its own.
    pub ceilings: Ceilings,
    /// Everything else.
    pub profile: TenantProfile,
}

impl NewTenant {
    fn own_ceilings(&self) -> Ceilings {
        let mut own = self.ceilings.clone();
        own.insert(Resource::Vms, Some(self.max_vms.into()));
        own.insert(Resource::StorageGb, Some(self.storage_quota_gb.into()));
        for (class, ceiling) in &self.slot_limits {
            own.insert(Resource::Slots(class.clone()), Some((*ceiling).into()));
        }
        own
    }
}

/// What to change of a tenant; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct TenantChange {
    /// For people.
    pub display_name: Option<String>,
    /// Requests per minute.
    pub api_rate_limit_rpm: Option<u32>,
    /// Ceilings; inside, `None` is no ceiling.
    pub ceilings: Ceilings,
    /// Slots that may be held at once, all classes anew.
    pub slot_limits: Option<BTreeMap<String, u32>>,
    /// Another tier: the ceilings that are not the tenant's own are this one's.
    pub tier: Option<Tier>,
    /// Where its people are reached.
    pub email: Option<Option<String>>,
    /// All labels anew.
    pub labels: Option<BTreeMap<String, String>>,
    /// Images that may be used.
    pub allowed_images: Option<Option<Vec<String>>>,
    /// What may be done.
    pub allowed_actions: Option<Option<Vec<String>>>,
    /// OpenSSH public keys for new guests.
    pub default_ssh_keys: Option<Vec<String>>,
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
    /// It still owns something.
    #[error("the tenant is not empty")]
    NotEmpty {
        /// How many of what.
        counts: BTreeMap<String, u32>,
    },
}

/// What of a tenant's record stands between it and an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantStanding {
    /// Whether an operator suspended it.
    pub is_suspended: bool,
    /// Images that may be used; `None` is all.
    pub allowed_images: Option<Vec<String>>,
    /// What may be done; `None` is all.
    pub allowed_actions: Option<Vec<String>>,
    /// SSH keys of guests that are given no others.
    pub default_ssh_keys: Vec<String>,
}

impl TenantStanding {
    /// Whether the tenant may do this, by its name in `berth_api::rest::TENANT_ACTIONS`.
    #[must_use]
    pub fn allows(&self, action: &str) -> bool {
        match &self.allowed_actions {
            Some(allowed) => allowed.iter().any(|name| name == action),
            None => !ACTIONS_BY_NAME.contains(&action),
        }
    }

    /// Whether the tenant may use, and know of, an image.
    #[must_use]
    pub fn allows_image(&self, image: &str) -> bool {
        self.allowed_images
            .as_ref()
            .is_none_or(|allowed| allowed.iter().any(|name| name == image))
    }
}

/// A tenant's ceilings, not those of a project.
pub(crate) fn whole(id: &TenantId) -> QuotaScope {
    QuotaScope {
        tenant: id.clone(),
        project: None,
    }
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

    /// What stands between a tenant and an action; `None` if there is no such tenant.
    pub fn tenant_standing(&self, id: &TenantId) -> Result<Option<TenantStanding>, StoreError> {
        let row: Option<(bool, Option<String>, Option<String>, String)> = self
            .conn
            .prepare_cached(
                "SELECT suspended_at IS NOT NULL, allowed_images, allowed_actions, default_ssh_keys
                 FROM tenant WHERE tenant_id = ?1 AND deleted_at IS NULL",
            )?
            .query_row([id.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        row.map(|(is_suspended, images, actions, keys)| {
            Ok(TenantStanding {
                is_suspended,
                allowed_images: list_option(images)?,
                allowed_actions: list_option(actions)?,
                default_ssh_keys: list_option(Some(keys))?.unwrap_or_default(),
            })
        })
        .transpose()
    }

    /// Classes of slots that a tenant may use, and how many of each.
    pub(crate) fn slot_limits(&self, id: &TenantId) -> Result<BTreeMap<String, u32>, StoreError> {
        let ceilings = self.ceilings(&whole(id))?;
        Ok(slot_limits_of(&ceilings))
    }
}

fn slot_limits_of(ceilings: &Ceilings) -> BTreeMap<String, u32> {
    ceilings
        .iter()
        .filter_map(|(resource, ceiling)| match (resource, ceiling) {
            (Resource::Slots(class), Some(ceiling)) if *ceiling > 0 => {
                Some((class.clone(), u32::try_from(*ceiling).unwrap_or(u32::MAX)))
            }
            _ => None,
        })
        .collect()
}

impl WriteTx<'_> {
    /// Make a tenant, with its default project.
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
        let own = new.own_ceilings();
        let mut effective = new.profile.tier.ceilings.clone();
        effective.extend(own.clone());
        let mut detail = ceilings_detail(&effective);
        detail.append(&mut object(json!({
            "display_name": new.display_name,
            "api_rate_limit_rpm": new.api_rate_limit_rpm,
            "tier": new.profile.tier.name,
            "allowed_images": new.profile.allowed_images,
            "allowed_actions": new.profile.allowed_actions,
        })));
        let audit_index = self.append(
            NewEvent {
                event_type: "TENANT_CREATED",
                tenant_id: Some(new.tenant_id.clone()),
                outcome: "completed",
                detail,
                ..NewEvent::default()
            },
            cause,
        )?;
        self.insert_tenant(&new, audit_index)?;
        let none = Resource::FIXED.map(|resource| (resource, None));
        let mut of_tier = Ceilings::from(none);
        of_tier.extend(new.profile.tier.ceilings.clone());
        of_tier.retain(|resource, _| !own.contains_key(resource));
        let scope = whole(&new.tenant_id);
        self.set_ceilings(&scope, &of_tier, false)?;
        self.set_ceilings(&scope, &own, true)?;
        self.insert_project(
            &new.tenant_id,
            &ProjectId::default(),
            "Default",
            audit_index,
        )?;
        self.tenant(&new.tenant_id)?
            .map(Ok)
            .ok_or(StoreError::Corrupt { what: "new tenant" })
    }

    fn insert_tenant(&mut self, new: &NewTenant, audit_index: u64) -> Result<(), StoreError> {
        self.conn.execute(
            "INSERT INTO tenant (tenant_id, display_name, api_rate_limit_rpm, created_at, revision,
             audit_index, email, labels, tier, allowed_images, allowed_actions)
             VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7, ?8, ?9, ?10)",
            (
                new.tenant_id.as_str(),
                &new.display_name,
                new.api_rate_limit_rpm,
                self.now,
                audit_index,
                &new.profile.email,
                json!(new.profile.labels).to_string(),
                &new.profile.tier.name,
                new.profile
                    .allowed_images
                    .as_ref()
                    .map(|list| json!(list).to_string()),
                new.profile
                    .allowed_actions
                    .as_ref()
                    .map(|list| json!(list).to_string()),
            ),
        )?;
        Ok(())
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
        self.change_ceilings(id, &change)?;
        let ceilings = self.ceilings(&whole(id))?;
        let new = changed(&old, change, &ceilings);
        let same_quota = quota_detail(&old) == quota_detail(&new);
        let event_type = if same_quota {
            "TENANT_CHANGED"
        } else {
            "TENANT_QUOTA_CHANGED"
        };
        let audit_index = self.append(
            NewEvent {
                event_type,
                tenant_id: Some(id.clone()),
                outcome: "completed",
                detail: object(json!({ "old": changeable(&old), "new": changeable(&new) })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "UPDATE tenant SET display_name = ?2, api_rate_limit_rpm = ?3, revision = revision + 1,
             audit_index = ?4, email = ?5, labels = ?6, tier = ?7, allowed_images = ?8,
             allowed_actions = ?9, default_ssh_keys = ?10 WHERE tenant_id = ?1",
            (
                id.as_str(),
                &new.display_name,
                new.api_rate_limit_rpm,
                audit_index,
                &new.email,
                json!(new.labels).to_string(),
                &new.tier,
                new.allowed_images.map(|list| json!(list).to_string()),
                new.allowed_actions.map(|list| json!(list).to_string()),
                json!(new.default_ssh_keys).to_string(),
            ),
        )?;
        self.tenant(id)
    }

    /// The tier first, so that what is named here beside it stands.
    fn change_ceilings(&mut self, id: &TenantId, change: &TenantChange) -> Result<(), StoreError> {
        let scope = whole(id);
        if let Some(tier) = &change.tier {
            self.conn.execute(
                "UPDATE quota SET ceiling = CASE WHEN resource LIKE 'slots.%' THEN 0 END
                 WHERE tenant_id = ?1 AND scope = '' AND is_own = 0",
                [id.as_str()],
            )?;
            let mut of_tier = tier.ceilings.clone();
            for own in self.own_resources(id)? {
                of_tier.remove(&own);
            }
            self.set_ceilings(&scope, &of_tier, false)?;
        }
        if let Some(limits) = &change.slot_limits {
            // Rows stay, as they count; a class that is not named may not be used.
            self.conn.execute(
                "UPDATE quota SET ceiling = 0, is_own = 1
                 WHERE tenant_id = ?1 AND scope = '' AND resource LIKE 'slots.%'",
                [id.as_str()],
            )?;
            let limits = limits
                .iter()
                .map(|(class, ceiling)| (Resource::Slots(class.clone()), Some(u64::from(*ceiling))))
                .collect();
            self.set_ceilings(&scope, &limits, true)?;
        }
        self.set_ceilings(&scope, &change.ceilings, true)
    }

    fn own_resources(&self, id: &TenantId) -> Result<Vec<Resource>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT resource FROM quota WHERE tenant_id = ?1 AND scope = '' AND is_own = 1",
        )?;
        let names = select
            .query_map([id.as_str()], |row| row.get::<_, String>(0))?
            .collect::<Result<Vec<_>, _>>()?;
        Ok(names
            .iter()
            .filter_map(|name| Resource::of_name(name))
            .collect())
    }

    /// Suspend a tenant, or end its suspension; the nodes that have work now. With `stop_vms` every
    /// VM that runs is told to power off. Repeatable.
    pub fn suspend_tenant(
        &mut self,
        id: &TenantId,
        is_suspended: bool,
        stop_vms: bool,
        cause: &Cause,
    ) -> Result<Option<(Tenant, Vec<NodeId>)>, StoreError> {
        let Some(old) = self.tenant(id)? else {
            return Ok(None);
        };
        if old.suspended_at.is_some() != is_suspended {
            let event_type = if is_suspended {
                "TENANT_SUSPENDED"
            } else {
                "TENANT_RESUMED"
            };
            let audit_index = self.append(
                NewEvent {
                    event_type,
                    tenant_id: Some(id.clone()),
                    outcome: "completed",
                    detail: object(json!({ "stop_vms": stop_vms })),
                    ..NewEvent::default()
                },
                cause,
            )?;
            self.conn.execute(
                "UPDATE tenant SET suspended_at = ?2, revision = revision + 1, audit_index = ?3
                 WHERE tenant_id = ?1",
                (id.as_str(), is_suspended.then_some(self.now), audit_index),
            )?;
        }
        let wake = if stop_vms {
            self.stop_all(id, cause)?
        } else {
            Vec::new()
        };
        let tenant = self
            .tenant(id)?
            .ok_or(StoreError::Corrupt { what: "tenant" })?;
        Ok(Some((tenant, wake)))
    }

    fn stop_all(&mut self, id: &TenantId, cause: &Cause) -> Result<Vec<NodeId>, StoreError> {
        let mut wake = Vec::new();
        for vm in self.vms(Some(id), "", u32::MAX)? {
            if matches!(vm.state, VmState::Running | VmState::Unreachable) {
                let wish = VmWish::Stop(StopOrder::default());
                let stopped = self.act_on_vm(id, &VmRef::Id(vm.id), wish, cause)?;
                wake.extend(stopped.ok().and_then(|(vm, _)| vm.node_id));
            }
        }
        Ok(wake)
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
        let vms: u32 = self.conn.query_row(
            "SELECT COUNT(*) FROM vm WHERE tenant_id = ?1 AND state <> 'deleted'",
            [id.as_str()],
            |row| row.get(0),
        )?;
        let nodes: u32 = self.conn.query_row(
            "SELECT COUNT(*) FROM node WHERE dedicated_to = ?1",
            [id.as_str()],
            |row| row.get(0),
        )?;
        let mut counts = BTreeMap::from([("vms".to_owned(), vms), ("nodes".to_owned(), nodes)]);
        counts.retain(|_, count| *count > 0);
        if !counts.is_empty() {
            return Ok(Err(DeleteTenantDenied::NotEmpty { counts }));
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
        self.conn.execute(
            "UPDATE project SET deleted_at = ?2, audit_index = ?3
             WHERE tenant_id = ?1 AND deleted_at IS NULL",
            (id.as_str(), self.now, audit_index),
        )?;
        self.end_all_tokens(id)?;
        Ok(Ok(()))
    }
}

/// The record as it will be.
fn changed(old: &Tenant, change: TenantChange, ceilings: &Ceilings) -> Tenant {
    let mut new = Tenant {
        display_name: change
            .display_name
            .unwrap_or_else(|| old.display_name.clone()),
        api_rate_limit_rpm: change.api_rate_limit_rpm.unwrap_or(old.api_rate_limit_rpm),
        tier: change
            .tier
            .map_or_else(|| old.tier.clone(), |tier| tier.name),
        email: change.email.unwrap_or_else(|| old.email.clone()),
        labels: change.labels.unwrap_or_else(|| old.labels.clone()),
        allowed_images: change
            .allowed_images
            .unwrap_or_else(|| old.allowed_images.clone()),
        allowed_actions: change
            .allowed_actions
            .unwrap_or_else(|| old.allowed_actions.clone()),
        default_ssh_keys: change
            .default_ssh_keys
            .unwrap_or_else(|| old.default_ssh_keys.clone()),
        ..old.clone()
    };
    put_ceilings(&mut new, ceilings);
    new
}

fn put_ceilings(tenant: &mut Tenant, ceilings: &Ceilings) {
    let of = |resource: &Resource| ceilings.get(resource).copied().flatten();
    let whole = |resource: &Resource| {
        of(resource).map_or(u32::MAX, |ceiling| {
            u32::try_from(ceiling).unwrap_or(u32::MAX)
        })
    };
    tenant.max_vms = whole(&Resource::Vms);
    tenant.storage_quota_gb = whole(&Resource::StorageGb);
    tenant.max_running_vms = of(&Resource::RunningVms);
    tenant.max_vcpus = of(&Resource::Vcpus);
    tenant.max_memory_mb = of(&Resource::MemoryMb);
    tenant.max_images = of(&Resource::Images);
    tenant.max_tokens = of(&Resource::Tokens);
    tenant.max_creates_per_day = of(&Resource::CreatesPerDay);
    tenant.slot_limits = slot_limits_of(ceilings);
}

/// Ceilings as a tenant's record and its entries in the ledger name them.
pub(crate) fn ceilings_detail(ceilings: &Ceilings) -> Map<String, Value> {
    let mut detail = Map::new();
    for resource in Resource::FIXED {
        if let Some(ceiling) = ceilings.get(&resource) {
            detail.insert(resource.limit_field(), json!(ceiling));
        }
    }
    detail.insert("slot_limits".to_owned(), json!(slot_limits_of(ceilings)));
    detail
}

fn quota_detail(tenant: &Tenant) -> Value {
    json!({
        "max_vms": tenant.max_vms,
        "storage_quota_gb": tenant.storage_quota_gb,
        "api_rate_limit_rpm": tenant.api_rate_limit_rpm,
        "slot_limits": tenant.slot_limits,
        "max_running_vms": tenant.max_running_vms,
        "max_vcpus": tenant.max_vcpus,
        "max_memory_mb": tenant.max_memory_mb,
        "max_images": tenant.max_images,
        "max_tokens": tenant.max_tokens,
        "max_creates_per_day": tenant.max_creates_per_day,
        "tier": tenant.tier,
        "allowed_images": tenant.allowed_images,
        "allowed_actions": tenant.allowed_actions,
    })
}

fn changeable(tenant: &Tenant) -> Value {
    let mut all = object(quota_detail(tenant));
    all.append(&mut object(json!({
        "display_name": tenant.display_name,
        "email": tenant.email,
        "labels": tenant.labels,
        "default_ssh_keys": tenant.default_ssh_keys,
    })));
    Value::Object(all)
}

/// A JSON object's map; of anything else, an empty one.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value {
        map
    } else {
        Map::new()
    }
}

/// A stored list that may be absent.
fn list_option(text: Option<String>) -> Result<Option<Vec<String>>, StoreError> {
    text.map(|text| {
        serde_json::from_str(&text).map_err(|_| StoreError::Corrupt {
            what: "list of a tenant",
        })
    })
    .transpose()
}

struct TenantRow {
    tenant_id: String,
    display_name: String,
    api_rate_limit_rpm: u32,
    created_at: i64,
    revision: u64,
    audit_index: u64,
    email: Option<String>,
    labels: String,
    tier: String,
    suspended_at: Option<i64>,
    allowed_images: Option<String>,
    allowed_actions: Option<String>,
    default_ssh_keys: String,
}

fn tenant_row(row: &Row<'_>) -> crate::sql::Result<TenantRow> {
    Ok(TenantRow {
        tenant_id: row.get(0)?,
        display_name: row.get(1)?,
        api_rate_limit_rpm: row.get(2)?,
        created_at: row.get(3)?,
        revision: row.get(4)?,
        audit_index: row.get(5)?,
        email: row.get(6)?,
        labels: row.get(7)?,
        tier: row.get(8)?,
        suspended_at: row.get(9)?,
        allowed_images: row.get(10)?,
        allowed_actions: row.get(11)?,
        default_ssh_keys: row.get(12)?,
    })
}

impl TenantRow {
    fn into_tenant(self, db: &Db<'_>) -> Result<Tenant, StoreError> {
        let corrupt = |_| StoreError::Corrupt {
            what: "tenant's record",
        };
        let tenant_id: TenantId = parsed(&self.tenant_id, "tenant id")?;
        let scope = whole(&tenant_id);
        let over_limit = db.counters(&scope)?.iter().any(Counter::is_over);
        let mut tenant = Tenant {
            tenant_id,
            display_name: self.display_name,
            max_vms: 0,
            storage_quota_gb: 0,
            api_rate_limit_rpm: self.api_rate_limit_rpm,
            slot_limits: BTreeMap::new(),
            tier: self.tier,
            max_running_vms: None,
            max_vcpus: None,
            max_memory_mb: None,
            max_images: None,
            max_tokens: None,
            max_creates_per_day: None,
            allowed_images: list_option(self.allowed_images)?,
            allowed_actions: list_option(self.allowed_actions)?,
            email: self.email,
            labels: serde_json::from_str(&self.labels).map_err(corrupt)?,
            default_ssh_keys: serde_json::from_str(&self.default_ssh_keys).map_err(corrupt)?,
            suspended_at: self.suspended_at.map(rfc3339),
            over_limit,
            created_at: rfc3339(self.created_at),
            revision: self.revision,
            audit_index: self.audit_index,
        };
        put_ceilings(&mut tenant, &db.ceilings(&scope)?);
        Ok(tenant)
    }
}
