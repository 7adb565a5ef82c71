//! Nodes, their enrolment, their images.

use std::collections::BTreeMap;

use berth_api::agent::EnrollRequest;
use berth_api::ids::{NodeId, TenantId};
use berth_api::rest::{Image, Node, NodeLog};
use berth_controller_core::liveness::Liveness;
use berth_ledger::keys::PublicKey;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, parsed_option, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// The epoch of a node that was enrolled once.
const FIRST_EPOCH: u64 = 1;

const SELECT: &str =
    "SELECT node_id, name, last_sync_at, boot_id, agent_version, vcpus, memory_mib,
    memory_used_mib, kvm, vms, max_vms, cordoned_at, is_reserved, dedicated_to, zone, labels, revision,
    owned_by, disk_mib
    FROM node";

/// A host about to become a node.
struct NewNode<'r> {
    name: String,
    owner: Option<TenantId>,
    key: &'r PublicKey,
    request: &'r EnrollRequest,
}

/// Who a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its id.
    pub node_id: NodeId,
    /// The epoch that tasks for it carry.
    pub epoch: u64,
}

/// Why a host did not become a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrollDenied {
    /// Unknown, used or expired.
    #[error("the join token is unknown, used or expired")]
    JoinToken,
    /// The token is bound to another name.
    #[error("the join token is for another node name")]
    NodeName,
    /// A node has that name or that key.
    #[error("a node with this name or this key is enrolled already")]
    Exists,
}

