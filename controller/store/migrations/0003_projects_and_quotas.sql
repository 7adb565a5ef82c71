-- A tenant's projects. Ids are never used again inside one tenant, so that old tokens and entries
-- never speak of another project. Every tenant has the project `default`.
CREATE TABLE project (
    tenant_id TEXT NOT NULL REFERENCES tenant,
    project_id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    department TEXT,
    labels TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    audit_index INTEGER NOT NULL,
    deleted_at INTEGER,
    PRIMARY KEY (tenant_id, project_id)
) STRICT, WITHOUT ROWID;
INSERT INTO project (tenant_id, project_id, display_name, created_at, revision, audit_index, deleted_at)
    SELECT tenant_id, 'default', 'Default', created_at, 1, audit_index, deleted_at FROM tenant;

ALTER TABLE tenant ADD COLUMN email TEXT;
ALTER TABLE tenant ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE tenant ADD COLUMN tier TEXT NOT NULL DEFAULT 'standard';
ALTER TABLE tenant ADD COLUMN suspended_at INTEGER;
-- JSON lists; NULL is everything that there is.
ALTER TABLE tenant ADD COLUMN allowed_images TEXT;
ALTER TABLE tenant ADD COLUMN allowed_actions TEXT;
ALTER TABLE tenant ADD COLUMN default_ssh_keys TEXT NOT NULL DEFAULT '[]';

ALTER TABLE vm ADD COLUMN project_id TEXT NOT NULL DEFAULT 'default';
CREATE UNIQUE INDEX vm_in_project ON vm (tenant_id, vm_id, project_id);
CREATE INDEX vm_of_project ON vm (tenant_id, project_id, vm_id) WHERE state <> 'deleted';

-- Ceilings and what is charged, of a tenant (scope '') and of each of its projects (scope = its id):
-- every resource that the tenant has a row for has one in each project. No ceiling is NULL. While
-- override_until lies ahead, override_ceiling takes the ceiling's place. Where `day` is not 0 it is the
-- day since the epoch, in UTC, that `used` counts.
CREATE TABLE quota_by_scope (
    tenant_id TEXT NOT NULL REFERENCES tenant,
    scope TEXT NOT NULL,
    resource TEXT NOT NULL,
    ceiling INTEGER CHECK (ceiling >= 0),
    is_own INTEGER NOT NULL DEFAULT 1 CHECK (is_own IN (0, 1)),
    used INTEGER NOT NULL CHECK (used >= 0),
    day INTEGER NOT NULL DEFAULT 0,
    override_ceiling INTEGER CHECK (override_ceiling >= 0),
    override_until INTEGER,
    override_reason TEXT,
    PRIMARY KEY (tenant_id, scope, resource)
) STRICT, WITHOUT ROWID;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, used)
    SELECT tenant_id, '', resource, ceiling, used FROM quota;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, used)
    SELECT tenant_id, '', 'slots.' || class, ceiling, used FROM slot_quota;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, '', 'running_vms', NULL, 0,
      (SELECT COUNT(*) FROM vm WHERE vm.tenant_id = tenant.tenant_id AND state NOT IN ('stopped', 'deleted'))
    FROM tenant;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, '', 'vcpus', NULL, 0,
      COALESCE((SELECT SUM(vcpus) FROM vm
        WHERE vm.tenant_id = tenant.tenant_id AND state NOT IN ('stopped', 'deleted')), 0)
    FROM tenant;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, '', 'memory_mb', NULL, 0,
      COALESCE((SELECT SUM(memory_mb) FROM vm
        WHERE vm.tenant_id = tenant.tenant_id AND state NOT IN ('stopped', 'deleted')), 0)
    FROM tenant;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, '', 'images', NULL, 0, 0 FROM tenant;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, '', 'tokens', NULL, 0, 0 FROM tenant;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, '', 'creates_per_day', NULL, 0, 0 FROM tenant;
INSERT INTO quota_by_scope (tenant_id, scope, resource, ceiling, is_own, used)
    SELECT tenant_id, 'default', resource, NULL, 0, used FROM quota_by_scope WHERE scope = '';

-- What each VM is charged for. The keys hold tenant and project, so that nothing of one hangs on
-- another's VM, and no VM is without a project of its own tenant.
CREATE TABLE charge_by_project (
    tenant_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (vm_id, resource),
    FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, project_id),
    FOREIGN KEY (tenant_id, project_id, resource) REFERENCES quota_by_scope (tenant_id, scope, resource),
    FOREIGN KEY (tenant_id, vm_id, project_id) REFERENCES vm (tenant_id, vm_id, project_id)
) STRICT, WITHOUT ROWID;
INSERT INTO charge_by_project (tenant_id, project_id, vm_id, resource, amount)
    SELECT tenant_id, 'default', vm_id, resource, amount FROM charge;
INSERT INTO charge_by_project (tenant_id, project_id, vm_id, resource, amount)
    SELECT tenant_id, 'default', vm_id, 'running_vms', 1 FROM vm WHERE state NOT IN ('stopped', 'deleted');
INSERT INTO charge_by_project (tenant_id, project_id, vm_id, resource, amount)
    SELECT tenant_id, 'default', vm_id, 'vcpus', vcpus FROM vm WHERE state NOT IN ('stopped', 'deleted');
INSERT INTO charge_by_project (tenant_id, project_id, vm_id, resource, amount)
    SELECT tenant_id, 'default', vm_id, 'memory_mb', memory_mb FROM vm
    WHERE state NOT IN ('stopped', 'deleted');
DROP TABLE charge;
DROP TABLE quota;
ALTER TABLE quota_by_scope RENAME TO quota;
ALTER TABLE charge_by_project RENAME TO charge;
CREATE INDEX charge_of_tenant ON charge (tenant_id, resource, project_id);

-- Claims again, with their project; the ceilings of slot classes stand with all others.
CREATE TABLE claim_in_project (
    claim_id TEXT PRIMARY KEY,
    slot_id TEXT NOT NULL REFERENCES slot,
    tenant_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
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
    FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, project_id),
    FOREIGN KEY (tenant_id, vm_id, project_id) REFERENCES vm (tenant_id, vm_id, project_id)
) STRICT, WITHOUT ROWID;
INSERT INTO claim_in_project (claim_id, slot_id, tenant_id, project_id, vm_id, class, fencing_epoch,
    state, charged, seen_generation, wiped_by, claimed_at, ended_at)
    SELECT claim_id, slot_id, tenant_id, 'default', vm_id, class, fencing_epoch, state, charged,
      seen_generation, wiped_by, claimed_at, ended_at FROM claim;
DROP TABLE claim;
DROP TABLE slot_quota;
ALTER TABLE claim_in_project RENAME TO claim;
CREATE UNIQUE INDEX claim_live_once ON claim (slot_id) WHERE state = 'live';
CREATE INDEX claim_of_vm ON claim (vm_id, slot_id);
CREATE INDEX claim_charged ON claim (tenant_id, class, project_id) WHERE charged = 1;

-- Tokens that are charged: until they are revoked or have expired.
CREATE TABLE token_charge (
    tenant_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, token_id),
    FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, project_id)
) STRICT, WITHOUT ROWID;
