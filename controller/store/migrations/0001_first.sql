-- Times are milliseconds since the epoch unless a column ends in _s.
-- Lines such as `-- SQLite only:` say whose words follow: src/sql/dialect.rs.

CREATE TABLE controller (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    controller_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- A deleted tenant's row stays, so that its id never names somebody else.
CREATE TABLE tenant (
    tenant_id TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    api_rate_limit_rpm INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    audit_index INTEGER NOT NULL,
    deleted_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE quota (
    tenant_id TEXT NOT NULL REFERENCES tenant,
    resource TEXT NOT NULL CHECK (resource IN ('vms', 'storage_gb')),
    ceiling INTEGER NOT NULL CHECK (ceiling >= 0),
    used INTEGER NOT NULL CHECK (used >= 0),
    PRIMARY KEY (tenant_id, resource)
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    token_id TEXT PRIMARY KEY,
    tenant_id TEXT REFERENCES tenant,
    scopes TEXT NOT NULL,
    subject_key TEXT NOT NULL,
    label TEXT,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX token_of_tenant ON token (tenant_id, token_id);

-- Apart from `token`, as a token without a record can be revoked too.
CREATE TABLE revoked (
    token_id TEXT PRIMARY KEY,
    revoked_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE join_token (
    secret_hash BLOB PRIMARY KEY,
    node_name TEXT,
    expires_at INTEGER NOT NULL,
-- SQLite only:
    used_by TEXT REFERENCES node
-- PostgreSQL only:
    used_by TEXT COLLATE "C"
-- Both:
) STRICT, WITHOUT ROWID;

CREATE TABLE node (
    node_id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    public_key BLOB NOT NULL UNIQUE,
    machine_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    enrolled_at INTEGER NOT NULL,
    last_sync_at INTEGER,
    agent_instance_id TEXT,
    vcpus INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk_mib INTEGER NOT NULL,
    kvm INTEGER NOT NULL,
    vms INTEGER NOT NULL DEFAULT 0 CHECK (vms >= 0),
    vcpus_used INTEGER NOT NULL DEFAULT 0 CHECK (vcpus_used >= 0),
    memory_used_mib INTEGER NOT NULL DEFAULT 0 CHECK (memory_used_mib >= 0)
) STRICT, WITHOUT ROWID;

-- PostgreSQL only:
ALTER TABLE join_token ADD FOREIGN KEY (used_by) REFERENCES node;
-- Both:

-- Every run of an agent that ever spoke: an older run's words are not taken again.
CREATE TABLE agent_run (
    node_id TEXT NOT NULL REFERENCES node,
    agent_instance_id TEXT NOT NULL,
    last_seq INTEGER NOT NULL,
    PRIMARY KEY (node_id, agent_instance_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE node_image (
    node_id TEXT NOT NULL REFERENCES node,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    disk_mib INTEGER NOT NULL,
    PRIMARY KEY (name, node_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_of_node ON node_image (node_id);

CREATE TABLE vm (
    vm_id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason_code TEXT,
    reason_message TEXT,
    state_since INTEGER NOT NULL,
    desired_state TEXT NOT NULL CHECK (desired_state IN ('running', 'stopped', 'deleted')),
    generation INTEGER NOT NULL,
    vcpus INTEGER NOT NULL,
    memory_mb INTEGER NOT NULL,
    disk_gb INTEGER NOT NULL,
    image TEXT NOT NULL,
    node_id TEXT REFERENCES node,
    labels TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    operation_id TEXT,
    audit_index INTEGER NOT NULL,
-- SQLite only:
    FOREIGN KEY (tenant_id, vm_id, operation_id) REFERENCES operation (tenant_id, vm_id, operation_id)
        DEFERRABLE INITIALLY DEFERRED,
-- Both:
    UNIQUE (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX vm_live_name ON vm (tenant_id, name) WHERE state <> 'deleted';
CREATE INDEX vm_of_tenant ON vm (tenant_id, vm_id) WHERE state <> 'deleted';
CREATE INDEX vm_of_node ON vm (node_id) WHERE state <> 'deleted';
CREATE INDEX vm_pending ON vm (vm_id) WHERE state = 'pending';

-- The keys hold the tenant too, so that nothing of one tenant can hang on another's VM.
CREATE TABLE charge (
    tenant_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (vm_id, resource),
    FOREIGN KEY (tenant_id, resource) REFERENCES quota (tenant_id, resource),
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE operation (
    operation_id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    phase TEXT NOT NULL,
    error_code TEXT,
    error_message TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant_id, vm_id, operation_id),
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;

-- PostgreSQL only:
ALTER TABLE vm ADD FOREIGN KEY (tenant_id, vm_id, operation_id)
    REFERENCES operation (tenant_id, vm_id, operation_id) DEFERRABLE INITIALLY DEFERRED;
-- Both:

CREATE TABLE task (
    task_id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    vm_id TEXT NOT NULL,
    node_id TEXT NOT NULL REFERENCES node,
    kind TEXT NOT NULL,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'withdrawn', 'done', 'refused', 'failed')),
    envelope TEXT NOT NULL,
    expires_at_s INTEGER NOT NULL,
    result TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (vm_id, generation),
    FOREIGN KEY (tenant_id, vm_id) REFERENCES vm (tenant_id, vm_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_pending_node ON task (node_id, task_id) WHERE state = 'pending';
CREATE INDEX task_pending_vm ON task (vm_id, kind) WHERE state = 'pending';

CREATE TABLE idempotency (
    scope TEXT NOT NULL,
    route TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, route, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (created_at);

-- What a filter looks at is computed from the signed body, so it cannot say anything else.
-- SQLite only:
CREATE TABLE ledger_event (
    idx INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    prev_hash TEXT NOT NULL,
    hash TEXT NOT NULL,
    signature TEXT NOT NULL,
    event_type TEXT GENERATED ALWAYS AS (json_extract(body, '$.event_type')) VIRTUAL,
    tenant_id TEXT GENERATED ALWAYS AS (json_extract(body, '$.tenant_id')) VIRTUAL,
    vm_id TEXT GENERATED ALWAYS AS (json_extract(body, '$.vm_id')) VIRTUAL
) STRICT;
-- PostgreSQL only:
CREATE FUNCTION ledger_member(body TEXT, member TEXT) RETURNS TEXT
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN body::json ->> member;
CREATE TABLE ledger_event (
    idx BIGINT PRIMARY KEY,
    body TEXT COLLATE "C" NOT NULL,
    prev_hash TEXT COLLATE "C" NOT NULL,
    hash TEXT COLLATE "C" NOT NULL,
    signature TEXT COLLATE "C" NOT NULL,
    event_type TEXT COLLATE "C" GENERATED ALWAYS AS (ledger_member(body, 'event_type')) STORED,
    tenant_id TEXT COLLATE "C" GENERATED ALWAYS AS (ledger_member(body, 'tenant_id')) STORED,
    vm_id TEXT COLLATE "C" GENERATED ALWAYS AS (ledger_member(body, 'vm_id')) STORED
);
-- Both:
CREATE INDEX ledger_by_tenant ON ledger_event (tenant_id, idx);
CREATE INDEX ledger_by_type ON ledger_event (event_type, idx);
CREATE INDEX ledger_by_vm ON ledger_event (vm_id, idx) WHERE vm_id IS NOT NULL;

-- SQLite only:
CREATE TRIGGER ledger_is_never_updated BEFORE UPDATE ON ledger_event
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_is_never_deleted BEFORE DELETE ON ledger_event
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_has_no_gaps BEFORE INSERT ON ledger_event
WHEN NEW.idx <> (SELECT COALESCE(MAX(idx) + 1, 0) FROM ledger_event)
BEGIN SELECT RAISE(ABORT, 'the ledger has no gaps'); END;
-- PostgreSQL only:
CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$;
CREATE TRIGGER ledger_is_never_changed BEFORE UPDATE OR DELETE ON ledger_event
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_is_never_emptied BEFORE TRUNCATE ON ledger_event
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();
CREATE FUNCTION ledger_has_no_gaps() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN
        IF NEW.idx <> (SELECT COALESCE(MAX(idx) + 1, 0) FROM ledger_event) THEN
            RAISE EXCEPTION 'the ledger has no gaps';
        END IF;
        RETURN NEW;
    END $$;
CREATE TRIGGER ledger_has_no_gaps BEFORE INSERT ON ledger_event
    FOR EACH ROW EXECUTE FUNCTION ledger_has_no_gaps();
-- Both:
