//! VMs are asked for by the operator's named sizes, whose prices are shown.

use serde_json::{Value, json};

use crate::harness::{Controller, audit_bodies, usage_of};

const SETTINGS: &str = r#"
[sizes.tiny]
vcpus = 2
memory_mb = 256
disk_gb = 5
price = { amount = "0.0150", currency = "EUR", per = "hour" }
[sizes.wide]
vcpus = 4
memory_mb = 512
disk_gb = 8
[slot_classes.nvme]
price = { amount = "3", currency = "USD", per = "day" }
"#;

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect()
}

#[test]
fn a_vm_of_a_named_size_gets_what_the_size_stands_for() {
    let controller = Controller::serve_configured(SETTINGS, "127.0.0.1:0");
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    let sizes = tenant.get("/v1/sizes").expect(200).json();
    assert_eq!(names(&sizes), ["tiny", "wide"]);
    let price = json!({ "amount": "0.0150", "currency": "EUR", "per": "hour" });
    assert_eq!(sizes["items"][0]["price"], price);
    assert!(sizes["items"][1].get("price").is_none());
    let first = tenant.get("/v1/sizes?limit=1").expect(200).json();
    let next = first["next_page_token"].as_str().unwrap();
    let rest = tenant
        .get(&format!("/v1/sizes?page_token={next}"))
        .expect(200);
    assert_eq!(names(&rest.json()), ["wide"]);

    let asked = json!({ "name": "web", "image": "debian-12", "size": "tiny" });
    let made = tenant.post("/v1/vms", &asked).expect(201).json();
    let numbers = [&made["vcpus"], &made["memory_mb"], &made["disk_gb"]];
    assert_eq!(numbers, [&json!(2), &json!(256), &json!(5)]);
    agent.settle().unwrap();
    let shown = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(
        (&shown["size"], &shown["state"]),
        (&json!("tiny"), &json!("running"))
    );
    assert_eq!(usage_of(&tenant, "vcpus")["used"], 2);
    let accepted = audit_bodies(&tenant, "event_type=VM_CREATE_ACCEPTED");
    assert_eq!(accepted[0]["detail"]["size"], "tiny");

    let larger = json!({ "name": "db", "image": "debian-12", "size": "tiny", "disk_gb": 9 });
    let made = tenant.post("/v1/vms", &larger).expect(201).json();
    assert_eq!(
        (&made["size"], &made["disk_gb"]),
        (&json!("tiny"), &json!(9))
    );
    let plain = json!({ "name": "plain", "image": "debian-12", "memory_mb": 128 });
    let made = tenant.post("/v1/vms", &plain).expect(201).json();
    assert!(made.get("size").is_none());
}

#[test]
fn a_size_that_says_too_much_or_nothing_is_refused_by_its_field() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let sizes = tenant.get("/v1/sizes").expect(200).json();
    assert_eq!(names(&sizes), ["large", "medium", "small"]);
    let refuse = |field: &str, more: Value| {
        let mut asked = json!({ "image": "debian-12", "size": "small" });
        asked
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        for path in ["/v1/vms", "/v1/vms?dry_run=plan"] {
            let body = tenant.post(path, &asked).refused(400, "invalid_request");
            assert!(body["fields"][field].is_string(), "{body}");
        }
        tenant.post("/v1/vms", &asked).json()["error"].to_string()
    };
    refuse("vcpus", json!({ "vcpus": 1 }));
    refuse("memory_mb", json!({ "memory_mb": 2048 }));
    let told = refuse("size", json!({ "size": "huge" }));
    assert!(told.contains("large, medium, small"), "{told}");
    assert!(audit_bodies(&tenant, "event_type=VM_CREATE_ACCEPTED").is_empty());
}
