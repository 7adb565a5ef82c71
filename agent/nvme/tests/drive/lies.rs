//! Every lie and every failure of a drive: none of them is a wipe.

use std::time::Duration;

use berth_api::slot::WipeMethod;
use berth_nvme::drive::Drive;
use berth_nvme::error::DriveError;
use berth_nvme::identify::identify;
use berth_nvme::model::script::{Break, Formatting, Patch, Sanitizing, Script};
use berth_nvme::status::{Status, StatusKind};
use berth_nvme::suite::Notes;
use berth_nvme::transport::Transport as _;
use berth_nvme::wipe_error::WipeError;

use super::bench::{Call, METHODS, PATTERN, filled, policy, small, wipe_by};

const CRYPTO: WipeMethod = WipeMethod::NvmeSanitizeCrypto;
const FORMAT: WipeMethod = WipeMethod::NvmeFormatUserData;

fn sanitizing(sanitizing: Sanitizing) -> Script {
    Script {
        sanitizing,
        ..small(64)
    }
}

fn formatting(formatting: Formatting) -> Script {
    Script {
        formatting,
        ..small(64)
    }
}

#[track_caller]
fn error_of(script: Script, method: WipeMethod) -> WipeError {
    let mut model = filled(script);
    wipe_by(&mut model, method).expect_err("a drive that fails or lies is not wiped")
}

#[test]
fn a_sanitize_that_erases_nothing_is_found_out() {
    let error = error_of(sanitizing(Sanitizing::ErasesNothing), CRYPTO);
    assert!(
        matches!(error, WipeError::ContentLeft { blocks: 64, .. }),
        "{error}"
    );
}

#[test]
fn a_sanitize_that_erases_nothing_on_a_blank_drive_is_found_out_by_canaries() {
    let mut model = berth_nvme::model::Model::new(sanitizing(Sanitizing::ErasesNothing));
    let error = wipe_by(&mut model, CRYPTO).unwrap_err();
    assert!(matches!(error, WipeError::ContentLeft { .. }), "{error}");
}

#[test]
fn a_sanitize_that_was_accepted_and_never_ran_is_found_out_by_the_log_of_the_last_one() {
    let mut model = filled(small(64));
    wipe_by(&mut model, CRYPTO).unwrap();
    model.media.fill(PATTERN);
    model.script.sanitizing = Sanitizing::KeepsItsLog;
    let error = wipe_by(&mut model, CRYPTO).unwrap_err();
    assert!(matches!(error, WipeError::ContentLeft { .. }), "{error}");
}

#[test]
fn a_sanitize_that_never_ran_on_a_new_drive_is_not_shown() {
    let error = error_of(sanitizing(Sanitizing::KeepsItsLog), CRYPTO);
    assert!(
        matches!(error, WipeError::SanitizeNotShown { sstat: 0 }),
        "{error}"
    );
}

#[test]
fn a_log_of_another_command_is_not_ours() {
    for takes in [Duration::ZERO, Duration::from_secs(40)] {
        let script = Script {
            sanitize_takes: takes,
            ..sanitizing(Sanitizing::LogsAnother)
        };
        let error = error_of(script, CRYPTO);
        let is_told = matches!(
            error,
            WipeError::SanitizeNotOurs {
                issued: 0x204,
                found: 0x202
            }
        );
        assert!(is_told, "{takes:?}: {error}");
    }
}

#[test]
fn a_sanitize_that_fails_is_a_failure_though_its_progress_is_ffffh() {
    for percent in [0, 1, 50, 99] {
        let error = error_of(sanitizing(Sanitizing::FailsAt(percent)), CRYPTO);
        assert!(
            matches!(error, WipeError::SanitizeFailed { sstat: 3 }),
            "{percent}: {error}"
        );
    }
}

#[test]
fn a_drive_whose_sanitize_failed_is_wiped_by_an_operators_new_one_and_by_nothing_else() {
    let mut model = filled(sanitizing(Sanitizing::FailsAt(50)));
    wipe_by(&mut model, CRYPTO).unwrap_err();
    for method in [FORMAT, WipeMethod::NvmeOverwrite] {
        let error = wipe_by(&mut model, method).unwrap_err();
        let WipeError::Drive(error) = &error else {
            panic!("{error}");
        };
        assert_eq!(
            error.status().map(Status::kind),
            Some(StatusKind::SanitizeFailed)
        );
    }
    model.script.sanitizing = Sanitizing::Honest;
    let done = wipe_by(&mut model, CRYPTO).unwrap();
    assert!(!model.media.holds_anywhere(PATTERN));
    assert!(
        done.not_proved
            .iter()
            .any(|text| text.contains("no canary"))
    );
}

