//! A machine's life as a process: start message, guest, requests, end.
//!
//! Owns the carrying out of requests and signals; what may be asked when is decided in
//! [`crate::lifecycle`]. Building and running is the machine's work.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use berth_api::vmm::{Denial, Event, Exit, Request, ResetCause};
use berth_vmm::jail::{self, Gap};
use berth_vmm_machine::ending::Ended;
use berth_vmm_machine::{
    BuildMachineError, Machine, MachineEvent, MachineSpec, Refusal, RunningMachine,
};

use crate::control_socket::{ControlSocket, ReceiveStartError, Received};
use crate::exit_code::ExitCode;
use crate::lifecycle::{Action, Denied, State, decide};
use crate::log::Log;
use crate::preparation::Preparation;

const TOKEN_CONTROL: u32 = 1;
const TOKEN_SIGNAL: u32 = 2;
/// Requests that are answered after the end: as many as an agent may reasonably have under way.
const MAX_LATE_REQUESTS: usize = 16;

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
        .and_then(|spec| {
            let mut preparation = Preparation::new(&mut socket, &signals, &log);
            Machine::build(spec, &mut |prefaulted| preparation.report(prefaulted))
        })
        .and_then(|machine| machine.start(jail::narrow_vcpu));
    match machine {
        Err(BuildMachineError::Stopped) => report(&Ended::Stopped, &socket, &log),
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
    machine: RunningMachine,
    socket: &mut ControlSocket,
    signals: &OwnedFd,
    log: &Log,
) -> ExitCode {
    let mut guest = Guest {
        machine,
        socket,
        log,
        state: State::Running,
    };
    match guest.run(signals) {
        Ok(code) => code,
        Err(error) => {
            log.event("failed", &[("error", &error)]);
            ExitCode::FAILED
        }
    }
}

/// A running guest and those who ask and are told.
struct Guest<'a> {
    machine: RunningMachine,
    socket: &'a mut ControlSocket,
    log: &'a Log,
    state: State,
}

impl Guest<'_> {
    fn run(&mut self, signals: &OwnedFd) -> io::Result<ExitCode> {
        self.machine.watch(self.socket.as_fd(), TOKEN_CONTROL)?;
        self.machine.watch(signals.as_fd(), TOKEN_SIGNAL)?;
        jail::shut()?;
        self.machine.resume();
        let pid = std::process::id();
        self.log.event("running", &[("pid", &pid)]);
        self.socket.send(&Event::Running { pid });
        loop {
            match self.machine.wait()? {
                MachineEvent::Ended(ended) => {
                    self.deny_the_rest();
                    return Ok(report(&ended, self.socket, self.log));
                }
                MachineEvent::Readable(TOKEN_SIGNAL) => {
                    self.log.event("signal", &[]);
                    self.machine.stop();
                }
                MachineEvent::DiskFailed(failure) => self.log.event(
                    "disk_failed",
                    &[
                        ("disk", &failure.disk),
                        ("error", &failure.error),
                        ("total", &failure.total),
                    ],
                ),
                MachineEvent::Warning(about) => {
                    self.log
                        .event("warning", &[("about", &format!("{about:?}"))]);
                    self.socket.send(&Event::Warning { about });
                }
                MachineEvent::Readable(_) => self.serve_control()?,
            }
        }
    }

    /// Takes one message, so that a peer that sends without end keeps nobody else waiting.
    fn serve_control(&mut self) -> io::Result<()> {
        match self.socket.receive() {
            Received::Request(request) => self.serve(&request),
            Received::Malformed(error) => {
                self.log.event("bad_request", &[("error", &error)]);
                let remedy = "send one request of this release's contract in each message";
                self.socket.deny("", Denied::new(Denial::Malformed, remedy));
            }
            Received::Nothing => {}
            Received::Closed => {
                self.log.event("agent_gone", &[]);
                self.machine.forget(self.socket.as_fd())?;
            }
        }
        Ok(())
    }

    fn serve(&mut self, request: &Request) {
        if self.machine.has_ended() {
            self.state = State::Ending;
        }
        let decided = decide(self.state, request, self.machine.most_balloon_mib());
        let done = decided.and_then(|(after, action)| self.act(action).map(|()| after));
        match done {
            Ok(after) => self.state = after,
            Err(denied) => self.socket.deny(request.name(), denied),
        }
    }

    fn act(&self, action: Action) -> Result<(), Denied> {
        match action {
            Action::PressPowerButton => {
                self.log.event("power_button", &[]);
                self.machine.press_power_button();
            }
            Action::End => {
                self.log.event("stop", &[]);
                self.machine.stop();
            }
            Action::Pause => self.pause()?,
            Action::Resume => {
                self.machine.resume();
                self.log.event("resumed", &[]);
                self.socket.send(&Event::Resumed);
            }
            Action::SetBalloon { target_mib } => {
                self.log.event("balloon", &[("target_mib", &target_mib)]);
                self.machine.set_balloon(target_mib);
            }
            Action::EjectDisk { serial } => self.eject_disk(serial)?,
            Action::TellStatistics => self.socket.send(&self.machine.statistics()),
        }
        Ok(())
    }

    fn pause(&self) -> Result<(), Denied> {
        self.machine.pause().map_err(|error| {
            self.log.event("not_paused", &[("error", &error)]);
            let remedy = "ask again; if it stays so, stop the machine";
            Denied::new(Denial::TimedOut, remedy)
        })?;
        self.log.event("paused", &[]);
        self.socket.send(&Event::Paused);
        Ok(())
    }

    fn eject_disk(&self, serial: String) -> Result<(), Denied> {
        if !self.machine.eject_disk(&serial) {
            let remedy = "name the serial number of a disk that the guest can only read";
            return Err(Denied::new(Denial::NoDevice, remedy));
        }
        self.log.event("disk_ejected", &[("disk", &serial)]);
        self.socket.send(&Event::DiskEjected { serial });
        Ok(())
    }

    /// Answers what came too late.
    fn deny_the_rest(&mut self) {
        for _ in 0..MAX_LATE_REQUESTS {
            let Received::Request(request) = self.socket.receive() else {
                return;
            };
            self.serve(&request);
        }
    }
}

fn report(ended: &Ended, socket: &ControlSocket, log: &Log) -> ExitCode {
    let (exit, cause) = (ended.exit(), ended.reset_cause());
    let name = match exit {
        Exit::PowerOff => "power_off",
        Exit::Reset => "reset",
        Exit::Stopped => "stopped",
        Exit::GuestCrash => "guest_crash",
    };
    let cause_name = cause.map(ResetCause::name);
    let mut fields: Vec<(&str, &dyn Display)> = vec![("exit", &name)];
    if let Some(cause) = &cause_name {
        fields.push(("cause", cause));
    }
    if let Some(place) = ended.place() {
        fields.push(("vcpu", &place.vcpu));
        fields.push(("registers", &place.registers));
    }
    if let Ended::Crash { reason, .. } = ended {
        fields.push(("reason", reason));
    }
    log.event("exited", &fields);
    socket.send(&Event::Exited { exit, cause });
    exit.into()
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
