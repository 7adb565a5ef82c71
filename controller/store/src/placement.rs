//! The nodes that placement is asked about, and the question itself.
//!
//! `berth_controller_core::placement` decides; what stands here must never keep from it the node that
//! it would choose. Its rule, the most memory left, is also the order of an index, so that a VM without
//! slots is placed among the few roomiest nodes and a fleet's size does not show in the time it takes.

use std::collections::BTreeMap;

use berth_api::agent::Capacity;
use berth_api::ids::NodeId;
use berth_controller_core::liveness::{Liveness, SUSPECT_AFTER_MS};
use berth_controller_core::placement::{Candidate, Decision, Demand, place};

use crate::error::StoreError;
use crate::rows::parsed;
use crate::sql::{Params, Row};
use crate::store::Db;

/// Nodes that are looked at before all of them are. More than one, as the roomiest may lack vCPUs.
const ROOMIEST: u32 = 8;

const COLUMNS: &str = "node.node_id, last_sync_at, vcpus, memory_mib, node.disk_mib, kvm";
const USED: &str = "vcpus_used, memory_used_mib";

impl Db<'_> {
    /// Where a VM of this image would go now. Nothing is changed.
    pub fn decide_placement(&self, image: &str, demand: &Demand) -> Result<Decision, StoreError> {
        if demand.slots.is_empty() {
            // Whatever is not among these has less memory left than whichever of these is chosen.
            let decision = place(demand, &self.roomiest(image)?);
            if matches!(decision, Decision::Chosen(_)) {
                return Ok(decision);
            }
        }
        Ok(place(demand, &self.candidates(image, demand)?))
    }

    /// The nodes with the most memory left, of those that speak and have the image: the others are
    /// rejected for any demand.
    fn roomiest(&self, image: &str) -> Result<Vec<Candidate>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, 1, {USED} FROM node
             WHERE last_sync_at > ?2 AND EXISTS (SELECT 1 FROM node_image
               WHERE node_image.name = ?1 AND node_image.node_id = node.node_id)
             ORDER BY memory_mib - memory_used_mib DESC, node.node_id LIMIT ?3"
        );
        let heard_since = self.now.saturating_sub(SUSPECT_AFTER_MS);
        self.candidates_of(&sql, (image, heard_since, ROOMIEST))
    }

    /// All nodes.
    fn candidates(&self, image: &str, demand: &Demand) -> Result<Vec<Candidate>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, CASE WHEN node_image.name IS NULL THEN 0 ELSE 1 END, {USED} FROM node
             LEFT JOIN node_image ON node_image.node_id = node.node_id AND node_image.name = ?1"
        );
        let nodes = self.candidates_of(&sql, [image])?;
        let mut slots = if demand.slots.is_empty() {
            BTreeMap::new()
        } else {
            self.slot_candidates()?
        };
        let with_slots = nodes.into_iter().map(|node| Candidate {
            slots: slots.remove(&node.node_id).unwrap_or_default(),
            ..node
        });
        Ok(with_slots.collect())
    }

    fn candidates_of(&self, sql: &str, params: impl Params) -> Result<Vec<Candidate>, StoreError> {
        let mut select = self.conn.prepare_cached(sql)?;
        let rows = select
            .query_map(params, |row| self.candidate(row))?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|(id, candidate)| {
                let node_id = parsed(&id, "node id")?;
                Ok(candidate(node_id))
            })
            .collect()
    }

    fn candidate(
        &self,
        row: &Row<'_>,
    ) -> crate::sql::Result<(String, impl FnOnce(NodeId) -> Candidate + use<>)> {
        let liveness = Liveness::judge(row.get(1)?, self.now);
        let capacity = Capacity {
            vcpus: row.get(2)?,
            memory_mib: row.get(3)?,
            disk_mib: row.get(4)?,
            kvm: row.get(5)?,
        };
        let has_image = row.get(6)?;
        let vcpus_used = row.get(7)?;
        let memory_used_mib = row.get(8)?;
        let named = move |node_id| Candidate {
            node_id,
            liveness,
            capacity,
            has_image,
            vcpus_used,
            memory_used_mib,
            slots: Vec::new(),
        };
        Ok((row.get(0)?, named))
    }
}

#[cfg(test)]
mod tests {
    use berth_ledger::keys::SigningKey;

    use super::*;
    use crate::store::{Keys, Store};

