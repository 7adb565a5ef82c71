-- Holders of tokens that are no persons. Neither an id nor a key is ever used again in its tenant, so
-- that old tokens and entries never speak of another account. An account ends with its project.
CREATE TABLE service_account (
    tenant_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    subject_key TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    disabled_at INTEGER,
    deleted_at INTEGER,
    revision INTEGER NOT NULL,
    audit_index INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, account_id),
    FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, project_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX service_account_of_key ON service_account (tenant_id, subject_key);

-- What an account is in a project; no row is no member.
CREATE TABLE project_member (
    tenant_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'runner', 'editor')),
    PRIMARY KEY (tenant_id, account_id, project_id),
    FOREIGN KEY (tenant_id, account_id) REFERENCES service_account (tenant_id, account_id),
    FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, project_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX member_of_project ON project_member (tenant_id, project_id, account_id);
