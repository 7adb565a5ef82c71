//! What a VM may do next.
//!
//! ```text
//! pending -> scheduling -> provisioning -> running <-> stopping -> stopped -> starting -> running
//! scheduling|provisioning|starting|running|stopping -> failed -> starting
//! any live state -> deleting -> deleted
//! ```
//!
//! What waits for a guest holds nobody up: a deletion overtakes every order, and a hard stop
//! overtakes the stop that is under way.
//!
//! `unreachable` is only shown, never stored ([`crate::liveness::shown_state`]); the table treats it
//! as `running`. Callers' wishes can be denied. What an agent reports is never denied: where it
//! does not fit, the VM stays as it is. The caller performs the effects in their order, in the
//! transaction that stores the new state.

use berth_api::rest::VmState;

/// What can happen to a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Its tenant wants it to run.
    Start,
    /// Its tenant wants its guest to power off.
    Stop,
    /// Its tenant wants it to stop at once.
    StopHard,
    /// Its tenant wants it gone.
    Delete,
    /// A node was found for it.
    Placed,
    /// Its node works on it.
    Changing,
    /// Its node says that it runs.
    Running,
    /// Its guest powered itself off.
    GuestShutdown,
    /// Its node says that a task stopped it.
    StopDone,
    /// Its host restarted under it.
    HostRebooted,
    /// It ended without anybody's wish.
    Broke,
    /// Its node does not know it any more.
    Missing,
    /// A create or start was refused or failed.
    LaunchFailed,
    /// A stop was refused or failed.
    StopFailed,
    /// A delete was refused or failed.
    DeleteFailed,
    /// Its node says that nothing of it is left.
    DeleteDone,
}

impl Event {
    /// Every event.
    pub const ALL: &'static [Self] = &[
        Self::Start,
        Self::Stop,
        Self::StopHard,
        Self::Delete,
        Self::Placed,
        Self::Changing,
        Self::Running,
        Self::GuestShutdown,
        Self::StopDone,
        Self::HostRebooted,
        Self::Broke,
        Self::Missing,
        Self::LaunchFailed,
        Self::StopFailed,
        Self::DeleteFailed,
        Self::DeleteDone,
    ];
}

/// An order to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskKind {
    /// Make it and run it.
    Create,
    /// Run it.
    Start,
    /// End its process.
    Stop,
    /// Leave nothing of it.
    Delete,
}

impl TaskKind {
    /// The name in operations and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
        }
    }
}

/// What goes into the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// `VM_START_ACCEPTED`
    StartAccepted,
    /// `VM_STOP_ACCEPTED`
    StopAccepted,
    /// `VM_DELETE_ACCEPTED`
    DeleteAccepted,
    /// `VM_STARTED`
    Started,
    /// `VM_STOPPED`
    Stopped,
    /// `VM_FAILED`
    Failed,
    /// `VM_DELETED`
    Deleted,
}

impl Record {
    /// The entry's type.
    #[must_use]
    pub fn event_type(self) -> &'static str {
        match self {
            Self::StartAccepted => "VM_START_ACCEPTED",
            Self::StopAccepted => "VM_STOP_ACCEPTED",
            Self::DeleteAccepted => "VM_DELETE_ACCEPTED",
            Self::Started => "VM_STARTED",
            Self::Stopped => "VM_STOPPED",
            Self::Failed => "VM_FAILED",
            Self::Deleted => "VM_DELETED",
        }
    }

    /// The entry's outcome.
    #[must_use]
    pub fn outcome(self) -> &'static str {
        match self {
            Self::StartAccepted | Self::StopAccepted | Self::DeleteAccepted => "accepted",
            Self::Started | Self::Stopped | Self::Deleted => "completed",
            Self::Failed => "failed",
        }
    }
}

