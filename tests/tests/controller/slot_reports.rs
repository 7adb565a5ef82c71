//! What hosts say of slots, honest or not: reports and receipts.

use std::collections::BTreeSet;

use berth_api::ids::{ClaimId, NodeId, ReceiptId, SlotId};
use berth_api::slot::{
    Claim, DeviceWipe, RECEIPT_PAYLOAD_TYPE, Receipt, SlotAction, SlotHolder, SlotProblem,
    SlotProblemCode, SlotState, Statement, WipeMethod,
};
use berth_ledger::envelope;
use berth_ledger::keys::SigningKey;
use berth_tests::simulated_agent::SlotFault;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, vm_body};
use crate::slots::{body, node_with_slots, one, slot, stands, tenant};

fn quarantine_statement() -> Statement {
    Statement::Quarantine {
        problem: SlotProblem {
            code: SlotProblemCode::OperatorRequest,
            message: "for a test".to_owned(),
        },
    }
}

#[test]
fn a_slot_that_its_host_gave_to_somebody_unknown_is_closed() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let vm = acme.post("/v1/vms", &vm_body("plain")).expect(201).json();
    agent.settle().unwrap();
    if let Some(slot) = agent.slots.slots.get_mut(&slots[0]) {
        slot.holder = Some(SlotHolder {
            claim: Claim {
                slot_id: slots[0],
                claim_id: ClaimId::generate(),
                fencing_epoch: 1,
            },
            vm_id: vm["id"].as_str().unwrap().parse().unwrap(),
            tenant_id: "acme".parse().unwrap(),
        });
    }
    agent.slots.enter(slots[0], SlotState::InUse, None);
    agent.sync(0).unwrap();
    let shown = slot(&controller, slots[0]);
    assert_eq!(shown["state"], "quarantined");
    assert_eq!(shown["quarantine"]["by"], "controller");
    assert!(matches!(
        agent.slots.orders.as_slice(),
        [SlotAction::Quarantine { .. }]
    ));
    controller.assert_sound();
}

#[test]
fn a_host_speaks_of_its_own_slots_alone() {
    let controller = Controller::start();
    let (mut honest, slots) = node_with_slots(&controller, 1);
    let mut liar = controller.agent("node-2", 64 * 1024);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 2 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    honest.settle().unwrap();
    let before = slot(&controller, slots[0]);

    let mut stolen = honest.slots.slots[&slots[0]].clone();
    stolen.state = SlotState::Free;
    stolen.generation += 10;
    liar.slots.slots.insert(slots[0], stolen.clone());
    liar.slots.state(
        slots[0],
        stolen.holder.clone(),
        Statement::Wipe {
            devices: Vec::new(),
        },
    );
    liar.settle().unwrap();
    liar.sync(0).unwrap();
    assert_eq!(slot(&controller, slots[0]), before);
    let denied = audit_bodies(&controller.admin(), "event_type=SLOT_REPORT_DENIED");
    let codes: BTreeSet<_> = denied.iter().map(|d| d["code"].as_str().unwrap()).collect();
    assert_eq!(denied.len(), 2, "each is written down once");
    assert_eq!(codes, BTreeSet::from(["slot_of_another_node"]));

    // Nonsense, and words from the past.
    liar.slots.slots.clear();
    let own = liar.slots.add("nvme");
    liar.slots.slots.get_mut(&own).unwrap().generation = u64::MAX;
    liar.sync(0).unwrap();
    let path = format!("/v1/slots/{own}");
    controller.admin().get(&path).refused(404, "not_found");
    let mut past = honest.slots.slots[&slots[0]].clone();
    past.state = SlotState::Free;
    past.holder = None;
    past.generation -= 1;
    let now = honest.slots.slots.insert(slots[0], past);
    honest.sync(0).unwrap();
    assert_eq!(slot(&controller, slots[0])["host_state"], "in_use");
    honest.sync(0).unwrap();
    let denied = audit_bodies(&controller.admin(), "event_type=SLOT_REPORT_DENIED");
    let codes: Vec<_> = denied.iter().map(|d| d["code"].as_str().unwrap()).collect();
    assert_eq!(
        codes[2..],
        ["not_believable", "unknown_slot", "older_than_known"]
    );
    honest.slots.slots.insert(slots[0], now.unwrap());
    honest.settle().unwrap();
    controller.assert_sound();
}

