//! Slots as the controller keeps them: one tenant at a time, and none before the last one's traces
//! are proved gone.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::agent::SignedEnvelope;
use berth_api::ids::{NodeId, SlotId};
use berth_api::slot::{RECEIPT_PAYLOAD_TYPE, Receipt, SlotAction, SlotProblemCode, SlotState};
use berth_ledger::envelope;
use berth_ledger::keys::PublicKey;
use berth_tests::simulated_agent::{SimulatedAgent, SlotFault};
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply, audit_bodies, tenant_body, usage_of, vm_body};

pub(crate) fn tenant(controller: &Controller, id: &str, limits: &Value) -> Client {
    let mut record = tenant_body(id, 100);
    record["slot_limits"] = limits.clone();
    controller.admin().post("/v1/tenants", &record).expect(201);
    controller.token(id, "service:tenant-admin")
}

/// A node with so many slots of class `nvme`, admitted.
pub(crate) fn node_with_slots(
    controller: &Controller,
    count: usize,
) -> (SimulatedAgent, Vec<SlotId>) {
    let mut agent = controller.agent("node-1", 64 * 1024);
    let slots: Vec<SlotId> = (0..count).map(|_| agent.slots.add("nvme")).collect();
    agent.settle().unwrap();
    for slot in &slots {
        act(controller, *slot, "approve").expect(200);
    }
    (agent, slots)
}

fn act(controller: &Controller, slot: SlotId, verb: &str) -> Reply {
    controller
        .admin()
        .post(&format!("/v1/slots/{slot}/{verb}"), &json!({}))
}

pub(crate) fn slot(controller: &Controller, id: SlotId) -> Value {
    controller
        .admin()
        .get(&format!("/v1/slots/{id}"))
        .expect(200)
        .json()
}

#[track_caller]
pub(crate) fn stands(controller: &Controller, id: SlotId, state: &str, obstacle: Value) {
    let shown = slot(controller, id);
    assert_eq!(
        (&shown["state"], &shown["obstacle"]),
        (&json!(state), &obstacle),
        "{shown}"
    );
    assert_eq!(shown["claimable"], json!(obstacle.is_null()));
}

pub(crate) fn body(name: &str, slots: &Value) -> Value {
    let mut body = vm_body(name);
    body["slots"] = slots.clone();
    body
}

pub(crate) fn one() -> Value {
    json!([{ "class": "nvme" }])
}

pub(crate) fn used(client: &Client) -> Value {
    usage_of(client, "slots.nvme")["used"].clone()
}

#[test]
fn a_slot_is_claimed_given_back_wiped_and_claimed_again() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let other = tenant(&controller, "other", &json!({ "nvme": 1 }));

    let vm = acme
        .post("/v1/vms", &body("web", &one()))
        .expect(201)
        .json();
    assert_eq!(vm["slots"][0]["slot_id"], json!(slots[0]), "{vm}");
    assert_eq!(used(&acme), 1);
    stands(&controller, slots[0], "claimed", json!("claimed"));
    agent.settle().unwrap();
    let vm = acme.get("/v1/vms/web").expect(200).json();
    assert_eq!(vm["state"], "running");
    assert_eq!(vm["slots"][0]["state"], "in_use");
    let refused = other
        .post("/v1/vms", &body("db", &one()))
        .refused(503, "no_capacity");
    assert_eq!(refused["reasons"], json!({ "slots.nvme.claimed": 1 }));

    agent.slots.fault = SlotFault::WipesLast;
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    // The tenant is gone from it, and still nobody gets it.
    assert_eq!(used(&acme), 0);
    stands(&controller, slots[0], "wiping", json!("wiping"));
    assert_eq!(slot(&controller, slots[0])["progress_percent"], 40);
    let refused = other
        .post("/v1/vms", &body("db", &one()))
        .refused(503, "no_capacity");
    assert_eq!(refused["reasons"], json!({ "slots.nvme.wiping": 1 }));

    agent.slots.finish_wipes();
    agent.settle().unwrap();
    stands(&controller, slots[0], "free", Value::Null);
    let vm = other
        .post("/v1/vms", &body("db", &one()))
        .expect(201)
        .json();
    agent.settle().unwrap();
    assert_eq!(
        other.get("/v1/vms/db").expect(200).json()["state"],
        "running"
    );
    assert_eq!(agent.slots.slots[&slots[0]].fencing_epoch, 2);
    assert_eq!(vm["slots"][0]["slot_id"], json!(slots[0]));
    controller.assert_sound();
}

