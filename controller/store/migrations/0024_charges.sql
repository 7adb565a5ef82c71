-- Charges as they were, without what another key says already: a VM's row and a quota's both name the project.
-- Who asks by tenant asks by its VMs.
CREATE TABLE charge_of_vm (
    tenant_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (vm_id, resource),
    FOREIGN KEY (tenant_id, project_id, resource) REFERENCES quota (tenant_id, scope, resource),
    FOREIGN KEY (tenant_id, vm_id, project_id) REFERENCES vm (tenant_id, vm_id, project_id)
) STRICT, WITHOUT ROWID;
INSERT INTO charge_of_vm (tenant_id, project_id, vm_id, resource, amount)
    SELECT tenant_id, project_id, vm_id, resource, amount FROM charge;
DROP TABLE charge;
ALTER TABLE charge_of_vm RENAME TO charge;
