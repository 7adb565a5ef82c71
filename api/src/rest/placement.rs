//! Where VMs may go, and what would become of one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, SlotId};
use crate::rest::{ErrorCode, QuotaDetail};

/// Where a VM may and should go; what is left out is left to the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PlacementRequest {
    /// This node and no other; it must be dedicated to the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Only nodes of this zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only nodes that have all these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// Not on a node where another VM of the same group is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_affinity: Option<AntiAffinity>,
    /// Whether the slots must be of one NUMA node; `prefer` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<NumaWish>,
}

/// A group of the tenant's VMs that are to be on different nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AntiAffinity {
    /// The group: 1 to 63 lower-case letters, digits and inner hyphens.
    pub group: String,
    /// `required` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AntiAffinityMode>,
}

/// How much a VM minds another of its group on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AntiAffinityMode {
    /// It is refused rather than placed there, and keeps others of the group away.
    Required,
    /// It is placed there if nothing else is left.
    Preferred,
}

/// How near each other the slots of a VM must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NumaWish {
    /// All of one NUMA node, or the VM is refused.
    Strict,
    /// Of one NUMA node if there is one.
    Prefer,
}

/// What would become of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PlanOutcome {
    /// It would be accepted and given to a node.
    Accepted,
    /// It would be accepted and wait for a node that is silent.
    Waits,
    /// It would be refused; see `refusal`.
    Refused,
}

/// `POST /v1/vms?dry_run=plan`: what would happen now. Nothing was charged, stored or ordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmPlan {
    /// What would become of it.
    pub outcome: PlanOutcome,
    /// Its root disk.
    pub disk_gb: Option<u32>,
    /// What it would be charged for, by resource.
    pub charges: BTreeMap<String, u64>,
    /// The node that it would be given to.
    pub node_id: Option<NodeId>,
    /// That node's zone.
    pub zone: Option<String>,
    /// The slots that it would get.
    pub slots: Vec<SlotId>,
    /// Why it would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<PlanRefusal>,
    /// What is said of each node, for operators: the best first, then those that do not take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Vec<NodeVerdict>>,
    /// How many nodes there are, for operators; `candidates` holds the first 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
}

/// The refusal with which a create would be answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlanRefusal {
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: ErrorCode,
    /// What is wrong, in one sentence.
    pub error: String,
    /// What to do about it.
    pub detail: String,
    /// As in an error body.
    pub reasons: BTreeMap<String, u32>,
    /// For `quota_exceeded`.
    pub quota: Option<QuotaDetail>,
}

/// What placement says of one node, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeVerdict {
    /// Which node.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Whether it could take the VM.
    pub fits: bool,
    /// Why not, as a word such as `memory_taken`.
    pub rejection: Option<String>,
    /// Of slots that do not do: how many for which reason, as in an error body.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u32>,
    /// How well it suits, if it does. Nodes are compared by these members in their order.
    pub score: Option<NodeScore>,
}

/// How well a node suits a VM: the first difference between two nodes decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeScore {
    /// It is kept back for what fits nowhere else. Without is better.
    pub reserved: bool,
    /// VMs of the same anti-affinity group that are there. Fewer is better.
    pub group_vms: u32,
    /// It is dedicated to the tenant. With is better.
    pub dedicated: bool,
    /// Its slots for the VM are near each other. With is better.
    pub numa_local: bool,
    /// Memory that would be left. More is better.
    pub memory_left_mb: u64,
}