#[test]
fn every_step_of_a_claim_is_in_the_ledger_with_its_receipts_digest() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let vm = acme
        .post("/v1/vms", &body("web", &one()))
        .expect(201)
        .json();
    agent.settle().unwrap();
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    let id = vm["id"].as_str().unwrap();
    let told: Vec<_> = audit_bodies(&acme, &format!("vm_id={id}"))
        .iter()
        .map(|entry| entry["event_type"].as_str().unwrap().to_owned())
        .filter(|event| event.starts_with("SLOT_"))
        .collect();
    assert_eq!(
        told,
        [
            "SLOT_CLAIMED",
            "SLOT_RECEIPT_STORED",
            "SLOT_RECEIPT_STORED",
            "SLOT_WIPED",
            "SLOT_RELEASED"
        ]
    );
    let admin = controller.admin();
    assert_eq!(audit_bodies(&admin, "event_type=SLOT_DISCOVERED").len(), 1);
    assert_eq!(audit_bodies(&admin, "event_type=SLOT_APPROVED").len(), 1);
    let wiped = &audit_bodies(&acme, "event_type=SLOT_WIPED")[0];
    let receipts = acme
        .get(&format!("/v1/vms/{id}/receipts"))
        .expect(200)
        .json();
    let kinds: Vec<_> = receipts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|receipt| receipt["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["claim", "release", "wipe"]);
    let wipe = &receipts["items"][2];
    assert_eq!(wipe["sha256"], wiped["detail"]["sha256"]);
    // What the tenant gets can be checked without us.
    let key = PublicKey::from_base64(wipe["node_public_key"].as_str().unwrap()).unwrap();
    let sealed: SignedEnvelope = serde_json::from_value(wipe["envelope"].clone()).unwrap();
    let receipt: Receipt = envelope::open(&[key], RECEIPT_PAYLOAD_TYPE, &sealed).unwrap();
    assert_eq!(receipt.slot_id, slots[0]);
    assert_eq!(receipt.holder.unwrap().vm_id.to_string(), id);
    controller.assert_sound();
}

fn statuses(clients: &[Client], count: usize) -> BTreeMap<u16, usize> {
    let threads: Vec<_> = (0..count)
        .map(|n| {
            let client = clients[n % clients.len()].clone();
            std::thread::spawn(move || {
                client
                    .post("/v1/vms", &body(&format!("vm-{n}"), &one()))
                    .status
            })
        })
        .collect();
    let mut statuses = BTreeMap::new();
    for thread in threads {
        *statuses.entry(thread.join().unwrap()).or_default() += 1;
    }
    statuses
}

#[test]
fn concurrent_creates_on_two_controllers_claim_each_free_slot_exactly_once() {
    let controller = Controller::start();
    let (_agent, slots) = node_with_slots(&controller, 5);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 100 }));
    let second = controller.beside();
    let token = acme.authorization.clone().unwrap();
    let there = second.with_token(token.trim_start_matches("Bearer "));
    let statuses = statuses(&[acme.clone(), there], 24);
    assert_eq!(statuses, BTreeMap::from([(201, 5), (503, 19)]));
    let vms = acme.get("/v1/vms").expect(200).json();
    let claimed: BTreeSet<_> = vms["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| vm["slots"][0]["slot_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(claimed, slots.iter().map(ToString::to_string).collect());
    assert_eq!(used(&acme), 5);
    controller.assert_sound();
}

