-- VMs that end by themselves: at a time, or once they have stopped. The order to delete one is like any other,
-- so what is wished to be deleted has been ended already.
ALTER TABLE vm ADD COLUMN expires_at INTEGER;
ALTER TABLE vm ADD COLUMN is_deleted_on_stop INTEGER NOT NULL DEFAULT 0 CHECK (is_deleted_on_stop IN (0, 1));
CREATE INDEX vm_expiring ON vm (expires_at) WHERE expires_at IS NOT NULL AND desired_state <> 'deleted';