#[test]
fn a_forged_receipt_is_refused_once_and_proves_nothing() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    agent.settle().unwrap();
    agent.slots.fault = SlotFault::WipesLast;
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    // The wipe goes on; somebody writes a proof of its end.
    agent.slots.finish_wipes();
    agent.slots.fault = SlotFault::WipesAreSkipped;
    let honest = agent.slots.receipts.clone();
    let wipe = agent.slots.waiting().remove(0);
    assert!(matches!(wipe.statement, Statement::Wipe { .. }));
    let thief = SigningKey::generate().unwrap();
    let of_thief = envelope::seal(&thief, RECEIPT_PAYLOAD_TYPE, &wipe).unwrap();
    let of_other_node = agent.slots.seal(&Receipt {
        node_id: NodeId::generate(),
        receipt_id: ReceiptId::generate(),
        ..wipe.clone()
    });
    let mut changed = honest[0].clone();
    changed.signatures[0].sig = of_thief.signatures[0].sig.clone();
    agent.slots.receipts = vec![of_thief, of_other_node, changed];
    let sent = agent.slots.receipts.clone();
    agent.settle().unwrap();
    agent.slots.receipts = sent;
    agent.settle().unwrap();
    assert_eq!(
        audit_bodies(&controller.admin(), "event_type=SLOT_REPORT_DENIED").len(),
        2,
        "two payloads, each once"
    );
    assert_eq!(audit_bodies(&acme, "event_type=SLOT_WIPED").len(), 0);
    assert_eq!(slot(&controller, slots[0])["claimable"], false);
    agent.slots.receipts = honest;
    agent.settle().unwrap();
    assert_eq!(slot(&controller, slots[0])["claim"], Value::Null);
    stands(&controller, slots[0], "free", Value::Null);
    controller.assert_sound();
}

#[test]
fn a_wipe_that_found_something_or_left_a_device_out_proves_nothing() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    agent.settle().unwrap();
    acme.delete("/v1/vms/web").expect(202);
    assert_eq!(agent.sync(0).unwrap(), 1);
    let honest = agent.slots.waiting();
    let wipe = honest.last().unwrap();
    let with = |change: &dyn Fn(&mut Vec<DeviceWipe>)| {
        let mut changed = wipe.clone();
        changed.receipt_id = ReceiptId::generate();
        if let Statement::Wipe { devices } = &mut changed.statement {
            change(devices);
        }
        agent.slots.seal(&changed)
    };
    let lies = vec![
        with(&|wipes| wipes.clear()),
        with(&|wipes| wipes[0].read_back.bytes_wrong = 1),
        with(&|wipes| wipes[0].read_back.bytes_read = 0),
        with(&|wipes| wipes[0].completion.clear()),
        with(&|wipes| wipes[0].method = WipeMethod::Reset),
        with(&|wipes| wipes[0].identity.path.push('x')),
    ];
    agent.slots.fault = SlotFault::WipesAreSkipped;
    agent.slots.receipts = lies;
    agent.settle().unwrap();
    let denied = audit_bodies(&controller.admin(), "event_type=SLOT_REPORT_DENIED");
    assert_eq!(denied.len(), 6);
    assert!(
        denied
            .iter()
            .all(|d| d["code"] == "statement_does_not_hold")
    );
    assert_eq!(audit_bodies(&acme, "event_type=SLOT_WIPED").len(), 0);
    stands(&controller, slots[0], "releasing", json!("wiping"));
    controller.assert_sound();
}

#[test]
fn receipts_reach_the_owner_of_the_vm_that_they_name_and_nobody_else() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 2);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let other = tenant(&controller, "other", &json!({ "nvme": 1 }));
    let of_slot = |id: SlotId| json!([{ "slot_id": id }]);
    let vm = acme
        .post("/v1/vms", &body("web", &of_slot(slots[0])))
        .expect(201)
        .json();
    other
        .post("/v1/vms", &body("web", &of_slot(slots[1])))
        .expect(201);
    agent.settle().unwrap();
    let path = format!("/v1/vms/{}/receipts", vm["id"].as_str().unwrap());
    other.get(&path).refused(404, "not_found");
    let count = |client: &Client, path: &str| {
        let page = client.get(path).expect(200).json();
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(count(&acme, &path), 1);
    assert_eq!(count(&other, "/v1/vms/web/receipts"), 1);
    // A host cannot put its words before a tenant under a claim of another slot.
    let holder = agent.slots.slots[&slots[0]].holder.clone();
    agent.slots.state(slots[1], holder, quarantine_statement());
    agent.settle().unwrap();
    assert_eq!(count(&acme, &path), 1);
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    assert_eq!(count(&acme, &path), 3, "of a VM that is gone, too");
    assert_eq!(count(&controller.admin(), &path), 3);
    acme.get("/v1/vms/web/receipts").refused(404, "not_found");
    let shown = slot(&controller, slots[0]);
    assert_eq!(shown["receipts"].as_array().unwrap().len(), 4);
    assert_eq!(shown["receipts"][0]["kind"], "wipe");
}

#[test]
fn a_claim_is_above_whatever_its_host_has_seen() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    if let Some(slot) = agent.slots.slots.get_mut(&slots[0]) {
        slot.fencing_epoch = 41;
    }
    agent.settle().unwrap();
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    agent.settle().unwrap();
    assert_eq!(agent.slots.slots[&slots[0]].fencing_epoch, 42);
    assert_eq!(
        acme.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
}
