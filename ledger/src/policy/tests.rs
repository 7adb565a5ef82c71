//! Tests of `policy`: what its own file promises, on its public calls.

use super::*;
use crate::cosignature::Cosigner;
use crate::keys::SigningKey;
use crate::model::ModelLog;
use crate::note::KeyName;

const TIME_S: u64 = 1_700_000_000;

fn witness(seed: u8) -> Cosigner {
    let name = KeyName::new(&format!("witness.example/{seed}")).unwrap();
    Cosigner::new(name, SigningKey::from_seed(&[seed; 32]).unwrap())
}

fn log() -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 1);
    log.append(b"entry");
    log
}

/// The policy with these lines after those for the log and the witnesses `w2` to `w6`.
fn text(lines: &str) -> String {
    let witnesses: String = (2..=6)
        .map(|seed| {
            format!(
                "witness w{seed} {} https://w{seed}.example\n",
                witness(seed).vkey()
            )
        })
        .collect();
    format!(
        "# whom we believe\n\nlog {}\n{witnesses}{lines}",
        log().vkey()
    )
}

fn cosigned_by(seeds: &[u8]) -> Vec<u8> {
    let mut note = log().note(1);
    for seed in seeds {
        note.add(witness(*seed).sign(note.text(), TIME_S));
    }
    note.to_string().into_bytes()
}

#[test]
fn a_quorum_of_groups_counts_witnesses_in_each() {
    let policy = Policy::parse(&text(
        "group x 2 w2 w3 w4\n\t group  y any w5 w6 \ngroup both all x y\nquorum both\n",
    ))
    .unwrap();
    assert_eq!(policy.witnesses().len(), 5);
    assert_eq!(
        policy.witnesses()[0].url.as_deref(),
        Some("https://w2.example")
    );
    for (seeds, is_enough) in [
        (&[2, 3, 5][..], true),
        (&[2, 4, 6], true),
        (&[2, 3, 4, 5, 6], true),
        (&[2, 5, 6], false),
        (&[2, 3, 4], false),
        (&[], false),
        // A witness that the policy does not have.
        (&[2, 5, 7], false),
    ] {
        assert_eq!(
            policy.open(&cosigned_by(seeds)).is_ok(),
            is_enough,
            "{seeds:?}"
        );
    }
}

#[test]
fn a_forged_cosignature_counts_as_none() {
    let policy = Policy::parse(&text("quorum w2\n")).unwrap();
    policy.open(&cosigned_by(&[2])).unwrap();
    let mut note = log().note(1);
    note.add(witness(2).sign("another text\n", TIME_S));
    assert_eq!(
        policy.open(note.to_string().as_bytes()),
        Err(PolicyError::NotEnoughWitnesses { cosigned: 0 })
    );
}

#[test]
fn without_a_quorum_the_logs_signature_is_enough_and_needed() {
    let policy = Policy::parse(&text("quorum none\n")).unwrap();
    policy.open(&cosigned_by(&[])).unwrap();
    let other = ModelLog::new("ledger.example/d/e1", 2).note(0);
    assert!(matches!(
        policy.open(other.to_string().as_bytes()),
        Err(PolicyError::Checkpoint(_))
    ));
}

#[test]
fn a_wrong_line_is_named_with_what_is_wrong() {
    let check = |lines: &str, expected: LineProblem| match Policy::parse(&text(lines)) {
        Err(ParsePolicyError::Line { line, problem }) => {
            assert_eq!((line, problem), (9 + lines.matches('\n').count(), expected));
        }
        other => assert!(other.is_err(), "{lines}: {other:?}"),
    };
    check("quorums none", LineProblem::Shape);
    check("group g any", LineProblem::Shape);
    check("group g +1 w2", LineProblem::Shape);
    check("group g 0 w2", LineProblem::Threshold);
    check("group g 2 w2", LineProblem::Threshold);
    check("group g any w9", LineProblem::UnknownName);
    check("group g any w2 w2", LineProblem::MemberTwice);
    check("group g any w2\ngroup h any w2", LineProblem::MemberTwice);
    check("group w2 any w3", LineProblem::SameName);
    check("group none any w3", LineProblem::SameName);
    check("quorum none\nquorum w2", LineProblem::SecondQuorum);
    check("quorum w9", LineProblem::UnknownName);
    check("log hello", LineProblem::Key);
    check(&format!("log {}", log().vkey()), LineProblem::SameKey);
    check(&format!("witness w9 {}", log().vkey()), LineProblem::Key);
    let again = witness(2);
    check(
        &format!("witness w9 {}", again.vkey()),
        LineProblem::SameKey,
    );
    assert_eq!(
        Policy::parse(&text("")).unwrap_err(),
        ParsePolicyError::NoQuorum
    );
    assert_eq!(
        Policy::parse("quorum none\r\n").unwrap_err(),
        ParsePolicyError::Text
    );
    assert_eq!(
        Policy::parse(&"\n".repeat(MAX_LINES + 2)).unwrap_err(),
        ParsePolicyError::Text
    );
}