impl Db<'_> {
    /// Nodes after an id, in the order of their enrolment: those that a tenant enrolled itself, or all if
    /// `owner` is `None`.
    pub fn nodes(
        &self,
        owner: Option<&TenantId>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Node>, StoreError> {
        let sql = format!(
            "{SELECT} WHERE node_id > ?1 AND (?3 IS NULL OR owned_by = ?3) ORDER BY node_id LIMIT ?2"
        );
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((after, limit, owner.map(TenantId::as_str)), |row| {
                Ok(self.node_row(row))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|node| self.with_the_rest(node?))
            .collect()
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Result<Option<Node>, StoreError> {
        let sql = format!("{SELECT} WHERE node_id = ?1");
        self.conn
            .prepare_cached(&sql)?
            .query_row([id.to_string()], |row| Ok(self.node_row(row)))
            .optional()?
            .map(|node| self.with_the_rest(node?))
            .transpose()
    }

    /// The node of a name: any if `owner` is `None`, else one that this tenant enrolled, by its whole name
    /// or by what it is called inside the tenant.
    pub fn node_named(
        &self,
        owner: Option<&TenantId>,
        name: &str,
    ) -> Result<Option<Node>, StoreError> {
        let whole = match owner {
            Some(owner) if !name.contains('/') => own_node_name(owner, name),
            Some(_) | None => name.to_owned(),
        };
        let sql = format!("{SELECT} WHERE name = ?1 AND (?2 IS NULL OR owned_by = ?2)");
        self.conn
            .prepare_cached(&sql)?
            .query_row((whole, owner.map(TenantId::as_str)), |row| {
                Ok(self.node_row(row))
            })
            .optional()?
            .map(|node| self.with_the_rest(node?))
            .transpose()
    }

    fn with_the_rest(&self, mut node: Node) -> Result<Node, StoreError> {
        node.slots = self.slot_counts(node.id)?;
        node.log = self.node_log(node.id)?.shown();
        Ok(node)
    }

    /// The node that signs with this key.
    pub fn node_of_key(&self, key: &PublicKey) -> Result<Option<NodeIdentity>, StoreError> {
        let row: Option<(String, u64)> = self
            .conn
            .prepare_cached("SELECT node_id, epoch FROM node WHERE public_key = ?1")?
            .query_row([key.as_bytes().as_slice()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        row.map(|(node_id, epoch)| {
            Ok(NodeIdentity {
                node_id: parsed(&node_id, "node id")?,
                epoch,
            })
        })
        .transpose()
    }

    /// How alive a node looks.
    pub fn liveness(&self, id: NodeId) -> Result<Liveness, StoreError> {
        let last: Option<Option<i64>> = self
            .conn
            .prepare_cached("SELECT last_sync_at FROM node WHERE node_id = ?1")?
            .query_row([id.to_string()], |row| row.get(0))
            .optional()?;
        Ok(Liveness::judge(last.flatten(), self.now))
    }

    /// Images that some node can start, by name: of nodes that a tenant may be placed on, or of all if
    /// `tenant` is `None`. What one tenant's own nodes say reaches no other tenant.
    pub fn images(
        &self,
        tenant: Option<&TenantId>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT name, MAX(disk_mib) FROM node_image
             WHERE name > ?1 AND (?3 IS NULL OR owned_by = '' OR owned_by = ?3)
             GROUP BY name ORDER BY name LIMIT ?2",
        )?;
        let images = select
            .query_map((after, limit, tenant.map(TenantId::as_str)), |row| {
                Ok(Image {
                    name: row.get(0)?,
                    min_disk_gb: gib_of(row.get(1)?),
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(images)
    }

    /// Images that some node can start and that a tenant may use, by name.
    pub fn images_of(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError> {
        let standing = self.tenant_standing(tenant)?;
        let Some(mut allowed) = standing.and_then(|standing| standing.allowed_images) else {
            return self.images(Some(tenant), after, limit);
        };
        allowed.sort_unstable();
        allowed.dedup();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut images = Vec::new();
        for name in allowed.into_iter().filter(|name| name.as_str() > after) {
            if images.len() >= limit {
                break;
            }
            if let Some(min_disk_gb) = self.image_disk_gb(tenant, &name)? {
                images.push(Image { name, min_disk_gb });
            }
        }
        Ok(images)
    }

    /// Least root disk of an image for a tenant, in GiB; `None` if no node has it for that one.
    pub(crate) fn image_disk_gb(
        &self,
        tenant: &TenantId,
        image: &str,
    ) -> Result<Option<u32>, StoreError> {
        let largest: Option<u64> = self
            .conn
            .prepare_cached(
                "SELECT MAX(disk_mib) FROM node_image
                 WHERE name = ?1 AND (owned_by = '' OR owned_by = ?2)",
            )?
            .query_row((image, tenant.as_str()), |row| row.get(0))?;
        Ok(largest.map(gib_of))
    }

    fn node_row(&self, row: &Row<'_>) -> Result<Node, StoreError> {
        let last_sync: Option<i64> = row.get(2)?;
        let cordoned_at: Option<i64> = row.get(11)?;
        let labels: String = row.get(15)?;
        Ok(Node {
            id: parsed(&row.get::<_, String>(0)?, "node id")?,
            name: row.get(1)?,
            state: state_of_node(cordoned_at).to_owned(),
            liveness: Liveness::judge(last_sync, self.now).as_str().to_owned(),
            last_heartbeat: last_sync.map(rfc3339),
            boot_id: row.get(3)?,
            agent_version: row.get(4)?,
            vcpus: row.get(5)?,
            memory_mb: row.get(6)?,
            disk_mb: row.get(18)?,
            memory_used_mb: row.get(7)?,
            kvm: row.get(8)?,
            vms: row.get(9)?,
            max_vms_per_node: row.get(10)?,
            cordoned_at: cordoned_at.map(rfc3339),
            reserved: row.get(12)?,
            dedicated_to: parsed_option(row.get(13)?, "tenant id")?,
            zone: row.get(14)?,
            labels: serde_json::from_str(&labels).map_err(|_| StoreError::Corrupt {
                what: "node's labels",
            })?,
            revision: row.get(16)?,
            owned_by: parsed_option(row.get(17)?, "tenant id")?,
            slots: BTreeMap::new(),
            log: NodeLog::default(),
        })
    }
}

/// What a node is called that a tenant enrolled itself.
fn own_node_name(owner: &TenantId, name: &str) -> String {
    format!("{owner}/{name}")
}

/// The one word for what operators have set.
fn state_of_node(cordoned_at: Option<i64>) -> &'static str {
    match cordoned_at {
        None => "ready",
        Some(_) => "cordoned",
    }
}

fn gib_of(mib: u64) -> u32 {
    u32::try_from(mib.div_ceil(1024)).unwrap_or(u32::MAX).max(1)
}

impl WriteTx<'_> {
    /// Make a host a node. A repeat with the same token and key, as after a lost answer, gives the
    /// same node.
    pub fn enroll(
        &mut self,
        secret_hash: &[u8],
        key: &PublicKey,
        request: &EnrollRequest,
        cause: &Cause,
    ) -> Result<Result<NodeIdentity, EnrollDenied>, StoreError> {
        let Some(token) = self.join_token(secret_hash)? else {
            return Ok(Err(EnrollDenied::JoinToken));
        };
        let known = self.node_of_key(key)?;
        if let Some(used_by) = token.used_by {
            return Ok(known
                .filter(|node| node.node_id.to_string() == used_by)
                .ok_or(EnrollDenied::JoinToken));
        }
        if self.now >= token.expires_at {
            return Ok(Err(EnrollDenied::JoinToken));
        }
        if token.bound_to.is_some_and(|name| name != request.node_name) {
            return Ok(Err(EnrollDenied::NodeName));
        }
        if let Some(owner) = &token.owner
            && !self.may_enroll(owner)?
        {
            return Ok(Err(EnrollDenied::JoinToken));
        }
        // Names of a tenant's own nodes are its own: it neither takes nor finds out another's.
        let name = match &token.owner {
            Some(owner) => own_node_name(owner, &request.node_name),
            None => request.node_name.clone(),
        };
        let name_taken: bool = self.conn.query_row(
            "SELECT EXISTS (SELECT 1 FROM node WHERE name = ?1)",
            [&name],
            |row| row.get(0),
        )?;
        if name_taken || known.is_some() {
            return Ok(Err(EnrollDenied::Exists));
        }
        let new = NewNode {
            name,
            owner: token.owner,
            key,
            request,
        };
        self.insert_node(secret_hash, &new, cause).map(Ok)
    }

    fn insert_node(
        &mut self,
        secret_hash: &[u8],
        new: &NewNode<'_>,
        cause: &Cause,
    ) -> Result<NodeIdentity, StoreError> {
        let NewNode {
            name,
            owner,
            key,
            request,
        } = new;
        let owner_text = owner.as_ref().map(TenantId::as_str);
        let node_id = NodeId::generate();
        self.conn.execute(
            "INSERT INTO node (node_id, name, public_key, machine_id, epoch, boot_id, agent_version,
             enrolled_at, vcpus, memory_mib, disk_mib, kvm)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            (
                node_id.to_string(),
                name,
                key.as_bytes().as_slice(),
                &request.machine_id,
                FIRST_EPOCH,
                &request.boot_id,
                &request.agent_version,
                self.now,
                request.capacity.vcpus,
                request.capacity.memory_mib,
                request.capacity.disk_mib,
                request.capacity.kvm,
            ),
        )?;
        self.conn.execute(
            "UPDATE node SET owned_by = ?2, dedicated_to = ?2 WHERE node_id = ?1",
            (node_id.to_string(), owner_text),
        )?;
        self.conn.execute(
            "UPDATE join_token SET used_by = ?2 WHERE secret_hash = ?1",
            (secret_hash, node_id.to_string()),
        )?;
        self.append(
            NewEvent {
                event_type: "NODE_ENROLLED",
                tenant_id: owner.clone(),
                node_id: Some(node_id),
                outcome: "completed",
                detail: object(json!({
                    "node_name": name,
                    "public_key": key.to_base64(),
                    "agent_version": request.agent_version,
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(NodeIdentity {
            node_id,
            epoch: FIRST_EPOCH,
        })
    }
}
