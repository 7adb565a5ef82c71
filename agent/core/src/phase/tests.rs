//! Every pair of phase and event, as a table.

use super::*;

const PHASES: [&str; 10] = [
    "creating", "undoing", "starting", "running", "stopping", "halting", "stopped", "failed",
    "deleting", "deleted",
];

fn phase(name: &str) -> Phase {
    match name {
        "creating" => Phase::Creating,
        "undoing" => Phase::Undoing {
            code: FailureCode::NoRoom,
            message: "full".to_owned(),
        },
        "starting" => Phase::Starting,
        "running" => Phase::Running { pid: 7 },
        "stopping" => Phase::Stopping { deadline: 99 },
        "halting" => Phase::Halting,
        "stopped" => Phase::Stopped {
            reason: StoppedReason::GuestShutdown,
        },
        "failed" => Phase::Failed {
            message: "why".to_owned(),
        },
        "deleting" => Phase::Deleting,
        "deleted" => Phase::Deleted,
        other => panic!("no phase {other}"),
    }
}

fn show(next: &Result<Next, Busy>) -> String {
    let Ok((phase, effects)) = next else {
        return "busy".to_owned();
    };
    let phase = match phase {
        Phase::Creating => "creating".to_owned(),
        Phase::Undoing { code, message } => format!("undoing({code:?} {message})"),
        Phase::Starting => "starting".to_owned(),
        Phase::Running { pid } => format!("running({pid})"),
        Phase::Stopping { deadline } => format!("stopping({deadline})"),
        Phase::Halting => "halting".to_owned(),
        Phase::Stopped { reason } => format!("stopped({reason:?})"),
        Phase::Failed { message } => format!("failed({message})"),
        Phase::Deleting => "deleting".to_owned(),
        Phase::Deleted => "deleted".to_owned(),
    };
    let effects = effects.iter().map(|effect| match effect {
        Effect::Converge => "converge".to_owned(),
        Effect::PressPowerButton => "button".to_owned(),
        Effect::CountReset => "count".to_owned(),
        Effect::Finish(Verdict::Done) => "done".to_owned(),
        Effect::Finish(Verdict::Failed { code, .. }) => format!("fail {code:?}"),
        Effect::Overtake(Verdict::Done) => "overtake as done".to_owned(),
        Effect::Overtake(Verdict::Failed { code, message }) => {
            format!("overtake {code:?} {message}")
        }
    });
    std::iter::once(phase)
        .chain(effects)
        .collect::<Vec<_>>()
        .join(", ")
}

/// One line per phase, in the order of `PHASES`.
#[track_caller]
fn check(event: &Event, expected: [&str; 10]) {
    for (name, expected) in PHASES.iter().zip(expected) {
        let next = transition(phase(name), event.clone());
        assert_eq!(show(&next), expected, "{name} on {event:?}");
    }
}

const UNDOING: &str = "undoing(NoRoom full)";
const STOPPED: &str = "stopped(GuestShutdown)";

#[test]
fn tasks() {
    check(
        &Event::Create,
        [
            "busy",
            "busy",
            "starting",
            "running(7), done",
            "busy",
            "busy",
            "starting, converge",
            "starting, converge",
            "busy",
            "creating, converge",
        ],
    );
    check(
        &Event::Start,
        [
            "busy",
            "busy",
            "starting",
            "running(7), done",
            "busy",
            "busy",
            "starting, converge",
            "starting, converge",
            "busy",
            "deleted, fail VmUnknown",
        ],
    );
    check(
        &Event::StopGracefully { deadline: 50 },
        [
            "busy",
            "busy",
            "halting, converge",
            "stopping(50), button",
            "busy",
            "busy",
            "stopped(GuestShutdown), done",
            "stopped(Requested), done",
            "busy",
            "deleted, fail VmUnknown",
        ],
    );
    check(
        &Event::StopHard,
        [
            "busy",
            "busy",
            "halting, converge",
            "halting, converge",
            "halting, overtake Overtaken overtaken by a hard stop, converge",
            "busy",
            "stopped(GuestShutdown), done",
            "stopped(Requested), done",
            "busy",
            "deleted, fail VmUnknown",
        ],
    );
    check(
        &Event::Delete,
        [
            "busy",
            "busy",
            "deleting, converge",
            "deleting, converge",
            "deleting, overtake Overtaken overtaken by a deletion, converge",
            "busy",
            "deleting, converge",
            "deleting, converge",
            "busy",
            "deleted, done",
        ],
    );
}

