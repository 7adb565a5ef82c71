//! What the store promises, on SQLite and on PostgreSQL alike.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;

use berth_api::ids::{TenantId, TokenId};
use berth_controller_store::{
    Cause, DerivedToken, EntryFilter, Keys, NewEvent, NewTenant, NewTokenRecord, RevokeDenied,
    Revoked, Store, StoreError, TokenUse, WriteTx,
};
use berth_ledger::keys::SigningKey;
use berth_tests::postgres::Postgres;

use crate::database::TestDatabase;

fn keys() -> Keys {
    Keys {
        ledger: SigningKey::from_seed(&[1; 32]).unwrap(),
        task: SigningKey::from_seed(&[2; 32]).unwrap(),
    }
}

/// Run a test on a fresh database of each kind.
fn on_both(test: impl Fn(&TestDatabase)) {
    let folder = tempfile::tempdir().unwrap();
    for database in TestDatabase::both(folder.path()) {
        eprintln!("on {}", database.database());
        Store::init(database.database()).unwrap();
        test(&database);
    }
}

fn open(database: &TestDatabase) -> Store {
    Store::open(database.database(), keys()).unwrap()
}

fn event() -> NewEvent {
    NewEvent {
        event_type: "TENANT_CREATED",
        outcome: "completed",
        ..NewEvent::default()
    }
}

fn append(store: &Store) -> Result<u64, StoreError> {
    store.write(|tx| tx.append(event(), &Cause::controller()))
}

fn add_tenant(store: &Store, id: &str) {
    let new = tenant(id);
    store
        .write(|tx| tx.create_tenant(new, &Cause::controller()))
        .unwrap()
        .unwrap();
}

fn tenant(id: &str) -> NewTenant {
    NewTenant {
        tenant_id: id.parse().unwrap(),
        display_name: id.to_owned(),
        max_vms: 1,
        storage_quota_gb: 1,
        api_rate_limit_rpm: 1,
        slot_limits: std::collections::BTreeMap::new(),
        ceilings: Default::default(),
        profile: Default::default(),
    }
}

fn entries(store: &Store) -> usize {
    let filter = EntryFilter {
        limit: 1000,
        ..EntryFilter::default()
    };
    store.read(|db| db.entries(&filter)).unwrap().len()
}

#[track_caller]
fn assert_verifies(store: &Store, entries: u64) {
    let key = store.ledger_key();
    let verified = store.read(|db| Ok(db.verify_log(&key, |_, _| {}).unwrap()));
    assert_eq!(verified.unwrap(), entries);
}

