//! Hosts as witnesses of the ledger: each is shown that it only grows, cosigns what it saw, and says so
//! when it does not.

use berth_agent_core::log_watch::LogWatch;
use berth_api::agent::{ACCEPT_ROLLBACK_PAYLOAD_TYPE, FreezeCode, LogFreeze, TreeHead};
use berth_api::rest::HostCosignature;
use berth_ledger::checkpoint::Checkpoint;
use berth_ledger::cosignature::{Cosigner, node_witness_name};
use berth_ledger::envelope::seal;
use berth_ledger::keys::{PublicKey, SigningKey};
use berth_ledger::note::{KeyKind, Note, Vkey};
use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Controller, audit_bodies, tenant_body};

fn watch_of(controller: &Controller) -> LogWatch {
    let head = controller.admin().get("/v1/audit/head").expect(200).json();
    LogWatch::new(PublicKey::from_base64(head["public_key"].as_str().unwrap()).unwrap())
}

/// One sync of a host that watches; what it has seen after that.
fn sync(agent: &mut SimulatedAgent, watch: &LogWatch) -> LogWatch {
    let key = SigningKey::from_seed(agent.key().seed()).unwrap();
    let cosigner = Cosigner::new(node_witness_name(agent.node_id), key);
    agent.log = watch.report(&cosigner, 1_700_000_000);
    agent.sync(0).unwrap();
    watch.shown(agent.log.seen.as_ref(), agent.shown.as_ref(), 100)
}

fn node(controller: &Controller, agent: &SimulatedAgent) -> Value {
    let path = format!("/v1/nodes/{}", agent.node_id);
    controller.admin().get(&path).expect(200).json()
}

#[test]
fn hosts_are_shown_that_the_ledger_only_grows_and_cosign_it() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 1024);
    let mut watch = watch_of(&controller);
    let mut sizes = Vec::new();
    for name in ["one", "two", "three"] {
        watch = sync(&mut agent, &watch);
        assert_eq!(watch.freeze(), None);
        sizes.push(watch.seen().unwrap().size);
        let made = controller
            .admin()
            .post("/v1/tenants", &tenant_body(name, 1));
        made.expect(201);
        // What an answer said is in the ledger that everybody sees from then on.
        controller
            .admin()
            .get("/v1/audit/proof/inclusion?index=0")
            .expect(200);
    }
    watch = sync(&mut agent, &watch);
    let seen = watch.seen().unwrap().clone();
    assert!(sizes.is_sorted() && sizes[0] < seen.size, "{sizes:?}");
    sync(&mut agent, &watch);

    let listed = controller
        .admin()
        .get("/v1/audit/cosignatures")
        .expect(200)
        .json();
    let hosts: Vec<HostCosignature> = serde_json::from_value(listed["items"].clone()).unwrap();
    let name = node_witness_name(agent.node_id);
    let vkey = Vkey::new(name, KeyKind::Cosignature, agent.key().public());
    assert_eq!((hosts.len(), &hosts[0].vkey), (1, &vkey.to_string()));
    let note = Note::parse(hosts[0].note.as_bytes()).unwrap();
    let keys = [vkey];
    assert_eq!(note.verify(&keys).unwrap()[0].time_s, Some(1_700_000_000));
    assert_eq!(Checkpoint::parse(note.text()).unwrap(), seen);
    let shown = node(&controller, &agent);
    assert_eq!(shown["log"]["seen"]["size"], json!(seen.size));
    assert_eq!(shown["log"]["frozen"], Value::Null);
    controller.assert_sound();
}

