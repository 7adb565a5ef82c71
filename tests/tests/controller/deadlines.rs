//! States that a VM leaves by itself have deadlines; passing one is shown and told, once.

use serde_json::json;

use crate::harness::{Controller, audit_bodies, vm_body};

/// As if every VM had been in its state for two hours.
fn age(controller: &Controller) {
    controller
        .database()
        .run(
            "UPDATE vm SET state_since = state_since - 7200000,
             state_deadline = state_deadline - 7200000",
        )
        .unwrap();
}

#[test]
fn a_vm_that_does_not_leave_its_state_in_time_is_overdue_and_told_once() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 2);
    let made = tenant.post("/v1/vms", &vm_body("web")).expect(201).json();
    assert_eq!(made["overdue"], false);
    assert!(made["state_deadline"].as_str() > made["state_since"].as_str());
    let mut events = tenant.follow("/v1/events?since=0&types=VM_OVERDUE", &[]);
    age(&controller);
    let heard = events
        .by_ref()
        .find(|line| line.starts_with("data:"))
        .unwrap();
    assert!(heard.contains(made["id"].as_str().unwrap()), "{heard}");
    let late = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(
        (&late["state"], &late["overdue"]),
        (&json!("scheduling"), &json!(true))
    );

    let page = controller.admin().get("/metrics").expect(200).text;
    let line = r#"berth_vm_state_overdue{state="scheduling"} 1"#;
    assert!(page.lines().any(|found| found == line), "{page}");

    agent.settle().unwrap();
    let running = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(running["state"], "running");
    assert_eq!(running["overdue"], false);
    assert!(running["state_deadline"].is_null());

    // Late once more, and gone all the same.
    let deleting = tenant.delete("/v1/vms/web").expect(202).json();
    age(&controller);
    let heard = events.find(|line| line.starts_with("data:")).unwrap();
    assert!(heard.contains("VM_OVERDUE"), "{heard}");
    let late = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(
        (&late["state"], &late["overdue"]),
        (&json!("deleting"), &json!(true))
    );
    let again = tenant.delete("/v1/vms/web").expect(202).json();
    assert_eq!(again["id"], deleting["id"]);
    agent.settle().unwrap();
    tenant.get("/v1/vms/web").refused(404, "not_found");
    let told: Vec<_> = audit_bodies(&tenant, "event_type=VM_OVERDUE")
        .iter()
        .map(|body| body["detail"]["state"].clone())
        .collect();
    assert_eq!(told, [json!("scheduling"), json!("deleting")]);
    controller.assert_sound();
}

#[test]
fn a_stop_has_the_time_that_its_tenant_gave_it_and_a_hard_one_less() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    agent.deaf = true;
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    let deadline = || {
        let vm = tenant.get("/v1/vms/web").expect(200).json();
        vm["state_deadline"].as_str().unwrap().to_owned()
    };
    let slow = json!({ "mode": "graceful", "timeout_s": 3600 });
    tenant.post("/v1/vms/web/stop", &slow).expect(202);
    let patient = deadline();
    tenant
        .post("/v1/vms/web/stop", &json!({ "mode": "hard" }))
        .expect(202);
    assert!(deadline() < patient, "{} {patient}", deadline());
}
