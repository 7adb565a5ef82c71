//! Slots as operators and tenants handle them.

use berth_api::agent::SignedEnvelope;
use berth_api::ids::SlotId;
use berth_api::slot::{RECEIPT_PAYLOAD_TYPE, Receipt};
use berth_ledger::envelope::open_self_signed;
use berth_tests::simulated_agent::{Host, SimulatedAgent, SlotFault};

use crate::bench::{Answer, Bench};

fn node_with_slots(bench: &Bench, count: usize) -> (SimulatedAgent, Vec<SlotId>) {
    let token = bench.berthctl(&["node", "join-token", "--raw"]);
    let host = Host::new("node-1", 4096);
    let mut agent = SimulatedAgent::enroll(token.expect(0).stdout.trim(), host).unwrap();
    let slots = (0..count).map(|_| agent.slots.add("nvme")).collect();
    agent.settle().unwrap();
    (agent, slots)
}

fn slot(bench: &Bench, arguments: &[&str]) -> Answer {
    let arguments: Vec<&str> = ["slot"].iter().chain(arguments).copied().collect();
    bench.berthctl(&arguments)
}

#[test]
fn a_slot_is_admitted_rented_out_and_proved_clean_in_files() {
    let bench = Bench::start();
    let (mut agent, slots) = node_with_slots(&bench, 1);
    let id = slots[0].to_string();
    slot(&bench, &["list"])
        .expect(0)
        .shows(&id)
        .shows("not_admitted");
    slot(&bench, &["admit", &id]).expect(0).shows("free");
    slot(&bench, &["list", "--state", "free", "--class", "nvme"])
        .expect(0)
        .shows(&id);
    bench.tenant("acme", "2");
    let token = bench.tenant_token("acme");
    let vm = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["vm"].iter().chain(arguments).copied().collect();
        bench.berthctl_as(&token, &arguments)
    };
    let create = [
        "create",
        "web",
        "--image",
        "debian-12",
        "--slot",
        "class=nvme",
    ];
    vm(&create).expect(4).complains("slot_class_not_allowed");
    let update = ["tenant", "update", "acme", "--slot-limit", "nvme=2"];
    bench.berthctl(&update).expect(0).shows("nvme=2");
    bench
        .berthctl_as(&token, &["slot", "classes"])
        .expect(0)
        .shows("nvme   1-3");
    let made = vm(&[&create[..], &["--json"]].concat()).expect(0).json();
    agent.settle().unwrap();
    vm(&["show", "web"]).expect(0).shows(&id).shows("in_use");
    let by_id = format!("id={id}");
    let second = ["create", "db", "--image", "debian-12", "--slot", &by_id];
    vm(&second).expect(8).complains("claim_conflict");
    let two = [
        "create",
        "db",
        "--image",
        "debian-12",
        "--slot",
        "class=nvme",
    ];
    vm(&two).expect(6).complains("slots.nvme.claimed");
    slot(&bench, &["show", &id]).expect(0).shows("acme");

    vm(&["delete", "web"]).expect(0);
    agent.settle().unwrap();
    agent.settle().unwrap();
    let folder = bench.path("receipts");
    let vm_id = made["id"].as_str().unwrap();
    vm(&["receipts", vm_id, "--output-dir", &folder])
        .expect(0)
        .shows("claim")
        .shows("wipe");
    let mut kinds = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let sealed: SignedEnvelope = serde_json::from_str(&text).unwrap();
        let (_, receipt): (_, Receipt) = open_self_signed(RECEIPT_PAYLOAD_TYPE, &sealed).unwrap();
        assert_eq!(receipt.slot_id, slots[0]);
        berth_ledger::receipt::check(&receipt).unwrap();
        kinds.push(receipt.generation);
    }
    assert_eq!(kinds.len(), 3);
    slot(&bench, &["receipts", &id]).expect(0).shows("approval");
}

#[test]
fn a_slot_leaves_quarantine_by_a_wipe() {
    let bench = Bench::start();
    let (mut agent, slots) = node_with_slots(&bench, 1);
    let id = slots[0].to_string();
    slot(&bench, &["admit", &id]).expect(0);
    slot(&bench, &["quarantine", &id])
        .expect(2)
        .complains("--reason");
    slot(&bench, &["quarantine", &id, "--reason", "smells of smoke"])
        .expect(0)
        .shows("smells of smoke");
    slot(&bench, &["wipe", &id]).expect(8);
    agent.settle().unwrap();
    agent.settle().unwrap();
    agent.slots.fault = SlotFault::WipesLast;
    slot(&bench, &["release", &id])
        .expect(0)
        .shows("wipe required:   yes");
    agent.settle().unwrap();
    agent.settle().unwrap();
    slot(&bench, &["show", &id]).expect(0).shows("40");
    agent.slots.finish_wipes();
    agent.settle().unwrap();
    slot(&bench, &["list", "--state", "free"])
        .expect(0)
        .shows(&id);
    slot(&bench, &["show", "slot_x"]).expect(3);
}

#[test]
fn a_tenants_token_opens_no_operators_command() {
    let bench = Bench::start();
    let (_agent, slots) = node_with_slots(&bench, 1);
    bench.tenant("acme", "1");
    let token = bench.tenant_token("acme");
    let id = slots[0].to_string();
    for arguments in [
        vec!["list"],
        vec!["show", &id],
        vec!["admit", &id],
        vec!["wipe", &id],
        vec!["release", &id],
        vec!["quarantine", &id, "--reason", "x"],
        vec!["receipts", &id],
    ] {
        let arguments: Vec<&str> = ["slot"].into_iter().chain(arguments).collect();
        bench.berthctl_as(&token, &arguments).expect(4);
    }
}
