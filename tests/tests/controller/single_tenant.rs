//! `berth-controller init --single-tenant`: one command, and again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::agent::JOIN_TOKEN_PREFIX;
use berth_tests::simulated_agent::{Host, SimulatedAgent, read_join_token};
use serde_json::Value;

use crate::harness::{Controller, audit_bodies, binary, vm_body};
use crate::routes::minted;

const INIT: [&str; 3] = ["init", "--single-tenant", "--json"];

fn said(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn secret(said: &Value, name: &str) -> String {
    let path = Path::new(said["tenant"][name].as_str().unwrap());
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn one_command_makes_an_empty_folder_a_deployment_of_one_tenant() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let init = || {
        let output = Command::new(binary())
            .arg("--config")
            .arg(folder.path().join("controller.toml"))
            .arg("--state-dir")
            .arg(&state)
            .args(INIT)
            .output()
            .unwrap();
        said(&output)
    };
    let first = init();
    assert_eq!(first["tenant"]["tenant_id"], "default");
    let secrets = |said: &Value| ["token_file", "join_token_file"].map(|name| secret(said, name));
    let before = secrets(&first);
    let join = read_join_token(&before[1]).unwrap();
    assert_eq!(join.controller_url, "http://127.0.0.1:9221");
    let again = init();
    assert_eq!(again, first);
    assert_eq!(secrets(&again), before);
}

#[test]
fn a_single_tenant_is_a_tenant_like_any_other_and_init_renews_what_has_expired() {
    let controller = Controller::start();
    let ready = said(&controller.offline(&INIT));
    let token = secret(&ready, "token_file");
    let tenant = controller.with_token(&token);
    let me = tenant.get("/v1/me").expect(200).json();
    assert_eq!(me["tenant_id"], "default");
    tenant.get("/v1/tenants").refused(403, "permission_denied");
    let mut join = read_join_token(&secret(&ready, "join_token_file")).unwrap();
    join.controller_url = controller.url();
    let join = serde_json::to_vec(&join).unwrap();
    let join = format!("{JOIN_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(join));
    let mut agent = SimulatedAgent::enroll(&join, Host::new("node-1", 4096)).unwrap();
    agent.settle().unwrap();
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    let vm = tenant.get("/v1/vms/web").expect(200).json();
    assert_eq!(vm["state"], "running");
    // Again while it serves: nothing is made twice.
    said(&controller.offline(&INIT));
    let admin = controller.admin();
    for event in ["TENANT_CREATED", "JOIN_TOKEN_ISSUED"] {
        let entries = audit_bodies(&admin, &format!("event_type={event}"));
        assert_eq!(entries.len(), 1, "{event}");
        assert_eq!(entries[0]["actor"]["kind"], "operator");
    }
    // What has expired is made anew, and what is gone.
    let file = ready["tenant"]["token_file"].as_str().unwrap();
    std::fs::write(file, minted(&controller, "default", 1_000_000_100, None)).unwrap();
    std::fs::remove_file(ready["tenant"]["join_token_file"].as_str().unwrap()).unwrap();
    let renewed = said(&controller.offline(&INIT));
    assert_eq!(renewed, ready);
    let other = secret(&renewed, "token_file");
    assert_ne!(other, token);
    controller.with_token(&other).get("/v1/vms").expect(200);
    read_join_token(&secret(&renewed, "join_token_file")).unwrap();
    controller.assert_sound();
}
