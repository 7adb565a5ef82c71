-- What each host has seen of the ledger: the tree that it cosigned last, and why it refuses work if it
-- does.
CREATE TABLE node_log (
    node_id TEXT PRIMARY KEY REFERENCES node,
    seen TEXT,
    cosignature TEXT,
    frozen TEXT,
    accepted_sha256 TEXT
) STRICT, WITHOUT ROWID;
