//! The log against power cuts, tampering, flipped bits, rollbacks and other writers, on a real file.

use berth_api::ids::TenantId;
use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::merkle::{Frontier, leaf_hash, verify_consistency, verify_inclusion};
use berth_ledger::tile::{Resource, Tile};

use super::*;
use crate::error::StoreError;
use crate::fixture::keys;
use crate::ledger::{Cause, EntryFilter, NewEvent};
use crate::store::Store;

struct Bench {
    folder: tempfile::TempDir,
    store: Option<Store>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Store::init(folder.path().join("berth.db")).unwrap();
        let mut bench = Self {
            folder,
            store: None,
        };
        bench.reopen();
        bench
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("berth.db")
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.path(), keys()).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn append(&self, tenant: Option<&str>) -> Result<u64, StoreError> {
        let tenant_id: Option<TenantId> = tenant.map(|id| id.parse().unwrap());
        self.store().write(move |tx| {
            let event = NewEvent {
                event_type: "TENANT_CREATED",
                tenant_id,
                outcome: "completed",
                ..NewEvent::default()
            };
            tx.append(event, &Cause::controller())
        })
    }

    fn fill(&self, count: u64) {
        for n in 0..count {
            self.append((n % 3 > 0).then_some(["a", "b", "c"][usize::try_from(n % 3).unwrap()]))
                .unwrap();
        }
    }

    fn head(&self) -> LogHead {
        self.store().read(|db| db.log_head()).unwrap()
    }

    fn verify(&self) -> Result<u64, LogError> {
        let key = keys().ledger.public();
        self.store()
            .read(|db| Ok(db.verify_log(&key, |_, _| {})))
            .unwrap()
    }

    /// Do as somebody with the database's password would.
    fn tamper(&self, sql: &str) {
        let database = rusqlite::Connection::open(self.path()).unwrap();
        let triggers: Vec<String> = database
            .prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        for trigger in triggers {
            database
                .execute_batch(&format!("DROP TRIGGER {trigger}"))
                .unwrap();
        }
        database.execute_batch(sql).unwrap();
    }
}