/// Columns with their types, unique keys and references of SQLite, one in a line.
const SQLITE_SCHEMA: &str = "
    SELECT 'column ' || t.name || '.' || c.name || ' ' || lower(c.type)
      || CASE WHEN c.\"notnull\" OR c.pk > 0 THEN ' required' ELSE '' END
    FROM sqlite_master t, pragma_table_xinfo(t.name) c WHERE t.type = 'table'
    UNION SELECT 'unique ' || t.name || ' ' || (SELECT group_concat(name, ',') FROM
        (SELECT name FROM pragma_index_info(i.name) ORDER BY seqno))
      || CASE WHEN i.partial THEN ' partly' ELSE '' END
    FROM sqlite_master t, pragma_index_list(t.name) i WHERE t.type = 'table' AND i.\"unique\"
    UNION SELECT 'unique ' || t.name || ' ' || (SELECT group_concat(name, ',') FROM
        (SELECT name FROM pragma_table_info(t.name) WHERE pk > 0 ORDER BY pk))
    FROM sqlite_master t WHERE t.type = 'table'
    UNION SELECT 'reference ' || name || ' ' || group_concat(\"from\", ',') || ' to ' || target FROM
      (SELECT t.name, f.id, f.\"from\", f.\"table\" AS target
       FROM sqlite_master t, pragma_foreign_key_list(t.name) f WHERE t.type = 'table'
       ORDER BY t.name, f.id, f.seq)
    GROUP BY name, id, target";

/// The same of PostgreSQL, in SQLite's words.
const POSTGRES_SCHEMA: &str = "
    SELECT 'column ' || table_name || '.' || column_name || ' ' ||
      CASE data_type WHEN 'bigint' THEN 'integer' WHEN 'bytea' THEN 'blob' ELSE data_type END
      || CASE is_nullable WHEN 'NO' THEN ' required' ELSE '' END
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'schema_version'
    UNION SELECT 'unique ' || t.relname || ' ' || (SELECT string_agg(a.attname, ',' ORDER BY k.n)
        FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum)
      || CASE WHEN i.indpred IS NOT NULL THEN ' partly' ELSE '' END
    FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
    WHERE i.indisunique AND t.relnamespace = 'public'::regnamespace AND t.relname <> 'schema_version'
    UNION SELECT 'reference ' || t.relname || ' ' || (SELECT string_agg(a.attname, ',' ORDER BY k.n)
        FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum)
      || ' to ' || c.confrelid::regclass
    FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
    WHERE c.contype = 'f' AND t.relnamespace = 'public'::regnamespace";

#[test]
fn both_schemas_have_the_same_columns_unique_keys_and_references() {
    let folder = tempfile::tempdir().unwrap();
    let [sqlite, postgres] = TestDatabase::both(folder.path());
    Store::init(sqlite.database()).unwrap();
    Store::init(postgres.database()).unwrap();
    let sqlite = sqlite.lines(SQLITE_SCHEMA);
    let postgres = postgres.lines(POSTGRES_SCHEMA);
    let only = |one: &BTreeSet<String>, other| one - other;
    assert_eq!(only(&sqlite, &postgres), BTreeSet::new(), "only in SQLite");
    assert_eq!(
        only(&postgres, &sqlite),
        BTreeSet::new(),
        "only in PostgreSQL"
    );
    for expected in [
        "column vm.vm_id text required",
        "column join_token.secret_hash blob required",
        "unique claim slot_id partly",
        "reference charge tenant_id,vm_id,project_id to vm",
    ] {
        assert!(sqlite.contains(expected), "{expected}");
    }
}

#[test]
fn a_change_that_fails_leaves_its_batch_alone() {
    on_both(|database| {
        let store = open(database);
        let (release, held) = channel::<()>();
        let (sender, answers) = channel();
        // The first change holds the thread until all others wait, so that those share one batch.
        store.submit(
            move |_| {
                held.recv().map_err(|_| StoreError::Stopped)?;
                Ok(())
            },
            |_| {},
        );
        for n in 0..9_u64 {
            let sender = sender.clone();
            let change = move |tx: &mut WriteTx<'_>| {
                let index = tx.append(event(), &Cause::controller())?;
                if n % 3 == 1 {
                    return Err(StoreError::Corrupt { what: "test" });
                }
                Ok(index)
            };
            store.submit(change, move |result| sender.send((n, result.ok())).unwrap());
        }
        release.send(()).unwrap();
        let answers: Vec<_> = answers.iter().take(9).collect();
        let kept = [0, 2, 3, 5, 6, 8];
        for (n, index) in answers {
            let expected = kept.iter().position(|kept| *kept == n);
            assert_eq!(
                index,
                expected.map(|at| u64::try_from(at).unwrap()),
                "change {n}"
            );
        }
        assert_eq!(entries(&store), 6);
        assert_verifies(&store, 6);
    });
}

#[test]
fn a_change_and_its_entry_are_one() {
    on_both(|database| {
        let store = open(database);
        let failed = store.write(|tx| {
            tx.create_tenant(tenant("acme"), &Cause::controller())?
                .unwrap();
            Err::<(), _>(StoreError::Corrupt { what: "test" })
        });
        assert!(matches!(failed, Err(StoreError::Corrupt { .. })));
        let id = "acme".parse().unwrap();
        assert_eq!(store.read(|db| db.tenant(&id)).unwrap(), None);
        assert_eq!(entries(&store), 0);
    });
}

