-- What other parties' witnesses have said that a restart must not forget.

-- Where a quorum is waited for: the newest checkpoint that was shown, with its cosignatures.
CREATE TABLE ledger_shown (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    origin TEXT NOT NULL,
    size INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A witness has seen what this log does not have. Gone once it cosigns the log again.
CREATE TABLE ledger_contradiction (
    origin TEXT NOT NULL,
    witness TEXT NOT NULL,
    reason TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (origin, witness)
) STRICT, WITHOUT ROWID;
