//! What the ledger keeps of hosts' receipts, and the passports that come of it: verified here with
//! nothing but the file and the log's key.

use berth_api::agent::SignedEnvelope;
use berth_api::rest::AuditBody;
use berth_api::slot::{RECEIPT_PAYLOAD_TYPE, Receipt, Statement};
use berth_ledger::bundle::{BundleVerifier, Line};
use berth_ledger::keys::PublicKey;
use berth_ledger::note::Vkey;
use berth_ledger::passport::{Before, Passport, PassportReport};
use berth_ledger::{envelope, receipt};
use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply, audit_bodies, vm_body};
use crate::slots::{body, node_with_slots, one, tenant};

fn log_key(controller: &Controller) -> Vkey {
    let head = controller.admin().get("/v1/audit/head").expect(200).json();
    head["vkey"].as_str().unwrap().parse().unwrap()
}

fn passport(client: &Client, vm: &str) -> Reply {
    client.get(&format!("/v1/vms/{vm}/passport"))
}

#[track_caller]
fn verified(controller: &Controller, reply: &Reply) -> (Passport, PassportReport) {
    let passport: Passport = serde_json::from_str(&reply.text).unwrap();
    let report = passport.verify(&[log_key(controller)]).unwrap();
    (passport, report)
}

/// A VM with the node's slot, launched; its id.
fn launched(client: &Client, agent: &mut SimulatedAgent, name: &str) -> String {
    let vm = client.post("/v1/vms", &body(name, &one())).expect(201);
    agent.settle().unwrap();
    vm.json()["id"].as_str().unwrap().to_owned()
}

/// Delete a VM and have its slot wiped.
fn given_back(client: &Client, agent: &mut SimulatedAgent, name: &str) {
    client.delete(&format!("/v1/vms/{name}")).expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
}

#[test]
fn a_passport_shows_the_wipe_after_the_last_tenant_and_does_not_name_it() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let other = tenant(&controller, "other", &json!({ "nvme": 1 }));

    let first = launched(&acme, &mut agent, "web");
    let (_, report) = verified(&controller, &passport(&acme, "web").expect(200));
    assert!(!report.slots[0].was_wiped, "nobody had it before");
    given_back(&acme, &mut agent, "web");
    // One that ends before its host hears of it.
    acme.post("/v1/vms", &body("brief", &one())).expect(201);
    given_back(&acme, &mut agent, "brief");
    launched(&other, &mut agent, "db");

    let reply = passport(&other, "db").expect(200);
    let (file, report) = verified(&controller, &reply);
    let shown = &report.slots[0];
    assert_eq!((shown.slot_id, shown.was_wiped), (slots[0], true));
    assert_eq!(file.slots[0].unused.len(), 1);
    // The same wipe as the last tenant was told of, by the digest of what the host signed.
    let told = audit_bodies(&acme, "event_type=SLOT_WIPED");
    assert_eq!(told[0]["detail"]["sha256"], json!(shown.receipt_sha256));
    let launch = shown.launch.as_ref().unwrap();
    let receipts = other.get("/v1/vms/db/receipts").expect(200).json();
    let claim = &receipts["items"][0];
    assert_eq!(claim["receipt_id"], json!(launch.receipt_id));
    assert_eq!(claim["node_public_key"], json!(launch.host_key));

    let claims = audit_bodies(&acme, "event_type=SLOT_CLAIMED");
    let claims = claims
        .iter()
        .map(|event| event["detail"]["claim_id"].as_str().unwrap());
    for name in claims.chain(["acme", first.as_str()]) {
        assert!(!reply.text.contains(name), "{name}: {}", reply.text);
    }
    // Of a VM that is gone there still is one; others hear of none.
    let (_, report) = verified(&controller, &passport(&acme, &first).expect(200));
    assert!(!report.slots[0].was_wiped);
    passport(&other, &first).refused(404, "not_found");
    controller.assert_sound();
}

#[test]
fn a_passport_by_another_key_or_with_another_wipe_is_refused() {
    let controller = Controller::start();
    let (mut agent, _) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    for name in ["first", "second"] {
        launched(&acme, &mut agent, name);
        given_back(&acme, &mut agent, name);
    }
    launched(&acme, &mut agent, "third");
    let (file, _) = verified(&controller, &passport(&acme, "third").expect(200));
    let foreign = Controller::start();
    let key = log_key(&controller);
    let refusal = file.verify(&[log_key(&foreign)]).unwrap_err().to_string();
    assert!(refusal.contains("log's keys"), "{refusal}");
    // The wipe after the tenant before the last one.
    let vm = audit_bodies(&acme, "event_type=VM_CREATE_ACCEPTED")[1]["vm_id"].clone();
    let (older, _) = verified(
        &controller,
        &passport(&acme, vm.as_str().unwrap()).expect(200),
    );
    let mut older_wipe = file.clone();
    older_wipe.checkpoint = older.checkpoint.clone();
    older_wipe.slots[0].before = older.slots[0].before.clone();
    // Nothing happened between both files, so all of it is in one tree.
    assert_eq!(file.checkpoint, older.checkpoint);
    let refusal = format!("{:?}", older_wipe.verify(&[key]).unwrap_err());
    assert!(
        refusal.contains("Epoch { found: 3, expected: 2 }"),
        "{refusal}"
    );
    let Before::Wiped { event } = &file.slots[0].before else {
        panic!("{file:?}");
    };
    let body: AuditBody = serde_json::from_str(&event.body).unwrap();
    assert_eq!(body.detail["fencing_epoch"], 2);
}

