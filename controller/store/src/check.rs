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

/// Each query gives a name, the stored and the counted value, where the two differ. `:now` is the
/// moment of the check, in milliseconds since the epoch.
const CHECKS: &[&str] = &[
    // What VMs are charged for.
    "SELECT 'quota ' || tenant_id || '/' || scope || '/' || resource, used, counted FROM (
       SELECT q.tenant_id, q.scope, q.resource, q.used, COALESCE(c.counted, 0) AS counted
       FROM quota q LEFT JOIN (
         SELECT tenant_id, '' AS scope, resource, SUM(amount) AS counted FROM charge
           GROUP BY tenant_id, resource
         UNION ALL SELECT tenant_id, project_id, resource, SUM(amount) FROM charge
           GROUP BY tenant_id, project_id, resource) AS c
       ON c.tenant_id = q.tenant_id AND c.scope = q.scope AND c.resource = q.resource
       WHERE q.resource NOT IN ('tokens', 'creates_per_day')
       AND q.resource NOT LIKE 'slots.%') AS counts
     WHERE used <> counted",
    "SELECT 'quota ' || tenant_id || '/' || scope || '/' || resource, used, counted FROM (
       SELECT q.tenant_id, q.scope, q.resource, q.used, (SELECT COUNT(*) FROM claim c
         WHERE c.tenant_id = q.tenant_id AND 'slots.' || c.class = q.resource AND c.charged = 1
         AND (q.scope = '' OR c.project_id = q.scope)) AS counted
       FROM quota q WHERE q.resource LIKE 'slots.%') AS counts
     WHERE used <> counted",
    "SELECT 'quota ' || tenant_id || '/' || scope || '/tokens', used, counted FROM (
       SELECT q.tenant_id, q.scope, q.used, (SELECT COUNT(*) FROM token_charge c
         WHERE c.tenant_id = q.tenant_id AND (q.scope = '' OR c.project_id = q.scope)) AS counted
       FROM quota q WHERE q.resource = 'tokens') AS counts
     WHERE used <> counted",
    "SELECT 'quota ' || tenant_id || '/' || scope || '/creates_per_day', used, counted FROM (
       SELECT q.tenant_id, q.scope, q.used, (SELECT COUNT(*) FROM vm
         WHERE vm.tenant_id = q.tenant_id AND (q.scope = '' OR vm.project_id = q.scope)
         AND vm.created_at >= q.day * 86400000 AND vm.created_at < (q.day + 1) * 86400000) AS counted
       FROM quota q WHERE q.resource = 'creates_per_day') AS counts
     WHERE used <> counted",
    "SELECT 'charge ' || w.resource || ' of ' || w.vm_id, w.due, COALESCE(c.amount, 0) FROM (
       SELECT vm_id, state, 'vms' AS resource, 1 AS due FROM vm
       UNION ALL SELECT vm_id, state, 'storage_gb', disk_gb FROM vm) AS w
     LEFT JOIN charge c ON c.vm_id = w.vm_id AND c.resource = w.resource
     WHERE w.state <> 'deleted' AND COALESCE(c.amount, 0) <> w.due",
    // Whoever runs, or is on the way to it, is charged for that.
    "SELECT 'charge ' || w.resource || ' of ' || w.vm_id, w.due, COALESCE(c.amount, 0) FROM (
       SELECT vm_id, state, 'running_vms' AS resource, 1 AS due FROM vm
       UNION ALL SELECT vm_id, state, 'vcpus', vcpus FROM vm
       UNION ALL SELECT vm_id, state, 'memory_mb', memory_mb FROM vm) AS w
     LEFT JOIN charge c ON c.vm_id = w.vm_id AND c.resource = w.resource
     WHERE w.state IN ('pending', 'scheduling', 'provisioning', 'starting', 'running')
     AND COALESCE(c.amount, 0) <> w.due",
    "SELECT 'charge ' || c.resource || ' of stopped ' || vm.vm_id, 0, c.amount FROM charge c
     JOIN vm ON vm.vm_id = c.vm_id
     WHERE vm.state = 'stopped' AND c.resource IN ('running_vms', 'vcpus', 'memory_mb')",
    "SELECT 'charges of deleted ' || vm.vm_id, 0, SUM(c.amount) FROM charge c
     JOIN vm ON vm.vm_id = c.vm_id WHERE vm.state = 'deleted' GROUP BY vm.vm_id",
    // Tokens that are good are charged, and no others.
    "SELECT 'charge of token ' || t.token_id, 0, 1 FROM token t
     WHERE t.tenant_id IS NOT NULL AND t.expires_at > :now
     AND NOT EXISTS (SELECT 1 FROM token_charge c
       WHERE c.tenant_id = t.tenant_id AND c.token_id = t.token_id)
     AND NOT EXISTS (SELECT 1 FROM guest_token g
       WHERE g.token_id = t.token_id AND g.ended_at IS NOT NULL)
     AND NOT EXISTS (SELECT 1 FROM revocation r WHERE r.namespace = t.tenant_id
       AND ((r.kind = 'link' AND r.subject = t.token_id)
         OR (r.kind = 'holder' AND r.subject = t.subject_key)
         OR (r.kind = 'epoch' AND t.issued_at < r.min_not_before_s * 1000)))",
    "SELECT 'charge of revoked token ' || t.token_id, 1, 0 FROM token t
     JOIN token_charge c ON c.tenant_id = t.tenant_id AND c.token_id = t.token_id
     WHERE EXISTS (SELECT 1 FROM revocation r WHERE r.namespace = t.tenant_id
       AND ((r.kind = 'link' AND r.subject = t.token_id)
         OR (r.kind = 'holder' AND r.subject = t.subject_key)
         OR (r.kind = 'epoch' AND t.issued_at < r.min_not_before_s * 1000)))",
    "SELECT 'charge of guest token ' || g.token_id, 1, 0 FROM guest_token g
     JOIN token_charge c ON c.tenant_id = g.tenant_id AND c.token_id = g.token_id
     WHERE g.ended_at IS NOT NULL",
    // Every project counts what its tenant counts.
    "SELECT 'quota rows of ' || p.tenant_id || '/' || p.project_id, 1, 0 FROM project p
     JOIN quota q ON q.tenant_id = p.tenant_id AND q.scope = ''
     LEFT JOIN quota own ON own.tenant_id = p.tenant_id AND own.scope = p.project_id
       AND own.resource = q.resource
     WHERE own.resource IS NULL",
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
            let sql = sql.replace(":now", &self.now.to_string());
            let mut select = self.conn.prepare_cached(&sql)?;
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
