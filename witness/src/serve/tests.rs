//! Tests of `serve`: what its own file promises, on its public calls.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use berth_ledger::cosignature::Cosigner;
use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;
use berth_ledger::note::{KeyName, Vkey};
use berth_ledger::witness::{Answer, ReadAnswerError, read_answer};

use super::*;
use crate::memory::name_of;

struct Served {
    address: SocketAddr,
    vkey: Vkey,
    log: ModelLog,
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

/// A witness of a log of 20 entries, on a port of its own.
fn serve() -> Served {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    for entry in 0..20u8 {
        log.append(&[entry]);
    }
    let folder = tempfile::tempdir().unwrap();
    let name = KeyName::new("witness.example/w").unwrap();
    let cosigner = Cosigner::new(name, SigningKey::from_seed(&[9; 32]).unwrap());
    let vkey = cosigner.vkey().clone();
    let memory = Memory::open(folder.path(), cosigner, vec![log.vkey()]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, routes(Arc::new(memory))).await });
    Served {
        address,
        vkey,
        log,
        _folder: folder,
        _runtime: runtime,
    }
}

impl Served {
    /// Status, head and body of an answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn add(&self, log: &ModelLog, old_size: u64, size: u64) -> (u16, String, String) {
        let request = AddCheckpoint {
            old_size,
            proof: log.consistency(old_size.min(size), size),
            checkpoint: log.note(size),
        };
        self.ask("POST", "/add-checkpoint", &request.to_string())
    }

    fn answer(
        &self,
        size: u64,
        (status, _, body): &(u16, String, String),
    ) -> Result<Answer, ReadAnswerError> {
        read_answer(*status, body, &self.log.signed(size), &self.vkey)
    }
}

#[test]
fn a_log_gets_its_checkpoints_cosigned_and_readers_see_the_newest() {
    let served = serve();
    let own = format!("/{}/checkpoint", name_of(served.log.vkey().name()));
    assert_eq!(served.ask("GET", &own, "").0, 404);
    for (old_size, size) in [(0, 7), (7, 7), (7, 20)] {
        let answer = served.add(&served.log, old_size, size);
        assert!(matches!(
            served.answer(size, &answer),
            Ok(Answer::Cosigned { .. })
        ));
    }
    let (status, _, note) = served.ask("GET", &own, "");
    assert_eq!(status, 200);
    assert!(note.starts_with("ledger.example/d/e1\n20\n") && note.contains("witness.example/w"));
}

#[test]
fn every_refusal_has_the_protocols_status() {
    let served = serve();
    assert_eq!(served.add(&served.log, 0, 7).0, 200);
    assert_eq!(served.ask("POST", "/add-checkpoint", "hello").0, 400);
    assert_eq!(served.add(&served.log, 9, 8).0, 400);
    assert_eq!(
        served.add(&ModelLog::new("ledger.example/d/e1", 2), 0, 0).0,
        403
    );
    assert_eq!(
        served.add(&ModelLog::new("elsewhere.example", 1), 0, 0).0,
        404
    );
    let conflict = served.add(&served.log, 0, 20);
    assert_eq!((conflict.0, conflict.2.as_str()), (409, "7\n"));
    assert!(conflict.1.contains("content-type: text/x.tlog.size"));
    assert_eq!(
        served.answer(20, &conflict),
        Ok(Answer::OtherSize { size: 7 })
    );
    assert_eq!(
        served.answer(3, &conflict),
        Ok(Answer::RolledBack { size: 7 })
    );
    let mut fork = ModelLog::new("ledger.example/d/e1", 1);
    for entry in 0..20u8 {
        fork.append(&[entry ^ 1]);
    }
    let forked = served.add(&fork, 7, 20);
    assert_eq!(forked.0, 422);
    assert_eq!(served.answer(20, &forked), Ok(Answer::Forked));
    assert_eq!(served.ask("GET", "/add-checkpoint", "").0, 405);
    let long = "x".repeat(MAX_REQUEST_BYTES + 1);
    assert_eq!(served.ask("POST", "/add-checkpoint", &long).0, 413);
    // None of them has changed what the witness has seen.
    assert_eq!(served.add(&served.log, 7, 20).0, 200);
}
