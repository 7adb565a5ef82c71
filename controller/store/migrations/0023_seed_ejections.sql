-- That the guest of a VM's present run is set up, so that its node shall take away what it was given: until
-- the node answers. The next order about the VM ends the run, and the row with it.
CREATE TABLE seed_ejection (
    vm_id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    node_id TEXT NOT NULL REFERENCES node,
    generation INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    audit_index INTEGER NOT NULL,
    outcome TEXT CHECK (outcome IN ('done', 'refused', 'failed')),
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX seed_ejection_pending ON seed_ejection (node_id, task_id) WHERE outcome IS NULL;
