//! What a refused unlinking leaves.

use berth_api::ids::{TenantId, TokenId};
use berth_ledger::keys::SigningKey;

use super::NewPerson;
use crate::fixture;
use crate::ledger::Cause;
use crate::revocations::{MAX_REVOCATIONS, RevokeDenied};
use crate::store::Store;
use crate::tokens::NewTokenRecord;

fn acme() -> TenantId {
    "acme".parse().unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let (folder, store) = fixture::store();
    store
        .write(|tx| tx.create_tenant(fixture::new_tenant("acme", 1), &Cause::controller()))
        .unwrap()
        .unwrap();
    (folder, store)
}

fn token(now_s: i64) -> NewTokenRecord {
    NewTokenRecord {
        token_id: TokenId::generate(),
        tenant_id: Some(acme()),
        scope: vec!["vm.read".to_owned()],
        resources: None,
        requires_pop: false,
        subject_pubkey: SigningKey::generate().unwrap().public().to_base64(),
        label: None,
        issued_at_s: now_s,
        expires_at_s: now_s + 3600,
        vm_id: None,
    }
}

/// As many revocations as there may be, but `room`.
fn fill_revocations(store: &Store, room: u32) {
    store
        .write(move |tx| {
            tx.conn.execute(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                 INSERT INTO revocation (namespace, kind, subject, min_not_before_s, revoked_at, expires_at)
                 SELECT 'acme', 'link', 'filler-' || n, 0, 0, ?2 FROM n",
                (MAX_REVOCATIONS - room, i64::MAX),
            )?;
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_refused_unlinking_forgets_no_token_that_is_still_good() {
    let (_folder, store) = store();
    let person = store
        .write(|tx| {
            let new = NewPerson {
                issuer: "https://id.example".to_owned(),
                subject: "ada".to_owned(),
                display_name: "Ada".to_owned(),
                scope: vec!["vm.read".to_owned()],
                requires_pop: false,
            };
            tx.link_person(&acme(), &new, &Cause::controller())
        })
        .unwrap()
        .unwrap();
    let mut given = Vec::new();
    for _ in 0..3 {
        let person = person.clone();
        let id = store
            .write(move |tx| {
                let new = token(tx.now / 1000);
                tx.record_person_token(&person, &new, &Cause::controller())?
                    .unwrap();
                Ok(new.token_id)
            })
            .unwrap();
        given.push(id);
    }
    fill_revocations(&store, 1);
    let unlink = || {
        let person = person.clone();
        store
            .write(move |tx| tx.unlink_person(&person, &Cause::controller()))
            .unwrap()
    };
    assert_eq!(unlink(), Err(RevokeDenied::TooMany));
    let is_linked = store.read(|db| db.person(Some(&acme()), person.id));
    assert!(is_linked.unwrap().is_some());
    store
        .write(|tx| {
            tx.conn
                .execute("DELETE FROM revocation WHERE subject LIKE 'filler-%'", [])?;
            Ok(())
        })
        .unwrap();
    let mut ended = unlink().unwrap();
    ended.sort();
    given.sort();
    assert_eq!(ended, given);
    let revoked: u32 = store
        .read(|db| {
            Ok(db
                .conn
                .query_row("SELECT COUNT(*) FROM revocation", [], |row| row.get(0))?)
        })
        .unwrap();
    assert_eq!(revoked, 3);
}