#[test]
fn a_sanitize_that_stands_still_ends_before_its_deadline() {
    let error = error_of(sanitizing(Sanitizing::StallsAt(40)), CRYPTO);
    assert!(
        matches!(error, WipeError::Stalled { percent: 35, .. }),
        "{error}"
    );
}

#[test]
fn a_sanitize_that_creeps_ends_with_its_deadline() {
    let mut model = filled(sanitizing(Sanitizing::NeverEnds));
    let mut policy = policy(&[CRYPTO]);
    policy.deadline_s = 100_000;
    let error = Call::default()
        .make(&mut model, &policy, &mut Notes::default())
        .unwrap_err();
    assert!(
        matches!(error, WipeError::TooLong { seconds: 100_000 }),
        "{error}"
    );
}

#[test]
fn an_absurd_estimate_does_not_prolong_a_wipe_beyond_days() {
    let script = Script {
        estimate_s: u32::MAX - 1,
        ..sanitizing(Sanitizing::NeverEnds)
    };
    let error = error_of(script, CRYPTO);
    assert!(
        matches!(error, WipeError::TooLong { seconds: 259_200 }),
        "{error}"
    );
}

#[test]
fn a_refused_command_is_a_failure_and_never_a_reason_for_the_next_method() {
    for (opcode, method, code) in [
        (0x84, CRYPTO, 0x01),
        (0x84, CRYPTO, 0x23),
        (0x80, FORMAT, 0x01),
        (0x80, FORMAT, 0x23),
    ] {
        let mut model = filled(Script {
            refuses: vec![(opcode, Status::new(0, code))],
            ..small(200)
        });
        let methods = [method, WipeMethod::NvmeOverwrite];
        let found = Call::default().make(&mut model, &policy(&methods), &mut Notes::default());
        let Err(WipeError::Drive(DriveError::Refused { status, .. })) = found else {
            panic!("{found:?}");
        };
        assert_eq!(status.code(), code);
        assert!(model.media.holds(PATTERN), "the rest is as it was");
    }
}

