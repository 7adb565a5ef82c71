//! What a host makes of ledgers that grow, go back, fork, or are another's.

use berth_api::agent::{LEDGER_KEY_PAYLOAD_TYPE, LedgerKeyChange};
use berth_ledger::cosignature::node_witness_name;
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;
use berth_ledger::note::{KeyKind, Signer, Vkey};

use super::*;

const ORIGIN: &str = "ledger.example/d/e1";

fn grown(origin: &str, seed: u8, entries: u32) -> ModelLog {
    let mut log = ModelLog::new(origin, seed);
    grow(&mut log, entries, "of everybody");
    log
}

fn grow(log: &mut ModelLog, entries: u32, what: &str) {
    for number in 0..entries {
        log.append(format!("{what} {number}").as_bytes());
    }
}

fn key_of(log: &ModelLog) -> PublicKey {
    *log.vkey().public_key()
}

/// What a controller with this log shows to a host that has seen `asked`, as well as it can.
fn offer(log: &ModelLog, asked: Option<&TreeHead>) -> CheckpointOffer {
    let from = asked.map_or(0, |asked| asked.size);
    let proof = match from {
        0 => Vec::new(),
        from if from > log.size() => Vec::new(),
        from => log.consistency(from, log.size()),
    };
    CheckpointOffer {
        note: log.note(log.size()).to_string(),
        consistency: proof.iter().map(|hash| hash.to_base64()).collect(),
        key_changes: Vec::new(),
    }
}

/// One sync.
fn sync(watch: &LogWatch, log: &ModelLog) -> LogWatch {
    let asked = watch.seen().map(head_of);
    watch.shown(asked.as_ref(), Some(&offer(log, asked.as_ref())), 100)
}

fn code(watch: &LogWatch) -> Option<FreezeCode> {
    watch.freeze().map(|freeze| freeze.code)
}

fn node() -> (NodeId, SigningKey) {
    let node_id = "node_00000000000000000000000001".parse().unwrap();
    (node_id, SigningKey::from_seed(&[9; 32]).unwrap())
}

/// An operator's word about what the host has seen and was shown.
fn word(watch: &LogWatch) -> SignedEnvelope {
    let (node_id, key) = node();
    let word = watch.acceptance(node_id, "the disk is lost".to_owned(), 200);
    seal(&key, ACCEPT_ROLLBACK_PAYLOAD_TYPE, &word.unwrap()).unwrap()
}

fn follow(watch: &LogWatch, word: &SignedEnvelope) -> Result<LogWatch, AcceptDenied> {
    let (node_id, key) = node();
    watch.accept(word, (node_id, key.public()))
}

#[test]
fn a_ledger_that_grows_is_followed_and_cosigned() {
    let mut log = grown(ORIGIN, 1, 3);
    let mut watch = LogWatch::new(key_of(&log));
    for entries in [0, 1, 4, 0, 300] {
        grow(&mut log, entries, "more");
        watch = sync(&watch, &log);
        assert_eq!(watch.seen().map(|seen| seen.size), Some(log.size()));
        assert_eq!(code(&watch), None);
        watch.check(&TaskAction::VmDelete {}).unwrap();
    }
    let (node_id, key) = node();
    let name = node_witness_name(node_id);
    let vkey = Vkey::new(name.clone(), KeyKind::Cosignature, key.public());
    let report = watch.report(&Cosigner::new(name, key), 1_700_000_000);
    let mut note = log.note(log.size());
    let line = report.cosignature.unwrap();
    note.add(berth_ledger::note::SignatureLine::parse(&line).unwrap());
    let keys = [vkey];
    let found = note.verify(&keys).unwrap();
    assert_eq!(found[0].time_s, Some(1_700_000_000));
    assert_eq!(report.seen, watch.seen().map(head_of));
}

