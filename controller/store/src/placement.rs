//! The nodes that placement is asked about, and the question itself.
//!
//! `berth_controller_core::placement` decides; what stands here must never keep from it the node that
//! it would choose. Its last rule, the most memory left, is also the order of an index, so that most
//! VMs are placed among the few roomiest nodes and a fleet's size does not show in the time it takes.
//!
//! A decision is made in the transaction that takes the node's room and its slots, and writing
//! transactions come one after the other on both databases: nobody else takes them in between.

use std::collections::BTreeMap;

use berth_api::agent::Capacity;
use berth_api::ids::{NodeId, SlotId, TenantId};
use berth_api::rest::{NodeScore, NodeVerdict};
use berth_controller_core::liveness::{Liveness, SUSPECT_AFTER_MS};
use berth_controller_core::placement::{
    Candidate, Decision, Demand, Fit, GroupHere, NodePolicy, Placement, SlotCandidate, SlotWish,
    Verdict, place, verdicts,
};

use crate::claims::CLAIMABLE;
use crate::error::StoreError;
use crate::rows::{parsed, parsed_option};
use crate::sql::Row;
use crate::store::Db;

/// Nodes that are looked at before all of them are. More than one, as the roomiest may lack vCPUs.
const ROOMIEST: u32 = 8;
/// Whose the nodes are that everybody may have.
const EVERYBODY: &str = "";
/// Nodes that an operator is shown of one plan.
const MAX_SHOWN: usize = 1000;

const COLUMNS: &str =
    "node.node_id, last_sync_at, vcpus, memory_mib, node.disk_mib, kvm, vms, vcpus_used,
    memory_used_mib, max_vms, cordoned_at IS NOT NULL, is_reserved, dedicated_to, zone, labels";

/// Nodes of one owner that speak, are open, have the image, are in the zone and have a free slot of the
/// class, with nobody of the group on them: the best that can be, but for their room.
fn roomiest_sql() -> String {
    format!(
        "SELECT {COLUMNS}, 1 FROM node
         WHERE COALESCE(dedicated_to, '') = ?1 AND is_reserved = 0 AND cordoned_at IS NULL
         AND last_sync_at > ?2 AND (?3 IS NULL OR zone = ?3)
         AND EXISTS (SELECT 1 FROM node_image
           WHERE node_image.name = ?4 AND node_image.node_id = node.node_id)
         AND (?5 IS NULL OR NOT EXISTS (SELECT 1 FROM vm
           WHERE vm.tenant_id = ?6 AND vm.apart_group = ?5 AND vm.apart_group IS NOT NULL
           AND vm.state <> 'deleted' AND vm.node_id = node.node_id))
         AND (?7 IS NULL OR EXISTS (SELECT 1 FROM slot
           WHERE slot.node_id = node.node_id AND slot.class = ?7 AND {CLAIMABLE}))
         ORDER BY memory_mib - memory_used_mib DESC, node.node_id LIMIT {ROOMIEST}"
    )
}

