//! Tenants and what they have used up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{ProjectId, TenantId};

/// `POST /v1/tenants`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// What the ceilings are that are not given here; a name of the operator's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// VMs that may be other than stopped at once. Each ceiling that neither this nor the tier sets
    /// is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_running_vms: Option<u32>,
    /// vCPUs of VMs that are not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u32>,
    /// Memory of VMs that are not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u64>,
    /// Images of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_images: Option<u32>,
    /// Tokens that are neither expired nor revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// VMs accepted in one day, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_creates_per_day: Option<u32>,
    /// Images that may be used; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
    /// What may be done, of [`TENANT_ACTIONS`]; unless given, all but [`ACTIONS_BY_NAME`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_actions: Option<Vec<String>>,
    /// Where its people are reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What a tenant can be forbidden, as `allowed_actions` names it. Reading, stopping, deleting and
/// revoking never are.
pub const TENANT_ACTIONS: [&str; 6] = [
    "vm.create",
    "vm.start",
    "vm.console",
    "token.issue",
    "project.change",
    "node.enroll",
];

/// Those that a tenant may do only if `allowed_actions` names them.
pub const ACTIONS_BY_NAME: [&str; 1] = ["node.enroll"];

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// Where the ceilings come from that were not given.
    #[serde(default)]
    pub tier: String,
    /// VMs that may be other than stopped at once; `null` is no ceiling, as below.
    #[serde(default)]
    pub max_running_vms: Option<u64>,
    /// vCPUs of VMs that are not stopped.
    #[serde(default)]
    pub max_vcpus: Option<u64>,
    /// Memory of VMs that are not stopped.
    #[serde(default)]
    pub max_memory_mb: Option<u64>,
    /// Images of its own.
    #[serde(default)]
    pub max_images: Option<u64>,
    /// Tokens that are neither expired nor revoked.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// VMs accepted in one day, in UTC.
    #[serde(default)]
    pub max_creates_per_day: Option<u64>,
    /// Images that may be used; `null` is all.
    #[serde(default)]
    pub allowed_images: Option<Vec<String>>,
    /// What may be done, of [`TENANT_ACTIONS`]; `null` is all but [`ACTIONS_BY_NAME`].
    #[serde(default)]
    pub allowed_actions: Option<Vec<String>>,
    /// Where its people are reached.
    #[serde(default)]
    pub email: Option<String>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// OpenSSH public keys that its people want in new guests.
    #[serde(default)]
    pub default_ssh_keys: Vec<String>,
    /// Since when it is suspended, RFC 3339; `null` while it is not.
    #[serde(default)]
    pub suspended_at: Option<String>,
    /// Whether more is charged than some ceiling allows, as after it was lowered.
    #[serde(default)]
    pub over_limit: bool,
    /// RFC 3339.
    pub created_at: String,
    /// Counts changes, from 1.
    pub revision: u64,
    /// Index of the ledger entry of the newest change.
    pub audit_index: u64,
}

/// `GET /v1/usage`: what a tenant or a project of it is charged for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UsageReport {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The project, if only its use was asked for.
    pub project_id: Option<ProjectId>,
    /// Resource by resource.
    pub items: Vec<Usage>,
    /// The ceilings alone, by resource; `null` is no ceiling.
    pub quotas: BTreeMap<String, Option<u64>>,
    /// Ceilings that hold for a while, by an operator's decision; they are in `items` and `quotas`.
    #[serde(default)]
    pub overrides: Vec<QuotaOverride>,
    /// Whether more is charged than some ceiling allows, as after it was lowered.
    pub over_limit: bool,
    /// When `creates_per_day` begins anew, RFC 3339.
    pub period_end: String,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Usage {
    /// Such as `vms`; for slots `slots.` and a class.
    pub resource: String,
    /// The ceiling; `null` is none.
    pub limit: Option<u64>,
    /// Charged.
    pub used: u64,
    /// How much of `used` is for VMs that were accepted and have not run yet.
    #[serde(default)]
    pub reserved: u64,
    /// What is left; `null` without a ceiling.
    pub remaining: Option<u64>,
    /// Whether more is charged than the ceiling allows.
    #[serde(default)]
    pub over_limit: bool,
}

/// Another ceiling of a tenant for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QuotaOverride {
    /// Of which resource.
    pub resource: String,
    /// The ceiling.
    pub limit: u64,
    /// RFC 3339.
    pub expires_at: String,
    /// Why.
    pub reason: String,
}

/// `POST /v1/tenants/{tenant}/quota-overrides`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OverrideQuota {
    /// Of which resource, as in `GET /v1/usage`.
    pub resource: String,
    /// The ceiling while it lasts.
    pub limit: u64,
    /// 60 to 2,592,000 (30 days); 0 ends the override that holds.
    pub expires_in_seconds: u64,
    /// Why; 1 to 500 characters.
    pub reason: String,
}

/// `POST /v1/tenants/{tenant}/suspend`; the body may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SuspendTenant {
    /// Whether the VMs that run are told to power off.
    #[serde(default)]
    pub stop_vms: bool,
}

/// `PUT /v1/tenant`: what a tenant says of itself, all of it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeOwnTenant {
    /// For people; 1 to 200 characters.
    pub display_name: String,
    /// Where its people are reached.
    #[serde(default)]
    pub email: Option<String>,
    /// OpenSSH public keys that its people want in new guests; at most 32.
    #[serde(default)]
    pub default_ssh_keys: Vec<String>,
}

/// `GET /v1/status`: a tenant at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TenantStatus {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Whether an operator suspended it.
    pub suspended: bool,
    /// VMs that run.
    pub vms_running: u64,
    /// VMs that exist.
    pub vms_total: u64,
    /// VMs by their states.
    pub vms: BTreeMap<String, u64>,
    /// Whether more is charged than some ceiling allows.
    pub over_limit: bool,
    /// Ceilings and charges, as in `GET /v1/usage`.
    pub items: Vec<Usage>,
}

/// A part of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Project {
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its id inside the tenant.
    pub project_id: ProjectId,
    /// For people.
    pub display_name: String,
    /// Where it belongs in its tenant's organisation.
    pub department: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Ceilings inside the tenant's own, by resource.
    pub quotas: BTreeMap<String, u64>,
    /// RFC 3339.
    pub created_at: String,
    /// Counts changes, from 1.
    pub revision: u64,
    /// Index of the ledger entry of the newest change.
    pub audit_index: u64,
}

/// `POST /v1/projects`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// Stable, never used again in this tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    pub project_id: String,
    /// For people; the id unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Where it belongs in its tenant's organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub department: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Ceilings inside the tenant's own, by resource as in `GET /v1/usage`; `null` is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quotas: BTreeMap<String, Option<u64>>,
}
