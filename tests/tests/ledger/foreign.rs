//! What strangers' programs say of our logs.

use std::fs;

use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;
use berth_ledger::note::{KeyName, Note, Signer};
use berth_tests::foreign_verifiers::{Verdict, at_hand};
use serde_json::json;

use crate::busy_controller;

/// The size of the specification's example: partial tiles on three levels.
const SIZE: u64 = 70_000;

#[test]
fn foreign_verifiers_accept_seventy_thousand_entries_made_through_the_api_and_no_changed_bit() {
    let folder = tempfile::tempdir().unwrap();
    let log = busy_controller::log_of(SIZE, folder.path()).unwrap();
    assert_eq!(log.size, SIZE);
    let checkpoint = fs::read_to_string(folder.path().join("checkpoint")).unwrap();
    let place_of = |wanted: &str| checkpoint.find(wanted).unwrap();
    let line_of = |name: &str| place_of(&format!("— {name} ")) + format!("— {name} ").len();
    let signature = line_of(log.log_key.name().as_str());
    let cosignature = line_of(log.witness_key.name().as_str());
    let changes = [
        ("tile/entries/100", 2 + 82 * 17 + 40),
        ("tile/entries/273.p/112", 82 * 111 + 81),
        ("tile/0/003", 32 * 5),
        ("tile/0/273.p/112", 32 * 112 - 1),
        ("tile/1/000", 0),
        ("tile/1/001.p/17", 32 * 16),
        ("tile/2/000.p/1", 31),
        // In the size, the root, the log's signature and the witness's, whose letters stay base64.
        ("checkpoint", place_of("\n70000\n") + 3),
        ("checkpoint", place_of("\n70000\n") + 20),
        ("checkpoint", signature + 20),
        ("checkpoint", cosignature + 40),
        (
            "proofs/35000.tlog-proof",
            "c2sp.org/tlog-proof@v1\nindex 35000\n".len() + 3,
        ),
    ];
    for verifier in at_hand() {
        let verdict = verifier.log(&log);
        let name = verifier.name;
        let Verdict::Accepted(said) = verdict else {
            panic!("{name}: {verdict:?}");
        };
        assert!(said.contains("70000 entries, 277 tiles"), "{name}: {said}");
        assert!(said.contains("4 proof files"), "{name}: {said}");
        for (path, byte) in changes {
            let verdict = log
                .with_changed_bit(path, byte, || verifier.log(&log))
                .unwrap();
            assert!(
                !verdict.is_accepted(),
                "{name} accepts the log with a changed bit in byte {byte} of {path}"
            );
        }
        assert!(
            verifier.log(&log).is_accepted(),
            "{name}, after all changes were taken back"
        );
    }
}

/// A log of events of three tenants.
fn model_of(size: u64) -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 7);
    for number in 0..size {
        let tenant = ["acme", "globex", "initech"][usize::try_from(number % 3).unwrap_or(0)];
        log.append_event(
            Some(tenant),
            json!({ "event_type": "VM_STARTED", "detail": { "number": number } }),
        );
    }
    log
}

/// A checkpoint's note as somebody might send it, and whether it is to be believed.
struct Case {
    what: &'static str,
    note: String,
    is_sound: bool,
    /// A verifier that is known to think otherwise.
    except: Option<&'static str>,
}

#[expect(
    clippy::too_many_lines,
    reason = "one case after the other: a table in code"
)]
fn cases(log: &ModelLog) -> Vec<Case> {
    let sound = log.checkpoint(5);
    let text = sound.to_string();
    let origin = sound.origin.as_str();
    let by_log = |text: &str| {
        let mut note = Note::unsigned(text.to_owned()).expect("the text is one");
        note.sign(log.signer());
        note.to_string()
    };
    let stranger = |seed: u8| {
        let name = KeyName::new(origin).expect("it is a name");
        Signer::new(name, SigningKey::from_seed(&[seed; 32]).expect("any seed"))
    };
    let signed = by_log(&text);
    let root = sound.root.to_base64();
    let mut seventeen = Note::unsigned(text.clone()).expect("the text is one");
    (100..116).for_each(|seed| seventeen.sign(&stranger(seed)));
    seventeen.sign(log.signer());
    let another = Checkpoint {
        size: 4,
        ..sound.clone()
    }
    .sign(&[log.signer()]);
    let foreign_signature = another.signatures()[0].to_string();
    let case = |what, note: String, is_sound| Case {
        what,
        note,
        is_sound,
        except: None,
    };
    vec![
        case("as it should be", signed.clone(), true),
        case(
            "with an extension line",
            by_log(&format!("{text}extension\n")),
            true,
        ),
        case("with seventeen signatures", seventeen.to_string(), true),
        case(
            "of an empty log",
            by_log(&log.checkpoint(0).to_string()),
            true,
        ),
        case(
            "by another key",
            sound.sign(&[&stranger(9)]).to_string(),
            false,
        ),
        case(
            "with the right key's id and a signature of something else",
            format!("{text}\n{foreign_signature}"),
            false,
        ),
        case(
            "with a name that has a plus sign",
            signed.replace("— ledger", "— led+ger"),
            false,
        ),
        case(
            "with a leading zero",
            by_log(&text.replace("\n5\n", "\n05\n")),
            false,
        ),
        case(
            "with a sign before the size",
            by_log(&text.replace("\n5\n", "\n+5\n")),
            false,
        ),
        case(
            "with a negative size",
            by_log(&text.replace("\n5\n", "\n-5\n")),
            false,
        ),
        Case {
            // The specification has no bound; in Python numbers have none either.
            except: Some("aics-tlog"),
            ..case(
                "with a size of 2^63",
                by_log(&text.replace("\n5\n", "\n9223372036854775808\n")),
                false,
            )
        },
        case("with carriage returns", signed.replace('\n', "\r\n"), false),
        case(
            "with an empty line in its text",
            by_log(&format!("{text}\nextension\n")),
            false,
        ),
        case("with two lines", by_log(&format!("{origin}\n5\n")), false),
        case(
            "with a short root",
            by_log(&text.replace(&root, "AAAA")),
            false,
        ),
        case(
            "of another log",
            by_log(&text.replace(origin, "ledger.example/other")),
            false,
        ),
        case("without a signature", format!("{text}\n"), false),
        case(
            "cut off in its signature",
            signed[..signed.len() - 9].to_owned(),
            false,
        ),
    ]
}

#[test]
fn all_verifiers_agree_on_every_forged_or_malformed_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let log = model_of(9);
    let vkey = log.vkey();
    let verifiers = at_hand();
    for (number, case) in cases(&log).into_iter().enumerate() {
        let what = case.what;
        let ours = SignedCheckpoint::open(case.note.as_bytes(), std::slice::from_ref(&vkey));
        assert_eq!(ours.is_ok(), case.is_sound, "a checkpoint {what}: {ours:?}");
        let file = folder.path().join(format!("note-{number}"));
        fs::write(&file, &case.note).unwrap();
        for verifier in &verifiers {
            let verdict = verifier.note(&file, &vkey.to_string());
            assert_eq!(
                verdict.is_accepted(),
                case.is_sound ^ (case.except == Some(verifier.name)),
                "{}: a checkpoint {what}: {verdict:?}",
                verifier.name
            );
        }
    }
}
