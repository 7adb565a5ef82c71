//! Other parties' witnesses: checkpoints are put before them, what they cosign is served, and what they
//! have seen and the database has not ends all signing.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::cosignature::Cosigner;
use berth_ledger::keys::SigningKey;
use berth_ledger::merkle::Hash;
use berth_ledger::note::{KeyName, Vkey};
use berth_ledger::witness::{AddCheckpoint, Refusal, Seen};
use serde_json::Value;

use crate::crashes::copy_database;
use crate::database::TestDatabase;
use crate::harness::{Controller, tenant_body};

const PATIENCE: Duration = Duration::from_secs(60);

/// A witness that believes the first log that asks it.
struct Witness {
    url: String,
    vkey: Vkey,
    state: Arc<Mutex<State>>,
}

struct State {
    cosigner: Cosigner,
    seen: Seen,
    is_away: bool,
}

impl Witness {
    fn start() -> Self {
        let name = KeyName::new("witness.example.com/test").unwrap();
        let cosigner = Cosigner::new(name, SigningKey::generate().unwrap());
        let vkey = cosigner.vkey().clone();
        let state = Arc::new(Mutex::new(State {
            cosigner,
            seen: Seen::default(),
            is_away: false,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&stream, &shared);
            }
        });
        Self { url, vkey, state }
    }

    fn settings(&self, quorum: u32) -> String {
        format!(
            "[ledger]\nwitness_quorum = {quorum}\n[[ledger.witnesses]]\nurl = \"{}\"\nkey = \"{}\"\n",
            self.url, self.vkey
        )
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}

/// One request; the connection ends with it.
fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (status, text) = decide(&body, &mut state.lock().unwrap())?;
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(head.as_bytes()).ok()
}

fn decide(body: &[u8], state: &mut State) -> Option<(u16, String)> {
    if state.is_away {
        return None;
    }
    let request = AddCheckpoint::parse(body).unwrap();
    let checkpoint = Checkpoint::parse(request.checkpoint.text()).unwrap();
    match request.admit(&checkpoint, &state.seen) {
        Ok(seen) => {
            state.seen = seen;
            let line = state
                .cosigner
                .sign(request.checkpoint.text(), 1_700_000_000);
            Some((200, line.to_string()))
        }
        Err(Refusal::OtherSize { seen, .. }) => Some((409, format!("{seen}\n"))),
        Err(refusal) => Some((refusal.status(), refusal.to_string())),
    }
}

fn head(controller: &Controller) -> Value {
    controller.admin().get("/v1/audit/head").expect(200).json()
}

/// The head once this holds.
#[track_caller]
fn until(controller: &Controller, holds: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let head = head(controller);
        if holds(&head) {
            return head;
        }
        assert!(begun.elapsed() < PATIENCE, "it never comes: {head}");
        std::thread::yield_now();
    }
}

fn change(controller: &Controller, name: &str) -> u64 {
    let made = controller
        .admin()
        .post("/v1/tenants", &tenant_body(name, 1));
    made.expect(201).json()["audit_index"].as_u64().unwrap()
}

fn cosigners(head: &Value, keys: &[Vkey]) -> usize {
    let log: Vkey = head["vkey"].as_str().unwrap().parse().unwrap();
    let text = head["checkpoint"].as_str().unwrap();
    let signed = SignedCheckpoint::open(text.as_bytes(), &[log]).unwrap();
    signed.note().verify(keys).map_or(0, |found| found.len())
}

#[test]
fn what_a_witness_cosigns_is_served_and_one_that_is_away_stops_nothing() {
    let witness = Witness::start();
    let controller = Controller::serve_configured(&witness.settings(0), "127.0.0.1:0");
    let keys = [witness.vkey.clone()];
    let cosigned = |head: &Value| cosigners(head, &keys) == 1;
    let first = until(&controller, cosigned);
    assert_eq!(first["witnesses"][0]["cosigned_size"], first["size"]);
    let served = controller
        .stranger()
        .get("/v1/audit/checkpoint")
        .expect(200);
    assert!(served.text.contains("— witness.example.com/test "));

    witness.change(|state| state.is_away = true);
    let index = change(&controller, "acme");
    let away = until(&controller, |head| {
        head["witnesses"][0]["problem"] == "unreachable"
    });
    assert!(
        away["size"].as_u64().unwrap() > index,
        "the log goes on: {away}"
    );
    // It comes back as one that has forgotten everything: it is asked from where it is.
    witness.change(|state| {
        state.is_away = false;
        state.seen = Seen::default();
    });
    change(&controller, "other");
    let back = until(&controller, cosigned);
    assert_eq!(back["witnesses"][0]["problem"], Value::Null);
    controller.assert_sound();
}

#[test]
fn where_a_quorum_is_asked_for_nothing_is_shown_before_it_has_cosigned() {
    let witness = Witness::start();
    let mut controller = Controller::serve_configured(&witness.settings(1), "127.0.0.1:0");
    let keys = [witness.vkey.clone()];
    let before = until(&controller, |head| cosigners(head, &keys) == 1);
    witness.change(|state| state.is_away = true);
    let index = change(&controller, "acme");
    until(&controller, |head| {
        head["witnesses"][0]["problem"] == "unreachable"
    });
    assert_eq!(head(&controller)["checkpoint"], before["checkpoint"]);
    controller.kill_and_restart();
    until(&controller, |head| {
        head["witnesses"][0]["problem"] == "unreachable"
    });
    assert_eq!(head(&controller)["checkpoint"], before["checkpoint"]);
    witness.change(|state| state.is_away = false);
    let after = until(&controller, |head| head["size"].as_u64() > Some(index));
    assert_eq!(cosigners(&after, &keys), 1);
    controller.assert_sound();
}

