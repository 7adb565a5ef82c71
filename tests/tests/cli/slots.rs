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

/// A tenant with a VM that has a slot, launched.
fn tenant_with_slot(bench: &Bench, agent: &mut SimulatedAgent, tenant: &str) -> String {
    bench.tenant(tenant, "2");
    let update = ["tenant", "update", tenant, "--slot-limit", "nvme=2"];
    bench.berthctl(&update).expect(0);
    let token = bench.tenant_token(tenant);
    let create = [
        "vm",
        "create",
        "web",
        "--image",
        "debian-12",
        "--slot",
        "class=nvme",
    ];
    bench.berthctl_as(&token, &create).expect(0);
    agent.settle().unwrap();
    token
}

#[test]
fn a_passport_shows_the_next_tenant_the_wipe_without_a_controller() {
    let bench = Bench::start();
    let (mut agent, slots) = node_with_slots(&bench, 1);
    slot(&bench, &["admit", &slots[0].to_string()]).expect(0);
    let first = tenant_with_slot(&bench, &mut agent, "acme");
    bench
        .berthctl_as(&first, &["vm", "delete", "web"])
        .expect(0);
    agent.settle().unwrap();
    agent.settle().unwrap();
    let second = tenant_with_slot(&bench, &mut agent, "other");
    let file = bench.path("web.passport");
    bench
        .berthctl_as(&second, &["vm", "passport", "web", "--output", &file])
        .expect(0)
        .shows("1 slots");
    let printed = bench.berthctl_as(&second, &["vm", "passport", "web"]);
    let head = bench
        .berthctl(&["ledger", "head", "--json"])
        .expect(0)
        .json();
    let key = head["public_key"].as_str().unwrap().to_owned();
    let verify = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["receipt", "verify"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        bench.run(
            "berthctl",
            &[&["--url", "http://127.0.0.1:1"], &arguments[..]].concat(),
        )
    };
    bench.without_controller(|| {
        verify(&[&file, "--log-key", &key])
            .expect(0)
            .shows("wiped")
            .complains("the key that you gave");
        verify(&[&file]).expect(0).complains("--log-key");
        let shown = verify(&[&file, "--log-key", &key, "--json"])
            .expect(0)
            .json();
        assert_eq!(shown[0]["slots"][0]["slot_id"], slots[0].to_string());
        assert_eq!(shown[0]["slots"][0]["was_wiped"], true);
        assert!(shown[0]["slots"][0]["launch"]["host_key"].is_string());
    });
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("acme"));
    assert_eq!(printed.expect(0).json()["format"], "berth-slot-passport/v1");
    // Each of these is refused, and says what is wrong.
    let forged = bench.path("forged.passport");
    let check = |from: &str, to: &str, says: &str| {
        assert!(text.contains(from), "{from} is not in the passport");
        std::fs::write(&forged, text.replacen(from, to, 1)).unwrap();
        verify(&[&forged, "--log-key", &key])
            .expect(1)
            .complains(says);
    };
    check("/e1\\n", "/e2\\n", "log");
    check(
        "fencing_epoch\\\":1",
        "fencing_epoch\\\":7",
        "another event",
    );
    check(
        "fencing_epoch\\\":2",
        "fencing_epoch\\\":7",
        "another event",
    );
    check("passport/v1", "passport/v9", "format");
    check("\"slots\"", "\"slits\"", "reading");
    let stranger = berth_ledger::keys::SigningKey::generate().unwrap().public();
    verify(&[&file, "--log-key", &stranger.to_base64()])
        .expect(1)
        .complains("log's keys");
    verify(&[&file, "--key", &key])
        .expect(2)
        .complains("--log-key");
    bench
        .berthctl_as(&first, &["vm", "passport", "web"])
        .expect(3);
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
