//! Tenants and what they have used up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::TenantId;

/// `POST /v1/tenants`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Stable, never reused. Text here, so that a bad one gets its own error code.
    pub tenant_id: String,
    /// For people; 1 to 200 characters.
    pub display_name: String,
    /// VMs that may exist at once.
    pub max_vms: u32,
    /// Storage of all disks together.
    pub storage_quota_gb: u32,
    /// Requests per minute.
    pub api_rate_limit_rpm: u32,
    /// Slots that may be held at once, by class. A class that is not named may not be used.
    #[serde(default)]
    pub slot_limits: BTreeMap<String, u32>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub tenant_id: TenantId,
    /// For people.
    pub display_name: String,
    /// VMs that may exist at once.
    pub max_vms: u32,
    /// Storage of all disks together.
    pub storage_quota_gb: u32,
    /// Requests per minute.
    pub api_rate_limit_rpm: u32,
    /// Slots that may be held at once, by class. A class that is not named may not be used.
    #[serde(default)]
    pub slot_limits: BTreeMap<String, u32>,
    /// RFC 3339.
    pub created_at: String,
    /// Counts changes, from 1.
    pub revision: u64,
    /// Index of the ledger entry of the newest change.
    pub audit_index: u64,
}

/// `GET /v1/usage`: one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// `vms`, `storage_gb` or `slots.` and a class.
    pub resource: String,
    /// The ceiling.
    pub limit: u64,
    /// Charged.
    pub used: u64,
    /// What is left.
    pub remaining: u64,
}
