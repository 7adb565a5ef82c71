//! The controller on a disk that fails at a write or a flush, and killed at one: what was acknowledged is
//! there afterwards, nothing is there twice, and the ledger verifies.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_tests::simulated_agent::http_client;
use serde_json::Value;

use crate::database::TestDatabase;
use crate::harness::{Controller, audit_bodies, binary, tenant_body};

/// How long a traced controller may take to begin or to end, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tenants that are made under each fault.
const TENANTS: usize = 16;

/// A controller under `strace`, which lets one call of each thread fail or be the last.
struct Traced {
    strace: Child,
    port_file: tempfile::TempPath,
}

impl Traced {
    fn start(folder: &Path, inject: &str) -> Self {
        let port_file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,pwrite64"])
            .args(["-e", &format!("inject={inject}")])
            .arg(binary())
            .arg("--config")
            .arg(folder.join("controller.toml"))
            .arg("--state-dir")
            .arg(folder)
            .args(["serve", "--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed: apt-get install strace");
        Self { strace, port_file }
    }

    /// Its port; nothing if it ended before it served.
    fn port(&mut self) -> Option<u16> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.port_file).unwrap();
            if let Ok(port) = text.trim().parse() {
                return Some(port);
            }
            if self.has_ended() {
                return None;
            }
            assert!(begun.elapsed() < PATIENCE, "it neither serves nor ends");
            std::thread::yield_now();
        }
    }

    fn has_ended(&mut self) -> bool {
        self.strace.try_wait().unwrap().is_some()
    }

    /// Kill the controller, if it lives; `strace` ends with it.
    fn end(mut self) {
        let pid = self.strace.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            Command::new("kill")
                .args(["-KILL", child])
                .status()
                .unwrap();
        }
        self.strace.wait().unwrap();
    }
}

/// Make tenants until it ends or all are made; those that it acknowledged.
fn make_tenants(port: u16, token: &str) -> Vec<String> {
    let client = http_client();
    let made = |name: &str| {
        let answer = client
            .post(format!("http://127.0.0.1:{port}/v1/tenants"))
            .header("authorization", format!("Bearer {token}"))
            .send_json(tenant_body(name, 1));
        answer.is_ok_and(|answer| answer.status() == 201)
    };
    (0..TENANTS)
        .map(|n| format!("tenant-{n}"))
        .filter(|name| made(name))
        .collect()
}

fn survive(inject: &str) {
    let mut controller = Controller::start_on(TestDatabase::sqlite);
    controller.kill();
    let token = std::fs::read_to_string(controller.folder().join("admin.token")).unwrap();
    let mut traced = Traced::start(controller.folder(), inject);
    let acknowledged = match traced.port() {
        Some(port) => make_tenants(port, token.trim()),
        None => Vec::new(),
    };
    traced.end();
    controller.assert_sound();
    controller.restart();
    let admin = controller.admin();
    let created = audit_bodies(&admin, "event_type=TENANT_CREATED");
    let listed = admin.get("/v1/tenants").expect(200).json();
    let listed = listed["items"].as_array().unwrap();
    for name in &acknowledged {
        let named = |value: &&Value| value["tenant_id"] == name.as_str();
        assert!(listed.iter().any(|t| named(&t)), "{inject}: {name} is lost");
        assert_eq!(created.iter().filter(named).count(), 1, "{inject}: {name}");
    }
    assert_eq!(created.len(), listed.len(), "{inject}");
    controller.tenant("afterwards", 1);
    controller.assert_sound();
}

#[test]
fn a_flush_or_a_write_that_fails_loses_nothing_that_was_acknowledged() {
    for (call, times) in [("fsync", [1, 2, 3]), ("pwrite64", [3, 8, 13])] {
        for when in times {
            survive(&format!("{call}:error=EIO:when={when}"));
        }
    }
}

#[test]
fn a_kill_at_a_flush_or_a_write_loses_nothing_that_was_acknowledged() {
    for (call, times) in [("fsync", [1, 2, 3]), ("pwrite64", [3, 8, 13])] {
        for when in times {
            survive(&format!("{call}:signal=KILL:when={when}"));
        }
    }
}

/// More than a start flushes by itself.
const MAX_FLUSHES_OF_A_START: u32 = 12;

/// A second flush after one that failed would say that all is well: only a new process knows.
#[test]
fn a_flush_that_fails_at_a_commit_ends_the_process() {
    let mut controller = Controller::start_on(TestDatabase::sqlite);
    controller.kill();
    let token = std::fs::read_to_string(controller.folder().join("admin.token")).unwrap();
    // Calls are counted by thread, and the thread that starts all flushes a few times itself: the
    // first number that it does not come to is the writer's.
    let (mut traced, port) = (3..MAX_FLUSHES_OF_A_START)
        .find_map(|when| {
            let inject = format!("fsync:error=EIO:when={when}");
            let mut traced = Traced::start(controller.folder(), &inject);
            match traced.port() {
                Some(port) => Some((traced, port)),
                None => {
                    traced.end();
                    None
                }
            }
        })
        .expect("a start flushes less often");
    let acknowledged = make_tenants(port, token.trim());
    assert!(acknowledged.len() < TENANTS);
    let begun = Instant::now();
    while !traced.has_ended() {
        assert!(begun.elapsed() < PATIENCE, "it goes on after a lost flush");
        std::thread::yield_now();
    }
    traced.end();
}
