-- What operators set for a node. `revision` counts their changes.
ALTER TABLE node ADD COLUMN cordoned_at INTEGER;
ALTER TABLE node ADD COLUMN is_reserved INTEGER NOT NULL DEFAULT 0 CHECK (is_reserved IN (0, 1));
ALTER TABLE node ADD COLUMN dedicated_to TEXT REFERENCES tenant;
ALTER TABLE node ADD COLUMN zone TEXT;
ALTER TABLE node ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE node ADD COLUMN max_vms INTEGER CHECK (max_vms >= 0);
ALTER TABLE node ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;

-- Placement takes the emptiest node of those that are open to everybody, or of a tenant's own.
DROP INDEX node_by_room;
CREATE INDEX node_open_by_room
    ON node ((COALESCE(dedicated_to, '')), (memory_mib - memory_used_mib) DESC, node_id)
    WHERE is_reserved = 0 AND cordoned_at IS NULL;
CREATE INDEX slot_by_class ON slot (class, slot_id);

-- Where a VM was to go, as its creator wished, in JSON; and its group of those to be kept apart.
ALTER TABLE vm ADD COLUMN placement TEXT;
ALTER TABLE vm ADD COLUMN apart_group TEXT;
ALTER TABLE vm ADD COLUMN is_apart_required INTEGER NOT NULL DEFAULT 0 CHECK (is_apart_required IN (0, 1));
CREATE INDEX vm_apart ON vm (tenant_id, apart_group, node_id) WHERE apart_group IS NOT NULL AND state <> 'deleted';
