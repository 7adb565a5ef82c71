//! The transaction's promises, on a real file.

use std::sync::mpsc::channel;

use berth_ledger::keys::SigningKey;

use crate::error::StoreError;
use crate::fixture::{keys, new_tenant, store};
use crate::ledger::{Cause, EntryFilter, NewEvent};
use crate::store::{Keys, Store};

fn event() -> NewEvent {
    NewEvent {
        event_type: "TENANT_CREATED",
        outcome: "completed",
        ..NewEvent::default()
    }
}

fn entries(store: &Store) -> usize {
    let filter = EntryFilter {
        limit: 1000,
        ..EntryFilter::default()
    };
    store.read(|db| db.entries(&filter)).unwrap().len()
}

#[test]
fn a_change_that_fails_leaves_its_batch_alone() {
    let (_folder, store) = store();
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
        let change = move |tx: &mut super::WriteTx<'_>| {
            let index = tx.append(event(), &Cause::controller())?;
            if n % 3 == 1 {
                return Err(StoreError::Corrupt { what: "test" });
            }
            Ok(index)
        };
        store.submit(change, move |result| {
            sender.send((n, result.ok())).unwrap();
        });
    }
    release.send(()).unwrap();
    let answers: Vec<_> = answers.iter().take(9).collect();
    let expected = [
        (0, Some(0)),
        (1, None),
        (2, Some(1)),
        (3, Some(2)),
        (4, None),
        (5, Some(3)),
        (6, Some(4)),
        (7, None),
        (8, Some(5)),
    ];
    assert_eq!(answers, expected);
    assert_eq!(entries(&store), 6);
    let key = store.ledger_key();
    assert_eq!(
        store
            .read(|db| Ok(db.verify_log(&key, |_, _| {}).unwrap()))
            .unwrap(),
        6
    );
}

#[test]
fn the_ledger_continues_over_a_restart_and_beside_another_writer() {
    let (folder, store) = store();
    let path = folder.path().join("berth.db");
    let append = |store: &Store| {
        store
            .write(|tx| tx.append(event(), &Cause::controller()))
            .unwrap()
    };
    assert_eq!(append(&store), 0);
    let second = Store::open(&path, keys()).unwrap();
    assert_eq!(append(&second), 1);
    assert_eq!(append(&store), 2);
    drop((store, second));
    let third = Store::open(&path, keys()).unwrap();
    assert_eq!(append(&third), 3);
    let key = third.ledger_key();
    assert_eq!(
        third
            .read(|db| Ok(db.verify_log(&key, |_, _| {}).unwrap()))
            .unwrap(),
        4
    );
}

#[test]
fn another_ledger_key_does_not_open_the_database() {
    let (folder, store) = store();
    store
        .write(|tx| tx.append(event(), &Cause::controller()))
        .unwrap();
    drop(store);
    let other = Keys {
        ledger: SigningKey::from_seed(&[9; 32]).unwrap(),
        ..keys()
    };
    let refused = Store::open(folder.path().join("berth.db"), other).unwrap_err();
    assert!(
        matches!(refused, crate::error::OpenStoreError::Ledger(_)),
        "{refused}"
    );
}

#[test]
fn a_newer_schema_and_a_missing_one_are_refused() {
    let (folder, store) = store();
    drop(store);
    let path = folder.path().join("berth.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    let newer = Store::open(&path, keys()).unwrap_err();
    assert!(newer.to_string().contains("schema 99"), "{newer}");
    let absent = Store::open(folder.path().join("none.db"), keys()).unwrap_err();
    assert!(
        absent.to_string().contains("berth-controller init"),
        "{absent}"
    );
}

#[test]
fn nothing_of_one_tenant_can_hang_on_another_tenants_vm() {
    let (folder, store) = store();
    for id in ["acme", "other"] {
        store
            .write(move |tx| tx.create_tenant(new_tenant(id, 1), &Cause::controller()))
            .unwrap()
            .unwrap();
    }
    drop(store);
    let database = rusqlite::Connection::open(folder.path().join("berth.db")).unwrap();
    database.pragma_update(None, "foreign_keys", true).unwrap();
    database
        .execute_batch(
            "INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state, generation,
             vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index)
             VALUES ('vm_a', 'acme', 'a', 'pending', 0, 'running', 0, 1, 1, 1, 'i', '{}', 0, 0)",
        )
        .unwrap();
    for foreign in [
        "INSERT INTO charge (tenant_id, project_id, vm_id, resource, amount)
         VALUES ('other', 'default', 'vm_a', 'vms', 1)",
        "INSERT INTO charge (tenant_id, project_id, vm_id, resource, amount)
         VALUES ('acme', 'nowhere', 'vm_a', 'vms', 1)",
        "INSERT INTO operation (operation_id, tenant_id, vm_id, kind, state, phase, created_at)
         VALUES ('op_a', 'other', 'vm_a', 'create', 'running', 'x', 0)",
        "UPDATE vm SET operation_id = 'op_of_nobody'",
    ] {
        let refused = database.execute(foreign, []).unwrap_err();
        assert!(
            refused.to_string().contains("FOREIGN KEY"),
            "{foreign}: {refused}"
        );
    }
}

#[test]
fn nothing_in_the_ledger_is_ever_changed_or_removed() {
    let (folder, store) = store();
    for _ in 0..3 {
        store
            .write(|tx| tx.append(event(), &Cause::controller()))
            .unwrap();
    }
    let database = rusqlite::Connection::open(folder.path().join("berth.db")).unwrap();
    for (statement, refusal) in [
        ("UPDATE ledger_entry SET body = '{}'", "append-only"),
        (
            "UPDATE ledger_entry SET idx = 9 WHERE idx = 2",
            "append-only",
        ),
        ("DELETE FROM ledger_entry WHERE idx = 2", "append-only"),
        ("DELETE FROM ledger_entry", "append-only"),
        ("UPDATE ledger_node SET hash = x'00'", "append-only"),
        ("DELETE FROM ledger_node", "append-only"),
        ("UPDATE ledger_term SET term = 'x'", "append-only"),
        ("DELETE FROM ledger_term", "append-only"),
        ("DELETE FROM ledger_head", "append-only"),
        ("UPDATE ledger_head SET size = 1", "does not go back"),
        (
            "INSERT OR REPLACE INTO ledger_entry (epoch, idx, stream, seq, at, body, nonce, leaf)
             VALUES (1, 2, '', 9, 0, '{}', x'', x'')",
            "no gaps",
        ),
        (
            "INSERT INTO ledger_entry (epoch, idx, stream, seq, at, body, nonce, leaf)
             VALUES (1, 4, '', 9, 0, '{}', x'', x'')",
            "no gaps",
        ),
        (
            "INSERT INTO ledger_entry (epoch, idx, stream, seq, at, body, nonce, leaf)
             VALUES (1, 2, '', 9, 0, '{}', x'', x'') ON CONFLICT DO UPDATE SET body = '{}'",
            "no gaps",
        ),
    ] {
        let refused = database.execute(statement, []).unwrap_err();
        assert!(
            refused.to_string().contains(refusal),
            "{statement}: {refused}"
        );
    }
    let key = store.ledger_key();
    let verified = store.read(|db| Ok(db.verify_log(&key, |_, _| {}).unwrap()));
    assert_eq!(verified.unwrap(), 3);
}
