//! The state machine of one VM on one host.
//!
//! ```text
//!             create                 guest runs             power off, crash
//!  (unknown) ───────► Creating ─────────────────► Running ───────────────────► Stopped | Failed
//!   Deleted              │ refused      reset ┌──►  │  │ stop (graceful)            │    │
//!      ▲                 ▼                Starting ◄┘  ▼                            │    │ start
//!      └──────────── Undoing                  ▲    Stopping ──deadline──► Halting   │    │
//!      └──────────── Deleting ◄── delete ─────┼────────────────────────────┴────────┘◄───┘
//!                                             └── start ──
//! ```
//!
//! [`transition`] is total: each pair of phase and event is decided here, and the tests list them
//! all. A late or repeated event leaves the phase as it is. A graceful stop can be overtaken, by a
//! hard one or by a deletion: it waits for a guest, and nobody else should have to. What a phase wants of the host is
//! [`Phase::want`]; how to get there is `plan`'s.

use berth_api::agent::{FailureCode, StoppedReason};
use serde::{Deserialize, Serialize};

use crate::plan::Want;

/// Where a VM stands. Persisted before it is acted upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case", deny_unknown_fields)]
pub enum Phase {
    /// A task made it; its guest has never run.
    Creating,
    /// Its creation failed; what was made is taken away.
    Undoing {
        /// Why it failed.
        code: FailureCode,
        /// Why, in words.
        message: String,
    },
    /// It has a disk, and its process is to run.
    Starting,
    /// Its guest runs.
    Running {
        /// Host process id of the VMM.
        pid: u32,
    },
    /// The guest was asked to power off.
    Stopping {
        /// Seconds since the epoch after which its process is ended.
        deadline: i64,
    },
    /// Its process is being ended.
    Halting,
    /// No process; disk kept.
    Stopped {
        /// Why.
        reason: StoppedReason,
    },
    /// It ended without anybody's wish; disk kept.
    Failed {
        /// What is known.
        message: String,
    },
    /// Process and files are being taken away.
    Deleting,
    /// The tombstone: only the record is left, so that an old task cannot bring the VM back.
    Deleted,
}

/// What happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A task: exist and run.
    Create,
    /// A task: run.
    Start,
    /// A task: ask the guest to power off, and end it at the deadline.
    StopGracefully {
        /// Seconds since the epoch.
        deadline: i64,
    },
    /// A task: end the process.
    StopHard,
    /// A task: leave nothing but the tombstone.
    Delete,
    /// The VMM says that the vCPUs run.
    GuestRuns {
        /// Host process id.
        pid: u32,
    },
    /// Disk or process could not be made, or the VMM refused.
    LaunchFailed {
        /// Why.
        code: FailureCode,
        /// Why, in words.
        message: String,
    },
    /// The process ended.
    Ended(End),
    /// The guest did not power off in time.
    DeadlinePassed,
    /// The host has another boot id than the record.
    HostRebooted,
    /// What the phase wants gone is gone.
    Cleared,
    /// What the phase wants gone could not be taken away.
    ClearFailed {
        /// Why, in words.
        message: String,
    },
}

/// How a VMM's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest resets itself again and again.
    ResetLoop,
    /// Somebody stopped it: we, or an administrator.
    Stopped,
    /// Neither guest nor administrator wanted it.
    Crashed {
        /// Exit status, signal, last word.
        message: String,
    },
}

/// What to do after a transition was persisted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Carry out the plan for [`Phase::want`].
    Converge,
    /// Press the guest's power button.
    PressPowerButton,
    /// Count one reset of the guest.
    CountReset,
    /// The task in work ends.
    Finish(Verdict),
    /// The task in work ends, and the one that came takes its place.
    Overtake(Verdict),
}

/// How a task ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// What it asks for holds.
    Done,
    /// It could not be done.
    Failed {
        /// Why.
        code: FailureCode,
        /// Why, in words.
        message: String,
    },
}

/// A task came while another one is at work on the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another task is at work on this VM")]
pub struct Busy;

type Next = (Phase, Vec<Effect>);

