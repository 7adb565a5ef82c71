//! Counting again: counters against the rows that they count.

use crate::error::StoreError;
use crate::store::Db;

/// A counter that does not say what its rows say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which counter.
    pub counter: String,
    /// What it says.
    pub stored: i64,
    /// What its rows say.
    pub counted: i64,
}

/// Each query gives a name, the stored and the counted value, where the two differ.
const CHECKS: &[&str] = &[
    "SELECT 'quota ' || tenant_id || '/' || resource, used, counted FROM (
       SELECT q.tenant_id, q.resource, q.used, COALESCE((SELECT SUM(amount) FROM charge c
         WHERE c.tenant_id = q.tenant_id AND c.resource = q.resource), 0) AS counted FROM quota q) AS each_quota
     WHERE used <> counted",
    "SELECT 'charge vms of ' || vm.vm_id, 1, COALESCE(c.amount, 0) FROM vm
     LEFT JOIN charge c ON c.vm_id = vm.vm_id AND c.resource = 'vms'
     WHERE vm.state <> 'deleted' AND COALESCE(c.amount, 0) <> 1",
    "SELECT 'charge storage_gb of ' || vm.vm_id, vm.disk_gb, COALESCE(c.amount, 0) FROM vm
     LEFT JOIN charge c ON c.vm_id = vm.vm_id AND c.resource = 'storage_gb'
     WHERE vm.state <> 'deleted' AND COALESCE(c.amount, 0) <> vm.disk_gb",
    "SELECT 'charges of deleted ' || vm.vm_id, 0, SUM(c.amount) FROM charge c
     JOIN vm ON vm.vm_id = c.vm_id WHERE vm.state = 'deleted' GROUP BY vm.vm_id",
    "SELECT 'slot quota ' || tenant_id || '/' || class, used, counted FROM (
       SELECT q.tenant_id, q.class, q.used, (SELECT COUNT(*) FROM claim c
         WHERE c.tenant_id = q.tenant_id AND c.class = q.class AND c.charged = 1) AS counted
       FROM slot_quota q) AS each_quota
     WHERE used <> counted",
    "SELECT 'charged claims of deleted ' || vm.vm_id, 0, COUNT(*) FROM claim c
     JOIN vm ON vm.vm_id = c.vm_id WHERE vm.state = 'deleted' AND c.charged = 1 GROUP BY vm.vm_id",
    "SELECT 'epoch of ' || slot_id, own_epoch, counted FROM (
       SELECT s.slot_id, s.own_epoch, (SELECT MAX(fencing_epoch) FROM claim c
         WHERE c.slot_id = s.slot_id) AS counted FROM slot s) AS each_slot
     WHERE counted > own_epoch",
    "SELECT 'vms on ' || node_id, vms, counted FROM (
       SELECT n.node_id, n.vms, (SELECT COUNT(*) FROM vm
         WHERE vm.node_id = n.node_id AND vm.state <> 'deleted') AS counted FROM node n) AS each_node
     WHERE vms <> counted",
    "SELECT 'memory on ' || node_id, memory_used_mib, counted FROM (
       SELECT n.node_id, n.memory_used_mib, COALESCE((SELECT SUM(memory_mb) FROM vm
         WHERE vm.node_id = n.node_id AND vm.state <> 'deleted'), 0) AS counted FROM node n) AS each_node
     WHERE memory_used_mib <> counted",
    "SELECT 'vcpus on ' || node_id, vcpus_used, counted FROM (
       SELECT n.node_id, n.vcpus_used, COALESCE((SELECT SUM(vcpus) FROM vm
         WHERE vm.node_id = n.node_id AND vm.state <> 'deleted'), 0) AS counted FROM node n) AS each_node
     WHERE vcpus_used <> counted",
];

impl Db<'_> {
    /// Count everything that has a counter again. In a sound database nothing comes back.
    pub fn check(&self) -> Result<Vec<Difference>, StoreError> {
        let mut differences = Vec::new();
        for sql in CHECKS {
            let mut select = self.conn.prepare_cached(sql)?;
            let rows = select.query_map([], |row| {
                Ok(Difference {
                    counter: row.get(0)?,
                    stored: row.get(1)?,
                    counted: row.get(2)?,
                })
            })?;
            for row in rows {
                differences.push(row?);
            }
        }
        Ok(differences)
    }
}
