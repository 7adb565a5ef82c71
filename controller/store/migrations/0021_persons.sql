-- People who sign in at the identity provider, each linked to a tenant with what it may do there. The tokens
-- that it has, so that they end with the link.
CREATE TABLE person (
    tenant_id TEXT NOT NULL,
    person_id TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    display_name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    requires_pop INTEGER NOT NULL CHECK (requires_pop IN (0, 1)),
    created_at INTEGER NOT NULL,
    audit_index INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, person_id),
    FOREIGN KEY (tenant_id) REFERENCES tenant (tenant_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX person_by_id ON person (person_id);
CREATE UNIQUE INDEX person_of_subject ON person (issuer, subject, tenant_id);

CREATE TABLE person_token (
    tenant_id TEXT NOT NULL,
    person_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, person_id, token_id),
    FOREIGN KEY (tenant_id, person_id) REFERENCES person (tenant_id, person_id),
    FOREIGN KEY (token_id) REFERENCES token (token_id)
) STRICT, WITHOUT ROWID;
