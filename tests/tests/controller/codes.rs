//! The codes of failures on our side: a node that fails, is late or goes away, and a fault of the
//! controller. What callers do wrong is in the files of what they do. `docs/errors.md` names a test
//! for each code.

use std::thread::JoinHandle;

use berth_api::agent::{FailureCode, TaskOutcome};
use berth_tests::simulated_agent::SimulatedAgent;

use crate::harness::{Client, Controller, Reply, vm_body};

const LOG: &str = "/v1/vms/web/console/log";

/// A controller with a VM that runs on a node.
fn running_vm() -> (Controller, SimulatedAgent, Client) {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 1);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    (controller, agent, tenant)
}

/// A console read that the node has in its hands and has not answered.
fn read_in_flight(tenant: &Client, agent: &mut SimulatedAgent) -> JoinHandle<Reply> {
    let reader = tenant.clone();
    let reading = std::thread::spawn(move || reader.get(LOG));
    while agent.sync(30).unwrap() == 0 {}
    reading
}

#[test]
fn a_console_that_its_node_cannot_read_is_the_nodes_error() {
    let (_controller, mut agent, tenant) = running_vm();
    for outcome in [
        TaskOutcome::Failed {
            code: FailureCode::Internal,
            message: "told to fail".to_owned(),
        },
        TaskOutcome::Console {
            offset: 0,
            data: "not base64!".to_owned(),
        },
    ] {
        let reading = read_in_flight(&tenant, &mut agent);
        agent.results.last_mut().unwrap().outcome = outcome;
        agent.settle().unwrap();
        let error = reading.join().unwrap().refused(502, "node_error");
        assert!(!error.to_string().contains("told to fail"), "{error}");
    }
    assert_eq!(
        tenant.get("/v1/vms/web").expect(200).json()["state"],
        "running"
    );
}

#[test]
fn a_console_that_its_node_does_not_read_in_time_is_a_timeout_of_the_node() {
    let (_controller, mut agent, tenant) = running_vm();
    let reading = read_in_flight(&tenant, &mut agent);
    agent.results.clear();
    let error = reading.join().unwrap().refused(504, "node_timeout");
    assert_eq!(error["retryable"], true);
}

#[test]
fn a_controller_that_ends_tells_who_waits_for_a_node_to_come_back() {
    let (mut controller, mut agent, tenant) = running_vm();
    let reading = read_in_flight(&tenant, &mut agent);
    assert!(controller.terminate().success());
    let error = reading.join().unwrap().refused(503, "starting");
    assert_eq!(error["retryable"], true);
}

#[test]
fn a_fault_of_the_controller_tells_its_callers_nothing_but_the_request() {
    let (controller, _agent, tenant) = running_vm();
    controller
        .database()
        .run("UPDATE vm SET labels = 'spoilt in a test'")
        .unwrap();
    let error = tenant.get("/v1/vms/web").refused(500, "internal");
    assert!(!error.to_string().contains("label"), "{error}");
    assert!(error["detail"].as_str().unwrap().contains("request id"));
    controller.await_log("label list");
}
