//! Tests of `witness`: what its own file promises, on its public calls.

use super::*;
use crate::cosignature::Cosigner;
use crate::keys::SigningKey;
use crate::model::ModelLog;
use crate::note::KeyName;

const ORIGIN: &str = "ledger.example/d/e1";
const TIME_S: u64 = 1_700_000_000;

fn log(seed: u8, entries: u8) -> ModelLog {
    let mut log = ModelLog::new(ORIGIN, seed);
    for index in 0..entries {
        log.append(&[index]);
    }
    log
}

fn request(log: &ModelLog, old_size: u64, size: u64) -> AddCheckpoint {
    AddCheckpoint {
        old_size,
        proof: log.consistency(old_size.min(size), size),
        checkpoint: log.note(size),
    }
}

/// What a witness of this log that has seen this answers.
fn answer(log: &ModelLog, request: &AddCheckpoint, seen: &Seen) -> Result<Seen, Refusal> {
    let signed = request.authenticate(&[log.vkey()])?;
    request.admit(signed.checkpoint(), seen)
}

fn witness() -> Cosigner {
    let name = KeyName::new("witness.example/w").unwrap();
    Cosigner::new(name, SigningKey::from_seed(&[9; 32]).unwrap())
}

#[test]
fn a_witness_follows_a_log_that_only_grows() {
    let log = log(1, 20);
    let mut seen = Seen::default();
    for size in [3, 4, 4, 11, 20] {
        let asked = request(&log, seen.size, size);
        let body = asked.to_string();
        let read = AddCheckpoint::parse(body.as_bytes()).unwrap();
        assert_eq!(read, asked);
        seen = answer(&log, &read, &seen).unwrap();
        assert_eq!(seen.size, size);
    }
}

#[test]
fn every_refusal_has_its_status() {
    let log = log(1, 20);
    let mut seen = Seen::of(&log.checkpoint(8));
    let status =
        |request: &AddCheckpoint, seen: &Seen| answer(&log, request, seen).unwrap_err().status();
    // The proof does not fit, or the sizes do not.
    let mut bad_proof = request(&log, 8, 20);
    bad_proof.proof[0].0[0] ^= 1;
    assert_eq!(status(&bad_proof, &seen), 422);
    bad_proof.proof.clear();
    assert_eq!(status(&bad_proof, &seen), 422);
    assert_eq!(status(&request(&log, 9, 8), &seen), 400);
    for old_size in [0, 7, 9] {
        let refusal = answer(&log, &request(&log, old_size, 20), &seen).unwrap_err();
        assert_eq!(refusal, Refusal::OtherSize { seen: 8, old_size });
        assert_eq!(refusal.status(), 409);
    }
    // Not this log, or not its key.
    let stranger = ModelLog::new("elsewhere.example", 1);
    assert_eq!(status(&request(&stranger, 0, 0), &seen), 404);
    let impostor = ModelLog::new(ORIGIN, 2);
    assert_eq!(status(&request(&impostor, 0, 0), &seen), 403);
    let mut forged = request(&log, 8, 20);
    let note = forged
        .checkpoint
        .to_string()
        .replacen("\n20\n", "\n19\n", 1);
    forged.checkpoint = Note::parse(note.as_bytes()).unwrap();
    assert_eq!(status(&forged, &seen), 403);
    let mut no_checkpoint = Note::unsigned("hello\n".to_owned()).unwrap();
    no_checkpoint.sign(log.signer());
    forged.checkpoint = no_checkpoint;
    assert_eq!(status(&forged, &seen), 400);
    // Nothing above has changed what it has seen.
    seen = answer(&log, &request(&log, 8, 20), &seen).unwrap();
    assert_eq!(seen, Seen::of(&log.checkpoint(20)));
}

#[test]
fn a_split_view_gets_no_second_cosignature() {
    let honest = log(1, 20);
    let mut fork = log(1, 7);
    for _ in 7..20 {
        fork.append(b"forked");
    }
    let seen = Seen::of(&honest.checkpoint(20));
    // The same size with another root, and a larger tree that grew out of the fork.
    let refusal = answer(&fork, &request(&fork, 20, 20), &seen).unwrap_err();
    assert_eq!(refusal, Refusal::Inconsistent(VerifyProofError::Root));
    assert_eq!(refusal.status(), 422);
    fork.append(b"more");
    let refusal = answer(&fork, &request(&fork, 20, 21), &seen).unwrap_err();
    assert_eq!(refusal, Refusal::Inconsistent(VerifyProofError::OldRoot));
}

#[test]
fn what_is_not_a_request_to_the_byte_is_refused() {
    let text = request(&log(1, 20), 7, 20).to_string();
    let check = |from: &str, to: &str, expected: ParseRequestError| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        assert_eq!(
            AddCheckpoint::parse(changed.as_bytes()),
            Err(expected),
            "{changed}"
        );
    };
    check("old 7", "old 07", ParseRequestError::OldSize);
    check("old 7", "old  7", ParseRequestError::OldSize);
    check("old 7", "7", ParseRequestError::OldSize);
    check(
        "old 7\n",
        "old 7\nAAAA\n",
        ParseRequestError::Hash { line: 2 },
    );
    let hash = format!("{}\n", Hash::of_empty_tree().to_base64());
    check(
        "old 7\n",
        &format!("old 7\n{}", hash.repeat(63)),
        ParseRequestError::Hash { line: 65 },
    );
    check(
        "\n20\n",
        "\n\x0120\n",
        ParseRequestError::Checkpoint(ParseNoteError::Characters),
    );
    assert_eq!(
        AddCheckpoint::parse(b"old 0\n"),
        Err(ParseRequestError::NoCheckpoint)
    );
    assert_eq!(
        AddCheckpoint::parse(&[0xff]),
        Err(ParseRequestError::OldSize)
    );
}

#[test]
fn a_log_reads_from_the_answer_whether_it_was_rolled_back_or_forked() {
    let log = log(1, 20);
    let sent = log.signed(20);
    let witness = witness();
    let read = |status, body: &str| read_answer(status, body, &sent, witness.vkey());
    let line = witness.sign(sent.note().text(), TIME_S);
    let cosigned = Answer::Cosigned {
        line: line.clone(),
        time_s: TIME_S,
    };
    assert_eq!(read(200, &line.to_string()), Ok(cosigned.clone()));
    // Lines of others are passed over.
    let strangers = log.signer().sign(sent.note().text());
    assert_eq!(read(200, &format!("{strangers}{line}")), Ok(cosigned));
    let of_another = witness.sign(log.note(19).text(), TIME_S).to_string();
    for body in ["", "hello\n", &strangers.to_string(), &of_another] {
        assert_eq!(read(200, body), Err(ReadAnswerError::NoCosignature));
    }
    assert_eq!(read(409, "7\n"), Ok(Answer::OtherSize { size: 7 }));
    assert_eq!(read(409, "20\n"), Ok(Answer::OtherSize { size: 20 }));
    assert_eq!(read(409, "21\n"), Ok(Answer::RolledBack { size: 21 }));
    for body in ["", "7", "-1\n", "x\n"] {
        assert_eq!(read(409, body), Err(ReadAnswerError::NoSize));
    }
    assert_eq!(read(422, ""), Ok(Answer::Forked));
    assert_eq!(read(500, ""), Err(ReadAnswerError::Status { status: 500 }));
}