#[test]
fn a_witness_that_has_seen_more_ends_all_changes() {
    let witness = Witness::start();
    let mut controller = Controller::serve_configured(&witness.settings(0), "127.0.0.1:0");
    until(&controller, |head| {
        head["witnesses"][0]["cosigned_size"].is_u64()
    });
    witness.change(|state| {
        state.seen = Seen {
            size: 1_000_000,
            root: Hash::of_bytes(b"of another history"),
        };
    });
    change(&controller, "acme");
    until(&controller, |head| {
        head["witnesses"][0]["problem"] == "rolled_back"
    });
    let refused = controller
        .admin()
        .post("/v1/tenants", &tenant_body("other", 1));
    let body = refused.refused(503, "audit_unavailable");
    assert!(
        body["error"].as_str().unwrap().contains("witness"),
        "{body}"
    );
    // Whoever looks is still told.
    controller.admin().get("/v1/tenants/acme").expect(200);
    assert_eq!(controller.stranger().get("/readyz").status, 503);

    // A restart does not forget it, though the witness says nothing now.
    witness.change(|state| state.is_away = true);
    controller.kill_and_restart();
    let other = || {
        controller
            .admin()
            .post("/v1/tenants", &tenant_body("other", 1))
    };
    other().refused(503, "audit_unavailable");
    // It ends with the witness's own word.
    witness.change(|state| {
        state.is_away = false;
        state.seen = Seen::default();
    });
    until(&controller, |head| {
        head["witnesses"][0]["cosigned_size"].is_u64()
    });
    let begun = Instant::now();
    while other().status == 503 {
        assert!(begun.elapsed() < PATIENCE, "it never ends");
        std::thread::yield_now();
    }
    controller.admin().get("/v1/tenants/other").expect(200);
}

#[test]
fn a_witness_that_is_not_asked_any_more_ends_nothing() {
    let witness = Witness::start();
    let mut controller = Controller::serve_configured(&witness.settings(0), "127.0.0.1:0");
    witness.change(|state| {
        state.seen = Seen {
            size: 1_000_000,
            root: Hash::of_bytes(b"of another history"),
        };
    });
    change_or_not(&controller, "acme");
    until(&controller, |head| {
        head["witnesses"][0]["problem"] == "rolled_back"
    });
    controller.kill();
    let place = controller.folder().join("controller.toml");
    let settings = std::fs::read_to_string(&place).unwrap();
    std::fs::write(&place, settings.replace(&witness.settings(0), "")).unwrap();
    controller.restart();
    change(&controller, "other");
}

/// Changes may have ended before this one.
fn change_or_not(controller: &Controller, name: &str) {
    let admin = controller.admin();
    let answer = admin.post("/v1/tenants", &tenant_body(name, 1));
    assert!([201, 503].contains(&answer.status), "{}", answer.text);
}

/// Yesterday's database without the anchor that would tell: its witness has seen today's.
#[test]
fn a_restored_database_without_its_anchor_is_stopped_by_its_witness() {
    let witness = Witness::start();
    let settings = witness.settings(0);
    let mut controller = Controller::configured_on(TestDatabase::sqlite, &settings, "127.0.0.1:0");
    let cosigned = |index: u64| {
        move |head: &Value| head["witnesses"][0]["cosigned_size"].as_u64() > Some(index)
    };
    let first = change(&controller, "first");
    until(&controller, cosigned(first));
    controller.kill();
    let yesterday = tempfile::tempdir().unwrap();
    copy_database(controller.folder(), yesterday.path());
    controller.restart();
    let second = change(&controller, "second");
    until(&controller, cosigned(second));
    controller.kill();
    copy_database(yesterday.path(), controller.folder());
    std::fs::remove_dir_all(controller.folder().join("anchor")).unwrap();
    controller.restart();
    let head = until(&controller, |head| {
        head["witnesses"][0]["problem"] == "rolled_back"
    });
    assert!(head["size"].as_u64() <= Some(second), "{head}");
    let admin = controller.admin();
    let refused = admin.post("/v1/tenants", &tenant_body("third", 1));
    refused.refused(503, "audit_unavailable");
}

#[test]
fn settings_that_no_witness_can_have_are_refused_at_the_start() {
    let witness = Witness::start();
    let controller = Controller::start();
    let settings = controller.folder().join("controller.toml");
    let sound = std::fs::read_to_string(&settings).unwrap();
    for (wrong, says) in [
        (witness.settings(2), "witness_quorum is 2"),
        (witness.settings(0).replace("http://", "ftp://"), "http://"),
        (
            witness.settings(0).replace("test+", "tost+"),
            "verifier key",
        ),
    ] {
        std::fs::write(&settings, format!("{wrong}{sound}")).unwrap();
        let ended = controller.offline(&["serve", "--listen", "127.0.0.1:0"]);
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(78), "{told}");
        assert!(told.contains(says), "{told}");
    }
}
