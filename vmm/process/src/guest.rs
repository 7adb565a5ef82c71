//! A machine's life as a process: start message, guest, requests, end.
//!
//! Owns what requests and signals mean. Building and running is the machine's work.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use berth_api::vmm::{Event, Exit, Request};
use berth_vmm::jail::{self, Gap};
use berth_vmm_machine::ending::Ended;
use berth_vmm_machine::{
    BuildMachineError, Machine, MachineEvent, MachineSpec, Refusal, RunningMachine,
};

use crate::control_socket::{ControlSocket, ReceiveStartError, Received};
use crate::exit_code::ExitCode;
use crate::log::Log;

const TOKEN_CONTROL: u32 = 1;
const TOKEN_SIGNAL: u32 = 2;

/// What to do where the jail has gaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unjailed {
    /// Run no guest.
    Refused,
    /// Say so and go on, for trials by hand and for tests.
    Allowed,
}

/// Runs the machine that the control socket asks for.
pub(crate) fn run(unjailed: Unjailed) -> ExitCode {
    let gaps = jail::confine();
    let mut socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(descriptor) => ControlSocket::new(descriptor),
        Err(error) => return unasked(&error),
    };
    // Before any thread exists, so that all inherit the mask.
    let signals = match berth_vmm_sys::watch_stop_signal() {
        Ok(signals) => signals,
        Err(error) => return unasked(&error),
    };
    let (start, descriptors) = match socket.receive_start() {
        Ok(received) => received,
        Err(error) => return refuse_message(&socket, &error),
    };
    let log = Log::new(&start.vm_id);
    if let Err(error) = judge_jail(&gaps, unjailed, &log) {
        return refuse(&socket, &log, &error);
    }
    let machine = MachineSpec::try_from((start, descriptors))
        .map_err(BuildMachineError::from)
        .and_then(Machine::build)
        .and_then(|machine| machine.start(jail::narrow_vcpu));
    match machine {
        Ok(machine) => supervise(machine, &mut socket, &signals, &log),
        Err(error) => refuse(&socket, &log, &error),
    }
}

/// Refuses a jail with gaps unless that is allowed.
fn judge_jail(gaps: &[Gap], unjailed: Unjailed, log: &Log) -> Result<(), BuildMachineError> {
    if gaps.is_empty() {
        return Ok(());
    }
    let gaps: Vec<String> = gaps.iter().map(Gap::to_string).collect();
    let missing = gaps.join("; ");
    if unjailed == Unjailed::Allowed {
        log.event("unjailed", &[("missing", &missing)]);
        return Ok(());
    }
    Err(Refusal {
        field: "jail".to_owned(),
        problem: missing,
        remedy: "let berth-agent start this process: its units have all that is missing".to_owned(),
    }
    .into())
}

/// Serves the machine until it ends.
fn supervise(
    mut machine: RunningMachine,
    socket: &mut ControlSocket,
    signals: &OwnedFd,
    log: &Log,
) -> ExitCode {
    let watched = machine
        .watch(socket.as_fd(), TOKEN_CONTROL)
        .and_then(|()| machine.watch(signals.as_fd(), TOKEN_SIGNAL))
        .and_then(|()| jail::shut());
    if let Err(error) = watched {
        log.event("failed", &[("error", &error)]);
        return ExitCode::FAILED;
    }
    machine.resume();
    let pid = std::process::id();
    log.event("running", &[("pid", &pid)]);
    socket.send(&Event::Running { pid });
    loop {
        match machine.wait() {
            Ok(MachineEvent::Ended(ended)) => return report(&ended, socket, log),
            Ok(MachineEvent::Readable(TOKEN_SIGNAL)) => {
                log.event("signal", &[]);
                machine.stop();
            }
            Ok(MachineEvent::DiskFailed(failure)) => log.event(
                "disk_failed",
                &[
                    ("disk", &failure.disk),
                    ("error", &failure.error),
                    ("total", &failure.total),
                ],
            ),
            Ok(MachineEvent::Readable(_)) => serve_control(&mut machine, socket, log),
            Err(error) => {
                log.event("failed", &[("error", &error)]);
                return ExitCode::FAILED;
            }
        }
    }
}

fn serve_control(machine: &mut RunningMachine, socket: &mut ControlSocket, log: &Log) {
    match socket.receive() {
        Received::Request(Request::PowerButton) => {
            log.event("power_button", &[]);
            machine.press_power_button();
        }
        Received::Request(Request::Stop) => {
            log.event("stop", &[]);
            machine.stop();
        }
        Received::Request(
            request @ (Request::Pause | Request::Resume | Request::Balloon { .. }),
        ) => {
            log.event("denied", &[("request", &format!("{request:?}"))]);
        }
        Received::Request(Request::Statistics) => socket.send(&machine.statistics()),
        Received::Malformed(error) => log.event("bad_request", &[("error", &error)]),
        Received::Nothing => {}
        Received::Closed => {
            log.event("agent_gone", &[]);
            if let Err(error) = machine.forget(socket.as_fd()) {
                log.event("failed", &[("error", &error)]);
            }
        }
    }
}

fn report(ended: &Ended, socket: &ControlSocket, log: &Log) -> ExitCode {
    let name = match ended.exit {
        Exit::PowerOff => "power_off",
        Exit::Reset => "reset",
        Exit::Stopped => "stopped",
        Exit::GuestCrash => "guest_crash",
    };
    match &ended.crash {
        None => log.event("exited", &[("exit", &name)]),
        Some(crash) => log.event(
            "exited",
            &[
                ("exit", &name),
                ("vcpu", &crash.vcpu),
                ("reason", &crash.reason),
                ("registers", &crash.registers),
            ],
        ),
    }
    socket.send(&Event::Exited { exit: ended.exit });
    ended.exit.into()
}

fn refuse(socket: &ControlSocket, log: &Log, error: &BuildMachineError) -> ExitCode {
    if let BuildMachineError::Refused(refusal) = error {
        log.event(
            "refused",
            &[
                ("field", &refusal.field),
                ("problem", &refusal.problem),
                ("remedy", &refusal.remedy),
            ],
        );
        send_refusal(socket, refusal.clone());
        return ExitCode::REFUSED;
    }
    let chain = chain(error);
    log.event("failed", &[("error", &chain)]);
    send_refusal(
        socket,
        Refusal {
            field: "start".to_owned(),
            problem: chain,
            remedy: "see this host's journal; the machine may start on another host".to_owned(),
        },
    );
    ExitCode::FAILED
}

fn refuse_message(socket: &ControlSocket, error: &ReceiveStartError) -> ExitCode {
    let chain = chain(error);
    let log = Log::new("-");
    log.event("refused", &[("field", &"start"), ("problem", &chain)]);
    if let ReceiveStartError::Malformed(_) | ReceiveStartError::TooLong = error {
        send_refusal(
            socket,
            Refusal {
                field: "start".to_owned(),
                problem: chain,
                remedy: "send the start message of this release's contract".to_owned(),
            },
        );
        return ExitCode::REFUSED;
    }
    ExitCode::USAGE
}

fn send_refusal(socket: &ControlSocket, refusal: Refusal) {
    let Refusal {
        field,
        problem,
        remedy,
    } = refusal;
    socket.send(&Event::Refused {
        field,
        problem,
        remedy,
    });
}

/// A failure before anybody could ask for anything.
fn unasked(error: &io::Error) -> ExitCode {
    Log::new("-").event("failed", &[("error", error)]);
    ExitCode::FAILED
}

/// The error and its sources, joined.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