#[test]
fn controllers_that_begin_at_once_on_one_postgresql_are_one_controller() {
    let database = TestDatabase::postgres();
    let ids: BTreeSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Store::init(database.database()).unwrap().to_string()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[test]
fn a_store_says_whether_another_wrote() {
    on_both(|database| {
        let [one, other] = [open(database), open(database)];
        // Opening is a change too.
        one.have_others_written().unwrap();
        append(&one).unwrap();
        assert!(!one.have_others_written().unwrap());
        assert!(other.have_others_written().unwrap());
        assert!(!other.have_others_written().unwrap());
        append(&other).unwrap();
        append(&one).unwrap();
        assert!(one.have_others_written().unwrap());
    });
}

#[test]
fn the_ledger_has_one_order_whoever_writes() {
    on_both(|database| {
        let stores = [open(database), open(database)];
        let indexes: BTreeSet<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|n| {
                    let store = &stores[n % 2];
                    scope.spawn(move || (0..25).map(|_| append(store).unwrap()).collect::<Vec<_>>())
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(indexes, (0..100).collect());
        assert_verifies(&stores[0], 100);
    });
}

/// Two controllers share a PostgreSQL. One is amid a change when the other begins and would be done
/// first: it waits, and nothing is skipped.
#[test]
fn a_change_that_began_first_and_commits_last_keeps_its_place_and_is_not_skipped() {
    let database = TestDatabase::postgres();
    Store::init(database.database()).unwrap();
    let (slow, quick) = (open(&database), open(&database));
    let (release, held) = channel::<()>();
    let (tell, told) = channel();
    let slow_told = tell.clone();
    slow.submit(
        move |tx| {
            let index = tx.append(event(), &Cause::controller())?;
            held.recv().map_err(|_| StoreError::Stopped)?;
            Ok(index)
        },
        move |result| slow_told.send(("slow", result.unwrap())).unwrap(),
    );
    let has_appended = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'idle in transaction'";
    while database.value(has_appended) == "0" {}
    quick.submit(
        |tx| tx.append(event(), &Cause::controller()),
        move |result| tell.send(("quick", result.unwrap())).unwrap(),
    );
    let waits = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()
        AND wait_event_type = 'Lock'";
    while database.value(waits) == "0" {}
    release.send(()).unwrap();
    let order: Vec<_> = told.iter().take(2).collect();
    assert_eq!(
        BTreeSet::from_iter(order),
        [("quick", 1), ("slow", 0)].into()
    );
    assert_verifies(&quick, 2);
}

/// A controller hangs amid a change for so long that the server gives its session up. When it goes on,
/// others have written: its change has not happened, and there is one chain.
#[test]
fn a_writer_that_hung_for_too_long_loses_its_change_and_nobody_elses() {
    let database = TestDatabase::postgres();
    Store::init(database.database()).unwrap();
    let (hanging, other) = (open(&database), open(&database));
    assert_eq!(append(&hanging).unwrap(), 0);
    let (release, held) = channel::<()>();
    let (tell, told) = channel();
    hanging.submit(
        move |tx| {
            let index = tx.append(event(), &Cause::controller())?;
            held.recv().map_err(|_| StoreError::Stopped)?;
            Ok(index)
        },
        move |result| tell.send(result).unwrap(),
    );
    let give_up = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction'";
    while database.value(give_up) == "0" {}
    assert_eq!(append(&other).unwrap(), 1);
    release.send(()).unwrap();
    let lost = told.recv().unwrap().unwrap_err();
    assert!(lost.is_unavailable(), "{lost:?}");
    assert_eq!(append(&hanging).unwrap(), 2);
    assert_verifies(&other, 3);
}

#[test]
fn texts_have_the_order_of_their_bytes() {
    on_both(|database| {
        let store = open(database);
        // In English `ab` comes before `a-c`.
        for id in ["ab", "a-c", "zz", "b0"] {
            add_tenant(&store, id);
        }
        let page = |after: &'static str| {
            let tenants = store.read(|db| db.tenants(after, 2)).unwrap();
            let ids: Vec<_> = tenants
                .into_iter()
                .map(|t| t.tenant_id.to_string())
                .collect();
            ids.join(" ")
        };
        assert_eq!(page(""), "a-c ab");
        assert_eq!(page("ab"), "b0 zz");
    });
}

/// Two tenants, a VM of the first, a slot and a node.
fn furnish(database: &TestDatabase) {
    let store = open(database);
    add_tenant(&store, "acme");
    add_tenant(&store, "other");
    database
        .run(
            "INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state, generation,
               vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index)
             VALUES ('vm_a', 'acme', 'a', 'pending', 0, 'running', 0, 1, 1, 1, 'i', '{}', 0, 0);
             INSERT INTO node (node_id, name, public_key, machine_id, epoch, boot_id, agent_version,
               enrolled_at, vcpus, memory_mib, disk_mib, kvm)
             VALUES ('node_a', 'a', 'k', 'm', 1, 'b', '1', 0, 1, 1, 1, 1);
             INSERT INTO slot (slot_id, node_id, name, class, host_state, generation, host_epoch,
               devices, identity, is_reported, reported_at)
             VALUES ('slot_a', 'node_a', 's', 'gpu', 'free', 1, 1, '[]', '{}', 1, 0);"
                .replace("'k'", &database.bytes("k"))
                .as_str(),
        )
        .unwrap();
}

