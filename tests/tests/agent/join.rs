//! `berth-agent join`, and what does not become a node.

use std::os::unix::fs::PermissionsExt as _;

use crate::controller::Controller;
use crate::host::{Host, now, token};

#[track_caller]
fn refused(host: &Host, arguments: &[&str], words: &str) {
    let answer = host.run(arguments);
    assert_eq!(answer.status, Some(1), "{}", answer.stderr);
    assert!(answer.stderr.contains(words), "{}", answer.stderr);
    assert_eq!(answer.stdout, "");
    assert!(!host.path("state/node.json").exists());
}

#[test]
fn each_bad_token_is_refused_with_its_remedy() {
    let host = Host::new();
    let soon = now() + 600;
    refused(
        &host,
        &["join", "secret"],
        "get one with: berthctl node join-token",
    );
    refused(
        &host,
        &["join", &token("http://127.0.0.1:1", now() - 60)],
        "the token expired 6",
    );
    refused(
        &host,
        &["join", &token("http://192.0.2.1:9221", soon)],
        "plain http is allowed to a loopback address only",
    );
    refused(
        &host,
        &["join", &token("https://berth.example", soon)],
        "set controller_ca in agent.toml to the PEM of its authority",
    );
    // Nothing was sent, so nothing but the empty folder is there.
    assert_eq!(std::fs::read_dir(host.path("state")).unwrap().count(), 0);
}

#[test]
fn a_controller_that_is_not_there_is_named() {
    let host = Host::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("http://127.0.0.1:{port}");
    let words = format!("could not reach the controller at {url}");
    refused(&host, &["join", &token(&url, now() + 600)], &words);
}

#[test]
fn a_host_joins_once_and_keeps_its_key_to_itself() {
    let (host, controller) = (Host::new(), Controller::start());
    let token = token(&controller.url(), now() + 600);
    let joined = host.run(&["join", &token, "--node-name", "metal-1"]);
    assert_eq!(joined.status, Some(0), "{}", joined.stderr);
    assert!(joined.stdout.contains(&controller.node_id.to_string()));
    let request = controller.enrolments.recv().unwrap();
    assert_eq!(
        (request.node_name.as_str(), request.secret.as_str()),
        ("metal-1", "c2VjcmV0")
    );
    assert!(request.capacity.vcpus > 0);
    for file in ["state/node.json", "state/node.key"] {
        let mode = std::fs::metadata(host.path(file)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{file}");
    }
    let again = host.run(&["join", &token]);
    assert_eq!(again.status, Some(1));
    assert!(again.stderr.contains("already"), "{}", again.stderr);
}

#[test]
fn a_host_can_show_its_key_before_it_joins_with_it() {
    let (host, controller) = (Host::new(), Controller::start());
    let none = host.run(&["--print-pubkey"]);
    assert_ne!(none.status, Some(0));
    assert!(
        none.stderr.contains("--generate-keypair"),
        "{}",
        none.stderr
    );
    assert!(!host.path("state/node.key").exists());
    let made = host.run(&["--generate-keypair"]);
    assert_eq!(made.status, Some(0), "{}", made.stderr);
    let mode = std::fs::metadata(host.path("state/node.key")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    // There is one already, and one is enough.
    for again in ["--generate-keypair", "--print-pubkey"] {
        assert_eq!(host.run(&[again]).stdout, made.stdout);
    }
    for two in [
        ["--print-pubkey", "--generate-keypair"],
        ["--print-pubkey", "run"],
    ] {
        assert_ne!(host.run(&two).status, Some(0));
    }
    let joined = host.run(&["join", &token(&controller.url(), now() + 600)]);
    assert_eq!(joined.status, Some(0), "{}", joined.stderr);
    let request = controller.enrolments.recv().unwrap();
    assert_eq!(request.node_public_key, made.stdout.trim());
}

#[test]
fn a_daemon_without_its_configuration_ends_with_status_78() {
    let host = Host::new();
    let answer = host.run(&["run"]);
    assert_eq!(answer.status, Some(78), "{}", answer.stderr);
    assert!(
        answer.stderr.contains("has not joined"),
        "{}",
        answer.stderr
    );
    std::fs::write(host.path("agent.toml"), "state = 1").unwrap();
    let answer = host.run(&["run"]);
    assert_eq!(answer.status, Some(78), "{}", answer.stderr);
    assert!(answer.stderr.contains("unknown field"), "{}", answer.stderr);
}