impl Db<'_> {
    /// Where a VM of this image would go now. Nothing is changed.
    pub fn decide_placement(&self, image: &str, demand: &Demand) -> Result<Decision, StoreError> {
        for owner in [demand.tenant.as_str(), EVERYBODY] {
            let few = self.roomiest(image, demand, owner)?;
            let best = verdicts(demand, &few).into_iter().next();
            match best.map(|verdict| (verdict.node_id, verdict.outcome)) {
                // Whatever is not among these has less memory left, or is worse in what counts more.
                Some((node_id, Ok(Fit { score, slots }))) if !score.is_numa_split => {
                    return Ok(Decision::Chosen(Placement { node_id, slots }));
                }
                Some((_, Ok(_))) => break,
                Some((_, Err(_))) if few.len() >= to_usize(ROOMIEST) => break,
                // None of this owner's is as good as can be; the next owner's may be.
                Some((_, Err(_))) | None => {}
            }
        }
        Ok(place(demand, &self.candidates(image, demand)?))
    }

    /// What placement says of each node, the best first, and of how many; for operators alone.
    pub(crate) fn node_verdicts(
        &self,
        image: &str,
        demand: &Demand,
    ) -> Result<(u32, Vec<NodeVerdict>), StoreError> {
        let mut all = verdicts(demand, &self.candidates(image, demand)?);
        let nodes = u32::try_from(all.len()).unwrap_or(u32::MAX);
        all.truncate(MAX_SHOWN);
        let mut select = self
            .conn
            .prepare_cached("SELECT name FROM node WHERE node_id = ?1")?;
        let mut named = Vec::new();
        for verdict in all {
            let id = verdict.node_id.to_string();
            let name: String = select.query_row([id], |row| row.get(0))?;
            named.push(shown(verdict, name));
        }
        Ok((nodes, named))
    }

    /// The nodes with the most memory left, of those of one owner that are as good as can be.
    fn roomiest(
        &self,
        image: &str,
        demand: &Demand,
        owner: &str,
    ) -> Result<Vec<Candidate>, StoreError> {
        let wishes = &demand.wishes;
        let class = demand.slots.iter().find_map(|wish| match wish {
            SlotWish::Class { class, .. } => Some(class),
            SlotWish::One(_) => None,
        });
        let mut nodes = self.candidates_of(
            &roomiest_sql(),
            (
                owner,
                self.now.saturating_sub(SUSPECT_AFTER_MS),
                &wishes.zone,
                image,
                wishes.apart.as_ref().map(|apart| &apart.group),
                demand.tenant.as_str(),
                class,
            ),
        )?;
        if !demand.slots.is_empty() {
            for node in &mut nodes {
                let id = node.node_id.to_string();
                let slots = self.slot_candidates("slot.node_id = ?1", &id)?;
                node.slots = slots.into_values().flatten().collect();
            }
        }
        Ok(nodes)
    }

    /// All nodes.
    fn candidates(&self, image: &str, demand: &Demand) -> Result<Vec<Candidate>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, CASE WHEN node_image.name IS NULL THEN 0 ELSE 1 END FROM node
             LEFT JOIN node_image ON node_image.node_id = node.node_id AND node_image.name = ?1"
        );
        let nodes = self.candidates_of(&sql, [image])?;
        let mut slots = self.wished_slots(&demand.slots)?;
        let group = demand.wishes.apart.as_ref().map(|apart| &apart.group);
        let groups = self.group_by_node(&demand.tenant, group)?;
        let complete = nodes.into_iter().map(|node| Candidate {
            slots: slots.remove(&node.node_id).unwrap_or_default(),
            group: groups.get(&node.node_id).copied().unwrap_or_default(),
            ..node
        });
        Ok(complete.collect())
    }

    /// Every slot that one of the wishes could mean, by node.
    fn wished_slots(
        &self,
        wishes: &[SlotWish],
    ) -> Result<BTreeMap<NodeId, Vec<SlotCandidate>>, StoreError> {
        let mut found: BTreeMap<NodeId, BTreeMap<SlotId, SlotCandidate>> = BTreeMap::new();
        for wish in wishes {
            let (condition, text) = match wish {
                SlotWish::Class { class, .. } => ("slot.class = ?1", class.clone()),
                SlotWish::One(id) => ("slot.slot_id = ?1", id.to_string()),
            };
            for (node, slots) in self.slot_candidates(condition, &text)? {
                let here = found.entry(node).or_default();
                here.extend(slots.into_iter().map(|slot| (slot.slot_id, slot)));
            }
        }
        let by_node = found
            .into_iter()
            .map(|(node, slots)| (node, slots.into_values().collect()));
        Ok(by_node.collect())
    }

    /// How many VMs of a tenant's group are where.
    fn group_by_node(
        &self,
        tenant: &TenantId,
        group: Option<&String>,
    ) -> Result<BTreeMap<NodeId, GroupHere>, StoreError> {
        let Some(group) = group else {
            return Ok(BTreeMap::new());
        };
        let mut select = self.conn.prepare_cached(
            "SELECT node_id, COUNT(*), CAST(SUM(is_apart_required) AS BIGINT) FROM vm
             WHERE tenant_id = ?1 AND apart_group = ?2 AND apart_group IS NOT NULL
             AND state <> 'deleted' AND node_id IS NOT NULL GROUP BY node_id",
        )?;
        let rows = select.query_map((tenant.as_str(), group), |row| {
            let here = GroupHere {
                vms: row.get(1)?,
                strict_vms: row.get(2)?,
            };
            Ok((row.get::<_, String>(0)?, here))
        })?;
        rows.map(|row| {
            let (node, here) = row?;
            Ok((parsed(&node, "node id")?, here))
        })
        .collect()
    }

    fn candidates_of(
        &self,
        sql: &str,
        params: impl crate::sql::Params,
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut select = self.conn.prepare_cached(sql)?;
        let rows = select
            .query_map(params, |row| Ok(self.candidate(row)))?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().collect()
    }

    fn candidate(&self, row: &Row<'_>) -> Result<Candidate, StoreError> {
        let labels: String = row.get(14)?;
        Ok(Candidate {
            node_id: parsed(&row.get::<_, String>(0)?, "node id")?,
            liveness: Liveness::judge(row.get(1)?, self.now),
            capacity: Capacity {
                vcpus: row.get(2)?,
                memory_mib: row.get(3)?,
                disk_mib: row.get(4)?,
                kvm: row.get(5)?,
            },
            vms: row.get(6)?,
            vcpus_used: row.get(7)?,
            memory_used_mib: row.get(8)?,
            policy: NodePolicy {
                max_vms: row.get(9)?,
                is_cordoned: row.get(10)?,
                is_reserved: row.get(11)?,
                dedicated_to: parsed_option(row.get(12)?, "tenant id")?,
                zone: row.get(13)?,
                labels: serde_json::from_str(&labels).map_err(|_| StoreError::Corrupt {
                    what: "node's labels",
                })?,
            },
            has_image: row.get(15)?,
            group: GroupHere::default(),
            slots: Vec::new(),
        })
    }
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn shown(verdict: Verdict, name: String) -> NodeVerdict {
    let (fit, rejection) = match verdict.outcome {
        Ok(fit) => (Some(fit), None),
        Err(rejection) => (None, Some(rejection)),
    };
    NodeVerdict {
        node_id: verdict.node_id,
        name,
        fits: fit.is_some(),
        rejection: rejection.as_ref().map(|why| why.code().to_owned()),
        reasons: rejection.map(|why| why.reasons()).unwrap_or_default(),
        score: fit.map(|Fit { score, .. }| NodeScore {
            reserved: score.is_reserved,
            group_vms: score.group_vms,
            dedicated: !score.is_shared,
            numa_local: !score.is_numa_split,
            memory_left_mb: score.memory_left_mib.0,
        }),
    }
}

#[cfg(test)]
mod tests;