#[test]
fn every_size_has_a_signed_checkpoint_and_proofs_that_strangers_can_check() {
    let bench = Bench::new();
    let key = keys().ledger.public();
    let mut roots = vec![bench.head().root];
    for size in 1..=40_u64 {
        bench.append(Some("a")).unwrap();
        let head = bench.head();
        let vkey = head.vkey(&key).unwrap();
        let opened = SignedCheckpoint::open(head.note.as_bytes(), &[vkey]).unwrap();
        assert_eq!(
            (opened.checkpoint().size, opened.checkpoint().root),
            (size, head.root)
        );
        roots.push(head.root);
    }
    let size = 40;
    bench
        .store()
        .read(|db| {
            let root = roots[40];
            for index in 0..size {
                let bundle = Resource::parse(&format!("tile/entries/000.p/{size}")).unwrap();
                let bytes = db.published(&bundle, size)?.unwrap();
                let Resource::Entries(bundle) = bundle else {
                    unreachable!("a bundle was asked for")
                };
                let leaves = bundle.decode(&bytes).unwrap();
                let leaf = leaf_hash(leaves[usize::try_from(index).unwrap()]);
                let proof = db.prove_inclusion(index, size).unwrap();
                verify_inclusion(&leaf, index, size, &proof, &root).unwrap();
            }
            for from in 0..=size {
                let old = roots[usize::try_from(from).unwrap()];
                assert_eq!(db.root_at(from)?, old);
                let proof = db.prove_consistency(from, size).unwrap();
                verify_consistency(from, size, &old, &root, &proof).unwrap();
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn tiles_of_a_larger_log_lead_to_its_root() {
    let bench = Bench::new();
    let size = 600;
    bench
        .store()
        .write(move |tx| {
            for _ in 0..size {
                let event = NewEvent {
                    event_type: "VM_STARTED",
                    outcome: "completed",
                    ..NewEvent::default()
                };
                tx.append(event, &Cause::controller())?;
            }
            Ok(())
        })
        .unwrap();
    let mut tree = Frontier::new();
    bench
        .store()
        .read(|db| {
            for resource in Resource::all(size) {
                let bytes = db.published(&resource, size)?.unwrap();
                if let Resource::Tile(tile) = resource
                    && tile.level() == 0
                {
                    for hash in tile.decode(&bytes).unwrap() {
                        tree.push(hash);
                    }
                }
            }
            let beyond = Resource::Tile(Tile::new(0, 2, 89).unwrap());
            assert_eq!(db.published(&beyond, size)?, None);
            Ok(())
        })
        .unwrap();
    assert_eq!(tree.root(), bench.head().root);
    assert_eq!(bench.verify().unwrap(), size);
}

#[test]
fn a_tenants_sequence_has_no_gaps_and_its_tags_are_its_own() {
    let bench = Bench::new();
    bench.fill(12);
    let filter = EntryFilter {
        tenant_id: Some("b".parse().unwrap()),
        limit: 100,
        ..EntryFilter::default()
    };
    let (head, own) = bench
        .store()
        .read(|db| Ok((db.log_head()?, db.stored_entries(&filter)?)))
        .unwrap();
    assert_eq!(own.len(), 4);
    for (entry, seq) in own.iter().zip(1..) {
        let leaf = berth_ledger::leaf::Leaf::parse(&entry.leaf).unwrap();
        assert_eq!(entry.seq, seq);
        assert_eq!(leaf.tag, head.view_key("b").tag(seq));
        assert_ne!(leaf.tag, head.view_key("c").tag(seq));
    }
}

/// A database administrator changes rows that the tree commits to, and each check names the first.
#[test]
fn tampering_by_the_database_owner_is_found_and_the_first_bad_entry_named() {
    for (sql, words) in [
        (
            "UPDATE ledger_entry SET body = replace(body, 'completed', 'accepted') WHERE idx = 7",
            "entry 7:",
        ),
        (
            "UPDATE ledger_entry SET leaf = x'00' WHERE idx = 7",
            "entry 7:",
        ),
        (
            "UPDATE ledger_node SET hash = zeroblob(32) WHERE level = 1 AND idx = 2",
            "entry 4:",
        ),
        (
            "UPDATE ledger_node SET hash = zeroblob(32) WHERE level = 0 AND idx = 5",
            "entry 5:",
        ),
        ("DELETE FROM ledger_entry WHERE idx = 3", "entry 4 stands"),
        (
            "DELETE FROM ledger_term WHERE idx = 6 AND term LIKE 'type=%'",
            "entry 6:",
        ),
        (
            "DELETE FROM ledger_entry WHERE idx >= 9; UPDATE ledger_head SET size = 9",
            "does not say",
        ),
        (
            "DELETE FROM ledger_entry WHERE idx >= 9",
            "the entries end at 9",
        ),
    ] {
        let bench = Bench::new();
        bench.fill(12);
        assert_eq!(bench.verify().unwrap(), 12);
        bench.tamper(sql);
        let found = bench.verify().unwrap_err().to_string();
        assert!(found.contains(words), "{sql}: {found}");
    }
}

/// Whatever flips between computing and storing is read back before the root is signed.
#[test]
fn a_bit_that_flips_on_its_way_to_the_disk_is_never_signed_over() {
    let zero_leaf = "UPDATE ledger_entry SET leaf = zeroblob(80) WHERE idx = NEW.idx";
    let other_body = "UPDATE ledger_entry SET body = body || ' ' WHERE idx = NEW.idx";
    let other_node = "UPDATE ledger_node SET hash = zeroblob(32)
        WHERE level = NEW.level AND idx = NEW.idx AND level = 1";
    for (table, flip) in [
        ("ledger_entry", zero_leaf),
        ("ledger_entry", other_body),
        ("ledger_node", other_node),
    ] {
        let mut bench = Bench::new();
        bench.fill(5);
        let before = bench.head();
        bench.tamper(&format!(
            "CREATE TRIGGER flip AFTER INSERT ON {table} BEGIN {flip}; END"
        ));
        let refused = bench.append(Some("a")).unwrap_err();
        assert!(matches!(refused, StoreError::Commit(_)), "{refused:?}");
        assert_eq!(bench.head(), before);
        bench.tamper("SELECT 1");
        bench.reopen();
        assert_eq!(bench.append(Some("a")).unwrap(), 5);
        assert_eq!(bench.verify().unwrap(), 6);
    }
}

/// Each statement of an append fails once; nothing of it stays and the next one takes its place.
#[test]
fn an_append_that_fails_at_any_step_leaves_nothing() {
    for step in [
        "BEFORE INSERT ON ledger_entry",
        "AFTER INSERT ON ledger_entry",
        "BEFORE INSERT ON ledger_term",
        "AFTER INSERT ON ledger_term",
        "BEFORE INSERT ON ledger_node",
        "AFTER INSERT ON ledger_node",
        "BEFORE UPDATE ON ledger_head",
        "AFTER UPDATE ON ledger_head",
    ] {
        let bench = Bench::new();
        bench.fill(3);
        let before = bench.head();
        bench.tamper(&format!(
            "CREATE TRIGGER fails {step} BEGIN SELECT RAISE(ABORT, 'told to'); END"
        ));
        bench.append(Some("a")).unwrap_err();
        assert_eq!(bench.head(), before, "{step}");
        bench.tamper("SELECT 1");
        assert_eq!(bench.append(Some("a")).unwrap(), 3, "{step}");
        assert_eq!(bench.verify().unwrap(), 4, "{step}");
    }
}

/// Another writer moves the head between our reading it and our moving it: ours is undone.
#[test]
fn a_batch_over_a_moved_head_is_not_sealed() {
    let bench = Bench::new();
    bench.fill(3);
    bench.tamper(
        "CREATE TRIGGER overtakes BEFORE INSERT ON ledger_node WHEN NEW.level = 0
         BEGIN UPDATE ledger_head SET size = size + 1; END",
    );
    let refused = bench.append(None).unwrap_err();
    let StoreError::Commit(cause) = &refused else {
        panic!("{refused:?}");
    };
    assert!(
        matches!(**cause, LogError::Fault(LogFault::HeadMoved)),
        "{cause:?}"
    );
    bench.tamper("SELECT 1");
    assert_eq!(bench.verify().unwrap(), 3);
}

#[test]
fn a_database_whose_end_was_cut_is_not_opened() {
    for sql in [
        "DELETE FROM ledger_entry WHERE idx = 4",
        "DELETE FROM ledger_node WHERE level = 0 AND idx = 4",
        "UPDATE ledger_head SET size = 4",
        "UPDATE ledger_head SET root = zeroblob(32)",
        "UPDATE ledger_head SET note = 'x'",
    ] {
        let mut bench = Bench::new();
        bench.fill(5);
        bench.store = None;
        bench.tamper(sql);
        let refused = Store::open(bench.path(), keys()).unwrap_err();
        assert!(
            matches!(refused, crate::error::OpenStoreError::Ledger(_)),
            "{sql}: {refused:?}"
        );
    }
}

#[test]
fn times_never_fall_when_the_clock_does() {
    let bench = Bench::new();
    bench.fill(2);
    let far = 4_000_000_000_000_i64;
    bench.tamper(&format!("UPDATE ledger_head SET at = {far}"));
    bench.append(Some("a")).unwrap();
    bench.append(Some("a")).unwrap();
    let since = EntryFilter {
        since_ms: Some(far),
        limit: 10,
        ..EntryFilter::default()
    };
    let late = bench.store().read(|db| db.stored_entries(&since)).unwrap();
    let indices: Vec<_> = late.iter().map(|entry| (entry.index, entry.at)).collect();
    assert_eq!(indices, [(2, far), (3, far)]);
}

#[test]
fn a_new_epoch_names_the_log_that_it_follows_and_leaves_that_alone() {
    let mut bench = Bench::new();
    bench.fill(4);
    let old = bench.head();
    let head = bench
        .store()
        .begin_epoch(Some("the last that was seen"), "the disk died")
        .unwrap();
    assert_eq!((head.epoch, head.size), (2, 1));
    assert!(head.origin_text().ends_with("/e2"));
    assert_eq!(bench.append(Some("a")).unwrap(), 1);
    bench.reopen();
    assert_eq!(bench.verify().unwrap(), 2);
    let all = EntryFilter {
        limit: 10,
        ..EntryFilter::default()
    };
    let entries = bench.store().read(|db| db.entries(&all)).unwrap();
    assert!(entries[0].body.contains("the last that was seen"));
    assert!(entries[0].body.contains("the disk died"));
    let kept: u64 = rusqlite::Connection::open(bench.path())
        .unwrap()
        .query_row(
            "SELECT COUNT(*) FROM ledger_entry WHERE epoch = 1",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(kept, old.size);
}

#[test]
fn entries_of_the_chain_before_the_tree_are_kept_and_committed_to() {
    let mut bench = Bench::new();
    bench.store = None;
    bench.tamper(
        "DELETE FROM ledger_head;
         INSERT INTO ledger_event (idx, body, prev_hash, hash, signature)
         VALUES (0, '{}', '00', 'aa', 's'), (1, '{}', 'aa', 'bb', 's')",
    );
    bench.reopen();
    let all = EntryFilter {
        limit: 10,
        ..EntryFilter::default()
    };
    let entries = bench.store().read(|db| db.entries(&all)).unwrap();
    assert_eq!(entries.len(), 1);
    for said in ["LEDGER_EPOCH_BEGUN", "\"size\":2", "\"hash\":\"bb\""] {
        assert!(entries[0].body.contains(said), "{}", entries[0].body);
    }
    bench.reopen();
    assert_eq!(bench.head().size, 1);
    assert_eq!(bench.verify().unwrap(), 1);
}

#[test]
fn filters_find_by_everything_that_a_body_says() {
    let bench = Bench::new();
    bench.fill(6);
    let count = |filter: EntryFilter| {
        let filter = EntryFilter {
            limit: 100,
            ..filter
        };
        bench.store().read(|db| db.entries(&filter)).unwrap().len()
    };
    let of_type = |kind: &str| EntryFilter {
        event_type: Some(kind.to_owned()),
        ..EntryFilter::default()
    };
    assert_eq!(count(EntryFilter::default()), 6);
    assert_eq!(count(of_type("TENANT_CREATED")), 6);
    assert_eq!(count(of_type("TENANT_DELETED")), 0);
    let of_b = EntryFilter {
        tenant_id: Some("b".parse().unwrap()),
        ..of_type("TENANT_CREATED")
    };
    assert_eq!(count(of_b.clone()), 2);
    let later = EntryFilter {
        since_index: 2,
        until_index: Some(5),
        ..of_b
    };
    assert_eq!(count(later), 1);
    let denied = EntryFilter {
        outcome: Some("denied".to_owned()),
        ..EntryFilter::default()
    };
    assert_eq!(count(denied), 0);
}
