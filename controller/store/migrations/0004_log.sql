-- The transparency log: RFC 6962 over hiding leaves. Everything but the head is only ever added to.

-- Which log is written here and where it ends. The one row of the log that changes; whoever appends
-- holds it for as long as its transaction lasts.
CREATE TABLE ledger_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    at INTEGER NOT NULL,
    note TEXT NOT NULL,
    view_secret BLOB NOT NULL
) STRICT;

-- `stream` is the tenant, or empty for the platform's own entries. `seq` has no gaps in its stream.
CREATE TABLE ledger_entry (
    epoch INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,
    nonce BLOB NOT NULL,
    leaf BLOB NOT NULL,
    PRIMARY KEY (epoch, idx),
    UNIQUE (epoch, stream, seq)
) STRICT, WITHOUT ROWID;

-- What entries can be found by: `tenant=…`, `type=…`, `outcome=…`, `token=…`, and ids of objects.
CREATE TABLE ledger_term (
    epoch INTEGER NOT NULL,
    term TEXT NOT NULL,
    idx INTEGER NOT NULL,
    PRIMARY KEY (epoch, term, idx)
) STRICT, WITHOUT ROWID;

-- Perfect subtrees of the tree, leaves at level 0.
CREATE TABLE ledger_node (
    epoch INTEGER NOT NULL,
    level INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (epoch, level, idx)
) STRICT, WITHOUT ROWID;

-- The newest checkpoint that each witness has signed, and what it says of the log.
CREATE TABLE ledger_witness (
    witness TEXT PRIMARY KEY,
    origin TEXT NOT NULL,
    size INTEGER NOT NULL,
    root BLOB NOT NULL,
    cosignature TEXT,
    frozen_code TEXT,
    frozen_message TEXT,
    seen_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- SQLite only:
CREATE TRIGGER ledger_entry_is_never_updated BEFORE UPDATE ON ledger_entry
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_entry_is_never_deleted BEFORE DELETE ON ledger_entry
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_entry_has_no_gaps BEFORE INSERT ON ledger_entry
WHEN NEW.idx <> (SELECT COALESCE(MAX(idx) + 1, 0) FROM ledger_entry WHERE epoch = NEW.epoch)
BEGIN SELECT RAISE(ABORT, 'the ledger has no gaps'); END;
CREATE TRIGGER ledger_node_is_never_updated BEFORE UPDATE ON ledger_node
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_node_is_never_deleted BEFORE DELETE ON ledger_node
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_term_is_never_updated BEFORE UPDATE ON ledger_term
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_term_is_never_deleted BEFORE DELETE ON ledger_term
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_head_is_never_deleted BEFORE DELETE ON ledger_head
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_head_never_goes_back BEFORE UPDATE ON ledger_head
WHEN NEW.epoch < OLD.epoch OR (NEW.epoch = OLD.epoch AND NEW.size < OLD.size)
BEGIN SELECT RAISE(ABORT, 'the ledger does not go back'); END;
-- PostgreSQL only:
CREATE FUNCTION ledger_is_without_gaps() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN
        IF NEW.idx <> (SELECT COALESCE(MAX(idx) + 1, 0) FROM ledger_entry WHERE epoch = NEW.epoch) THEN
            RAISE EXCEPTION 'the ledger has no gaps';
        END IF;
        RETURN NEW;
    END $$;
CREATE FUNCTION ledger_does_not_go_back() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN
        IF NEW.epoch < OLD.epoch OR (NEW.epoch = OLD.epoch AND NEW.size < OLD.size) THEN
            RAISE EXCEPTION 'the ledger does not go back';
        END IF;
        RETURN NEW;
    END $$;
CREATE TRIGGER ledger_entry_is_never_changed BEFORE UPDATE OR DELETE ON ledger_entry
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_node_is_never_changed BEFORE UPDATE OR DELETE ON ledger_node
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_term_is_never_changed BEFORE UPDATE OR DELETE ON ledger_term
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_head_is_never_deleted BEFORE DELETE ON ledger_head
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_entry_is_never_emptied BEFORE TRUNCATE ON ledger_entry
    EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER ledger_entry_has_no_gaps BEFORE INSERT ON ledger_entry
    FOR EACH ROW EXECUTE FUNCTION ledger_is_without_gaps();
CREATE TRIGGER ledger_head_never_goes_back BEFORE UPDATE ON ledger_head
    FOR EACH ROW EXECUTE FUNCTION ledger_does_not_go_back();
-- Both:
