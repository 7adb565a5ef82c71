//! Tests of `proof`: what its own file promises, on its public calls.

use super::*;
use crate::merkle::leaf_hash;
use crate::model::ModelLog;

fn log() -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    for index in 0..11u8 {
        log.append(&[index]);
    }
    log
}

#[test]
fn a_proof_file_comes_back_as_it_was_and_verifies_without_the_log() {
    let log = log();
    for size in 1..=log.size() {
        for index in 0..size {
            let mut proof = log.proof_file(index, size);
            proof.extra = (index % 2 == 0).then(|| b"beside".to_vec());
            let text = proof.to_string();
            let read = TlogProof::parse(text.as_bytes()).unwrap();
            assert_eq!(read, proof);
            assert_eq!(read.to_string(), text);
            let leaf = leaf_hash(&[u8::try_from(index).unwrap()]);
            let signed = read.verify(&leaf, &[log.vkey()]).unwrap();
            assert_eq!(signed.checkpoint().size, size);
            assert!(matches!(
                read.verify(&leaf_hash(b"another"), &[log.vkey()]),
                Err(VerifyTlogProofError::Inclusion(VerifyProofError::Root))
            ));
        }
    }
}

#[test]
fn a_proof_of_a_log_that_is_not_believed_shows_nothing() {
    let proof = log().proof_file(3, 11);
    let stranger = ModelLog::new("ledger.example/d/e1", 2).vkey();
    assert!(matches!(
        proof.verify(&leaf_hash(&[3]), &[stranger]),
        Err(VerifyTlogProofError::Checkpoint(_))
    ));
}

#[test]
fn what_is_not_a_proof_file_to_the_byte_is_refused() {
    let text = log().proof_file(3, 11).to_string();
    let check = |from: &str, to: &str, expected: ParseTlogProofError| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        assert_eq!(
            TlogProof::parse(changed.as_bytes()),
            Err(expected),
            "{changed}"
        );
    };
    check("@v1", "@v2", ParseTlogProofError::FirstLine);
    check("index 3", "index 03", ParseTlogProofError::Index);
    check("index 3", "index -3", ParseTlogProofError::Index);
    check("index 3", "extra !\nindex 3", ParseTlogProofError::Extra);
    check("index 3\n", "", ParseTlogProofError::Index);
    check(
        "index 3\n",
        "index 3\nAAAA\n",
        ParseTlogProofError::Hash { line: 3 },
    );
    let hash = format!("{}\n", leaf_hash(b"").to_base64());
    check(
        "index 3\n",
        &format!("index 3\n{}", hash.repeat(60)),
        ParseTlogProofError::Hash { line: 66 },
    );
    check(
        "— ",
        "- ",
        ParseTlogProofError::Checkpoint(ParseNoteError::SignatureLine { line: 1 }),
    );
    assert_eq!(
        TlogProof::parse(text.replace("\n\n", "\n").as_bytes()),
        Err(ParseTlogProofError::NoCheckpoint)
    );
    assert_eq!(
        TlogProof::parse(&[0xff]),
        Err(ParseTlogProofError::FirstLine)
    );
}