impl Phase {
    /// What this phase wants of the host.
    #[must_use]
    pub fn want(&self) -> Want {
        match self {
            Self::Creating => Want::NewGuest,
            Self::Starting => Want::Guest,
            Self::Running { .. } | Self::Stopping { .. } => Want::AsItIs,
            Self::Halting | Self::Stopped { .. } | Self::Failed { .. } => Want::NoGuest,
            Self::Undoing { .. } | Self::Deleting | Self::Deleted => Want::Nothing,
        }
    }

    /// Whether a process runs, or is still to run, for the start that was ordered.
    #[must_use]
    pub fn may_launch(&self) -> bool {
        match self {
            Self::Creating | Self::Starting | Self::Running { .. } | Self::Stopping { .. } => true,
            Self::Undoing { .. }
            | Self::Halting
            | Self::Stopped { .. }
            | Self::Failed { .. }
            | Self::Deleting
            | Self::Deleted => false,
        }
    }

    /// What an agent that was just started has to do again for a VM in this phase.
    #[must_use]
    pub fn resume(&self) -> Vec<Effect> {
        match self {
            Self::Running { .. } => Vec::new(),
            Self::Stopping { .. } => vec![Effect::PressPowerButton],
            Self::Creating
            | Self::Starting
            | Self::Undoing { .. }
            | Self::Halting
            | Self::Stopped { .. }
            | Self::Failed { .. }
            | Self::Deleting
            | Self::Deleted => vec![Effect::Converge],
        }
    }
}

/// What a VM becomes. Only a task's event can be denied.
pub fn transition(phase: Phase, event: Event) -> Result<Next, Busy> {
    match event {
        Event::Create => on_create(phase),
        Event::Start => on_start(phase),
        Event::StopGracefully { deadline } => on_stop(phase, Phase::Stopping { deadline }),
        Event::StopHard => on_stop(phase, Phase::Halting),
        Event::Delete => on_delete(phase),
        Event::GuestRuns { pid } => Ok(on_guest_runs(phase, pid)),
        Event::LaunchFailed { code, message } => Ok(on_launch_failed(phase, code, message)),
        Event::Ended(end) => Ok(on_ended(phase, end)),
        Event::DeadlinePassed => Ok(on_deadline(phase)),
        Event::HostRebooted => Ok(on_reboot(phase)),
        Event::Cleared => Ok(on_cleared(phase)),
        Event::ClearFailed { message } => Ok(on_clear_failed(phase, message)),
    }
}

fn done(phase: Phase) -> Next {
    (phase, vec![Effect::Finish(Verdict::Done)])
}

fn converge(phase: Phase) -> Next {
    (phase, vec![Effect::Converge])
}

/// End the task at work in favour of the one that came.
fn overtake(phase: Phase, by: &str) -> Next {
    let verdict = Verdict::Failed {
        code: FailureCode::Overtaken,
        message: format!("overtaken by {by}"),
    };
    (phase, vec![Effect::Overtake(verdict), Effect::Converge])
}

fn unchanged(phase: Phase) -> Next {
    (phase, Vec::new())
}

/// Nobody but a `create` brings a deleted VM back.
fn unknown(phase: Phase) -> Next {
    let verdict = Verdict::Failed {
        code: FailureCode::VmUnknown,
        message: "the VM was deleted from this host".to_owned(),
    };
    (phase, vec![Effect::Finish(verdict)])
}

fn on_create(phase: Phase) -> Result<Next, Busy> {
    match phase {
        Phase::Deleted => Ok(converge(Phase::Creating)),
        Phase::Stopped { .. } | Phase::Failed { .. } => Ok(converge(Phase::Starting)),
        Phase::Running { .. } => Ok(done(phase)),
        Phase::Starting => Ok(unchanged(phase)),
        Phase::Creating
        | Phase::Undoing { .. }
        | Phase::Stopping { .. }
        | Phase::Halting
        | Phase::Deleting => Err(Busy),
    }
}

fn on_start(phase: Phase) -> Result<Next, Busy> {
    match phase {
        Phase::Stopped { .. } | Phase::Failed { .. } => Ok(converge(Phase::Starting)),
        Phase::Running { .. } => Ok(done(phase)),
        Phase::Starting => Ok(unchanged(phase)),
        Phase::Deleted => Ok(unknown(phase)),
        Phase::Creating
        | Phase::Undoing { .. }
        | Phase::Stopping { .. }
        | Phase::Halting
        | Phase::Deleting => Err(Busy),
    }
}