#[test]
fn a_tenant_has_slots_of_the_classes_that_it_may_use_up_to_their_ceilings() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 3);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 2, "gpu.h100": 1 }));
    let poor = tenant(&controller, "poor", &json!({}));
    poor.post("/v1/vms", &body("web", &one()))
        .refused(403, "slot_class_not_allowed");
    let by_id = json!([{ "slot_id": slots[0] }]);
    poor.post("/v1/vms", &body("web", &by_id))
        .refused(404, "not_found");
    let three = json!([{ "class": "nvme", "count": 3 }]);
    let refused = acme
        .post("/v1/vms", &body("web", &three))
        .refused(429, "quota_exceeded");
    assert_eq!(refused["quota"]["resource"], "slots.nvme");
    assert_eq!(refused["quota"]["requested"], 3);
    let none = json!([{ "class": "gpu.h100" }]);
    let refused = acme
        .post("/v1/vms", &body("web", &none))
        .refused(422, "placement_impossible");
    assert_eq!(refused["reasons"], json!({ "slots.gpu.h100.too_few": 1 }));
    assert_eq!(used(&acme), 0);

    let both = json!([{ "class": "nvme" }, { "slot_id": slots[2] }]);
    let vm = acme.post("/v1/vms", &body("web", &both)).expect(201).json();
    let held = vm["slots"].as_array().unwrap();
    assert_eq!(held.len(), 2);
    assert!(held.iter().any(|slot| slot["slot_id"] == json!(slots[2])));
    agent.settle().unwrap();
    acme.post("/v1/vms", &body("more", &one()))
        .refused(429, "quota_exceeded");

    // Lowered below its use: nothing is taken away, and nothing given.
    let admin = controller.admin();
    let changed = admin
        .send_json(
            "PATCH",
            "/v1/tenants/acme",
            &json!({ "slot_limits": { "gpu.h100": 1 } }),
        )
        .expect(200)
        .json();
    assert_eq!(changed["slot_limits"], json!({ "gpu.h100": 1 }));
    acme.post("/v1/vms", &body("more", &one()))
        .refused(403, "slot_class_not_allowed");
    assert_eq!(
        usage_of(&acme, "slots.nvme"),
        json!({ "resource": "slots.nvme", "limit": 0, "used": 2, "reserved": 0, "remaining": 0,
            "over_limit": true })
    );
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    controller.assert_sound();
    for wrong in [json!({ "NVMe": 1 }), json!({ "nvme": -1 }), json!(["nvme"])] {
        let mut record = tenant_body("bad", 1);
        record["slot_limits"] = wrong;
        admin
            .post("/v1/tenants", &record)
            .refused(400, "invalid_request");
    }
}

#[test]
fn a_slot_needs_its_hosts_approval_and_an_operators_admission() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 64 * 1024);
    let id = agent.slots.add("nvme");
    agent.slots.enter(
        id,
        SlotState::Unapproved,
        Some(SlotProblemCode::SlotNotApproved),
    );
    agent.settle().unwrap();
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let by_id = body("web", &json!([{ "slot_id": id }]));
    act(&controller, id, "approve").refused(403, "slot_not_approved");
    acme.post("/v1/vms", &by_id)
        .refused(403, "slot_not_approved");

    agent.slots.enter(id, SlotState::Free, None);
    agent.settle().unwrap();
    stands(&controller, id, "unapproved", json!("not_admitted"));
    acme.post("/v1/vms", &by_id)
        .refused(403, "slot_not_approved");
    let refused = acme
        .post("/v1/vms", &body("web", &one()))
        .refused(503, "no_capacity");
    assert_eq!(refused["reasons"], json!({ "slots.nvme.not_admitted": 1 }));
    act(&controller, id, "approve").expect(200);
    act(&controller, id, "approve").expect(200);
    assert_eq!(
        audit_bodies(&controller.admin(), "event_type=SLOT_APPROVED").len(),
        1
    );
    stands(&controller, id, "free", Value::Null);

    // Another drive in its place is not what was admitted.
    if let Some(slot) = agent.slots.slots.get_mut(&id) {
        slot.devices[0]
            .identity
            .serials
            .insert("nvme_serial".to_owned(), "other".to_owned());
    }
    agent.settle().unwrap();
    stands(
        &controller,
        id,
        "quarantined",
        json!("device_identity_changed"),
    );
    acme.post("/v1/vms", &by_id)
        .refused(422, "device_identity_changed");
    assert_eq!(
        audit_bodies(&controller.admin(), "event_type=SLOT_DEVICES_CHANGED").len(),
        1
    );
    act(&controller, id, "approve").expect(200);
    acme.post("/v1/vms", &by_id).expect(201);
    controller.assert_sound();
}

