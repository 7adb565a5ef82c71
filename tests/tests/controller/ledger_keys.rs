//! The key of the ledger's log is changed: for a while two keys sign, and nobody who knows one of them is
//! left behind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_controller_store::LogHead;
use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::keys::{PublicKey, SigningKey};
use berth_ledger::note::KeyName;
use serde_json::Value;

use crate::harness::{Client, Controller, audit_bodies, tenant_body};

fn head(client: &Client) -> Value {
    client.get("/v1/audit/head").expect(200).json()
}

fn key_of(head: &Value, name: &str) -> PublicKey {
    PublicKey::from_base64(head[name].as_str().unwrap()).unwrap()
}

/// Whether somebody believes the shown checkpoint who knows this key and no other.
fn is_believed(head: &Value, key: &PublicKey) -> bool {
    let origin = KeyName::new(head["origin"].as_str().unwrap()).unwrap();
    let note = head["checkpoint"].as_str().unwrap();
    SignedCheckpoint::open(note.as_bytes(), &[LogHead::vkey_of(origin, key)]).is_ok()
}

/// One more entry, and the head that has it.
fn grown(client: &Client, name: &str) -> Value {
    let made = client
        .post("/v1/tenants", &tenant_body(name, 1))
        .expect(201);
    let index = made.json()["audit_index"].as_u64().unwrap();
    let path = format!("/v1/audit/proof/inclusion?index={index}");
    client.get(&path).expect(200);
    head(client)
}

#[track_caller]
fn run(controller: &mut Controller, command: &str) {
    controller.kill();
    let done = controller.offline(&["keys", command]);
    assert!(done.status.success(), "{done:?}");
    controller.restart();
}

#[test]
fn two_keys_sign_the_log_until_the_old_one_is_dropped() {
    let mut controller = Controller::start();
    let admin = controller.admin();
    let before = grown(&admin, "before");
    let old = key_of(&before, "public_key");
    assert_eq!(before["previous_public_key"], Value::Null);

    run(&mut controller, "rotate-ledger");
    let during = head(&admin);
    let new = key_of(&during, "public_key");
    assert_ne!(new, old);
    assert_eq!(key_of(&during, "previous_public_key"), old);
    for shown in [&during, &grown(&admin, "during")] {
        assert!(is_believed(shown, &old) && is_believed(shown, &new));
    }
    let rotations = audit_bodies(&admin, "event_type=KEY_ROTATED");
    let said = &rotations.last().unwrap()["detail"];
    assert_eq!(said["key"], "ledger");
    assert_eq!(said["old"], old.to_base64());
    assert_eq!(said["new"], new.to_base64());
    controller.assert_sound();
    let again = controller.offline(&["keys", "rotate-ledger"]);
    assert_eq!(again.status.code(), Some(1));
    let words = String::from_utf8(again.stderr).unwrap();
    assert!(words.contains("drop-ledger"), "{words}");

    run(&mut controller, "drop-ledger");
    let after = grown(&admin, "after");
    assert_eq!(after["previous_public_key"], Value::Null);
    assert!(is_believed(&after, &new) && !is_believed(&after, &old));
    let dropped = audit_bodies(&admin, "event_type=KEY_ROTATED");
    assert_eq!(
        dropped.last().unwrap()["detail"]["dropped"],
        old.to_base64()
    );
    controller.assert_sound();
}

/// It dies after the old key was put aside, or after the new one was made and before anything says so.
#[test]
fn a_change_of_the_ledgers_key_that_broke_off_is_finished() {
    let mut controller = Controller::start();
    let admin = controller.admin();
    let old = key_of(&head(&admin), "public_key");
    let keys = controller.folder().join("keys");
    let (current, previous) = (keys.join("ledger.key"), keys.join("ledger.previous.key"));
    controller.kill();
    std::fs::copy(&current, &previous).unwrap();
    controller.restart();
    let shown = grown(&admin, "acme");
    assert_eq!(key_of(&shown, "public_key"), old);
    assert_eq!(shown["previous_public_key"], Value::Null);
    controller.kill();
    let new = SigningKey::generate().unwrap();
    std::fs::write(&current, STANDARD.encode(new.seed())).unwrap();
    controller.restart();
    let shown = grown(&admin, "other");
    assert!(is_believed(&shown, &old) && is_believed(&shown, &new.public()));
    assert_eq!(audit_bodies(&admin, "event_type=KEY_ROTATED").len(), 0);
    run(&mut controller, "rotate-ledger");
    let rotations = audit_bodies(&admin, "event_type=KEY_ROTATED");
    assert_eq!(rotations.len(), 1);
    assert_eq!(rotations[0]["detail"]["new"], new.public().to_base64());
    assert_eq!(key_of(&head(&admin), "public_key"), new.public());
    controller.assert_sound();
}