#[test]
fn a_format_that_erases_nothing_or_half_is_found_out() {
    for (lie, left) in [
        (Formatting::ErasesNothing, 64),
        (Formatting::ErasesHalf, 32),
    ] {
        let error = error_of(formatting(lie), FORMAT);
        let WipeError::ContentLeft { blocks, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(blocks, left);
    }
}

#[test]
fn a_format_that_erases_only_what_was_written_last_is_found_out_by_digests() {
    let mut model = filled(Script {
        formatting: Formatting::ErasesRecent,
        ..small(200)
    });
    let mut policy = policy(&[FORMAT]);
    policy.sample_blocks = 200;
    let found = Call::default().make(&mut model, &policy, &mut Notes::default());
    let Err(WipeError::ContentLeft { blocks, .. }) = found else {
        panic!("{found:?}");
    };
    assert!(
        (130..150).contains(&blocks),
        "all but the canaries: {blocks}"
    );
}

#[test]
fn a_format_that_never_ends_ends_with_its_deadline() {
    let error = error_of(formatting(Formatting::NeverEnds), FORMAT);
    assert!(
        matches!(error, WipeError::TooLong { seconds: 600 }),
        "{error}"
    );
}

#[test]
fn a_format_that_says_that_something_is_left_is_not_done() {
    let error = error_of(formatting(Formatting::LeavesPercent(7)), FORMAT);
    assert!(
        matches!(error, WipeError::FormatNotDone { left: 7, .. }),
        "{error}"
    );
}

#[test]
fn a_format_to_another_format_is_found_out() {
    let error = error_of(formatting(Formatting::TakesAnotherFormat), FORMAT);
    assert!(
        matches!(error, WipeError::LayoutNotRestored { .. }),
        "{error}"
    );
}

#[test]
fn writes_that_are_dropped_are_found_out_before_and_after() {
    for method in METHODS {
        let script = Script {
            drops_writes: true,
            ..small(64)
        };
        let error = error_of(script, method);
        assert!(
            matches!(error, WipeError::WritesNotKept { .. }),
            "{method:?}: {error}"
        );
    }
}

#[test]
fn a_drive_that_breaks_at_any_command_is_an_error_and_not_a_wipe() {
    for method in METHODS {
        let mut model = filled(small(24));
        wipe_by(&mut model, method).unwrap();
        let commands = model.commands();
        for how in [
            Break::Gone,
            Break::Unreachable,
            Break::Fatal,
            Break::Silent,
            Break::UnknownId,
            Break::WrongHead,
            Break::WrongQueue,
            Break::PhaseGarbage,
        ] {
            for at in (0..commands).step_by(7) {
                let script = Script {
                    breaks: Some((at, how)),
                    ..small(24)
                };
                let found = wipe_by(&mut filled(script), method);
                assert!(found.is_err(), "{method:?} {how:?} at {at}");
            }
        }
    }
}

#[test]
fn each_break_is_told_as_what_it_is() {
    let found = |how| {
        let mut model = filled(Script {
            breaks: Some((20, how)),
            ..small(64)
        });
        match wipe_by(&mut model, CRYPTO) {
            Err(WipeError::Drive(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(found(Break::Gone), DriveError::Gone));
    assert!(matches!(
        found(Break::Unreachable),
        DriveError::Transport(_)
    ));
    assert!(matches!(found(Break::Fatal), DriveError::Fatal));
    assert!(matches!(found(Break::Silent), DriveError::TimedOut { .. }));
    for (how, field) in [
        (Break::UnknownId, "command id"),
        (Break::WrongHead, "submission queue head"),
        (Break::WrongQueue, "queue id"),
    ] {
        let error = found(how);
        let DriveError::FalseCompletion { what, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(what, field);
    }
}

#[test]
fn a_drive_that_falls_silent_is_not_waited_for_longer_than_its_command() {
    for method in METHODS {
        let mut model = filled(Script {
            breaks: Some((20, Break::Silent)),
            ..small(64)
        });
        wipe_by(&mut model, method).unwrap_err();
        let waited = model.now();
        assert!(waited < Duration::from_secs(35), "{method:?}: {waited:?}");
    }
}

#[test]
fn identities_that_cannot_be_are_errors() {
    let ones = |structure, offset, bytes| Patch {
        structure,
        offset,
        bytes: vec![0xff; bytes],
    };
    let list = |ids: &[u32]| Patch {
        structure: 2,
        offset: 0,
        bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
    };
    for patch in [
        ones(0, 0, 8),
        ones(0, 0, 4096),
        ones(0, 128, 16),
        ones(0, 26, 1),
        list(&[1, 1]),
        list(&[2, 1]),
        list(&(1..=1024).collect::<Vec<_>>()),
        list(&[u32::MAX]),
        list(&[9]),
    ] {
        let script = Script {
            patches: vec![patch.clone()],
            ..small(64)
        };
        let mut model = filled(script);
        let mut drive = Drive::open(&mut model).unwrap();
        let offset = patch.offset;
        let error = identify(&mut drive).expect_err(&format!("{} {offset}", patch.structure));
        assert!(
            matches!(error, DriveError::Malformed { .. }),
            "{offset}: {error}"
        );
    }
}

#[test]
fn a_drive_that_this_driver_cannot_work_with_is_refused() {
    let usual = 63 | 20 << 24 | 1 << 37;
    for (capabilities, part) in [
        (usual | 1 << 48, "page"),
        (usual & !(1 << 37), "command set"),
        (usual & !63, "queues"),
    ] {
        let mut model = filled(Script {
            capabilities: Some(capabilities),
            ..small(64)
        });
        let error = Drive::open(&mut model).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_wipe_that_is_cancelled_ends_soon_and_leaves_the_drive_at_work() {
    for method in METHODS {
        let mut model = filled(Script {
            sanitize_takes: Duration::from_hours(1),
            format_takes: Duration::from_secs(500),
            ..small(64)
        });
        let mut notes = Notes {
            cancelled_from: Some(2),
            ..Notes::default()
        };
        let found = Call::default().make(&mut model, &policy(&[method]), &mut notes);
        assert!(
            matches!(found, Err(WipeError::Cancelled)),
            "{method:?}: {found:?}"
        );
    }
}

#[test]
fn what_cannot_be_noted_is_not_done() {
    for method in METHODS {
        for note in [0, 1] {
            let mut model = filled(small(64));
            let mut notes = Notes {
                fails_from: Some(note),
                ..Notes::default()
            };
            let found = Call::default().make(&mut model, &policy(&[method]), &mut notes);
            assert!(
                matches!(found, Err(WipeError::Journal(_))),
                "{method:?}: {found:?}"
            );
            assert_eq!(model.sanitizes(), 0);
            assert!(
                note == 1 || model.media == filled(small(64)).media,
                "{method:?}"
            );
        }
    }
}