#[test]
fn what_is_wrong_with_a_slot_is_what_its_vm_failed_for() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    for (n, code, word) in [
        (0, SlotProblemCode::IommuGroupUnsafe, "iommu_group_unsafe"),
        (
            1,
            SlotProblemCode::DeviceIdentityChanged,
            "device_identity_changed",
        ),
        (2, SlotProblemCode::SlotNotApproved, "slot_not_approved"),
        (3, SlotProblemCode::StaleClaim, "stale_claim"),
    ] {
        let name = format!("vm-{n}");
        acme.post("/v1/vms", &body(&name, &one())).expect(201);
        agent.slots.fault = SlotFault::Claim(code);
        agent.settle().unwrap();
        let vm = acme.get(&format!("/v1/vms/{name}")).expect(200).json();
        assert_eq!(
            (&vm["state"], &vm["state_reason"]["code"]),
            (&json!("failed"), &json!(word)),
            "{vm}"
        );
        let problem = &vm["slots"][0]["problem"];
        assert!(problem.is_null() || problem["code"] == word, "{vm}");
        acme.delete(&format!("/v1/vms/{name}")).expect(202);
        agent.settle().unwrap();
        agent.slots.enter(slots[0], SlotState::Free, None);
        agent.settle().unwrap();
        // Its host never took the claim, so there is nothing to wipe.
        stands(&controller, slots[0], "free", Value::Null);
    }
    agent.slots.enter(
        slots[0],
        SlotState::Quarantined,
        Some(SlotProblemCode::IommuGroupUnsafe),
    );
    agent.settle().unwrap();
    let by_id = json!([{ "slot_id": slots[0] }]);
    acme.post("/v1/vms", &body("web", &by_id))
        .refused(422, "iommu_group_unsafe");
    controller.assert_sound();
}

#[test]
fn a_taken_slot_that_is_asked_for_by_its_id_is_a_conflict() {
    let controller = Controller::start();
    let (_agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 2 }));
    let by_id = json!([{ "slot_id": slots[0] }]);
    acme.post("/v1/vms", &body("web", &by_id)).expect(201);
    acme.post("/v1/vms", &body("db", &by_id))
        .refused(409, "claim_conflict");
    controller.assert_sound();
}

#[test]
fn parts_of_devices_and_fabrics_are_refused_as_shapes() {
    let controller = Controller::start();
    let (_agent, _slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    for (slots, code) in [
        (json!([{ "class": "gpu.mig-1g" }]), "shape_not_supported"),
        (json!([{ "class": "vgpu" }]), "shape_not_supported"),
        (
            json!([{ "class": "gpu", "mig": "1g.5gb" }]),
            "shape_not_supported",
        ),
        (
            json!([{ "class": "gpu", "vgpu_type": "x" }]),
            "shape_not_supported",
        ),
        (
            json!([{ "class": "gpu", "shared": true }]),
            "shape_not_supported",
        ),
        (
            json!([{ "class": "nvme", "fabric": "required" }]),
            "shape_not_supported",
        ),
        (json!([{ "class": "nvme", "size": 1 }]), "unknown_field"),
        (json!([{ "class": "nvme", "count": 0 }]), "invalid_request"),
        (json!([{}]), "invalid_request"),
        (json!([{ "slot_id": "vm_x" }]), "invalid_request"),
    ] {
        acme.post("/v1/vms", &body("web", &slots))
            .refused(400, code);
    }
    assert_eq!(used(&acme), 0);
}

#[test]
fn a_slot_that_is_free_without_a_proof_is_wiped_before_anybody_gets_it() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    agent.settle().unwrap();
    agent.slots.fault = SlotFault::WipesAreSkipped;
    acme.delete("/v1/vms/web").expect(202);
    assert_eq!(agent.sync(0).unwrap(), 1);
    // Its host says that it is free now, with receipts that do not prove it.
    assert_eq!(agent.sync(0).unwrap(), 0);
    assert_eq!(agent.sync(0).unwrap(), 1, "it is told to wipe it");
    stands(&controller, slots[0], "releasing", json!("wiping"));
    assert_eq!(agent.slots.orders, [SlotAction::Wipe {}]);
    agent.settle().unwrap();
    // That wipe was skipped as well: it is not ordered for ever, and the slot stays closed.
    assert_eq!(agent.slots.orders.len(), 1);
    stands(&controller, slots[0], "releasing", json!("wiping"));
    agent.slots.fault = SlotFault::None;
    act(&controller, slots[0], "wipe").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    stands(&controller, slots[0], "free", Value::Null);
    controller.assert_sound();
}

