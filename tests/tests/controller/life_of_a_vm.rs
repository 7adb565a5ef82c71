//! From accepted to gone, as a tenant sees it.

use berth_api::agent::{FailureCode, ObservedState, StoppedReason};
use serde_json::{Value, json};

use crate::harness::{Client, Controller, audit_bodies, vm_body};

fn used_vms(client: &Client) -> Value {
    client.get("/v1/usage").expect(200).json()["items"][0]["used"].clone()
}

fn types(client: &Client, vm: &str) -> Vec<String> {
    audit_bodies(client, &format!("vm_id={vm}"))
        .iter()
        .map(|body| body["event_type"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_vm_is_made_stopped_started_and_deleted() {
    let controller = Controller::start();
    let running = controller.agent("node-1", 4096).run();
    let tenant = controller.tenant("acme", 1);
    let vm = tenant
        .post("/v1/vms?wait=running&timeout=20", &vm_body("web"))
        .expect(201)
        .json();
    assert_eq!(vm["state"], "running", "{vm}");
    let id = vm["id"].as_str().unwrap();
    let operation = format!("/v1/operations/{}", vm["operation"].as_str().unwrap());
    assert_eq!(tenant.get(&operation).expect(200).json()["state"], "done");
    assert_eq!(tenant.get("/v1/vms/web").expect(200).json()["id"], vm["id"]);

    let log = tenant.get("/v1/vms/web/console/log").expect(200);
    assert_eq!(log.text, "Welcome to a simulated guest\n");
    assert!(
        log.header("content-type")
            .unwrap()
            .starts_with("text/plain")
    );
    assert_eq!(
        tenant
            .get("/v1/vms/web/console/log?tail=6")
            .expect(200)
            .text,
        "guest\n"
    );

    tenant
        .post("/v1/vms/web/start", &json!({}))
        .refused(409, "invalid_state");
    let stop = tenant
        .post("/v1/vms/web/stop?wait=stopped&timeout=20", &json!({}))
        .expect(202);
    assert_eq!(stop.json()["state"], "done");
    assert!(
        stop.header("location")
            .unwrap()
            .starts_with("/v1/operations/op_")
    );
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "stopped"
    );
    tenant
        .post("/v1/vms/web/start?wait=running&timeout=20", &json!({}))
        .expect(202);
    assert_eq!(
        tenant
            .get("/v1/vms/web/wait?state=running&timeout=0")
            .expect(200)
            .json()["state"],
        "running"
    );
    tenant
        .get("/v1/vms/web/wait?state=stopped&timeout=0")
        .refused(408, "wait_timeout");

    let deleted = tenant
        .delete("/v1/vms/web?wait=deleted&timeout=20")
        .expect(202)
        .json();
    assert_eq!(
        (&deleted["kind"], &deleted["state"]),
        (&json!("delete"), &json!("done"))
    );
    tenant
        .get(&format!("/v1/vms/{id}"))
        .refused(404, "not_found");
    tenant
        .get(&format!("/v1/vms/{id}/wait?state=deleted&timeout=0"))
        .expect(200);
    assert_eq!(used_vms(&tenant), 0);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);

    let agent = running.stop().unwrap();
    // The last create may or may not have reached the agent before it stopped.
    assert!(
        (4..=5).contains(&agent.carried_out),
        "{}",
        agent.carried_out
    );
    assert_eq!(
        types(&tenant, id),
        [
            "VM_CREATE_ACCEPTED",
            "TASK_SIGNED",
            "TASK_COMPLETED",
            "VM_STARTED",
            "VM_STOP_ACCEPTED",
            "TASK_SIGNED",
            "TASK_COMPLETED",
            "VM_STOPPED",
            "VM_START_ACCEPTED",
            "TASK_SIGNED",
            "TASK_COMPLETED",
            "VM_STARTED",
            "VM_DELETE_ACCEPTED",
            "TASK_SIGNED",
            "TASK_COMPLETED",
            "VM_DELETED",
        ]
    );
    controller.assert_sound();
}

#[test]
fn a_delete_is_taken_at_once_from_any_state_and_repeats_are_the_same_operation() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    let first = tenant.delete("/v1/vms/web").expect(202).json();
    let again = tenant.delete("/v1/vms/web").expect(202).json();
    assert_eq!(first["id"], again["id"]);
    assert_eq!(
        used_vms(&tenant),
        1,
        "charged until the node says that it is gone"
    );
    agent.settle().unwrap();
    assert_eq!(
        agent.carried_out, 1,
        "the create was withdrawn before it was sent"
    );
    tenant.delete("/v1/vms/web").refused(404, "not_found");
    assert_eq!(used_vms(&tenant), 0);
    controller.assert_sound();
}

