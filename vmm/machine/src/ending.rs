//! How a machine ended, told once.
//!
//! Owns the first reason that any thread gives and the descriptor that wakes the event loop. Later
//! reasons are dropped: a machine ends once.

use std::io;
use std::sync::OnceLock;

use berth_api::vmm::Exit;
use berth_vmm_sys::Event;

/// Why KVM could not go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Crash {
    /// The vCPU.
    pub vcpu: u8,
    /// What KVM said.
    pub reason: String,
    /// The vCPU's registers.
    pub registers: String,
}

/// The end of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// How.
    pub exit: Exit,
    /// More about it, if `exit` is [`Exit::GuestCrash`].
    pub crash: Option<Crash>,
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
    pub fn set(&self, exit: Exit) {
        self.finish(Ended { exit, crash: None });
    }

    /// Ends the machine because KVM cannot run it any further.
    pub fn set_crash(&self, vcpu: u8, reason: String, registers: String) {
        let crash = Some(Crash {
            vcpu,
            reason,
            registers,
        });
        self.finish(Ended {
            exit: Exit::GuestCrash,
            crash,
        });
    }

    fn finish(&self, ended: Ended) {
        if self.ended.set(ended).is_ok() {
            self.wake.signal();
        }
    }
}
