//! How a machine ended, told once.
//!
//! Owns the first reason that any thread gives and the descriptor that wakes the event loop. Later
//! reasons are dropped: a machine ends once.

use std::io;
use std::sync::OnceLock;

use berth_api::vmm::{Exit, ResetCause};
use berth_vmm_sys::Event;

/// A vCPU and where it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VcpuPlace {
    /// The vCPU.
    pub vcpu: u8,
    /// Its registers as one line, as far as KVM still has them: after a triple fault on an AMD
    /// processor it has put the vCPU into the state after a reset.
    pub registers: String,
}

/// The end of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The guest powered itself off.
    PowerOff,
    /// The guest is to be started again.
    Reset(Reset),
    /// Somebody on the host ended it.
    Stopped,
    /// KVM could not go on.
    Crash {
        /// Where.
        place: VcpuPlace,
        /// What KVM said.
        reason: String,
    },
}

/// What reset a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reset {
    /// The ACPI reset register.
    Register,
    /// The reset pulse of the keyboard controller.
    Keyboard,
    /// An exception that a vCPU could not deliver, nor the double fault that follows.
    TripleFault(VcpuPlace),
}

impl Ended {
    /// The end in the words of the contract.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::PowerOff => Exit::PowerOff,
            Self::Reset(_) => Exit::Reset,
            Self::Stopped => Exit::Stopped,
            Self::Crash { .. } => Exit::GuestCrash,
        }
    }

    /// What reset it, if that was its end.
    #[must_use]
    pub fn reset_cause(&self) -> Option<ResetCause> {
        match self {
            Self::Reset(Reset::Register) => Some(ResetCause::Register),
            Self::Reset(Reset::Keyboard) => Some(ResetCause::Keyboard),
            Self::Reset(Reset::TripleFault(_)) => Some(ResetCause::TripleFault),
            Self::PowerOff | Self::Stopped | Self::Crash { .. } => None,
        }
    }

    /// Where a vCPU was, if the machine ended because of one.
    #[must_use]
    pub fn place(&self) -> Option<&VcpuPlace> {
        match self {
            Self::Reset(Reset::TripleFault(place)) | Self::Crash { place, .. } => Some(place),
            Self::PowerOff | Self::Reset(Reset::Register | Reset::Keyboard) | Self::Stopped => None,
        }
    }
}

/// A place for [`Ended`], shared by all threads.
#[derive(Debug)]
pub struct Ending {
    ended: OnceLock<Ended>,
    wake: Event,
}

impl Ending {
    /// A machine that has not ended.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ended: OnceLock::new(),
            wake: Event::new()?,
        })
    }

    /// Readable once the machine has ended.
    #[must_use]
    pub fn descriptor(&self) -> &Event {
        &self.wake
    }

    /// Whether the machine has ended.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.ended.get().is_some()
    }

    /// How it ended.
    #[must_use]
    pub fn get(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// Ends the machine.
    pub fn set(&self, ended: Ended) {
        if self.ended.set(ended).is_ok() {
            self.wake.signal();
        }
    }
}
