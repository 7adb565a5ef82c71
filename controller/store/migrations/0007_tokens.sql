-- `namespace` is a tenant's id, or `_platform` for operators: no tenant id begins with an underscore.

ALTER TABLE token ADD COLUMN resources TEXT;
ALTER TABLE token ADD COLUMN requires_pop INTEGER NOT NULL DEFAULT 0 CHECK (requires_pop IN (0, 1));
ALTER TABLE token ADD COLUMN last_used_at INTEGER;

-- Links that holders made by themselves, from the first time that one is seen until it expires. The
-- key holds the namespace, as a holder can choose any id for its link.
CREATE TABLE derived_token (
    namespace TEXT NOT NULL,
    token_id TEXT NOT NULL,
    parent_ids TEXT NOT NULL,
    scopes TEXT NOT NULL,
    resources TEXT,
    requires_pop INTEGER NOT NULL CHECK (requires_pop IN (0, 1)),
    subject_key TEXT NOT NULL,
    first_used_at INTEGER NOT NULL,
    last_used_at INTEGER,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, token_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX derived_token_age ON derived_token (expires_at);

-- A link by its id, a holder by its key, or all root links that begin before a second (`subject` is
-- empty then). A row is forgotten once nothing can be in time that it refuses.
CREATE TABLE revocation (
    namespace TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('link', 'holder', 'epoch')),
    subject TEXT NOT NULL,
    min_not_before_s INTEGER NOT NULL,
    revoked_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, kind, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX revocation_by_time ON revocation (revoked_at);
CREATE INDEX revocation_age ON revocation (expires_at);
INSERT INTO revocation (namespace, kind, subject, min_not_before_s, revoked_at, expires_at)
    SELECT COALESCE(token.tenant_id, '_platform'), 'link', token.token_id, 0, revoked.revoked_at, token.expires_at
    FROM revoked JOIN token ON token.token_id = revoked.token_id;
DROP TABLE revoked;

-- What signed requests were made with, for as long as one could be sent again.
CREATE TABLE pop_nonce (
    holder TEXT NOT NULL,
    nonce TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (holder, nonce)
) STRICT, WITHOUT ROWID;
CREATE INDEX pop_nonce_age ON pop_nonce (expires_at);
