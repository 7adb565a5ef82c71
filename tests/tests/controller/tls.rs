//! TLS on the API's port, with real handshakes: the controller, the agent's own client and `berthctl`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::harness::{Controller, binary};

/// An authority, and a folder with its certificate.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for these names and its key, as PEM.
    pub(crate) fn issue(&self, names: &[&str]) -> [String; 2] {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        [certificate.pem(), key.serialize_pem()]
    }

    /// Write an identity for loopback addresses into a folder.
    fn identity(&self, folder: &Path) {
        let [certificate, key] = self.issue(&["127.0.0.1", "localhost"]);
        std::fs::write(folder.join("tls.pem"), certificate).unwrap();
        std::fs::write(folder.join("tls.key"), key).unwrap();
    }
}

/// A controller on all addresses, with TLS.
fn with_tls(authority: &Authority) -> Controller {
    let folder = authority.folder.path();
    authority.identity(folder);
    let settings = format!(
        "tls_certificate = {:?}\ntls_key = {:?}\n",
        folder.join("tls.pem"),
        folder.join("tls.key")
    );
    Controller::serve_configured(&settings, "0.0.0.0:0")
}

fn berthctl(controller: &Controller, ca: Option<&Path>, arguments: &[&str]) -> Output {
    let program = binary().with_file_name("berthctl");
    let token = std::fs::read_to_string(controller.folder().join("admin.token")).unwrap();
    let mut command = Command::new(program);
    command
        .env_remove("BERTH_CA")
        .env("BERTH_TOKEN", token.trim())
        .args(["--url", &format!("https://127.0.0.1:{}", controller.port)]);
    if let Some(ca) = ca {
        command.arg("--ca").arg(ca);
    }
    command.args(arguments).output().unwrap()
}

#[test]
fn an_address_that_others_can_reach_is_served_over_tls() {
    let authority = Authority::new();
    let controller = with_tls(&authority);
    let listed = berthctl(
        &controller,
        Some(&authority.certificate()),
        &["api", "GET", "/v1/tenants"],
    );
    assert!(listed.status.success(), "{listed:?}");
    let foreign = Authority::new();
    let refused = berthctl(
        &controller,
        Some(&foreign.certificate()),
        &["api", "GET", "/v1/tenants"],
    );
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.to_lowercase().contains("certificate"), "{said}");
    let unnamed = berthctl(&controller, None, &["api", "GET", "/v1/tenants"]);
    assert!(String::from_utf8_lossy(&unnamed.stderr).contains("--ca"));
}

#[test]
fn plain_http_on_a_tls_port_is_told_to_speak_tls() {
    let authority = Authority::new();
    let controller = with_tls(&authority);
    let mut stream = TcpStream::connect(("127.0.0.1", controller.port)).unwrap();
    stream
        .write_all(b"GET /v1/vms HTTP/1.1\r\nhost: here\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("https://"), "{answer}");
}

#[test]
fn a_certificate_is_renewed_without_a_restart_and_a_broken_one_changes_nothing() {
    let first = Authority::new();
    let controller = with_tls(&first);
    let ask = |authority: &Authority| {
        berthctl(
            &controller,
            Some(&authority.certificate()),
            &["api", "GET", "/v1/version"],
        )
        .status
        .success()
    };
    assert!(ask(&first));
    std::fs::write(first.folder.path().join("tls.key"), "not a key").unwrap();
    controller.hang_up("the old ones go on");
    assert!(ask(&first));
    let second = Authority::new();
    second.identity(first.folder.path());
    controller.hang_up("certificate and key were read anew");
    assert!(ask(&second));
    assert!(!ask(&first));
}

#[test]
fn half_a_tls_identity_or_a_broken_one_stops_the_start_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("controller.toml");
    for (text, words) in [
        (
            "tls_certificate = \"/nonexistent/tls.pem\"\n",
            "go together",
        ),
        (
            "tls_certificate = \"/nonexistent/tls.pem\"\ntls_key = \"/nonexistent/tls.key\"\n",
            "/nonexistent/tls.pem does not hold",
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        let output = Command::new(binary())
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(folder.path())
            .args(["serve", "--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_node_joins_over_tls_and_only_a_controller_that_is_vouched_for() {
    let authority = Authority::new();
    let controller = with_tls(&authority);
    let ca = authority.certificate();
    let url = format!("https://127.0.0.1:{}", controller.port);
    let made = berthctl(
        &controller,
        Some(&ca),
        &["api", "POST", "/v1/nodes/join-tokens"],
    );
    assert!(made.status.success(), "{made:?}");
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    // The port was not known when the controller made its own address.
    let token =
        berth_tests::simulated_agent::read_join_token(made["token"].as_str().unwrap()).unwrap();
    assert!(
        token.controller_url.starts_with("https://"),
        "{}",
        token.controller_url
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let key = berth_ledger::keys::SigningKey::generate().unwrap();
    let host = berth_tests::simulated_agent::Host::new("node-1", 1024);
    let request = berth_tests::simulated_agent::enroll_request(&token, &key, &host);
    let sealed =
        berth_ledger::envelope::seal(&key, berth_api::agent::ENROLL_PAYLOAD_TYPE, &request)
            .unwrap();
    let enroll = |ca: &Path| {
        let url = berth_agent::controller::ControllerUrl::parse(&url).unwrap();
        runtime.block_on(async {
            berth_agent::controller::Controller::new(url, Some(ca))
                .unwrap()
                .enroll(&sealed, std::time::Duration::from_secs(20))
                .await
        })
    };
    let foreign = Authority::new();
    assert!(matches!(
        enroll(&foreign.certificate()),
        Err(berth_agent::controller::CallError::Unreachable { .. })
    ));
    enroll(&ca).unwrap();
}