#[test]
fn nothing_of_one_tenant_can_hang_on_anothers_object() {
    on_both(|database| {
        furnish(database);
        let claim = |id: &str, tenant: &str, epoch: u32| {
            format!(
                "INSERT INTO claim (claim_id, slot_id, tenant_id, project_id, vm_id, class,
                 fencing_epoch, state, charged, claimed_at)
                 VALUES ('{id}', 'slot_a', '{tenant}', 'default', 'vm_a', 'gpu', {epoch}, 'live', 1, 0)"
            )
        };
        let foreign = [
            "INSERT INTO charge (tenant_id, project_id, vm_id, resource, amount)
             VALUES ('other', 'default', 'vm_a', 'vms', 1)"
                .to_owned(),
            "INSERT INTO operation (operation_id, tenant_id, vm_id, kind, state, phase, created_at)
             VALUES ('op_a', 'other', 'vm_a', 'create', 'running', 'x', 0)"
                .to_owned(),
            "INSERT INTO task (task_id, tenant_id, vm_id, node_id, kind, generation, state, envelope,
               expires_at_s, created_at)
             VALUES ('task_a', 'other', 'vm_a', 'node_a', 'create', 1, 'pending', '', 0, 0)"
                .to_owned(),
            "INSERT INTO receipt (receipt_id, slot_id, node_id, tenant_id, vm_id, kind, generation,
               at_s, sha256, envelope, audit_index, stored_at)
             VALUES ('rc_a', 'slot_a', 'node_a', 'other', 'vm_a', 'claim', 1, 0, '', '', 0, 0)"
                .to_owned(),
            "UPDATE vm SET operation_id = 'op_of_nobody'".to_owned(),
            claim("claim_x", "other", 1),
        ];
        for statement in foreign {
            let refused = database.run(&statement).unwrap_err().to_lowercase();
            assert!(refused.contains("foreign key"), "{statement}: {refused}");
        }
        database.run(&claim("claim_a", "acme", 2)).unwrap();
    });
}

#[test]
fn a_slot_has_one_live_claim_and_a_tenant_one_live_vm_of_a_name() {
    on_both(|database| {
        furnish(database);
        let claim = |id: u32| {
            format!(
                "INSERT INTO claim (claim_id, slot_id, tenant_id, project_id, vm_id, class,
                 fencing_epoch, state, charged, claimed_at)
                 VALUES ('claim_{id}', 'slot_a', 'acme', 'default', 'vm_a', 'gpu', {id}, 'live', 1, 0)"
            )
        };
        database.run(&claim(1)).unwrap();
        let namesake = "INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state,
               generation, vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index)
             VALUES ('vm_b', 'acme', 'a', 'pending', 0, 'running', 0, 1, 1, 1, 'i', '{}', 0, 0)";
        for twice in [&claim(2), namesake] {
            let refused = database.run(twice).unwrap_err().to_lowercase();
            assert!(refused.contains("unique"), "{twice}: {refused}");
        }
        database
            .run("UPDATE claim SET state = 'over', charged = 0")
            .unwrap();
        database.run(&claim(2)).unwrap();
        database.run("UPDATE vm SET state = 'deleted'").unwrap();
        database.run(namesake).unwrap();
    });
}

