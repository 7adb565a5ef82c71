//! The controller on a disk that fails at a write or a flush, and killed at one: what was acknowledged is
//! there afterwards, nothing is there twice, and the ledger verifies.

use std::ffi::OsStr;
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
/// More than are in SQLite's log before it is copied into the file for the first time.
const TENANTS_UNTIL_A_COPY: usize = 900;

/// A controller under `strace`, which lets one call of each thread fail or be the last.
struct Traced {
    strace: Child,
    port_file: tempfile::TempPath,
}

impl Traced {
    fn start(folder: &Path, inject: &str) -> Self {
        Self::start_with(folder, inject, &[])
    }

    /// Only calls on the database's file count, and none on the log that is beside it.
    fn start_at_the_file(folder: &Path, inject: &str) -> Self {
        let file = folder.join("berth.db");
        Self::start_with(folder, inject, &[OsStr::new("-P"), file.as_os_str()])
    }

    fn start_with(folder: &Path, inject: &str, which: &[&OsStr]) -> Self {
        let port_file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let strace = Command::new("strace")
            .args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"])
            .args(["-e", "trace=fdatasync,pwrite64"])
            .args(["-e", &format!("inject={inject}")])
            .args(which)
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

    /// Where it serves; nothing if it ended before.
    fn url(&mut self) -> Option<String> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.port_file).unwrap();
            if let Ok(port) = text.trim().parse::<u16>() {
                return Some(format!("http://127.0.0.1:{port}"));
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
}

/// Kill the controller, if it lives; `strace` ends with it.
impl Drop for Traced {
    fn drop(&mut self) {
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

/// Make so many tenants, or until it ends; those that it acknowledged.
fn make_tenants(url: &str, token: &str, how_many: usize) -> Vec<String> {
    let client = http_client();
    let made = |name: &str| {
        let answer = client
            .post(format!("{url}/v1/tenants"))
            .header("authorization", format!("Bearer {token}"))
            .send_json(tenant_body(name, 1));
        answer.is_ok_and(|answer| answer.status() == 201)
    };
    let mut acknowledged = Vec::new();
    let mut refused_in_a_row = 0;
    for name in (0..how_many).map(|n| format!("tenant-{n}")) {
        if made(&name) {
            acknowledged.push(name);
            refused_in_a_row = 0;
        } else {
            refused_in_a_row += 1;
        }
        if refused_in_a_row > TENANTS {
            break;
        }
    }
    acknowledged
}

fn survive(inject: &str) {
    let mut controller = Controller::start_on(TestDatabase::sqlite);
    controller.kill();
    let token = std::fs::read_to_string(controller.folder().join("admin.token")).unwrap();
    let mut traced = Traced::start(controller.folder(), inject);
    let acknowledged = match traced.url() {
        Some(url) => make_tenants(&url, token.trim(), TENANTS),
        None => Vec::new(),
    };
    drop(traced);
    assert_nothing_is_lost(&mut controller, inject, &acknowledged);
}

fn assert_nothing_is_lost(controller: &mut Controller, inject: &str, acknowledged: &[String]) {
    controller.assert_sound();
    controller.restart();
    let admin = controller.admin();
    let created = audit_bodies(&admin, "event_type=TENANT_CREATED");
    let listed = admin.get("/v1/tenants?limit=1000").expect(200).json();
    let listed = listed["items"].as_array().unwrap();
    for name in acknowledged {
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
    for (call, times) in [("fdatasync", [1, 2, 3]), ("pwrite64", [3, 8, 13])] {
        for when in times {
            survive(&format!("{call}:error=EIO:when={when}"));
        }
    }
}

#[test]
fn a_kill_at_a_flush_or_a_write_loses_nothing_that_was_acknowledged() {
    for (call, times) in [("fdatasync", [1, 2, 3]), ("pwrite64", [3, 8, 13])] {
        for when in times {
            survive(&format!("{call}:signal=KILL:when={when}"));
        }
    }
}

/// The log is copied into the file beside the writer. A disk that does not take a page ends the process, as a
/// second attempt might say that all is well.
#[test]
fn a_disk_that_fails_while_the_log_is_copied_ends_the_process_and_loses_nothing() {
    for (call, when) in [("pwrite64", 1), ("pwrite64", 40), ("fdatasync", 1)] {
        let inject = format!("{call}:error=EIO:when={when}");
        let mut controller = Controller::start_on(TestDatabase::sqlite);
        controller.kill();
        let token = std::fs::read_to_string(controller.folder().join("admin.token")).unwrap();
        let mut traced = Traced::start_at_the_file(controller.folder(), &inject);
        let url = traced.url().expect("nothing is copied at a start");
        let acknowledged = make_tenants(&url, token.trim(), TENANTS_UNTIL_A_COPY);
        let begun = Instant::now();
        while !traced.has_ended() {
            assert!(begun.elapsed() < PATIENCE, "{inject}: it goes on");
            std::thread::yield_now();
        }
        drop(traced);
        assert_nothing_is_lost(&mut controller, &inject, &acknowledged);
    }
}

/// At each moment what was acknowledged is in the log or in the file.
#[test]
fn a_kill_while_the_log_is_copied_loses_nothing_that_was_acknowledged() {
    for changes in 1..4 {
        let mut controller = Controller::start_on(TestDatabase::sqlite);
        let token = std::fs::read_to_string(controller.folder().join("admin.token")).unwrap();
        let url = controller.url();
        let file = controller.folder().join("berth.db");
        let maker =
            std::thread::spawn(move || make_tenants(&url, token.trim(), TENANTS_UNTIL_A_COPY));
        await_changes(&file, changes);
        controller.kill();
        let acknowledged = maker.join().unwrap();
        assert!(acknowledged.len() < TENANTS_UNTIL_A_COPY);
        assert_nothing_is_lost(&mut controller, "KILL", &acknowledged);
    }
}

/// Wait until the file is seen to change so many times: the first pages of a copy.
fn await_changes(file: &Path, times: u32) {
    let modified = || std::fs::metadata(file).unwrap().modified().unwrap();
    let begun = Instant::now();
    for _ in 0..times {
        let before = modified();
        while modified() == before {
            assert!(begun.elapsed() < PATIENCE, "nothing is copied");
            std::thread::yield_now();
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
    let (mut traced, url) = (3..MAX_FLUSHES_OF_A_START)
        .find_map(|when| {
            let inject = format!("fdatasync:error=EIO:when={when}");
            let mut traced = Traced::start(controller.folder(), &inject);
            match traced.url() {
                Some(url) => Some((traced, url)),
                None => {
                    drop(traced);
                    None
                }
            }
        })
        .expect("a start flushes less often");
    let acknowledged = make_tenants(&url, token.trim(), TENANTS);
    assert!(acknowledged.len() < TENANTS);
    let begun = Instant::now();
    while !traced.has_ended() {
        assert!(begun.elapsed() < PATIENCE, "it goes on after a lost flush");
        std::thread::yield_now();
    }
    drop(traced);
}
