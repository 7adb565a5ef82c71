-- VMs that wait for a node, in the order in which tenants take turns: every sync of a node looks for them.
DROP INDEX vm_pending;
CREATE INDEX vm_pending ON vm (tenant_id, vm_id) WHERE state = 'pending';
