//! A commit whose outcome nobody tells: PostgreSQL has done it or has not, and the connection is gone.

use berth_controller_store::{Cause, Keys, LogHead, NewEvent, Store, StoreError};
use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::keys::{PublicKey, SigningKey};
use berth_ledger::merkle::{Hash, verify_consistency};
use berth_ledger::note::KeyName;
use berth_tests::postgres::Postgres;
use berth_tests::postgres_proxy::{Loss, PostgresProxy};
use serde_json::Value;

use crate::database::TestDatabase;
use crate::harness::{Client, Controller, audit_bodies, tenant_body};

fn keys() -> Keys {
    Keys {
        ledger: SigningKey::from_seed(&[1; 32]).unwrap(),
        task: SigningKey::from_seed(&[2; 32]).unwrap(),
    }
}

fn append(store: &Store) -> Result<u64, StoreError> {
    store.write(|tx| {
        let event = NewEvent {
            event_type: "TENANT_CREATED",
            outcome: "completed",
            ..NewEvent::default()
        };
        tx.append(event, &Cause::controller())
    })
}

#[test]
fn a_lost_commit_leaves_no_duplicate_index_and_no_signature_over_what_was_not_committed() {
    let url = Postgres::of_this_process().new_database();
    let proxy = PostgresProxy::before(&url).unwrap();
    let beside = TestDatabase::at(url);
    Store::init(beside.database()).unwrap();
    let store = Store::open(TestDatabase::at(proxy.url()).database(), keys()).unwrap();
    let others = Store::open(beside.database(), keys()).unwrap();
    let head = || others.read(|db| db.log_head()).unwrap();
    let mut wanted = 0;
    for loss in [
        Loss::NotPersisted,
        Loss::Persisted,
        Loss::Persisted,
        Loss::NotPersisted,
    ] {
        assert_eq!(append(&store).unwrap(), wanted);
        wanted += 1;
        let before = head();
        proxy.lose_next(loss, "TENANT_CREATED");
        let lost = append(&store).unwrap_err();
        assert!(proxy.has_lost());
        assert!(lost.is_outcome_unknown(), "{loss:?}: {lost:?}");
        match loss {
            Loss::NotPersisted => assert_eq!(head(), before),
            Loss::Persisted => {
                wanted += 1;
                assert_eq!(head().size, wanted);
            }
        }
        // What is signed is what is there, for every reader.
        let key = store.ledger_key();
        let verified = others.read(|db| Ok(db.verify_log(&key, |_, _| {})));
        assert_eq!(verified.unwrap().unwrap(), wanted, "{loss:?}");
    }
    assert_eq!(append(&store).unwrap(), wanted);
}

/// The checkpoint that anybody is shown now.
fn shown(client: &Client, key: &PublicKey) -> Checkpoint {
    let note = client.get("/v1/audit/checkpoint").expect(200).text;
    let origin = KeyName::new(note.lines().next().unwrap()).unwrap();
    let vkey = LogHead::vkey_of(origin, key);
    let signed = SignedCheckpoint::open(note.as_bytes(), &[vkey]).unwrap();
    signed.checkpoint().clone()
}

fn create(client: &Client, name: &str) -> crate::harness::Reply {
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", name),
    ];
    let body = tenant_body(name, 1).to_string();
    client.send("POST", "/v1/tenants", &headers, Some(&body))
}

#[test]
fn a_caller_whose_commit_was_lost_is_told_so_and_repeats_it_without_harm() {
    let url = Postgres::of_this_process().new_database();
    let proxy = PostgresProxy::before(&url).unwrap();
    let controller = Controller::start_on(|_| TestDatabase::at(proxy.url()));
    let admin = controller.admin();
    let head = admin.get("/v1/audit/head").expect(200).json();
    let key = PublicKey::from_base64(head["public_key"].as_str().unwrap()).unwrap();
    let mut seen = vec![shown(&admin, &key)];
    for (number, loss) in [Loss::Persisted, Loss::NotPersisted]
        .into_iter()
        .enumerate()
    {
        let name = format!("tenant-{number}");
        proxy.lose_next(loss, &name);
        let lost = create(&admin, &name).refused(503, "audit_unavailable");
        let said = lost["error"].as_str().unwrap();
        assert!(said.contains("not known"), "{loss:?}: {said}");
        seen.push(shown(&admin, &key));
        let again = create(&admin, &name).expect(201);
        let is_replay = again.header("idempotency-replayed") == Some("true");
        assert_eq!(is_replay, loss == Loss::Persisted);
        seen.push(shown(&admin, &key));
        let of_name = |value: &Value| value["tenant_id"] == name.as_str();
        let created = audit_bodies(&admin, "event_type=TENANT_CREATED");
        assert_eq!(created.iter().filter(|body| of_name(body)).count(), 1);
    }
    let index = admin.get("/v1/audit/head").expect(200).json()["size"]
        .as_u64()
        .unwrap();
    admin
        .get(&format!("/v1/audit/proof/inclusion?index={}", index - 1))
        .expect(200);
    let last = shown(&admin, &key);
    for old in seen {
        let (from, to) = (old.size, last.size);
        let path = format!("/v1/audit/proof/consistency?from={from}&to={to}");
        let proof = admin.get(&path).expect(200).json();
        let hashes: Vec<Hash> = proof["hashes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hash| Hash::from_base64(hash.as_str().unwrap()).unwrap())
            .collect();
        verify_consistency(from, to, &old.root, &last.root, &hashes).unwrap();
    }
    controller.assert_sound();
}