#[test]
fn a_claim_that_its_host_never_heard_of_ends_with_its_vm() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    stands(&controller, slots[0], "free", Value::Null);
    assert_eq!(agent.slots.slots[&slots[0]].fencing_epoch, 0);
    assert_eq!(
        audit_bodies(&acme, "event_type=SLOT_RELEASED")[0]["detail"]["because"],
        "host_never_heard_of_it"
    );
    // The next claim is above the one that nobody saw.
    acme.post("/v1/vms", &body("db", &one())).expect(201);
    agent.settle().unwrap();
    assert_eq!(agent.slots.slots[&slots[0]].fencing_epoch, 2);
    controller.assert_sound();
}

#[test]
fn a_wipe_that_fails_costs_the_operator_and_not_the_tenant() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 2);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let by_id = json!([{ "slot_id": slots[0] }]);
    acme.post("/v1/vms", &body("web", &by_id)).expect(201);
    agent.settle().unwrap();
    agent.slots.fault = SlotFault::WipesFail;
    acme.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    agent.slots.fault = SlotFault::None;
    assert_eq!(used(&acme), 0);
    stands(&controller, slots[0], "quarantined", json!("quarantined"));
    let shown = slot(&controller, slots[0]);
    assert_eq!(shown["problem"]["code"], "wipe_failed");
    assert_eq!(shown["claim"]["charged"], false);
    let told = audit_bodies(&controller.admin(), "event_type=SLOT_QUARANTINED");
    assert_eq!(told[0]["code"], "wipe_failed");
    // The next VM goes elsewhere.
    let vm = acme.post("/v1/vms", &body("db", &one())).expect(201).json();
    assert_eq!(vm["slots"][0]["slot_id"], json!(slots[1]));
    act(&controller, slots[0], "wipe").refused(409, "invalid_state");
    act(&controller, slots[0], "release-quarantine").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    stands(&controller, slots[0], "free", Value::Null);
    controller.assert_sound();
}

#[test]
fn a_quarantine_is_left_by_a_wipe_alone() {
    let mut controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    let id = slots[0];
    let path = format!("/v1/slots/{id}/quarantine");
    let admin = controller.admin();
    for wrong in [
        json!({}),
        json!({ "reason": "" }),
        json!({ "reason": "a\nb" }),
    ] {
        admin.post(&path, &wrong).refused(400, "invalid_request");
    }
    act(&controller, id, "release-quarantine").refused(409, "invalid_state");
    let why = json!({ "reason": "smells of smoke" });
    let shown = admin.post(&path, &why).expect(202).json();
    assert_eq!(shown["quarantine"]["reason"], "smells of smoke");
    // At once, before its host has heard of it.
    stands(&controller, id, "quarantined", json!("quarantined"));
    acme.post("/v1/vms", &body("web", &one()))
        .refused(503, "no_capacity");
    // And released before its host has heard of it: still no way to free but the wipe.
    act(&controller, id, "release-quarantine").expect(202);
    controller.kill_and_restart();
    stands(&controller, id, "wiping", json!("wiping"));
    acme.post("/v1/vms", &body("web", &one()))
        .refused(503, "no_capacity");
    agent.settle().unwrap();
    agent.settle().unwrap();
    assert_eq!(agent.slots.orders, [SlotAction::Wipe {}]);
    stands(&controller, id, "free", Value::Null);

    admin.post(&path, &why).expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    assert_eq!(slot(&controller, id)["host_state"], "quarantined");
    agent.slots.fault = SlotFault::WipesLast;
    act(&controller, id, "release-quarantine").expect(202);
    agent.settle().unwrap();
    agent.settle().unwrap();
    stands(&controller, id, "wiping", json!("wiping"));
    agent.slots.finish_wipes();
    agent.settle().unwrap();
    stands(&controller, id, "free", Value::Null);
    controller.assert_sound();
}

#[test]
fn a_slot_with_a_vm_is_neither_wiped_nor_released_from_quarantine() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    act(&controller, slots[0], "wipe").refused(409, "invalid_state");
    agent.settle().unwrap();
    act(&controller, slots[0], "wipe").refused(409, "invalid_state");
    let path = format!("/v1/slots/{}/quarantine", slots[0]);
    let why = json!({ "reason": "noise" });
    controller.admin().post(&path, &why).expect(202);
    act(&controller, slots[0], "release-quarantine").refused(409, "invalid_state");
    assert_eq!(
        acme.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
    assert_eq!(used(&acme), 1);
}