#[test]
fn a_ledger_that_went_back_freezes_what_destroys_until_it_is_whole_again() {
    let mut log = grown(ORIGIN, 1, 10);
    let yesterday = grown(ORIGIN, 1, 6);
    let seen = sync(&LogWatch::new(key_of(&log)), &log);
    let frozen = sync(&seen, &yesterday);
    assert_eq!(code(&frozen), Some(FreezeCode::RolledBack));
    assert_eq!(frozen.seen(), seen.seen(), "what was seen is not forgotten");
    assert_eq!(frozen.freeze().unwrap().shown.unwrap().size, 6);
    let graceful = TaskAction::VmStop {
        mode: berth_api::agent::StopMode::Graceful,
        timeout_s: 1,
    };
    for refused in [TaskAction::VmDelete {}, TaskAction::VmStart {}, graceful] {
        let refusal = frozen.check(&refused).unwrap_err();
        assert!(refusal.to_string().contains("fewer entries"), "{refusal}");
    }
    frozen.check_slot(&SlotAction::Wipe {}).unwrap_err();
    let quarantine = SlotAction::Quarantine {
        reason: "x".to_owned(),
    };
    frozen.check_slot(&quarantine).unwrap();
    let read = TaskAction::VmConsoleRead { tail_bytes: 1 };
    frozen.check(&read).unwrap();
    frozen.check(&TaskAction::VmEjectSeed {}).unwrap();
    // The newer database is found and restored.
    grow(&mut log, 2, "more");
    let whole = sync(&frozen, &log);
    assert_eq!((code(&whole), whole.seen().unwrap().size), (None, 12));
}

#[test]
fn two_histories_stay_a_fork_until_an_operator_decides() {
    let mut log = grown(ORIGIN, 1, 6);
    let mut other = grown(ORIGIN, 1, 6);
    let early = sync(&LogWatch::new(key_of(&log)), &log);
    grow(&mut log, 4, "here");
    grow(&mut other, 4, "there");
    let seen = sync(&early, &log);
    let frozen = sync(&seen, &other);
    assert_eq!(code(&frozen), Some(FreezeCode::Forked));
    // Neither the old history nor a shorter one undoes that both were signed.
    assert_eq!(code(&sync(&frozen, &log)), Some(FreezeCode::Forked));
    let shorter = grown(ORIGIN, 1, 3);
    assert_eq!(code(&sync(&frozen, &shorter)), Some(FreezeCode::Forked));
    // Longer ones are forks as well.
    grow(&mut other, 7, "there");
    assert_eq!(code(&sync(&seen, &other)), Some(FreezeCode::Forked));

    let followed = follow(&frozen, &word(&frozen)).unwrap();
    assert_eq!((code(&followed), followed.seen().unwrap().size), (None, 10));
    let next = sync(&followed, &other);
    assert_eq!((code(&next), next.seen().unwrap().size), (None, 17));
    assert!(
        next.report(&Cosigner::new(node_witness_name(node().0), node().1), 1)
            .accepted
            .is_some()
    );
    assert_eq!(code(&sync(&next, &log)), Some(FreezeCode::RolledBack));
    // A reply to what was asked before the word was given is of no interest any more.
    let asked = seen.seen().map(head_of);
    let late = followed.shown(asked.as_ref(), Some(&offer(&other, asked.as_ref())), 100);
    assert_eq!(late, followed);
}

#[test]
fn a_word_about_other_trees_or_by_another_key_is_not_followed() {
    let log = grown(ORIGIN, 1, 10);
    let seen = sync(&LogWatch::new(key_of(&log)), &log);
    let one = sync(&seen, &grown(ORIGIN, 1, 6));
    let two = sync(&seen, &grown(ORIGIN, 1, 7));
    let good = word(&one);
    follow(&one, &good).unwrap();
    assert!(matches!(follow(&two, &good), Err(AcceptDenied::OtherTrees)));
    assert!(matches!(
        follow(&seen, &good),
        Err(AcceptDenied::NothingToAccept)
    ));
    let (node_id, _) = node();
    let stranger = SigningKey::from_seed(&[8; 32]).unwrap();
    let refused = one.accept(&good, (node_id, stranger.public()));
    assert!(matches!(refused, Err(AcceptDenied::Envelope(_))));
    let refused = one.accept(&good, (NodeId::generate(), node().1.public()));
    assert!(matches!(refused, Err(AcceptDenied::OtherTrees)));
}

