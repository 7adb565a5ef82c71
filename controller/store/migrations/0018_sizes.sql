-- The size that a VM was asked for by. What it came to is in the VM's own columns: sizes are settings, and
-- may be others later.
ALTER TABLE vm ADD COLUMN size TEXT;
