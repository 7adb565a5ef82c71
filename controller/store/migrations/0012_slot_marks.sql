-- Entries of the ledger that passports of slots are made of, each found by its slot. Only `claimed` and
-- `launched` are of somebody: of the VM that they name.
CREATE TABLE slot_mark (
    slot_id TEXT NOT NULL REFERENCES slot,
    epoch INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('approved', 'wiped', 'unheard', 'claimed', 'launched')),
    fencing_epoch INTEGER NOT NULL,
    vm_id TEXT,
    PRIMARY KEY (slot_id, epoch, idx)
) STRICT, WITHOUT ROWID;
CREATE INDEX slot_mark_of_vm ON slot_mark (vm_id, epoch, idx) WHERE vm_id IS NOT NULL;
