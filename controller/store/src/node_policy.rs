//! What operators set for a node: what placement goes by beside what the host reports.

use std::collections::BTreeMap;

use berth_api::ids::{NodeId, TenantId};
use berth_api::rest::Node;
use serde_json::{Map, Value, json};

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::tenants::object;
use crate::writer::WriteTx;

/// What to change; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeChange {
    /// Whether it gets only what fits nowhere else.
    pub is_reserved: Option<bool>,
    /// Whose alone it is; inside, `None` is everybody's.
    pub dedicated_to: Option<Option<TenantId>>,
    /// Its zone.
    pub zone: Option<Option<String>>,
    /// All labels anew.
    pub labels: Option<BTreeMap<String, String>>,
    /// VMs that may be placed there.
    pub max_vms: Option<Option<u32>>,
}

/// Why a node was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeNodeDenied {
    /// There is no such node.
    #[error("there is no such node")]
    NotFound,
    /// There is no such tenant.
    #[error("there is no tenant {0}")]
    NoTenant(TenantId),
    /// A tenant runs the host itself, so nobody else's VMs go there.
    #[error("the node is tenant {0}'s own")]
    Owned(TenantId),
}

impl WriteTx<'_> {
    /// Change what placement goes by. VMs that are there stay.
    pub fn change_node(
        &mut self,
        id: NodeId,
        change: NodeChange,
        cause: &Cause,
    ) -> Result<Result<Node, ChangeNodeDenied>, StoreError> {
        let Some(old) = self.node(id)? else {
            return Ok(Err(ChangeNodeDenied::NotFound));
        };
        if let Some(Some(tenant)) = &change.dedicated_to
            && self.tenant_standing(tenant)?.is_none()
        {
            return Ok(Err(ChangeNodeDenied::NoTenant(tenant.clone())));
        }
        if let (Some(owner), Some(wanted)) = (&old.owned_by, &change.dedicated_to)
            && wanted.as_ref() != Some(owner)
        {
            return Ok(Err(ChangeNodeDenied::Owned(owner.clone())));
        }
        let new = changed(&old, change);
        if new == old {
            return Ok(Ok(old));
        }
        self.conn.execute(
            "UPDATE node SET is_reserved = ?2, dedicated_to = ?3, zone = ?4, labels = ?5, max_vms = ?6,
             revision = revision + 1 WHERE node_id = ?1",
            (
                id.to_string(),
                new.reserved,
                new.dedicated_to.as_ref().map(TenantId::as_str),
                &new.zone,
                json!(new.labels).to_string(),
                new.max_vms_per_node,
            ),
        )?;
        let detail = object(json!({ "old": policy_of(&old), "new": policy_of(&new) }));
        self.note_node_change(id, "NODE_CHANGED", detail, cause)?;
        self.changed_node(id).map(Ok)
    }

    /// Give a node no VMs from here on, or some again. Those that are there stay. Repeatable.
    pub fn cordon_node(
        &mut self,
        id: NodeId,
        is_cordoned: bool,
        cause: &Cause,
    ) -> Result<Option<Node>, StoreError> {
        let Some(old) = self.node(id)? else {
            return Ok(None);
        };
        if old.cordoned_at.is_some() == is_cordoned {
            return Ok(Some(old));
        }
        self.conn.execute(
            "UPDATE node SET cordoned_at = ?2, revision = revision + 1 WHERE node_id = ?1",
            (id.to_string(), is_cordoned.then_some(self.now)),
        )?;
        let event_type = if is_cordoned {
            "NODE_CORDONED"
        } else {
            "NODE_UNCORDONED"
        };
        self.note_node_change(id, event_type, Map::new(), cause)?;
        self.changed_node(id).map(Some)
    }

    fn note_node_change(
        &mut self,
        id: NodeId,
        event_type: &'static str,
        detail: Map<String, Value>,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        self.append(
            NewEvent {
                event_type,
                node_id: Some(id),
                outcome: "completed",
                detail,
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(())
    }

    fn changed_node(&self, id: NodeId) -> Result<Node, StoreError> {
        self.node(id)?.ok_or(StoreError::Corrupt { what: "node" })
    }
}

fn changed(old: &Node, change: NodeChange) -> Node {
    Node {
        reserved: change.is_reserved.unwrap_or(old.reserved),
        dedicated_to: change
            .dedicated_to
            .unwrap_or_else(|| old.dedicated_to.clone()),
        zone: change.zone.unwrap_or_else(|| old.zone.clone()),
        labels: change.labels.unwrap_or_else(|| old.labels.clone()),
        max_vms_per_node: change.max_vms.unwrap_or(old.max_vms_per_node),
        ..old.clone()
    }
}

fn policy_of(node: &Node) -> Value {
    json!({
        "reserved": node.reserved,
        "dedicated_to": node.dedicated_to,
        "zone": node.zone,
        "labels": node.labels,
        "max_vms_per_node": node.max_vms_per_node,
    })
}