#[test]
fn what_launching_brings() {
    check(
        &Event::GuestRuns { pid: 8 },
        [
            "running(8), done",
            UNDOING,
            "running(8), done",
            "running(8)",
            "stopping(99)",
            "halting",
            STOPPED,
            "failed(why)",
            "deleting",
            "deleted",
        ],
    );
    check(
        &Event::LaunchFailed {
            code: FailureCode::VmmRefused,
            message: "no".to_owned(),
        },
        [
            "undoing(VmmRefused no), converge",
            UNDOING,
            "failed(no), fail VmmRefused, converge",
            "running(7)",
            "stopping(99)",
            "halting",
            STOPPED,
            "failed(why)",
            "deleting",
            "deleted",
        ],
    );
}

#[test]
fn a_process_that_ended() {
    let stopped = "stopped(Requested), done, converge";
    check(
        &Event::Ended(End::PowerOff),
        [
            "stopped(GuestShutdown), done, converge",
            UNDOING,
            "stopped(GuestShutdown), done, converge",
            "stopped(GuestShutdown), converge",
            stopped,
            "halting",
            "stopped(GuestShutdown), converge",
            "failed(why), converge",
            "deleting",
            "deleted, converge",
        ],
    );
    check(
        &Event::Ended(End::Reset),
        [
            "starting, count, converge",
            UNDOING,
            "starting, count, converge",
            "starting, count, converge",
            stopped,
            "halting",
            "stopped(GuestShutdown), converge",
            "failed(why), converge",
            "deleting",
            "deleted, converge",
        ],
    );
    let reset_loop = format!("failed({RESET_LOOP}), converge");
    check(
        &Event::Ended(End::ResetLoop),
        [
            &format!("undoing(VmmRefused {RESET_LOOP}), converge"),
            UNDOING,
            &format!("failed({RESET_LOOP}), fail VmmRefused, converge"),
            &reset_loop,
            stopped,
            "halting",
            "stopped(GuestShutdown), converge",
            "failed(why), converge",
            "deleting",
            "deleted, converge",
        ],
    );
    check(
        &Event::Ended(End::Stopped),
        [
            &format!("undoing(UnitFailed {STOPPED_EARLY}), converge"),
            UNDOING,
            &format!("failed({STOPPED_EARLY}), fail UnitFailed, converge"),
            "stopped(Requested), converge",
            stopped,
            "halting",
            "stopped(GuestShutdown), converge",
            "failed(why), converge",
            "deleting",
            "deleted, converge",
        ],
    );
    check(
        &Event::Ended(End::Crashed {
            message: "SIGSEGV".to_owned(),
        }),
        [
            "undoing(VmmRefused SIGSEGV), converge",
            UNDOING,
            "failed(SIGSEGV), fail VmmRefused, converge",
            "failed(SIGSEGV), converge",
            stopped,
            "halting",
            "stopped(GuestShutdown), converge",
            "failed(why), converge",
            "deleting",
            "deleted, converge",
        ],
    );
}

#[test]
fn time_and_reboots() {
    check(
        &Event::DeadlinePassed,
        [
            "creating",
            UNDOING,
            "starting",
            "running(7)",
            "halting, converge",
            "halting",
            STOPPED,
            "failed(why)",
            "deleting",
            "deleted",
        ],
    );
    check(
        &Event::HostRebooted,
        [
            "creating, converge",
            "undoing(NoRoom full), converge",
            "starting, converge",
            "stopped(HostReboot)",
            "stopped(Requested), done",
            "stopped(Requested), done",
            STOPPED,
            "failed(why)",
            "deleting, converge",
            "deleted",
        ],
    );
}

#[test]
fn what_clearing_brings() {
    check(
        &Event::Cleared,
        [
            "creating",
            "deleted, fail NoRoom",
            "starting",
            "running(7)",
            "stopping(99)",
            "stopped(Requested), done",
            STOPPED,
            "failed(why)",
            "deleted, done",
            "deleted",
        ],
    );
    check(
        &Event::ClearFailed {
            message: "stuck".to_owned(),
        },
        [
            "creating",
            "failed(full; then stuck), fail NoRoom",
            "starting",
            "running(7)",
            "stopping(99)",
            "failed(stuck), fail UnitFailed",
            STOPPED,
            "failed(why)",
            "failed(stuck), fail UnitFailed",
            "deleted",
        ],
    );
}

#[test]
fn a_new_agent_takes_up_what_the_old_one_left() {
    let effects: Vec<String> = PHASES
        .iter()
        .map(|name| show(&Ok((phase(name), phase(name).resume()))))
        .collect();
    assert_eq!(
        effects,
        [
            "creating, converge",
            "undoing(NoRoom full), converge",
            "starting, converge",
            "running(7)",
            "stopping(99), button",
            "halting, converge",
            "stopped(GuestShutdown), converge",
            "failed(why), converge",
            "deleting, converge",
            "deleted, converge",
        ]
    );
}
