-- What a VM's guest is given. `guest_holder` is the key of whoever made a VM whose guests get tokens.
ALTER TABLE vm ADD COLUMN ssh_keys TEXT NOT NULL DEFAULT '[]';
ALTER TABLE vm ADD COLUMN user_data_sha256 TEXT;
ALTER TABLE vm ADD COLUMN guest_holder TEXT;
-- When a guest said that it is set up; from then on there is no user data.
ALTER TABLE vm ADD COLUMN booted_at INTEGER;

-- Apart from the VM's row, which is read often, and gone with the VM.
CREATE TABLE vm_user_data (
    tenant_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (tenant_id, vm_id),
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;

-- Whether the controller gave the token to the guest itself, by the VM's seed.
ALTER TABLE guest_token ADD COLUMN is_given INTEGER NOT NULL DEFAULT 0 CHECK (is_given IN (0, 1));