fn on_stop(phase: Phase, next: Phase) -> Result<Next, Busy> {
    match phase {
        Phase::Running { .. } if next == Phase::Halting => Ok(converge(next)),
        Phase::Running { .. } => Ok((next, vec![Effect::PressPowerButton])),
        Phase::Stopping { .. } if next == Phase::Halting => Ok(overtake(next, "a hard stop")),
        // No guest runs yet that could hear the button.
        Phase::Starting => Ok(converge(Phase::Halting)),
        Phase::Stopped { .. } => Ok(done(phase)),
        Phase::Failed { .. } => Ok(done(Phase::Stopped {
            reason: StoppedReason::Requested,
        })),
        Phase::Deleted => Ok(unknown(phase)),
        Phase::Creating
        | Phase::Undoing { .. }
        | Phase::Stopping { .. }
        | Phase::Halting
        | Phase::Deleting => Err(Busy),
    }
}

fn on_delete(phase: Phase) -> Result<Next, Busy> {
    match phase {
        Phase::Starting | Phase::Running { .. } | Phase::Stopped { .. } | Phase::Failed { .. } => {
            Ok(converge(Phase::Deleting))
        }
        Phase::Stopping { .. } => Ok(overtake(Phase::Deleting, "a deletion")),
        Phase::Deleted => Ok(done(phase)),
        Phase::Creating | Phase::Undoing { .. } | Phase::Halting | Phase::Deleting => Err(Busy),
    }
}

fn on_guest_runs(phase: Phase, pid: u32) -> Next {
    match phase {
        Phase::Creating | Phase::Starting => done(Phase::Running { pid }),
        Phase::Running { .. } => unchanged(Phase::Running { pid }),
        Phase::Undoing { .. }
        | Phase::Stopping { .. }
        | Phase::Halting
        | Phase::Stopped { .. }
        | Phase::Failed { .. }
        | Phase::Deleting
        | Phase::Deleted => unchanged(phase),
    }
}

fn on_launch_failed(phase: Phase, code: FailureCode, message: String) -> Next {
    match phase {
        Phase::Creating => converge(Phase::Undoing { code, message }),
        Phase::Starting => (
            Phase::Failed {
                message: message.clone(),
            },
            vec![
                Effect::Finish(Verdict::Failed { code, message }),
                Effect::Converge,
            ],
        ),
        Phase::Undoing { .. }
        | Phase::Running { .. }
        | Phase::Stopping { .. }
        | Phase::Halting
        | Phase::Stopped { .. }
        | Phase::Failed { .. }
        | Phase::Deleting
        | Phase::Deleted => unchanged(phase),
    }
}

fn on_ended(phase: Phase, end: End) -> Next {
    match phase {
        Phase::Creating => ended_while_creating(end),
        Phase::Starting => ended_while_starting(end),
        Phase::Running { .. } => ended_while_running(end),
        Phase::Stopping { .. } => (
            Phase::Stopped {
                reason: StoppedReason::Requested,
            },
            vec![Effect::Finish(Verdict::Done), Effect::Converge],
        ),
        Phase::Stopped { .. } | Phase::Failed { .. } | Phase::Deleted => converge(phase),
        // Their plan is at work already.
        Phase::Undoing { .. } | Phase::Halting | Phase::Deleting => unchanged(phase),
    }
}

fn ended_while_creating(end: End) -> Next {
    let undo = |code, message: &str| {
        converge(Phase::Undoing {
            code,
            message: message.to_owned(),
        })
    };
    match end {
        // The guest ran: its VMM's word about it was lost with an earlier agent.
        End::PowerOff => (
            Phase::Stopped {
                reason: StoppedReason::GuestShutdown,
            },
            vec![Effect::Finish(Verdict::Done), Effect::Converge],
        ),
        End::Reset => (Phase::Starting, vec![Effect::CountReset, Effect::Converge]),
        End::ResetLoop => undo(FailureCode::VmmRefused, RESET_LOOP),
        End::Stopped => undo(FailureCode::UnitFailed, STOPPED_EARLY),
        End::Crashed { message } => undo(FailureCode::VmmRefused, &message),
    }
}