/// What to do along with a change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Write a ledger entry.
    Record(Record),
    /// Withdraw the orders that the node has not answered, and fail their operation.
    WithdrawTasks,
    /// Sign an order, unless the same one is still unanswered.
    SignTask(TaskKind),
    /// The operation that works on it has succeeded.
    FinishOperation,
    /// The operation that works on it has failed.
    FailOperation,
    /// Give back what its tenant was charged.
    ReleaseCharges,
    /// Charge its tenant for what a VM takes that is not stopped, unless it is charged so: a host says
    /// that it runs, and what runs is charged, whatever the ceilings.
    ChargeRunning,
    /// Give back what its tenant was charged for because it was not stopped.
    ReleaseRunning,
}

/// A wish that cannot be granted in the VM's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not possible while the VM is in this state")]
pub struct Denied {
    /// The state it is in.
    pub state: VmState,
    /// The states in which it would be possible.
    pub allowed: &'static [VmState],
}

/// A state and what goes with entering it.
pub type Step = (VmState, &'static [Effect]);

use Effect::{
    ChargeRunning, FailOperation, FinishOperation, ReleaseCharges, ReleaseRunning, SignTask,
    WithdrawTasks,
};

/// The next state and its effects.
pub fn transition(state: VmState, event: Event) -> Result<Step, Denied> {
    match event {
        Event::Start => start(state),
        Event::Stop => stop(state, &[VmState::Running]),
        Event::StopHard => stop_hard(state),
        Event::Delete => delete(state),
        Event::Placed => placed(state),
        Event::Changing => Ok(changing(state)),
        Event::Running => Ok(running(state)),
        Event::GuestShutdown | Event::StopDone => Ok(stopped(state)),
        Event::HostRebooted => Ok(host_rebooted(state)),
        Event::Broke => Ok(broke(state)),
        Event::Missing => Ok(missing(state)),
        Event::LaunchFailed => Ok(launch_failed(state)),
        Event::StopFailed => Ok(stop_failed(state)),
        Event::DeleteFailed => Ok(delete_failed(state)),
        Event::DeleteDone => Ok(delete_done(state)),
    }
}

fn start(state: VmState) -> Result<Step, Denied> {
    match state {
        VmState::Stopped | VmState::Failed => Ok((
            VmState::Starting,
            &[
                Effect::Record(Record::StartAccepted),
                SignTask(TaskKind::Start),
            ],
        )),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => Err(Denied {
            state,
            allowed: &[VmState::Stopped, VmState::Failed],
        }),
    }
}

fn stop_hard(state: VmState) -> Result<Step, Denied> {
    match state {
        VmState::Stopping => Ok((
            VmState::Stopping,
            &[
                Effect::Record(Record::StopAccepted),
                WithdrawTasks,
                SignTask(TaskKind::Stop),
            ],
        )),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => stop(state, &[VmState::Running, VmState::Stopping]),
    }
}

fn stop(state: VmState, allowed: &'static [VmState]) -> Result<Step, Denied> {
    match state {
        VmState::Running | VmState::Unreachable => Ok((
            VmState::Stopping,
            &[
                Effect::Record(Record::StopAccepted),
                SignTask(TaskKind::Stop),
            ],
        )),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Deleting
        | VmState::Deleted => Err(Denied { state, allowed }),
    }
}

fn delete(state: VmState) -> Result<Step, Denied> {
    match state {
        // No node has ever heard of it.
        VmState::Pending => Ok((
            VmState::Deleted,
            &[
                Effect::Record(Record::DeleteAccepted),
                WithdrawTasks,
                ReleaseCharges,
                Effect::Record(Record::Deleted),
            ],
        )),
        VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable => Ok((
            VmState::Deleting,
            &[
                Effect::Record(Record::DeleteAccepted),
                WithdrawTasks,
                SignTask(TaskKind::Delete),
            ],
        )),
        VmState::Deleting => Ok((VmState::Deleting, &[SignTask(TaskKind::Delete)])),
        VmState::Deleted => Err(Denied {
            state,
            allowed: &[],
        }),
    }
}

fn placed(state: VmState) -> Result<Step, Denied> {
    match state {
        VmState::Pending => Ok((VmState::Scheduling, &[SignTask(TaskKind::Create)])),
        VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => Err(Denied {
            state,
            allowed: &[VmState::Pending],
        }),
    }
}

fn changing(state: VmState) -> Step {
    match state {
        VmState::Scheduling => (VmState::Provisioning, &[]),
        VmState::Pending
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => (state, &[]),
    }
}

fn running(state: VmState) -> Step {
    match state {
        VmState::Scheduling | VmState::Provisioning | VmState::Starting => (
            VmState::Running,
            &[FinishOperation, Effect::Record(Record::Started)],
        ),
        VmState::Failed => (
            VmState::Running,
            &[ChargeRunning, Effect::Record(Record::Started)],
        ),
        VmState::Unreachable => (VmState::Running, &[]),
        // It should not: bring it back to what its tenant wants.
        VmState::Stopped => (VmState::Stopping, &[SignTask(TaskKind::Stop)]),
        VmState::Deleted => (VmState::Deleted, &[SignTask(TaskKind::Delete)]),
        VmState::Pending | VmState::Running | VmState::Stopping | VmState::Deleting => (state, &[]),
    }
}

fn stopped(state: VmState) -> Step {
    match state {
        VmState::Scheduling | VmState::Provisioning | VmState::Starting | VmState::Stopping => (
            VmState::Stopped,
            &[
                FinishOperation,
                ReleaseRunning,
                Effect::Record(Record::Stopped),
            ],
        ),
        VmState::Running | VmState::Unreachable => (
            VmState::Stopped,
            &[ReleaseRunning, Effect::Record(Record::Stopped)],
        ),
        VmState::Pending
        | VmState::Stopped
        | VmState::Failed
        | VmState::Deleting
        | VmState::Deleted => (state, &[]),
    }
}

fn host_rebooted(state: VmState) -> Step {
    match state {
        VmState::Running | VmState::Unreachable => {
            (VmState::Failed, &[Effect::Record(Record::Failed)])
        }
        // An unanswered order is sent again and answered after the restart.
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Deleting
        | VmState::Deleted => (state, &[]),
    }
}

fn broke(state: VmState) -> Step {
    match state {
        VmState::Scheduling | VmState::Provisioning | VmState::Starting | VmState::Stopping => (
            VmState::Failed,
            &[FailOperation, Effect::Record(Record::Failed)],
        ),
        VmState::Running | VmState::Unreachable => {
            (VmState::Failed, &[Effect::Record(Record::Failed)])
        }
        VmState::Pending
        | VmState::Stopped
        | VmState::Failed
        | VmState::Deleting
        | VmState::Deleted => (state, &[]),
    }
}

fn missing(state: VmState) -> Step {
    match state {
        VmState::Stopped => (VmState::Failed, &[Effect::Record(Record::Failed)]),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => broke(state),
    }
}

fn launch_failed(state: VmState) -> Step {
    match state {
        VmState::Scheduling | VmState::Provisioning | VmState::Starting => (
            VmState::Failed,
            &[FailOperation, Effect::Record(Record::Failed)],
        ),
        VmState::Pending
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => (state, &[]),
    }
}

fn stop_failed(state: VmState) -> Step {
    match state {
        VmState::Stopping => (VmState::Running, &[ChargeRunning, FailOperation]),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting
        | VmState::Deleted => (state, &[]),
    }
}

fn delete_failed(state: VmState) -> Step {
    match state {
        VmState::Deleting => (VmState::Deleting, &[FailOperation]),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleted => (state, &[]),
    }
}

fn delete_done(state: VmState) -> Step {
    match state {
        VmState::Deleting => (
            VmState::Deleted,
            &[
                FinishOperation,
                ReleaseCharges,
                Effect::Record(Record::Deleted),
            ],
        ),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleted => (state, &[]),
    }
}

#[cfg(test)]
mod tests;
