-- When a VM should have left its state, for states that are left by themselves, and whether it was told
-- that it has not.
ALTER TABLE vm ADD COLUMN state_deadline INTEGER;
ALTER TABLE vm ADD COLUMN is_overdue_told INTEGER NOT NULL DEFAULT 0 CHECK (is_overdue_told IN (0, 1));
CREATE INDEX vm_due ON vm (state_deadline) WHERE state_deadline IS NOT NULL AND is_overdue_told = 0;
