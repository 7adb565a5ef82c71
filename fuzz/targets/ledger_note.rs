//! Signed notes, checkpoints, keys, policies and witnesses' requests. The first byte chooses.
//!
//! Holds: what is read comes back byte for byte, and nothing counts as signed that was not.
#![no_main]

use berth_fuzz::input::Input;
use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::model::ModelLog;
use berth_ledger::note::{Note, Signer, Vkey};
use berth_ledger::policy::Policy;
use berth_ledger::witness::{AddCheckpoint, Seen, read_answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let rest = input.rest();
    match choice % 5 {
        0 => note(rest),
        1 => checkpoint(rest),
        2 => key(rest),
        3 => policy(rest),
        _ => request(rest),
    }
});

fn log() -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    for entry in 0..7u8 {
        log.append(&[entry]);
    }
    log
}

fn note(bytes: &[u8]) {
    let Ok(note) = Note::parse(bytes) else {
        return;
    };
    assert_eq!(note.to_string().as_bytes(), bytes);
    let log = log();
    if SignedCheckpoint::open(bytes, &[log.vkey()]).is_ok() {
        let sizes = 0..=log.size();
        let mut known = sizes.map(|size| log.checkpoint(size).to_string());
        assert!(known.any(|text| text == note.text()), "a forged checkpoint");
    }
}

fn checkpoint(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        assert!(text.starts_with(&checkpoint.to_string()));
        assert!(i64::try_from(checkpoint.size).is_ok());
    }
}

fn key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(vkey) = text.parse::<Vkey>() {
        assert_eq!(vkey.to_string(), text);
    }
    if let Ok(signer) = Signer::from_private_text(text) {
        assert_eq!(signer.to_private_text(), text);
    }
}

fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(policy) = Policy::parse(text) {
        let log = log();
        let is_known = policy.logs().contains(&log.vkey());
        let opened = policy.open(log.note(7).to_string().as_bytes());
        assert!(is_known || opened.is_err());
    }
}

fn request(bytes: &[u8]) {
    let log = log();
    if let Ok(request) = AddCheckpoint::parse(bytes) {
        assert_eq!(request.to_string().as_bytes(), bytes);
        if let Ok(signed) = request.authenticate(&[log.vkey()]) {
            let seen = Seen::of(&log.checkpoint(3));
            if let Ok(next) = request.admit(signed.checkpoint(), &seen) {
                assert!(next.size >= seen.size);
                assert_eq!(next, Seen::of(&log.checkpoint(next.size)));
            }
        }
    }
    if let Ok(body) = std::str::from_utf8(bytes) {
        let own = log.vkey();
        for status in [200, 409] {
            // What its answer would have to be signed with is not in the corpus.
            drop(read_answer(status, body, &log.signed(7), &own));
        }
    }
}