#[test]
fn without_what_shows_it_there_is_no_passport() {
    let controller = Controller::start();
    let (mut agent, _) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &vm_body("plain")).expect(201);
    agent.settle().unwrap();
    let refused = passport(&acme, "plain").refused(404, "not_found");
    assert!(refused["error"].as_str().unwrap().contains("no slots"));
    launched(&acme, &mut agent, "web");
    controller
        .database()
        .run("DELETE FROM slot_mark WHERE kind = 'approved'")
        .unwrap();
    let refused = passport(&acme, "web").refused(404, "not_found");
    assert!(refused["error"].as_str().unwrap().contains("no wipe"));
}

/// The receipts in an export, opened with the host's key alone.
fn receipts_in(export: &str, log: &Vkey, host: &PublicKey) -> Vec<Receipt> {
    let mut lines = export.lines();
    let header = lines.next().unwrap();
    let mut check = BundleVerifier::open(header, std::slice::from_ref(log)).unwrap();
    let mut receipts = Vec::new();
    for line in lines {
        check.line(line).unwrap();
        let Line::Event(entry) = serde_json::from_str(line).unwrap() else {
            continue;
        };
        let body: Value = serde_json::from_str(&entry.body).unwrap();
        let sealed = &body["detail"]["envelope"];
        if sealed.is_null() {
            continue;
        }
        let sealed: SignedEnvelope = serde_json::from_value(sealed.clone()).unwrap();
        assert_eq!(
            envelope::payload_sha256(&sealed).as_deref(),
            body["detail"]["sha256"].as_str()
        );
        receipts.push(receipt::verify(&sealed, Some(host)).unwrap().1);
    }
    check.finish().unwrap();
    receipts
}

#[test]
fn an_export_has_what_hosts_signed_as_they_signed_it() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let vm = launched(&acme, &mut agent, "web");
    let sent = agent.slots.waiting();
    assert!(sent.is_empty(), "all were acknowledged");
    given_back(&acme, &mut agent, "web");
    let listed = acme
        .get(&format!("/v1/vms/{vm}/receipts"))
        .expect(200)
        .json();
    let host = listed["items"][0]["node_public_key"].as_str().unwrap();
    let host = PublicKey::from_base64(host).unwrap();
    let export = acme.get("/v1/audit/export").expect(200);
    let found = receipts_in(&export.text, &log_key(&controller), &host);
    let kinds: Vec<_> = found
        .iter()
        .map(|receipt| match receipt.statement {
            Statement::Claim { .. } => "claim",
            Statement::Release { .. } => "release",
            Statement::Wipe { .. } => "wipe",
            Statement::Approval { .. } | Statement::Quarantine { .. } => "other",
        })
        .collect();
    assert_eq!(kinds, ["claim", "release", "wipe"]);
    assert!(found.iter().all(|receipt| receipt.slot_id == slots[0]));
    // Byte for byte what the list of receipts has.
    for (receipt, item) in found.iter().zip(listed["items"].as_array().unwrap()) {
        let sealed: SignedEnvelope = serde_json::from_value(item["envelope"].clone()).unwrap();
        let opened: Receipt = envelope::open(&[host], RECEIPT_PAYLOAD_TYPE, &sealed).unwrap();
        assert_eq!(*receipt, opened);
    }

    // The same event for everybody: without those whom it is about, and findable by its slot.
    let all = audit_bodies(&controller.admin(), "event_type=SLOT_WIPED");
    let (own, bare) = (&all[0], &all[1]);
    assert_eq!((all.len(), &own["tenant_id"]), (2, &json!("acme")));
    assert_eq!(own["event_id"], bare["event_id"]);
    for member in ["tenant_id", "vm_id", "project_id", "request"] {
        assert!(bare.get(member).is_none_or(Value::is_null), "{bare}");
    }
    let detail = bare["detail"].as_object().unwrap();
    assert!(!detail.contains_key("claim_id") && !detail.contains_key("envelope"));
    assert_eq!(detail["slot_id"], json!(slots[0]));
    assert_eq!(
        (&detail["kind"], &detail["fencing_epoch"]),
        (&json!("wipe"), &json!(1))
    );
    assert_eq!(detail["sha256"], own["detail"]["sha256"]);
    controller.assert_sound();
}
