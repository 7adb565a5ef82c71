//! Nodes and how they are let in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::agent::{LogFreeze, TreeHead};
use crate::ids::{NodeId, TenantId};
use crate::rest::given;

/// `POST /v1/nodes/join-tokens`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// Bind it to one node name.
    pub node_name: Option<String>,
    /// 60 to 86,400; 3,600 unless given.
    pub ttl_s: Option<u64>,
}

/// A join token just made; shown once. Under an `Idempotency-Key` a repeat gets this again with
/// `token` and `install_command` empty, as the secret is not kept: make another under a new key if
/// the first answer was lost; the first ends by itself at `expires_at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct IssuedJoinToken {
    /// For `berth-agent join`.
    pub token: String,
    /// RFC 3339.
    pub expires_at: String,
    /// The whole command to run on the new host.
    pub install_command: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `ready`, or `cordoned` while it gets no VMs.
    #[serde(default)]
    pub state: String,
    /// `online`, `suspect` or `unreachable`.
    pub liveness: String,
    /// RFC 3339 of the last sync.
    pub last_heartbeat: Option<String>,
    /// The host's boot id.
    pub boot_id: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Logical CPUs.
    pub vcpus: u32,
    /// Memory for VMs.
    pub memory_mb: u64,
    /// Disk for VMs, as the host said when it joined.
    #[serde(default)]
    pub disk_mb: u64,
    /// Memory promised to VMs.
    pub memory_used_mb: u64,
    /// Whether its KVM is usable.
    pub kvm: bool,
    /// VMs that are placed there.
    pub vms: u32,
    /// VMs that may be placed there; `null` is no limit of its own.
    #[serde(default)]
    pub max_vms_per_node: Option<u32>,
    /// Since when it gets no VMs, RFC 3339; `null` while it does.
    #[serde(default)]
    pub cordoned_at: Option<String>,
    /// Whether it gets only what fits nowhere else.
    #[serde(default)]
    pub reserved: bool,
    /// The tenant whose alone it is.
    #[serde(default)]
    pub dedicated_to: Option<TenantId>,
    /// The tenant that enrolled it and runs it; then it is dedicated to that one for ever.
    #[serde(default)]
    pub owned_by: Option<TenantId>,
    /// Its zone.
    #[serde(default)]
    pub zone: Option<String>,
    /// Labels that VMs can ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Counts changes by operators, from 1; `ETag` stands for it.
    #[serde(default)]
    pub revision: u64,
    /// Slots by class and, inside, by state.
    #[serde(default)]
    pub slots: BTreeMap<String, BTreeMap<String, u32>>,
    /// What the host has seen of the ledger, as its witness.
    #[serde(default)]
    pub log: NodeLog,
}

/// What a host has seen of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeLog {
    /// The newest tree that it cosigned.
    pub seen: Option<TreeHead>,
    /// Why it starts, stops, deletes and wipes nothing, if it does not.
    pub frozen: Option<LogFreeze>,
}

/// `GET /v1/audit/cosignatures`: a tree of the ledger as a host has seen it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostCosignature {
    /// The host.
    pub node_id: NodeId,
    /// What its cosignature is verified with.
    pub vkey: String,
    /// The checkpoint's text with the host's cosignature below: a signed note.
    pub note: String,
}

/// `PATCH /v1/nodes/{node}`: what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeNode {
    /// Whether it gets only what fits nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<bool>,
    /// The tenant whose alone it is; `null` is everybody's. VMs that are there stay.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub dedicated_to: Option<Option<TenantId>>,
    /// Its zone; `null` is none.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub zone: Option<Option<String>>,
    /// All labels from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// VMs that may be placed there; `null` is no limit of its own.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_vms_per_node: Option<Option<u32>>,
}