fn ended_while_starting(end: End) -> Next {
    let fail = |code, message: String| on_launch_failed(Phase::Starting, code, message);
    match end {
        End::PowerOff => (
            Phase::Stopped {
                reason: StoppedReason::GuestShutdown,
            },
            vec![Effect::Finish(Verdict::Done), Effect::Converge],
        ),
        End::Reset => (Phase::Starting, vec![Effect::CountReset, Effect::Converge]),
        End::ResetLoop => fail(FailureCode::VmmRefused, RESET_LOOP.to_owned()),
        End::Stopped => fail(FailureCode::UnitFailed, STOPPED_EARLY.to_owned()),
        End::Crashed { message } => fail(FailureCode::VmmRefused, message),
    }
}

fn ended_while_running(end: End) -> Next {
    match end {
        End::PowerOff => converge(Phase::Stopped {
            reason: StoppedReason::GuestShutdown,
        }),
        End::Reset => (Phase::Starting, vec![Effect::CountReset, Effect::Converge]),
        End::ResetLoop => converge(Phase::Failed {
            message: RESET_LOOP.to_owned(),
        }),
        End::Stopped => converge(Phase::Stopped {
            reason: StoppedReason::Requested,
        }),
        End::Crashed { message } => converge(Phase::Failed { message }),
    }
}

const RESET_LOOP: &str = "the guest reset itself more than 10 times in 60 s";
const STOPPED_EARLY: &str = "the VMM was stopped from outside before its guest ran";

fn on_deadline(phase: Phase) -> Next {
    match phase {
        Phase::Stopping { .. } => converge(Phase::Halting),
        Phase::Creating
        | Phase::Undoing { .. }
        | Phase::Starting
        | Phase::Running { .. }
        | Phase::Halting
        | Phase::Stopped { .. }
        | Phase::Failed { .. }
        | Phase::Deleting
        | Phase::Deleted => unchanged(phase),
    }
}

fn on_reboot(phase: Phase) -> Next {
    match phase {
        Phase::Running { .. } => unchanged(Phase::Stopped {
            reason: StoppedReason::HostReboot,
        }),
        Phase::Stopping { .. } | Phase::Halting => done(Phase::Stopped {
            reason: StoppedReason::Requested,
        }),
        Phase::Creating | Phase::Starting | Phase::Undoing { .. } | Phase::Deleting => {
            converge(phase)
        }
        Phase::Stopped { .. } | Phase::Failed { .. } | Phase::Deleted => unchanged(phase),
    }
}

fn on_cleared(phase: Phase) -> Next {
    match phase {
        Phase::Undoing { code, message } => (
            Phase::Deleted,
            vec![Effect::Finish(Verdict::Failed { code, message })],
        ),
        Phase::Halting => done(Phase::Stopped {
            reason: StoppedReason::Requested,
        }),
        Phase::Deleting => done(Phase::Deleted),
        Phase::Creating
        | Phase::Starting
        | Phase::Running { .. }
        | Phase::Stopping { .. }
        | Phase::Stopped { .. }
        | Phase::Failed { .. }
        | Phase::Deleted => unchanged(phase),
    }
}

fn on_clear_failed(phase: Phase, cause: String) -> Next {
    let fail = |code, message: String| {
        let verdict = Verdict::Failed {
            code,
            message: message.clone(),
        };
        (Phase::Failed { message }, vec![Effect::Finish(verdict)])
    };
    match phase {
        Phase::Undoing { code, message } => fail(code, format!("{message}; then {cause}")),
        Phase::Halting | Phase::Deleting => fail(FailureCode::UnitFailed, cause),
        Phase::Creating
        | Phase::Starting
        | Phase::Running { .. }
        | Phase::Stopping { .. }
        | Phase::Stopped { .. }
        | Phase::Failed { .. }
        | Phase::Deleted => unchanged(phase),
    }
}

#[cfg(test)]
mod tests;