#[test]
fn a_create_that_its_node_cannot_do_fails_with_the_reason() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    agent.fail_next = Some(FailureCode::ImageInvalid);
    let vm = tenant.post("/v1/vms", &vm_body("web")).expect(201).json();
    agent.settle().unwrap();
    let failed = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(failed["state"], "failed");
    assert_eq!(failed["state_reason"]["code"], "image_invalid");
    let operation = format!("/v1/operations/{}", vm["operation"].as_str().unwrap());
    let operation = tenant.get(&operation).expect(200).json();
    assert_eq!(
        (&operation["state"], &operation["error"]["code"]),
        (&json!("failed"), &json!("image_invalid"))
    );
    assert_eq!(used_vms(&tenant), 1);
    tenant.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    assert_eq!(used_vms(&tenant), 0);
}

#[test]
fn what_happens_on_the_host_shows_in_the_vm() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 3);
    for name in ["off", "crash", "lost"] {
        tenant.post("/v1/vms", &vm_body(name)).expect(201);
    }
    agent.settle().unwrap();
    let id = |name: &str| {
        tenant.get(&format!("/v1/vms/{name}")).expect(200).json()["id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    agent.vms.get_mut(&id("off")).unwrap().state = ObservedState::Stopped {
        reason: StoppedReason::GuestShutdown,
    };
    agent.vms.get_mut(&id("crash")).unwrap().state = ObservedState::Failed {
        message: "signal 11".to_owned(),
    };
    agent.vms.remove(&id("lost"));
    agent.sync(0).unwrap();
    for (name, state, code) in [
        ("off", "stopped", "guest_shutdown"),
        ("crash", "failed", "vmm_exit"),
        ("lost", "failed", "vm_lost"),
    ] {
        let vm = tenant.get(&format!("/v1/vms/{name}")).expect(200).json();
        assert_eq!(
            (&vm["state"], &vm["state_reason"]["code"]),
            (&json!(state), &json!(code))
        );
    }
    controller.assert_sound();
}

#[test]
fn a_restarted_host_fails_the_vms_that_ran_on_it() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    agent.boot_id = "second-boot".to_owned();
    agent.vms.values_mut().for_each(|vm| {
        vm.state = ObservedState::Stopped {
            reason: StoppedReason::HostReboot,
        }
    });
    agent.sync(0).unwrap();
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(
        (&vm["state"], &vm["state_reason"]["code"]),
        (&json!("failed"), &json!("host_reboot"))
    );
    tenant.post("/v1/vms/web/start", &json!({})).expect(202);
    agent.settle().unwrap();
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
}

#[test]
fn the_same_request_twice_is_one_vm_and_one_answer() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 5);
    let other = controller.tenant("other", 5);
    let send = |client: &Client, body: &Value| {
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", "order-7"),
        ];
        client.send("POST", "/v1/vms", &headers, Some(&body.to_string()))
    };
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let tenant = tenant.clone();
            std::thread::spawn(move || {
                let headers = [
                    ("content-type", "application/json"),
                    ("idempotency-key", "order-7"),
                ];
                tenant.send(
                    "POST",
                    "/v1/vms",
                    &headers,
                    Some(&vm_body("web").to_string()),
                )
            })
        })
        .collect();
    let replies: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap().expect(201))
        .collect();
    assert!(replies.iter().all(|reply| reply.text == replies[0].text));
    let fresh = replies
        .iter()
        .filter(|reply| reply.header("idempotency-replayed").is_none());
    assert_eq!(fresh.count(), 1);
    assert_eq!(used_vms(&tenant), 1);
    send(&tenant, &vm_body("another")).refused(409, "idempotency_conflict");
    send(&other, &vm_body("theirs")).expect(201);
    assert_eq!(
        audit_bodies(&tenant, "event_type=VM_CREATE_ACCEPTED").len(),
        1
    );
    controller.assert_sound();
}
