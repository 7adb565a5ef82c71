-- A tenant's ceiling for slots of one class. No row, or a ceiling of 0: it may not use the class.
CREATE TABLE slot_quota (
    tenant_id TEXT NOT NULL REFERENCES tenant,
    class TEXT NOT NULL,
    ceiling INTEGER NOT NULL CHECK (ceiling >= 0),
    used INTEGER NOT NULL CHECK (used >= 0),
    PRIMARY KEY (tenant_id, class)
) STRICT, WITHOUT ROWID;

-- What a host says of a slot, and beside it what the controller adds: its own epoch, an operator's
-- admission, a quarantine, and the generation after which a wipe has to come.
CREATE TABLE slot (
    slot_id TEXT PRIMARY KEY,
    node_id TEXT NOT NULL REFERENCES node,
    name TEXT NOT NULL,
    class TEXT NOT NULL,
    host_state TEXT NOT NULL,
    problem_code TEXT,
    problem_message TEXT,
    generation INTEGER NOT NULL,
    host_epoch INTEGER NOT NULL,
    progress_percent INTEGER,
    holder TEXT,
    devices TEXT NOT NULL,
    identity TEXT NOT NULL,
    numa_node INTEGER,
    is_reported INTEGER NOT NULL CHECK (is_reported IN (0, 1)),
    reported_at INTEGER NOT NULL,
    own_epoch INTEGER NOT NULL DEFAULT 0,
    admitted_identity TEXT,
    admitted_at INTEGER,
    admitted_by TEXT,
    quarantined_at INTEGER,
    quarantined_by TEXT,
    quarantine_reason TEXT,
    wipe_required_after INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX slot_of_node ON slot (node_id, slot_id);

CREATE TABLE receipt (
    receipt_id TEXT PRIMARY KEY,
    slot_id TEXT NOT NULL REFERENCES slot,
    node_id TEXT NOT NULL REFERENCES node,
    tenant_id TEXT,
    vm_id TEXT,
    kind TEXT NOT NULL,
    generation INTEGER NOT NULL,
    at_s INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    envelope TEXT NOT NULL,
    audit_index INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX receipt_of_slot ON receipt (slot_id, audit_index);
CREATE INDEX receipt_of_vm ON receipt (vm_id, audit_index) WHERE vm_id IS NOT NULL;

-- A claim is live from the VM's acceptance until its slot is free again and that is proved. It is
-- charged until its VM is gone: wiping is the operator's time.
CREATE TABLE claim (
    claim_id TEXT PRIMARY KEY,
    slot_id TEXT NOT NULL REFERENCES slot,
    tenant_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    class TEXT NOT NULL,
    fencing_epoch INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('live', 'over')),
    charged INTEGER NOT NULL CHECK (charged IN (0, 1)),
    seen_generation INTEGER,
    wiped_by TEXT REFERENCES receipt,
    claimed_at INTEGER NOT NULL,
    ended_at INTEGER,
    UNIQUE (slot_id, fencing_epoch),
    CHECK (state = 'live' OR charged = 0),
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id),
    FOREIGN KEY (tenant_id, class) REFERENCES slot_quota (tenant_id, class)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX claim_live_once ON claim (slot_id) WHERE state = 'live';
CREATE INDEX claim_of_vm ON claim (vm_id, slot_id);

CREATE TABLE slot_task (
    task_id TEXT PRIMARY KEY,
    slot_id TEXT NOT NULL REFERENCES slot,
    node_id TEXT NOT NULL REFERENCES node,
    kind TEXT NOT NULL CHECK (kind IN ('wipe', 'quarantine')),
    state TEXT NOT NULL CHECK (state IN ('pending', 'withdrawn', 'done', 'refused', 'failed')),
    envelope TEXT NOT NULL,
    expires_at_s INTEGER NOT NULL,
    result TEXT,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX slot_task_pending_node ON slot_task (node_id, task_id) WHERE state = 'pending';
CREATE UNIQUE INDEX slot_task_pending_once ON slot_task (slot_id) WHERE state = 'pending';

-- What a node said of slots that was not believed: each thing is written down once.
CREATE TABLE slot_refusal (
    node_id TEXT NOT NULL REFERENCES node,
    subject TEXT NOT NULL,
    PRIMARY KEY (node_id, subject)
) STRICT, WITHOUT ROWID;
