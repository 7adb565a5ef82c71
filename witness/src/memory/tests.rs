//! Tests of `memory`: what its own file promises, on its public calls.

use std::sync::Arc;

use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;

use super::*;

const ORIGIN: &str = "ledger.example/d/e1";

fn log(entries: u8) -> ModelLog {
    let mut log = ModelLog::new(ORIGIN, 1);
    for entry in 0..entries {
        log.append(&[entry]);
    }
    log
}

fn open(folder: &Path, log: &ModelLog) -> Result<Memory, OpenError> {
    let name = KeyName::new("witness.example/w").unwrap();
    let cosigner = Cosigner::new(name, SigningKey::from_seed(&[9; 32]).unwrap());
    Memory::open(folder, cosigner, vec![log.vkey()])
}

/// A witness that has cosigned the log's first seven entries.
fn begun(folder: &Path, log: &ModelLog) -> Memory {
    let memory = open(folder, log).unwrap();
    memory.cosign(&request(log, 0, 7), 1).unwrap();
    memory
}

fn request(log: &ModelLog, old_size: u64, size: u64) -> AddCheckpoint {
    AddCheckpoint {
        old_size,
        proof: log.consistency(old_size, size),
        checkpoint: log.note(size),
    }
}

#[track_caller]
fn check_refused(result: Result<SignatureLine, CosignError>, status: u16) {
    match result {
        Err(CosignError::Refused(refusal)) => assert_eq!(refusal.status(), status),
        other => panic!("{other:?} is not a refusal with {status}"),
    }
}

#[test]
fn what_was_cosigned_is_remembered_across_a_death_before_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(20);
    // The process dies with the signature in its hands: nobody gets it.
    begun(folder.path(), &log);
    let memory = open(folder.path(), &log).unwrap();
    check_refused(memory.cosign(&request(&log, 0, 20), 2), 409);
    check_refused(memory.cosign(&request(&log, 0, 7), 2), 409);
    // The log asks again from there, and gets it.
    memory.cosign(&request(&log, 7, 7), 2).unwrap();
    memory.cosign(&request(&log, 7, 20), 2).unwrap();
    check_refused(
        open(folder.path(), &log)
            .unwrap()
            .cosign(&request(&log, 7, 20), 3),
        409,
    );
}

#[test]
fn a_death_in_the_middle_of_a_write_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(20);
    begun(folder.path(), &log);
    let own = folder.path().join(name_of(log.vkey().name()));
    fs::write(own.join("checkpoint.new"), "ledger.exam").unwrap();
    let memory = open(folder.path(), &log).unwrap();
    memory.cosign(&request(&log, 7, 8), 2).unwrap();
}

#[test]
fn a_damaged_memory_is_not_taken_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(20);
    begun(folder.path(), &log);
    let file = folder
        .path()
        .join(name_of(log.vkey().name()))
        .join("checkpoint");
    let sound = fs::read_to_string(&file).unwrap();
    for damaged in ["", &sound[..30], &sound.replace("\n7\n", "\n6\n")] {
        fs::write(&file, damaged).unwrap();
        assert!(matches!(
            open(folder.path(), &log),
            Err(OpenError::Damaged { .. })
        ));
    }
}

#[test]
fn after_a_write_that_failed_nothing_is_signed_until_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(20);
    let memory = begun(folder.path(), &log);
    let own = folder.path().join(name_of(log.vkey().name()));
    // Something stands where the new file has to go.
    fs::create_dir(own.join("checkpoint.new")).unwrap();
    let failed = memory.cosign(&request(&log, 7, 8), 2);
    assert!(matches!(failed, Err(CosignError::Memory(_))));
    fs::remove_dir(own.join("checkpoint.new")).unwrap();
    let after = memory.cosign(&request(&log, 7, 8), 3);
    assert!(matches!(after, Err(CosignError::Unsure)));
    open(folder.path(), &log)
        .unwrap()
        .cosign(&request(&log, 7, 8), 4)
        .unwrap();
}

#[test]
fn of_requests_at_once_those_that_fork_or_go_back_lose() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(log(40));
    let memory = Arc::new(begun(folder.path(), &log));
    let threads: Vec<_> = (8..40)
        .map(|size| {
            let (log, memory) = (Arc::clone(&log), Arc::clone(&memory));
            std::thread::spawn(move || (size, memory.cosign(&request(&log, 7, size), 2).is_ok()))
        })
        .collect();
    let answers: Vec<(u64, bool)> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let signed: Vec<u64> = answers
        .iter()
        .filter(|(_, is)| *is)
        .map(|(size, _)| *size)
        .collect();
    // All began from the same size, so one alone can have found it.
    assert_eq!(signed.len(), 1, "{signed:?}");
    let newest = memory.newest(&name_of(log.vkey().name())).unwrap();
    let kept = SignedCheckpoint::open(&newest, &[log.vkey()]).unwrap();
    assert_eq!(kept.checkpoint().size, signed[0]);
}

#[test]
fn what_readers_get_has_the_logs_lines_and_ours_alone() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(3);
    let memory = open(folder.path(), &log).unwrap();
    let mut asked = request(&log, 0, 3);
    asked
        .checkpoint
        .sign(ModelLog::new("elsewhere.example", 5).signer());
    memory.cosign(&asked, 1).unwrap();
    let newest = memory.newest(&name_of(log.vkey().name())).unwrap();
    let note = Note::parse(&newest).unwrap();
    assert_eq!(note.signatures().len(), 2);
    let keys = [log.vkey(), memory.cosigner.vkey().clone()];
    assert_eq!(note.verify(&keys).unwrap().len(), 2);
    assert_eq!(memory.newest("no-such-log"), None);
}