#[test]
fn another_log_and_another_key_are_refused_and_a_silent_controller_is_not_obeyed() {
    let log = grown(ORIGIN, 1, 10);
    let seen = sync(&LogWatch::new(key_of(&log)), &log);
    let next_epoch = grown("ledger.example/d/e2", 1, 20);
    let frozen = sync(&seen, &next_epoch);
    assert_eq!(code(&frozen), Some(FreezeCode::OtherLog));
    let followed = follow(&frozen, &word(&frozen)).unwrap();
    assert_eq!(
        followed.seen().unwrap().origin.as_str(),
        "ledger.example/d/e2"
    );

    let stranger = grown(ORIGIN, 2, 20);
    let frozen = sync(&seen, &stranger);
    assert_eq!(code(&frozen), Some(FreezeCode::NotSigned));
    assert!(matches!(
        frozen.acceptance(node().0, String::new(), 0),
        Err(AcceptDenied::NothingToAccept)
    ));
    let asked = seen.seen().map(head_of);
    let silent = seen.shown(asked.as_ref(), None, 100);
    assert_eq!(
        silent.check(&TaskAction::VmStart {}),
        Err(LogRefusal::Withheld)
    );
    assert!(silent.is_same_on_disk(&seen));
    sync(&silent, &log).check(&TaskAction::VmStart {}).unwrap();
}

#[test]
fn a_reply_that_another_overtook_takes_nothing_back_and_must_hold_all_the_same() {
    let mut log = grown(ORIGIN, 1, 4);
    let first = sync(&LogWatch::new(key_of(&log)), &log);
    let asked = first.seen().map(head_of);
    grow(&mut log, 2, "more");
    let late = offer(&log, asked.as_ref());
    let mut fork = grown(ORIGIN, 1, 3);
    grow(&mut fork, 4, "there");
    let forked = offer(&fork, asked.as_ref());
    grow(&mut log, 2, "more still");
    let newest = sync(&first, &log);
    let after = newest.shown(asked.as_ref(), Some(&late), 100);
    assert_eq!((after.seen(), code(&after)), (newest.seen(), None));
    let after = newest.shown(asked.as_ref(), Some(&forked), 100);
    assert_eq!(code(&after), Some(FreezeCode::Forked));
}

#[test]
fn what_is_kept_comes_back_and_what_is_damaged_is_not_taken_for_nothing() {
    let log = grown(ORIGIN, 1, 10);
    let seen = sync(&LogWatch::new(key_of(&log)), &log);
    let frozen = sync(&seen, &grown(ORIGIN, 1, 6));
    for watch in [LogWatch::new(key_of(&log)), seen.clone(), frozen] {
        let read = LogWatch::read(key_of(&log), &watch.to_text().unwrap(), 1);
        assert_eq!(read, watch);
    }
    let text = String::from_utf8(seen.to_text().unwrap()).unwrap();
    for damaged in [
        text.replace("\"format\": 1", "\"format\": 2"),
        text.replace("e1\\n10", "e1\\n11"),
        String::new(),
    ] {
        let lost = LogWatch::read(key_of(&log), damaged.as_bytes(), 1);
        assert_eq!(code(&lost), Some(FreezeCode::MemoryLost), "{damaged}");
        lost.check(&TaskAction::VmDelete {}).unwrap_err();
        // The log as it is shown is not enough; an operator compares it and says so.
        let shown = sync(&lost, &log);
        assert_eq!(code(&shown), Some(FreezeCode::MemoryLost));
        let followed = follow(&shown, &word(&shown)).unwrap();
        assert_eq!((code(&followed), followed.seen().unwrap().size), (None, 10));
    }
}