#[test]
fn hosts_follow_a_new_key_of_the_ledger_though_they_were_away() {
    let mut controller = Controller::start();
    let mut agent = controller.agent("node-1", 1024);
    let mut watch = sync(&mut agent, &watch_of(&controller));
    let away = watch.clone();
    for commands in [
        ["rotate-ledger"].as_slice(),
        &["drop-ledger", "rotate-ledger"],
        &["drop-ledger"],
    ] {
        controller.kill();
        for command in commands {
            let done = controller.offline(&["keys", command]);
            assert!(done.status.success(), "{done:?}");
        }
        controller.restart();
        watch = sync(&mut agent, &watch);
        assert_eq!(watch.freeze(), None);
        assert_eq!(watch.key(), watch_of(&controller).key());
    }
    assert_ne!(watch.key(), away.key());
    let back = sync(&mut agent, &away);
    assert_eq!((back.freeze(), back.key()), (None, watch.key()));
    controller.assert_sound();
}

#[test]
fn a_cosignature_that_is_wrong_or_anothers_is_not_kept() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 1024);
    let watch = sync(&mut agent, &watch_of(&controller));
    let key = SigningKey::generate().unwrap();
    let stranger = Cosigner::new(node_witness_name(agent.node_id), key);
    for _ in 0..2 {
        agent.log = watch.report(&stranger, 1);
        agent.sync(0).unwrap();
    }
    agent.log.cosignature = Some("— x".to_owned());
    agent.sync(0).unwrap();
    let listed = controller
        .admin()
        .get("/v1/audit/cosignatures")
        .expect(200)
        .json();
    assert_eq!(listed["items"], json!([]));
    let denied = audit_bodies(&controller.admin(), "event_type=NODE_REPORT_DENIED");
    assert_eq!(denied.len(), 1, "it is written down once");
    controller.assert_sound();
}

#[test]
fn a_host_that_has_seen_more_gets_no_proof_and_what_it_does_then_is_told() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 1024);
    let watch = sync(&mut agent, &watch_of(&controller));
    let origin = watch.seen().unwrap().origin.to_string();
    let seen = TreeHead {
        origin,
        size: 1_000_000,
        root: "00".repeat(32),
    };
    agent.log.seen = Some(seen.clone());
    agent.sync(0).unwrap();
    let frozen = watch.shown(agent.log.seen.as_ref(), agent.shown.as_ref(), 100);
    assert_eq!(frozen.freeze().unwrap().code, FreezeCode::RolledBack);
    assert!(
        controller
            .log()
            .iter()
            .any(|line| line.contains("has seen more"))
    );

    let shown = frozen.freeze().unwrap().shown.unwrap();
    for _ in 0..2 {
        agent.log.frozen = Some(LogFreeze {
            code: FreezeCode::RolledBack,
            shown: Some(shown.clone()),
            since: 100,
        });
        agent.sync(0).unwrap();
    }
    let told = audit_bodies(&controller.admin(), "event_type=NODE_LOG_FROZEN");
    assert_eq!((told.len(), &told[0]["code"]), (1, &json!("rolled_back")));
    assert_eq!(
        node(&controller, &agent)["log"]["frozen"]["code"],
        "rolled_back"
    );

    // The host's operator decides, there; the word is an entry, as it was signed.
    let word = frozen
        .acceptance(agent.node_id, "lost".to_owned(), 5)
        .unwrap();
    let sealed = seal(agent.key(), ACCEPT_ROLLBACK_PAYLOAD_TYPE, &word).unwrap();
    agent.log.frozen = None;
    for _ in 0..2 {
        agent.log.accepted = Some(sealed.clone());
        agent.sync(0).unwrap();
    }
    let admin = controller.admin();
    assert_eq!(
        audit_bodies(&admin, "event_type=NODE_LOG_FOLLOWED").len(),
        1
    );
    let accepted = audit_bodies(&admin, "event_type=NODE_ROLLBACK_ACCEPTED");
    assert_eq!(accepted.len(), 1);
    assert_eq!(accepted[0]["detail"]["envelope"], json!(sealed));
    assert_eq!(node(&controller, &agent)["log"]["frozen"], Value::Null);
    controller.assert_sound();
}
