//! What a crash of the agent or a power cut leaves at every command, and how the wipe goes on.

use std::time::Duration;

use berth_api::slot::WipeMethod;
use berth_nvme::model::script::{Formatting, Sanitizing, Script};
use berth_nvme::model::{Kill, Model};
use berth_nvme::suite::Notes;
use berth_nvme::wipe_error::WipeError;

use super::bench::{Call, METHODS, PATTERN, filled, policy, small, wipe_by};

/// What comes between the end of one agent and the start of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Restart,
    LongRestart,
    PowerCut,
}

fn killed(script: Script, method: WipeMethod, kill: Kill, between: Between) -> (Model, Notes) {
    let mut model = filled(script);
    model.kill_at(kill);
    let mut notes = Notes::default();
    let found = Call::default().make(&mut model, &policy(&[method]), &mut notes);
    assert!(found.is_err(), "{method:?} {kill:?}: the agent is dead");
    match between {
        Between::Restart => model.revive(),
        Between::LongRestart => {
            model.advance(Duration::from_mins(10));
            model.revive();
        }
        Between::PowerCut => model.power_cycle(),
    }
    (model, notes)
}

fn commands_of(method: WipeMethod) -> u64 {
    let mut model = filled(small(6));
    wipe_by(&mut model, method).unwrap();
    model.commands()
}

#[test]
fn a_wipe_that_is_killed_at_any_command_ends_as_one_that_was_not() {
    for method in METHODS {
        for at in 0..commands_of(method) {
            for (kill, between) in [
                (Kill::Before(at), Between::Restart),
                (Kill::After(at + 1), Between::Restart),
                (Kill::After(at + 1), Between::LongRestart),
                (Kill::After(at + 1), Between::PowerCut),
            ] {
                let (mut model, notes) = killed(small(6), method, kill, between);
                let earlier = notes.runs.last().cloned();
                let mut second = Notes::default();
                let done = Call::after(earlier).make(&mut model, &policy(&[method]), &mut second);
                assert!(done.is_ok(), "{method:?} {kill:?} {between:?}: {done:?}");
                assert!(!model.media.holds_anywhere(PATTERN), "{method:?} {kill:?}");
                assert!(model.sanitizes() <= 2, "{method:?} {kill:?}");
            }
        }
    }
}

#[test]
fn a_sanitize_that_goes_on_without_its_agent_is_not_begun_again() {
    let method = WipeMethod::NvmeSanitizeCrypto;
    for between in [Between::Restart, Between::LongRestart, Between::PowerCut] {
        let mut seen = 0;
        for at in 0..commands_of(method) {
            let (mut model, notes) = killed(small(6), method, Kill::After(at + 1), between);
            if model.sanitizes() == 0 {
                continue;
            }
            seen += 1;
            let call = Call::after(notes.runs.last().cloned());
            let done = call
                .make(&mut model, &policy(&[method]), &mut Notes::default())
                .unwrap();
            assert_eq!(model.sanitizes(), 1, "{between:?} at {at}");
            assert!(
                done.not_proved
                    .iter()
                    .any(|text| text.contains("ended before"))
            );
        }
        assert!(seen > 5, "{between:?}: {seen}");
    }
}

#[test]
fn a_sanitize_that_was_noted_and_never_given_is_begun() {
    let method = WipeMethod::NvmeSanitizeCrypto;
    let mut model = filled(small(6));
    // The log of an earlier wipe says that all is well with the same command.
    wipe_by(&mut model, method).unwrap();
    model.media.fill(PATTERN);
    let before = model.sanitizes();
    let mut notes = Notes::default();
    model.script.refuses = vec![(0x84, berth_nvme::status::Status::new(0, 0x06))];
    Call::default()
        .make(&mut model, &policy(&[method]), &mut notes)
        .unwrap_err();
    assert_eq!(notes.runs.len(), 2, "it was noted");
    model.script.refuses.clear();
    model.revive();
    let call = Call::after(notes.runs.last().cloned());
    call.make(&mut model, &policy(&[method]), &mut Notes::default())
        .unwrap();
    assert_eq!(model.sanitizes(), before + 1);
    assert!(!model.media.holds_anywhere(PATTERN));
}

#[test]
fn an_interrupted_format_is_not_done_and_begins_anew() {
    let method = WipeMethod::NvmeFormatUserData;
    let mut left_half = 0;
    for at in 0..commands_of(method) {
        let mut model = filled(small(6));
        model.kill_at(Kill::After(at + 1));
        let mut notes = Notes::default();
        Call::default()
            .make(&mut model, &policy(&[method]), &mut notes)
            .unwrap_err();
        model.advance(Duration::from_secs(10));
        model.power_cycle();
        left_half += u64::from(model.media.spaces[&1].written.len() == 3);
        let call = Call::after(notes.runs.last().cloned());
        call.make(&mut model, &policy(&[method]), &mut Notes::default())
            .unwrap();
        assert!(!model.media.holds(PATTERN), "{at}");
    }
    assert!(left_half > 0, "no format was interrupted");
}

#[test]
fn a_sanitize_that_failed_while_nobody_looked_is_a_failure() {
    let method = WipeMethod::NvmeSanitizeBlock;
    for at in 0..commands_of(method) {
        let script = Script {
            sanitizing: Sanitizing::FailsAt(60),
            ..small(6)
        };
        let (mut model, notes) = killed(script, method, Kill::After(at + 1), Between::LongRestart);
        if model.sanitizes() == 0 {
            continue;
        }
        let call = Call::after(notes.runs.last().cloned());
        let found = call.make(&mut model, &policy(&[method]), &mut Notes::default());
        assert!(
            matches!(found, Err(WipeError::SanitizeFailed { .. })),
            "{at}: {found:?}"
        );
        return;
    }
    panic!("no sanitize was begun");
}

#[test]
fn lies_are_found_out_after_a_crash_too() {
    let (sanitize, format) = (
        WipeMethod::NvmeSanitizeCrypto,
        WipeMethod::NvmeFormatUserData,
    );
    for (method, script) in [
        (
            sanitize,
            Script {
                sanitizing: Sanitizing::ErasesNothing,
                ..small(6)
            },
        ),
        (
            sanitize,
            Script {
                sanitizing: Sanitizing::KeepsItsLog,
                ..small(6)
            },
        ),
        (
            format,
            Script {
                formatting: Formatting::ErasesNothing,
                ..small(6)
            },
        ),
    ] {
        for at in 0..commands_of(method) {
            let mut model = filled(script.clone());
            model.kill_at(Kill::After(at + 1));
            let mut notes = Notes::default();
            let first = Call::default().make(&mut model, &policy(&[method]), &mut notes);
            assert!(first.is_err(), "{method:?} {at}");
            model.revive();
            let call = Call::after(notes.runs.last().cloned());
            let second = call.make(&mut model, &policy(&[method]), &mut Notes::default());
            assert!(second.is_err(), "{method:?} {at}: {second:?}");
        }
    }
}
