//! Why a drive did not do what it was asked.

use std::time::Duration;

use crate::status::Status;
use crate::transport::TransportError;

/// Why a drive did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// It could not be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its registers read as all ones: it is off the bus, or asleep.
    #[error("the drive is gone: its registers read as all ones; look at its slot and its power")]
    Gone,
    /// CSTS.CFS.
    #[error("the drive reports a fatal error of its controller; power-cycle it")]
    Fatal,
    /// CSTS.RDY did not follow CC.EN.
    #[error("the drive did not become {wanted} within {limit_ms} ms", limit_ms = limit.as_millis())]
    NotReady {
        /// `ready` or `not ready`.
        wanted: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// Something that this driver cannot do without.
    #[error("the drive has {found}, which this driver cannot work with")]
    Unsupported {
        /// What it has or lacks.
        found: &'static str,
    },
    /// A command did not end in time.
    #[error("command {opcode:02x}h did not end within {limit_ms} ms", limit_ms = limit.as_millis())]
    TimedOut {
        /// Which command.
        opcode: u8,
        /// How long was waited.
        limit: Duration,
    },
    /// The wait for a command was given up because its caller wanted to.
    #[error("the wait for command {opcode:02x}h was given up")]
    Abandoned {
        /// Which command.
        opcode: u8,
    },
    /// A completion that no honest drive writes.
    #[error(
        "the drive completed a command that it was not given: {what} is {found:#x}, not {wanted:#x}"
    )]
    FalseCompletion {
        /// Which field.
        what: &'static str,
        /// As the drive has it.
        found: u16,
        /// As it has to be.
        wanted: u16,
    },
    /// The drive said no.
    #[error("the drive refused command {opcode:02x}h: {status}")]
    Refused {
        /// Which command.
        opcode: u8,
        /// What it said.
        status: Status,
    },
    /// A number that cannot be true.
    #[error("the drive says {found} for {what}, which cannot be")]
    Malformed {
        /// Which field.
        what: &'static str,
        /// What it says.
        found: u128,
    },
    /// An earlier failure left commands in flight.
    #[error("the drive has to be reset first: an earlier command did not end as it should")]
    NeedsReset,
}

impl DriveError {
    /// What the drive said, if it said no.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Transport(_)
            | Self::Gone
            | Self::Fatal
            | Self::NotReady { .. }
            | Self::Unsupported { .. }
            | Self::TimedOut { .. }
            | Self::Abandoned { .. }
            | Self::FalseCompletion { .. }
            | Self::Malformed { .. }
            | Self::NeedsReset => None,
        }
    }
}