fn signing(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

/// The key of one seed says that the key of another comes after it, by the word of a third.
fn change(old: u8, new: u8, by: u8) -> SignedEnvelope {
    let change = LedgerKeyChange {
        old: signing(old).public().to_base64(),
        new: signing(new).public().to_base64(),
        at: 50,
    };
    seal(&signing(by), LEDGER_KEY_PAYLOAD_TYPE, &change).unwrap()
}

/// A sync in which a log is shown with signatures by the keys of these seeds alone.
fn sync_by(
    watch: &LogWatch,
    log: &ModelLog,
    signers: &[u8],
    changes: &[SignedEnvelope],
) -> LogWatch {
    let asked = watch.seen().map(head_of);
    let origin = log.vkey().name().clone();
    let signers: Vec<_> = signers
        .iter()
        .map(|seed| Signer::new(origin.clone(), signing(*seed)))
        .collect();
    let signers: Vec<&Signer> = signers.iter().collect();
    let offer = CheckpointOffer {
        note: log.checkpoint(log.size()).sign(&signers).to_string(),
        key_changes: changes.to_vec(),
        ..offer(log, asked.as_ref())
    };
    watch.shown(asked.as_ref(), Some(&offer), 100)
}

fn again(watch: &LogWatch, joined: u8) -> LogWatch {
    LogWatch::read(signing(joined).public(), &watch.to_text().unwrap(), 300)
}

#[test]
fn a_new_key_is_followed_by_the_word_of_the_old_one_and_kept() {
    let mut log = grown(ORIGIN, 1, 3);
    let mut watch = sync(&LogWatch::new(signing(1).public()), &log);
    // While both sign, then the new one alone; then the next, which names the one before; a host that
    // was away for both has the whole chain.
    let mut away = watch.clone();
    let mut changes = Vec::new();
    for (old, new) in [(1, 2), (2, 3)] {
        changes.push(change(old, new, old));
        for signers in [&[new, old][..], &[new]] {
            watch = sync_by(&watch, &log, signers, &changes);
            assert_eq!(code(&watch), None);
            assert_eq!(watch.key(), &signing(new).public());
            assert_eq!(again(&watch, 1), watch);
            grow(&mut log, 2, "more");
        }
    }
    watch = sync_by(&watch, &log, &[3], &[]);
    assert_eq!(watch.seen().map(|seen| seen.size), Some(log.size()));
    watch.check(&TaskAction::VmDelete {}).unwrap();
    away = sync_by(&away, &log, &[3], &changes);
    assert_eq!((code(&away), away.key()), (None, &signing(3).public()));
    // What the old key alone signs from then on is not believed.
    let stale = sync_by(&watch, &log, &[2], &changes);
    assert_eq!(code(&stale), Some(FreezeCode::NotSigned));
}

#[test]
fn a_new_key_that_the_old_one_has_not_named_freezes() {
    let log = grown(ORIGIN, 1, 3);
    let watch = sync(&LogWatch::new(signing(1).public()), &log);
    let mut other_type = change(1, 2, 1);
    other_type.payload_type = ACCEPT_ROLLBACK_PAYLOAD_TYPE.to_owned();
    for changes in [
        vec![],
        vec![change(1, 2, 2)],
        vec![change(1, 2, 9)],
        vec![change(9, 2, 1)],
        vec![change(1, 3, 1)],
        vec![change(3, 2, 3), change(1, 3, 1)],
        vec![other_type],
    ] {
        let shown = sync_by(&watch, &log, &[2], &changes);
        assert_eq!(code(&shown), Some(FreezeCode::NotSigned), "{changes:?}");
        assert!(shown.check(&TaskAction::VmDelete {}).is_err());
        // Nothing of it is kept.
        assert_eq!(shown.key(), &signing(1).public());
        assert_eq!(again(&shown, 1).key(), &signing(1).public());
    }
    // A word alone changes nothing while the new key has not signed.
    let told = sync_by(&watch, &log, &[1], &[change(1, 2, 1)]);
    assert_eq!((code(&told), told.key()), (None, &signing(1).public()));
}

#[test]
fn another_history_by_the_new_key_is_still_a_fork() {
    let log = grown(ORIGIN, 1, 3);
    let watch = sync(&LogWatch::new(signing(1).public()), &log);
    let mut other = ModelLog::new(ORIGIN, 1);
    grow(&mut other, 5, "of somebody else");
    let forked = sync_by(&watch, &other, &[2], &[change(1, 2, 1)]);
    assert_eq!(code(&forked), Some(FreezeCode::Forked));
    assert_eq!(forked.freeze().unwrap().shown.unwrap().size, 5);
    assert_eq!(again(&forked, 1), forked);
}
