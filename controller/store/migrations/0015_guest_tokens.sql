-- Tokens made for what runs in a VM: each for one run of it, which `generation` tells apart. `ended_at`
-- is set by the order that ends the run.
CREATE TABLE guest_token (
    token_id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    ended_at INTEGER,
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id),
    FOREIGN KEY (token_id) REFERENCES token (token_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX guest_token_of_vm ON guest_token (vm_id) WHERE ended_at IS NULL;