#[test]
fn nothing_in_the_ledger_is_ever_changed_or_removed() {
    on_both(|database| {
        let store = open(database);
        for _ in 0..3 {
            append(&store).unwrap();
        }
        let insert = |index: u32, ending: &str| {
            format!(
                "INSERT INTO ledger_entry (epoch, idx, stream, seq, at, body, nonce, leaf)
                 SELECT 1, {index}, '', 9, 0, '{{}}', nonce, leaf FROM ledger_entry
                 WHERE idx = 0 {ending}"
            )
        };
        let overwrite = "ON CONFLICT (epoch, idx) DO UPDATE SET body = '{}'";
        for (statement, refusal) in [
            (
                "UPDATE ledger_entry SET body = '{}'".to_owned(),
                "append-only",
            ),
            (
                "UPDATE ledger_entry SET idx = 9 WHERE idx = 2".to_owned(),
                "append-only",
            ),
            (
                "DELETE FROM ledger_entry WHERE idx = 2".to_owned(),
                "append-only",
            ),
            ("DELETE FROM ledger_node".to_owned(), "append-only"),
            ("DELETE FROM ledger_term".to_owned(), "append-only"),
            ("DELETE FROM ledger_head".to_owned(), "append-only"),
            (
                "UPDATE ledger_head SET size = 1".to_owned(),
                "does not go back",
            ),
            (insert(4, ""), "no gaps"),
            (insert(2, overwrite), "no gaps"),
        ] {
            let refused = database.run(&statement).unwrap_err();
            assert!(refused.contains(refusal), "{statement}: {refused}");
        }
        let emptied = database
            .run_as("DELETE FROM ledger_entry", "TRUNCATE ledger_entry")
            .unwrap_err();
        assert!(emptied.contains("append-only"), "{emptied}");
        assert_verifies(&store, 3);
    });
}

#[test]
fn a_newer_schema_is_refused() {
    on_both(|database| {
        database
            .run_as(
                "PRAGMA user_version = 99",
                "UPDATE schema_version SET version = 99",
            )
            .unwrap();
        let refused = Store::open(database.database(), keys()).unwrap_err();
        assert!(refused.to_string().contains("schema 99"), "{refused}");
    });
}

#[test]
fn a_server_that_restarts_costs_at_most_the_change_that_it_interrupts() {
    let server = std::sync::Arc::new(Postgres::start().unwrap());
    let database = TestDatabase::at(server.new_database());
    Store::init(database.database()).unwrap();
    let store = open(&database);
    append(&store).unwrap();
    assert_eq!(entries(&store), 1);
    // Idle connections are lost, and nobody notices.
    server.restart().unwrap();
    append(&store).unwrap();
    assert_eq!(entries(&store), 2);
    // It goes away amid a change: that one has not happened, and the caller may try again.
    let there = std::sync::Arc::clone(&server);
    let cut = store.write(move |tx| {
        let index = tx.append(event(), &Cause::controller())?;
        there.restart().unwrap();
        Ok(index)
    });
    let cut = cut.unwrap_err();
    assert!(cut.is_unavailable(), "{cut:?}");
    assert_eq!(entries(&store), 2);
    assert_eq!(append(&store).unwrap(), 2);
    assert_verifies(&store, 3);
}

/// What the tests of tokens know of one.
fn token_record(id: TokenId, tenant: &str) -> NewTokenRecord {
    NewTokenRecord {
        token_id: id,
        tenant_id: Some(tenant.parse().unwrap()),
        scope: vec!["vm.read".to_owned()],
        resources: Some(Vec::new()),
        requires_pop: true,
        subject_pubkey: "root-holder".to_owned(),
        label: None,
        issued_at_s: 1_000,
        expires_at_s: 4_000_000_000,
        vm_id: None,
    }
}

