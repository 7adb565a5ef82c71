//! Tests of `bundle`: what its own file promises, on its public calls.

use serde_json::json;

use super::*;
use crate::model::ModelLog;

const ORIGIN: &str = "ledger.example/d/e1";

/// The export of `acme`'s events from one number on, as lines.
fn export(first: u64, with_view_key: bool) -> (ModelLog, Vec<String>) {
    let mut log = ModelLog::new(ORIGIN, 1);
    let mut own = Vec::new();
    for round in 0..5 {
        own.push(log.append_event(Some("acme"), json!({ "round": round })));
        log.append_event(Some("other"), json!({ "round": round }));
    }
    let skipped = usize::try_from(first - FIRST_SEQUENCE).unwrap();
    let previous = own[..skipped].last();
    let previous = previous.map_or(NO_PREVIOUS, |entry| Hash::of_bytes(entry.body.as_bytes()));
    let view_key = log.view_key(Some("acme"));
    let scope = Scope::Holder {
        tenant_id: Some("acme".to_owned()),
        first_sequence: first,
        previous,
        view_key: with_view_key.then(|| STANDARD.encode(view_key.as_bytes())),
    };
    let lines = lines(&log, scope, &own[skipped..]);
    (log, lines)
}

fn lines(log: &ModelLog, scope: Scope, events: &[ProvenEntry]) -> Vec<String> {
    let header = Line::Header(Header {
        format: FORMAT.to_owned(),
        checkpoint: log.note(log.size()).to_string(),
        log_keys: vec![log.vkey().to_string()],
        scope,
    });
    let events_proved = events
        .iter()
        .map(|entry| Line::Event(log.prove(entry, log.size())));
    let end = Line::End(End {
        events: u64::try_from(events.len()).unwrap(),
    });
    std::iter::once(header)
        .chain(events_proved)
        .chain([end])
        .map(|line| serde_json::to_string(&line).unwrap())
        .collect()
}

fn verify(log: &ModelLog, lines: &[String]) -> Result<BundleReport, VerifyBundleError> {
    let mut verifier = BundleVerifier::open(&lines[0], &[log.vkey()])?;
    for line in &lines[1..] {
        verifier.line(line)?;
    }
    verifier.finish()
}

#[test]
fn an_export_verifies_with_nothing_but_the_logs_key() {
    for (first, with_view_key) in [(1, true), (1, false), (3, true)] {
        let (log, lines) = export(first, with_view_key);
        let report = verify(&log, &lines).unwrap();
        assert_eq!(report.events, 6 - first);
        assert_eq!(report.is_from_start, first == 1);
        assert_eq!(report.has_tags, with_view_key);
        assert_eq!(report.signed.checkpoint().size, 10);
        let header = read_header(&lines[0]).unwrap();
        assert_eq!(header.log_keys, [log.vkey().to_string()]);
    }
}

#[test]
fn a_selection_is_proved_event_by_event_and_claims_no_more() {
    let mut log = ModelLog::new(ORIGIN, 1);
    let some = [Some("a"), None, Some("b")].map(|tenant| log.append_event(tenant, json!({})));
    let lines = lines(&log, Scope::Selection {}, &some);
    let report = verify(&log, &lines).unwrap();
    assert_eq!((report.events, report.is_from_start), (3, false));
}

#[test]
fn whatever_is_changed_in_an_export_is_found() {
    let (log, sound) = export(1, true);
    let check = |change: &dyn Fn(&mut Vec<String>), expected: &str| {
        let mut changed = sound.clone();
        change(&mut changed);
        assert_ne!(changed, sound);
        let error = format!("{:?}", verify(&log, &changed).unwrap_err());
        assert!(error.starts_with(expected), "{error} is not {expected}");
    };
    let replace = |line: usize, from: &'static str, to: &'static str| {
        move |lines: &mut Vec<String>| lines[line] = lines[line].replacen(from, to, 1)
    };
    check(
        &replace(2, r#"\"round\":1"#, r#"\"round\":7"#),
        "Entry { line: 3, cause: Body",
    );
    check(
        &replace(2, r#""index":2"#, r#""index":3"#),
        "Entry { line: 3, cause: Inclusion",
    );
    check(
        &replace(2, r#""proof":[""#, r#""proof":["00"#),
        "Line { line: 3",
    );
    check(
        &|lines| drop(lines.remove(2)),
        "View { line: 3, cause: Sequence",
    );
    check(&|lines| lines.swap(1, 2), "View { line: 2, cause: Sequence");
    check(&|lines| lines.push(lines[1].clone()), "Line { line: 8");
    check(&|lines| drop(lines.pop()), "NoEnd");
    // Cut off behind an event that fits.
    check(
        &|lines| drop(lines.remove(5)),
        "Count { found: 4, expected: 5",
    );
    check(&replace(0, "export/v1", "export/v2"), "Format");
    check(&replace(0, r"\n10\n", r"\n11\n"), "Checkpoint");
    check(
        &replace(0, "acme", "other"),
        "View { line: 2, cause: Holder",
    );
    check(
        &replace(0, r#""first_sequence":1"#, r#""first_sequence":2"#),
        "View",
    );
    check(&|lines| lines[0] = lines[1].clone(), "Line { line: 1");
    check(&|lines| lines[1] = lines[0].clone(), "Line { line: 2");
}

#[test]
fn another_tenants_view_key_does_not_fit() {
    let (log, mut lines) = export(1, true);
    let own = STANDARD.encode(log.view_key(Some("acme")).as_bytes());
    let other = STANDARD.encode(log.view_key(Some("other")).as_bytes());
    lines[0] = lines[0].replace(&own, &other);
    let error = verify(&log, &lines).unwrap_err();
    assert!(matches!(
        error,
        VerifyBundleError::View {
            cause: ViewError::Tag { sequence: 1 },
            ..
        }
    ));
    lines[0] = lines[0].replace(&other, "AAAA");
    let error = verify(&log, &lines).unwrap_err();
    assert!(matches!(
        error,
        VerifyBundleError::Header { field: "view_key" }
    ));
}

#[test]
fn the_keys_in_a_bundle_are_not_believed_by_themselves() {
    let (_, lines) = export(1, true);
    let stranger = ModelLog::new(ORIGIN, 2).vkey();
    let error = BundleVerifier::open(&lines[0], &[stranger]).unwrap_err();
    assert!(matches!(error, VerifyBundleError::Checkpoint(_)));
}
