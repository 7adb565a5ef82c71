//! The whole table of states and events, and what must hold for every pair of them.

use super::*;
use VmState as S;

const STATES: [S; 11] = [
    S::Pending,
    S::Scheduling,
    S::Provisioning,
    S::Starting,
    S::Running,
    S::Stopping,
    S::Stopped,
    S::Failed,
    S::Unreachable,
    S::Deleting,
    S::Deleted,
];

/// One row per event, one column per state in the order of `STATES`: the first letters of the
/// next state, `.` for no change, `!` for a denial.
const TABLE: [(Event, &str); 16] = [
    (Event::Start, "!  !  !  !  !  !  ST ST !  !  !"),
    (Event::Stop, "!  !  !  !  SG !  !  !  SG !  !"),
    (Event::StopHard, "!  !  !  !  SG .  !  !  SG !  !"),
    (Event::Delete, "DD DG DG DG DG DG DG DG DG .  !"),
    (Event::Placed, "SC !  !  !  !  !  !  !  !  !  !"),
    (Event::Changing, ".  PV .  .  .  .  .  .  .  .  ."),
    (Event::Running, ".  RU RU RU .  .  SG RU RU .  ."),
    (Event::GuestShutdown, ".  SD SD SD SD SD .  .  SD .  ."),
    (Event::StopDone, ".  SD SD SD SD SD .  .  SD .  ."),
    (Event::HostRebooted, ".  .  .  .  FA .  .  .  FA .  ."),
    (Event::Broke, ".  FA FA FA FA FA .  .  FA .  ."),
    (Event::Missing, ".  FA FA FA FA FA FA .  FA .  ."),
    (Event::LaunchFailed, ".  FA FA FA .  .  .  .  .  .  ."),
    (Event::StopFailed, ".  .  .  .  .  RU .  .  .  .  ."),
    (Event::DeleteFailed, ".  .  .  .  .  .  .  .  .  .  ."),
    (Event::DeleteDone, ".  .  .  .  .  .  .  .  .  DD ."),
];

fn letters(state: S) -> &'static str {
    match state {
        S::Pending => "PE",
        S::Scheduling => "SC",
        S::Provisioning => "PV",
        S::Starting => "ST",
        S::Running => "RU",
        S::Stopping => "SG",
        S::Stopped => "SD",
        S::Failed => "FA",
        S::Unreachable => "UN",
        S::Deleting => "DG",
        S::Deleted => "DD",
    }
}

#[test]
fn every_pair_goes_where_the_table_says() {
    assert_eq!(TABLE.map(|(event, _)| event).as_slice(), Event::ALL);
    for (event, row) in TABLE {
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells.len(), STATES.len(), "{event:?}");
        for (state, cell) in STATES.into_iter().zip(cells) {
            let found = match transition(state, event) {
                Err(denied) => {
                    assert_eq!(denied.state, state);
                    "!"
                }
                Ok((next, _)) if next == state => ".",
                Ok((next, _)) => letters(next),
            };
            assert_eq!(found, cell, "{state:?} on {event:?}");
        }
    }
}

#[test]
fn charges_are_released_exactly_when_a_vm_is_gone() {
    for state in STATES {
        for event in Event::ALL {
            if let Ok((next, effects)) = transition(state, *event) {
                let releases = effects.contains(&ReleaseCharges);
                let gone = next == S::Deleted && state != S::Deleted;
                assert_eq!(releases, gone, "{state:?} on {event:?}");
            }
        }
    }
}

#[test]
fn what_comes_to_run_is_charged_and_what_stops_is_not() {
    for state in STATES {
        for event in Event::ALL {
            let Ok((next, effects)) = transition(state, *event) else {
                continue;
            };
            let stops = next == S::Stopped && state != S::Stopped;
            assert_eq!(
                effects.contains(&ReleaseRunning),
                stops,
                "{state:?} on {event:?}"
            );
            // From these it can be without a charge: it was stopped before.
            let unsure = matches!(state, S::Failed | S::Stopping) && next == S::Running;
            assert_eq!(
                effects.contains(&ChargeRunning),
                unsure,
                "{state:?} on {event:?}"
            );
        }
    }
}

#[test]
fn no_task_is_signed_for_a_wish_before_the_wish_is_recorded() {
    for state in STATES {
        for event in [Event::Start, Event::Stop, Event::StopHard, Event::Delete] {
            if let Ok((next, [first, ..])) = transition(state, event)
                && next != state
            {
                assert!(matches!(first, Effect::Record(_)), "{state:?} on {event:?}");
            }
        }
    }
}

#[test]
fn a_wish_that_overtakes_withdraws_what_is_under_way_before_it_signs() {
    let (stop, delete) = (SignTask(TaskKind::Stop), SignTask(TaskKind::Delete));
    for (event, record, sign) in [
        (Event::StopHard, Record::StopAccepted, stop),
        (Event::Delete, Record::DeleteAccepted, delete),
    ] {
        let (_, effects) = transition(S::Stopping, event).unwrap();
        assert_eq!(effects, [Effect::Record(record), WithdrawTasks, sign]);
    }
}

#[test]
fn nothing_is_ever_stored_as_unreachable() {
    for state in STATES.into_iter().filter(|state| *state != S::Unreachable) {
        for event in Event::ALL {
            assert!(!matches!(
                transition(state, *event),
                Ok((S::Unreachable, _))
            ));
        }
    }
}

#[test]
fn a_denial_names_the_states_that_would_do() {
    for state in STATES {
        for event in Event::ALL {
            if let Err(denied) = transition(state, *event) {
                for allowed in denied.allowed {
                    assert!(
                        transition(*allowed, *event).is_ok(),
                        "{state:?} on {event:?}"
                    );
                }
            }
        }
    }
}