#[test]
fn tokens_their_first_and_last_use_and_what_ends_them_are_kept() {
    on_both(|database| {
        let store = open(database);
        let cause = Cause::controller();
        add_tenant(&store, "acme");
        add_tenant(&store, "other");
        let acme: TenantId = "acme".parse().unwrap();
        let mut ids = [TokenId::generate(), TokenId::generate()];
        ids.sort_unstable();
        let [root, derived] = ids;
        let record = token_record(root, "acme");
        let by = cause.clone();
        store
            .write(move |tx| tx.record_token(&record, &by))
            .unwrap()
            .unwrap();
        let before = entries(&store);
        for _ in 0..2 {
            let seen = DerivedToken {
                token_id: derived,
                tenant_id: Some(acme.clone()),
                parent_ids: vec![root],
                scope: vec!["vm.read".to_owned()],
                resources: None,
                requires_pop: false,
                subject_pubkey: "job-holder".to_owned(),
                expires_at_s: 4_000_000_000,
            };
            let by = cause.clone();
            store
                .write(move |tx| tx.record_derived(&seen, &by))
                .unwrap();
        }
        assert_eq!(entries(&store), before + 1, "a first use is one entry");
        let uses: Vec<TokenUse> = [root, derived]
            .into_iter()
            .map(|token_id| TokenUse {
                token_id,
                tenant_id: Some(acme.clone()),
                at_ms: 1_792_000_000_007,
            })
            .collect();
        store.write(move |tx| tx.note_token_uses(&uses)).unwrap();
        let listed = || store.read(|db| db.tokens(&acme, "", 10)).unwrap();
        let shown: Vec<_> = listed()
            .into_iter()
            .map(|token| (token.token_id, token.parent_ids.len(), token.require_pop))
            .collect();
        assert_eq!(shown, [(root, 0, true), (derived, 1, false)]);
        for token in listed() {
            assert_eq!(
                token.last_used_at.as_deref(),
                Some("2026-10-14T17:46:40.007Z")
            );
            assert_eq!(token.revoked_at, None);
        }
        // Another tenant neither finds it nor ends it, and an unseen link can be ended all the same.
        let revoke = |tenant: &str, id: TokenId| {
            let (tenant, by): (TenantId, _) = (tenant.parse().unwrap(), cause.clone());
            store
                .write(move |tx| tx.revoke_token(Some(&tenant), id, None, &by))
                .unwrap()
        };
        assert_eq!(revoke("other", derived), Err(RevokeDenied::NotFound));
        assert_eq!(revoke("acme", derived), Ok(Some(acme.clone())));
        assert_eq!(revoke("acme", derived), Ok(Some(acme.clone())));
        for what in [
            Revoked::Link(TokenId::generate()),
            Revoked::Holder("root-holder".to_owned()),
            Revoked::Before(1_001),
            Revoked::Before(900),
        ] {
            let (tenant, by) = (acme.clone(), cause.clone());
            let done = store.write(move |tx| tx.revoke(Some(&tenant), &what, None, &by));
            assert_eq!(done.unwrap(), Ok(()));
        }
        assert!(listed().iter().all(|token| token.revoked_at.is_some()));
        let revoked = store.read(|db| db.revocations_since(0)).unwrap();
        assert_eq!(revoked.len(), 4, "the epoch never falls: {revoked:?}");
        assert!(
            revoked
                .iter()
                .all(|(tenant, _)| tenant.as_ref() == Some(&acme))
        );
        assert!(
            revoked
                .iter()
                .any(|(_, what)| *what == Revoked::Before(1_001))
        );
        assert_eq!(store.read(|db| db.revocations_since(i64::MAX)).unwrap(), []);
        // A nonce is one holder's, once.
        let fresh = |holder: &'static str, nonce: &'static str| {
            store
                .write(move |tx| tx.use_nonce(holder, nonce, 4_000_000_000))
                .unwrap()
        };
        assert!(fresh("a", "1") && fresh("b", "1") && fresh("a", "2"));
        assert!(!fresh("a", "1"));
        assert_verifies(&store, u64::try_from(entries(&store)).unwrap());
    });
}
