//! Tests of `checkpoint`: what its own file promises, on its public calls.

use super::*;
use crate::cosignature::Cosigner;
use crate::keys::SigningKey;
use crate::note::SignatureLine;

const ROOT: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

fn signer(origin: &str, seed: u8) -> Signer {
    Signer::new(name(origin), SigningKey::from_seed(&[seed; 32]).unwrap())
}

fn checkpoint(size: u64) -> Checkpoint {
    Checkpoint {
        origin: name("ledger.example/d/e1"),
        size,
        root: Hash::from_base64(ROOT).unwrap(),
    }
}

#[test]
fn a_checkpoint_is_three_lines_that_come_back_as_they_were() {
    let text = format!("ledger.example/d/e1\n70000\n{ROOT}\n");
    assert_eq!(checkpoint(70_000).to_string(), text);
    assert_eq!(Checkpoint::parse(&text), Ok(checkpoint(70_000)));
}

/// The table that the foreign verifiers are asked too, in `tests/tests/ledger`.
#[test]
fn a_forged_or_malformed_checkpoint_is_refused() {
    let check = |text: &str, expected: ParseCheckpointError| {
        assert_eq!(Checkpoint::parse(text), Err(expected), "{text:?}");
    };
    check("", ParseCheckpointError::Lines);
    check("o\n1\n", ParseCheckpointError::Lines);
    check(&format!("o\n1\n{ROOT}"), ParseCheckpointError::Lines);
    check(&format!("\n1\n{ROOT}\n"), ParseCheckpointError::Lines);
    check(&format!("o\n1\n{ROOT}\n\nx\n"), ParseCheckpointError::Lines);
    check(&format!("o o\n1\n{ROOT}\n"), ParseCheckpointError::Origin);
    check(&format!("o+o\n1\n{ROOT}\n"), ParseCheckpointError::Origin);
    for size in [
        "",
        "01",
        "00",
        "-1",
        "+1",
        "1 ",
        "0x1",
        "1e3",
        "9223372036854775808",
    ] {
        let text = format!("o\n{size}\n{ROOT}\n");
        let expected = match size {
            "" => ParseCheckpointError::Lines,
            _ => ParseCheckpointError::Size,
        };
        check(&text, expected);
    }
    for root in ["AAAA", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "x"] {
        check(&format!("o\n1\n{root}\n"), ParseCheckpointError::Root);
    }
    let largest = format!("o\n9223372036854775807\n{ROOT}\n");
    assert_eq!(Checkpoint::parse(&largest).unwrap().size, MAX_SIZE);
    // Legal, and signed with the rest.
    let extended = Checkpoint::parse(&format!("o\n1\n{ROOT}\nextension\n")).unwrap();
    assert_eq!(extended.size, 1);
}

#[test]
fn only_its_own_log_signs_a_checkpoint() {
    let (own, old, other) = (
        signer("ledger.example/d/e1", 1),
        signer("ledger.example/d/e1", 2),
        signer("ledger.example/other", 1),
    );
    let keys = |signers: &[&Signer]| -> Vec<Vkey> {
        signers.iter().map(|signer| signer.vkey().clone()).collect()
    };
    let note = checkpoint(7).sign(&[&own, &old]).to_string();
    let opened = SignedCheckpoint::open(note.as_bytes(), &keys(&[&own])).unwrap();
    assert_eq!(opened.checkpoint(), &checkpoint(7));
    assert_eq!(opened.note().to_string(), note);
    // While a key is replaced, who has either one believes it.
    SignedCheckpoint::open(note.as_bytes(), &keys(&[&old])).unwrap();

    let open = |note: &str, known: &[Vkey]| SignedCheckpoint::open(note.as_bytes(), known);
    assert!(matches!(
        open(&note, &keys(&[&other])),
        Err(OpenCheckpointError::UnknownOrigin { .. })
    ));
    let by_other = checkpoint(7).sign(&[&other]).to_string();
    assert!(matches!(
        open(&by_other, &keys(&[&own, &other])),
        Err(OpenCheckpointError::Signature(VerifyNoteError::NotSigned))
    ));
    let mut forged = note.replace("\n7\n", "\n8\n");
    assert!(matches!(
        open(&forged, &keys(&[&own])),
        Err(OpenCheckpointError::Signature(
            VerifyNoteError::WrongSignature { .. }
        ))
    ));
    forged.push_str("x\n");
    assert!(matches!(
        open(&forged, &keys(&[&own])),
        Err(OpenCheckpointError::Note(_))
    ));
}

#[test]
fn a_witness_cannot_speak_for_the_log_under_its_name() {
    let key = || SigningKey::from_seed(&[1; 32]).unwrap();
    let witness = Cosigner::new(name("ledger.example/d/e1"), key());
    let text = checkpoint(7).to_string();
    let mut note = Note::unsigned(text.clone()).unwrap();
    note.add(witness.sign(&text, 1));
    let known = [witness.vkey().clone()];
    assert!(matches!(
        SignedCheckpoint::open(note.to_string().as_bytes(), &known),
        Err(OpenCheckpointError::UnknownOrigin { .. })
    ));
}

#[test]
fn seventeen_signatures_are_taken() {
    let own = signer("ledger.example/d/e1", 1);
    let mut note = Note::unsigned(checkpoint(7).to_string()).unwrap();
    for seed in 2..18 {
        let stranger = signer("ledger.example/d/e1", seed);
        note.add(stranger.sign(note.text()));
    }
    note.sign(&own);
    assert_eq!(note.signatures().len(), 17);
    let known = [own.vkey().clone()];
    SignedCheckpoint::open(note.to_string().as_bytes(), &known).unwrap();
    let lines: Vec<SignatureLine> = note.signatures().to_vec();
    note.add(lines[0].clone());
    assert_eq!(note.signatures().len(), 17);
}