    /// A node's memory and what of it is used, its vCPUs, how long it has been silent, its images.
    type Given = (u32, u32, u32, i64, bool);

    fn store(nodes: &[Given]) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.db");
        Store::init(&path).unwrap();
        let keys = Keys {
            ledger: SigningKey::from_seed(&[1; 32]).unwrap(),
            task: SigningKey::from_seed(&[2; 32]).unwrap(),
        };
        let store = Store::open(&path, keys).unwrap();
        let nodes = nodes.to_vec();
        store
            .write(move |tx| {
                for (number, (memory, used, vcpus, silent_s, has_image)) in nodes.into_iter().enumerate() {
                    let id = NodeId::generate().to_string();
                    let name = format!("node-{number}");
                    tx.conn.execute(
                        "INSERT INTO node (node_id, name, public_key, machine_id, epoch, boot_id,
                         agent_version, enrolled_at, last_sync_at, vcpus, memory_mib, disk_mib, kvm,
                         memory_used_mib) VALUES (?1, ?2, ?3, '', 1, '', '', 0, ?4, ?5, ?6, 9000, 1, ?7)",
                        (&id, &name, name.as_bytes(), tx.now - silent_s * 1000, vcpus, memory, used),
                    )?;
                    if has_image {
                        tx.conn.execute(
                            "INSERT INTO node_image (node_id, name, digest, disk_mib)
                             VALUES (?1, 'debian-12', '', 1024)",
                            [&id],
                        )?;
                    }
                }
                Ok(())
            })
            .unwrap();
        (folder, store)
    }

    fn demand(vcpus: u32, memory_mib: u64) -> Demand {
        Demand {
            vcpus,
            memory_mib,
            disk_mib: 1024,
            slots: Vec::new(),
        }
    }

    /// The few are asked first; what comes of it is what all would have said.
    #[track_caller]
    fn check(nodes: &[Given], demand: &Demand) -> Decision {
        let (_folder, store) = store(nodes);
        store
            .read(|db| {
                let decision = db.decide_placement("debian-12", demand)?;
                let of_all = place(demand, &db.candidates("debian-12", demand)?);
                assert_eq!(decision, of_all);
                Ok(decision)
            })
            .unwrap()
    }

    #[test]
    fn the_roomiest_node_that_can_is_chosen_whoever_else_is_there() {
        let mut nodes = vec![
            (8000, 0, 1, 40, true),
            (7000, 0, 1, 0, false),
            (6000, 1000, 1, 0, true),
            (5500, 0, 1, 0, true),
            (5500, 0, 1, 0, true),
        ];
        assert!(matches!(
            check(&nodes, &demand(1, 512)),
            Decision::Chosen(_)
        ));
        // More of those that are full of vCPUs than are looked at first.
        nodes.extend(vec![(9000, 0, 0, 0, true); 20]);
        assert!(matches!(
            check(&nodes, &demand(1, 512)),
            Decision::Chosen(_)
        ));
    }

    #[test]
    fn what_no_node_takes_is_refused_with_the_reasons_of_all() {
        let nodes = vec![(600, 500, 1, 0, true); 20];
        let Decision::NoCapacity(reasons) = check(&nodes, &demand(1, 512)) else {
            panic!("it is full");
        };
        assert_eq!(reasons["memory_taken"], 20);
        assert!(matches!(
            check(&nodes, &demand(1, 700)),
            Decision::Impossible(_)
        ));
        let mut silent = nodes;
        silent.push((900, 0, 1, 3600, true));
        assert!(matches!(check(&silent, &demand(1, 512)), Decision::Wait(_)));
    }

    #[test]
    fn the_roomiest_are_found_by_the_index() {
        let (_folder, store) = store(&[]);
        let plan: Vec<String> = store
            .read(|db| {
                let sql = "EXPLAIN QUERY PLAN SELECT node_id FROM node WHERE last_sync_at > 1
                    ORDER BY memory_mib - memory_used_mib DESC, node_id LIMIT 8";
                let mut explain = db.conn.prepare_cached(sql)?;
                let lines = explain.query_map([], |row| row.get(3))?;
                Ok(lines.collect::<Result<_, _>>()?)
            })
            .unwrap();
        assert!(
            plan.iter().any(|step| step.contains("node_by_room")),
            "{plan:?}"
        );
        assert!(
            !plan.iter().any(|step| step.contains("TEMP B-TREE")),
            "{plan:?}"
        );
    }
}
