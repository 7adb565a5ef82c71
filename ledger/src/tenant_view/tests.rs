//! Tests of `tenant_view`: what its own file promises, on its public calls.

use serde_json::json;

use super::*;
use crate::entry::ProvenEntry;
use crate::model::ModelLog;

const ORIGIN: &str = "ledger.example/d/e1";

/// A log in which two tenants and the deployment take turns, and the events of `acme`.
fn log() -> (ModelLog, Vec<ProvenEntry>) {
    let mut log = ModelLog::new(ORIGIN, 1);
    let mut own = Vec::new();
    for round in 0..5 {
        own.push(log.append_event(Some("acme"), json!({ "round": round })));
        log.append_event(Some("other"), json!({ "round": round }));
        log.append_event(None, json!({ "round": round }));
    }
    (log, own)
}

fn view(log: &ModelLog) -> TenantView {
    TenantView::from_start(Some("acme".to_owned()), Some(log.view_key(Some("acme"))))
}

fn accept_all(view: &mut TenantView, shown: &[ProvenEntry]) -> Result<(), ViewError> {
    shown
        .iter()
        .try_for_each(|entry| view.accept(&entry.shown()).map(drop))
}

fn look_through(
    log: &ModelLog,
    leaves: &[(u64, Leaf)],
    shown: &[ProvenEntry],
) -> Result<(), OwnLeavesError> {
    let numbered = shown.iter().zip(FIRST_SEQUENCE..);
    let numbered = numbered.map(|(entry, sequence)| (sequence, entry.index));
    let mut own = OwnLeaves::new(&log.view_key(Some("acme")), numbered);
    for (index, leaf) in leaves {
        own.look(*index, leaf)?;
    }
    own.finish()
}

/// Every leaf of the log, as its entry bundle has it.
fn leaves(log: &ModelLog) -> Vec<(u64, Leaf)> {
    let bundle = crate::tile::EntryBundle::new(0, u16::try_from(log.size()).unwrap()).unwrap();
    let bytes = log.read(crate::tile::Resource::Entries(bundle)).unwrap();
    let entries = bundle.decode(&bytes).unwrap();
    (0..)
        .zip(entries.iter().map(|entry| Leaf::parse(entry).unwrap()))
        .collect()
}

#[test]
fn a_whole_sequence_is_accepted_and_goes_on_from_where_it_was_left() {
    let (log, own) = log();
    let mut all = view(&log);
    accept_all(&mut all, &own).unwrap();
    assert_eq!(all.next_sequence(), 6);
    let mut first = view(&log);
    accept_all(&mut first, &own[..2]).unwrap();
    let mut rest = TenantView::from(
        Some("acme".to_owned()),
        Some(log.view_key(Some("acme"))),
        first.next_sequence(),
        first.previous(),
    );
    accept_all(&mut rest, &own[2..]).unwrap();
    assert_eq!(rest.previous(), all.previous());
    look_through(&log, &leaves(&log), &own).unwrap();
}

#[test]
fn an_omitted_event_is_found_in_the_sequence_and_in_the_log() {
    let (log, mut own) = log();
    let last = own.pop().unwrap();
    accept_all(&mut view(&log), &own).unwrap();
    assert_eq!(
        look_through(&log, &leaves(&log), &own),
        Err(OwnLeavesError::Omitted {
            sequence: 5,
            index: last.index
        })
    );
    own.remove(1);
    assert!(matches!(
        accept_all(&mut view(&log), &own),
        Err(ViewError::Sequence {
            found: 3,
            expected: 2,
            ..
        })
    ));
}

#[test]
fn an_invented_event_is_found() {
    let (log, mut own) = log();
    // The controller makes one up that fits the sequence, and has it nowhere in the log.
    let mut other = ModelLog::new(ORIGIN, 1);
    for round in 0..5 {
        other.append_event(Some("acme"), json!({ "round": round }));
    }
    let mut invented = other.append_event(Some("acme"), json!({ "round": "never" }));
    invented.index = 14;
    own.push(invented);
    accept_all(&mut view(&log), &own).unwrap();
    assert_eq!(
        look_through(&log, &leaves(&log), &own),
        Err(OwnLeavesError::Invented {
            sequence: 6,
            index: 14
        })
    );
}

#[test]
fn a_number_that_is_used_twice_is_found() {
    let (mut log, own) = log();
    let twin = log.view_key(Some("acme")).tag(2);
    let leaf = Leaf::of_event(1, twin, own[1].leaf.commitment);
    let index = log.append(&leaf.to_bytes());
    assert_eq!(
        look_through(&log, &leaves(&log), &own),
        Err(OwnLeavesError::Repeated {
            sequence: 2,
            shown: own[1].index,
            index
        })
    );
    let twice = [&own[..2], &own[1..]].concat();
    assert!(matches!(
        accept_all(&mut view(&log), &twice),
        Err(ViewError::Sequence { found: 2, .. })
    ));
}

#[test]
fn an_event_that_was_replaced_is_found() {
    let (log, own) = log();
    let check = |change: &dyn Fn(&mut ProvenEntry), expected: &str| {
        let mut shown = own.clone();
        change(&mut shown[2]);
        let error = accept_all(&mut view(&log), &shown).unwrap_err();
        assert!(
            format!("{error:?}").starts_with(expected),
            "{error:?} is not {expected}"
        );
    };
    check(
        &|entry| entry.body = entry.body.replace('2', "7"),
        "Commitment",
    );
    let rebind = |entry: &mut ProvenEntry| {
        entry.leaf.commitment = Commitment::of(&entry.nonce, entry.body.as_bytes());
    };
    check(
        &|entry| {
            entry.body = entry.body.replace("acme", "other");
            rebind(entry);
        },
        "Holder",
    );
    check(
        &|entry| {
            entry.body = "{}".to_owned();
            rebind(entry);
        },
        "Body",
    );
    check(
        &|entry| {
            entry.body = entry.body.replace("\"round\":2", "\"round\":3");
            rebind(entry);
        },
        // It fits by itself; the next one shows that it is another.
        "Previous { sequence: 4 }",
    );
    check(&|entry| entry.leaf.tag.0[0] ^= 1, "Tag { sequence: 3 }");
    check(&|entry| entry.index = own[1].index, "Order { sequence: 3");
}