#[test]
fn the_controller_may_be_killed_between_any_two_steps() {
    let mut controller = Controller::start();
    let mut agent = controller.agent("node-1", 64 * 1024);
    let id = agent.slots.add("nvme");
    let step = |controller: &mut Controller, agent: &mut SimulatedAgent| {
        controller.kill_and_restart();
        agent.sync(0).unwrap();
        controller.kill_and_restart();
        agent.sync(0).unwrap();
    };
    step(&mut controller, &mut agent);
    act(&controller, id, "approve").expect(200);
    step(&mut controller, &mut agent);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    acme.post("/v1/vms", &body("web", &one())).expect(201);
    step(&mut controller, &mut agent);
    assert_eq!(
        acme.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
    agent.slots.fault = SlotFault::WipesLast;
    acme.delete("/v1/vms/web").expect(202);
    step(&mut controller, &mut agent);
    stands(&controller, id, "wiping", json!("wiping"));
    assert_eq!(used(&acme), 0);
    agent.slots.finish_wipes();
    step(&mut controller, &mut agent);
    stands(&controller, id, "free", Value::Null);
    acme.post("/v1/vms", &body("db", &one())).expect(201);
    step(&mut controller, &mut agent);
    assert_eq!(
        acme.get("/v1/vms/db").expect(200).json()["state"],
        "running"
    );
    assert_eq!(agent.slots.slots[&id].fencing_epoch, 2);
    controller.assert_sound();
}

#[test]
fn slots_are_listed_by_state_class_and_node_and_classes_without_exact_numbers() {
    let controller = Controller::start();
    let (mut agent, slots) = node_with_slots(&controller, 5);
    agent.slots.add("gpu.h100");
    agent.settle().unwrap();
    let acme = tenant(
        &controller,
        "acme",
        &json!({ "nvme": 2, "gpu.h100": 1, "fpga": 1 }),
    );
    let admin = controller.admin();
    let list = |query: &str| {
        let page = admin.get(&format!("/v1/slots?{query}")).expect(200).json();
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(list(""), 6);
    assert_eq!(list("state=free"), 5);
    assert_eq!(list("state=unapproved&class=gpu.h100"), 1);
    assert_eq!(list(&format!("node={}", agent.node_id)), 6);
    assert_eq!(list(&format!("node={}", NodeId::generate())), 0);
    admin
        .get("/v1/slots?state=gone")
        .refused(400, "invalid_request");
    let page = admin.get("/v1/slots?limit=4&state=free").expect(200).json();
    let next = page["next_page_token"].as_str().unwrap();
    assert_eq!(list(&format!("limit=4&state=free&page_token={next}")), 1);
    assert_eq!(
        acme.get("/v1/slot-classes").expect(200).json()["items"],
        json!([
            { "class": "fpga", "available": "0" },
            { "class": "gpu.h100", "available": "0" },
            { "class": "nvme", "available": "4+" },
        ])
    );
    let two = json!([{ "class": "nvme", "count": 2 }]);
    let vm = acme.post("/v1/vms", &body("web", &two)).expect(201).json();
    assert_eq!(
        admin.get("/v1/slot-classes").expect(200).json()["items"],
        json!([
            { "class": "gpu.h100", "available": "0", "free": 0, "total": 1 },
            { "class": "nvme", "available": "1-3", "free": 3, "total": 5 },
        ])
    );
    // A slot that its host does not speak of any more is nobody's to have.
    let held: Vec<_> = vm["slots"].as_array().unwrap().iter().collect();
    let gone = slots
        .iter()
        .find(|id| held.iter().all(|slot| slot["slot_id"] != json!(id)))
        .unwrap();
    agent.slots.slots.remove(gone);
    agent.sync(0).unwrap();
    assert_eq!(slot(&controller, *gone)["obstacle"], "missing");
    controller.assert_sound();
}

#[test]
fn a_vm_with_slots_waits_for_no_silent_host() {
    let controller = Controller::start();
    let (_agent, _slots) = node_with_slots(&controller, 1);
    let acme = tenant(&controller, "acme", &json!({ "nvme": 1 }));
    controller.age_nodes();
    let refused = acme
        .post("/v1/vms", &body("web", &one()))
        .refused(503, "no_capacity");
    assert_eq!(refused["reasons"], json!({ "node_silent": 1 }));
    assert_eq!(used(&acme), 0);
}
