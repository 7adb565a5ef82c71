//! The state machine of one slot on one host.
//!
//! ```text
//!  Discovered ──look──► Free ──claim──► Preparing ──► Claimed ◄──► InUse
//!   │   ▲                ▲                │   ▲          │ release   │
//!   │   │ verified       └──── Undoing ◄──┘   └─ start ──┤◄──────────┘
//!   ▼   │                                                ▼
//!  Unapproved          Verifying ◄── Wiping ◄── Releasing ◄── wipe ── Quarantined
//! ```
//!
//! Whatever fails leads to `Quarantined`. [`transition`] is total: each pair of phase and event is
//! decided here, and the tests list them all. `Free` holds a [`Clean`], which this module alone can
//! make: for a slot that no tenant ever had, when its host's owner approved it, and after a wipe of
//! all its devices was verified. A claim takes it away for good at the moment from which a tenant
//! could have the devices.
//!
//! The types and the table are here; what an event does is in `offered` for slots that nobody has,
//! in `given` from a claim to a guest, and in `taken_back` from there to the proof of a wipe.

mod given;
mod offered;
mod problems;
mod shown;
mod taken_back;

use std::collections::BTreeMap;

use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceWipe, SlotHolder, SlotProblem, SlotProblemCode};
use serde::{Deserialize, Serialize};

use crate::slot::wipe::WipeRun;
use given::{
    on_claim, on_guest_gone, on_open, on_prepare_failed, on_prepared, on_undo_failed, on_undone,
};
use offered::{on_fine, on_problem, on_quarantine, on_replaced};
use taken_back::{
    on_lane, on_release, on_return_failed, on_returned, on_verified, on_verify_failed, on_wipe,
};

/// Proof that no tenant's data is on a slot's devices. Only [`transition`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clean {
    since: u64,
    by: CleanBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CleanBy {
    Approval,
    Wipe,
}

impl Clean {
    /// The slot's generation when that was shown.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Whether a wipe showed it, not the owner's first approval.
    #[must_use]
    pub fn is_by_wipe(&self) -> bool {
        self.by == CleanBy::Wipe
    }
}

/// What is known of tenants' data on a slot that nobody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Past {
    /// No tenant ever had it, and its owner has not approved it as it is.
    Untouched,
    /// There is none.
    Clean(Clean),
    /// There may be some.
    Dirty,
}

impl Past {
    fn into_clean(self) -> Option<Clean> {
        match self {
            Self::Clean(clean) => Some(clean),
            Self::Untouched | Self::Dirty => None,
        }
    }
}

/// Where the wipe of one device stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Nothing destructive was done.
    #[default]
    Waiting,
    /// This was begun.
    Begun(WipeRun),
    /// It is done and was read back.
    Done(Box<DeviceWipe>),
    /// It failed.
    Failed(SlotProblem),
}

/// The wipes of a slot's devices.
pub type Lanes = BTreeMap<PciAddress, Lane>;

/// Where a slot stands. Persisted before it is acted upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case", deny_unknown_fields)]
pub enum Phase {
    /// Nobody has judged it since its record began or its last wipe.
    Discovered {
        /// The proof of that wipe; `None` for a slot that no tenant ever had.
        clean: Option<Clean>,
    },
    /// Its owner does not approve it, or not as it is. No tenant's data is on it.
    Unapproved {
        /// What is missing.
        problem: SlotProblem,
        /// The proof, if it was free once.
        clean: Option<Clean>,
    },
    /// Can be claimed.
    Free {
        /// Why that is safe.
        clean: Clean,
    },
    /// Being checked, bound and reset for its holder.
    Preparing {
        /// Who will have it.
        holder: SlotHolder,
        /// The proof, as long as the holder never had it.
        clean: Option<Clean>,
    },
    /// Being given back after a claim that did not come about: nobody had it.
    Undoing {
        /// The proof.
        clean: Clean,
    },
    /// Belongs to its holder; no guest has it.
    Claimed {
        /// Who has it.
        holder: SlotHolder,
        /// Whether it was checked and reset after the last guest.
        is_ready: bool,
    },
    /// A guest has it.
    InUse {
        /// Who has it.
        holder: SlotHolder,
    },
    /// Being taken back for a wipe.
    Releasing {
        /// Who had it; `None` for a wipe that an operator wants.
        holder: Option<SlotHolder>,
    },
    /// Being wiped.
    Wiping {
        /// Who had it.
        holder: Option<SlotHolder>,
        /// Each device's wipe.
        lanes: Lanes,
    },
    /// The wipes are done; the slot is looked at once more.
    Verifying {
        /// Who had it.
        holder: Option<SlotHolder>,
        /// The results.
        devices: Vec<DeviceWipe>,
    },
    /// Nobody gets it.
    Quarantined {
        /// Why.
        problem: SlotProblem,
        /// Who still has a right to what is on it.
        holder: Option<SlotHolder>,
        /// What may be on it.
        past: Past,
    },
}

/// What happened to a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A fresh look at host and slot.
    Looked(Result<(), SlotProblem>),
    /// The owner's file names other devices.
    DevicesReplaced,
    /// A claim that is not fenced off.
    Claim(SlotHolder),
    /// The devices are bound, reset, and what was approved.
    Prepared,
    /// They could not be made so.
    PrepareFailed {
        /// Why.
        problem: SlotProblem,
        /// Whether a device itself is in doubt.
        is_device_suspect: bool,
    },
    /// The devices are back where they were before the claim.
    Undone,
    /// They are not.
    UndoFailed(SlotProblem),
    /// A guest is about to get the devices.
    Open,
    /// The guest's process is gone; its VM stays.
    GuestGone,
    /// The holder wants it no more.
    Release,
    /// An operator wants a wipe. The devices are named.
    Wipe,
    /// Nobody has the devices, and they were reset.
    Returned {
        /// The devices that are to be wiped.
        devices: Vec<PciAddress>,
    },
    /// They could not be had back.
    ReturnFailed(SlotProblem),
    /// A driver is about to begin a wipe.
    WipeNoted {
        /// Of which device.
        device: PciAddress,
        /// What it needs to know its own command by.
        run: WipeRun,
    },
    /// A device's wipe ended.
    WipeEnded {
        /// Of which device.
        device: PciAddress,
        /// How.
        result: Result<Box<DeviceWipe>, SlotProblem>,
    },
    /// The wipes' results hold, and the devices are what they were.
    Verified,
    /// They do not.
    VerifyFailed(SlotProblem),
    /// An operator wants that nobody gets it.
    Quarantine(SlotProblem),
}

/// What to do about a transition, in the same write of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Write a receipt.
    State(Says),
    /// The operator's task at work is done.
    TaskDone,
    /// The operator's task at work has failed.
    TaskFailed,
}

/// Which statement a receipt makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// The owner's approval was found to fit.
    Approval,
    /// The slot is ready for its holder.
    Claim,
    /// The slot was taken back.
    Release,
    /// Every device was wiped and read.
    Wipe,
    /// Nobody gets it.
    Quarantine,
}

/// Why an order for a slot is not followed. Nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Denied(pub SlotProblem);

type Next = (Phase, Vec<Effect>);

fn busy<T>(what: &str) -> Result<T, Denied> {
    Err(Denied(SlotProblem {
        code: SlotProblemCode::SlotBusy,
        message: what.to_owned(),
    }))
}

fn unchanged(phase: Phase) -> Next {
    (phase, Vec::new())
}

fn quarantine(problem: SlotProblem, holder: Option<SlotHolder>, past: Past) -> Next {
    let past = problems::after_problem(past, problem.code);
    let phase = Phase::Quarantined {
        problem,
        holder,
        past,
    };
    (
        phase,
        vec![Effect::State(Says::Quarantine), Effect::TaskFailed],
    )
}

/// What a slot becomes. `generation` is the one that it will have if it changes. Only orders can be
/// denied: a claim, a wipe.
pub fn transition(phase: Phase, event: Event, generation: u64) -> Result<Next, Denied> {
    match event {
        Event::Looked(Ok(())) => Ok(on_fine(phase, generation)),
        Event::Looked(Err(problem)) => Ok(on_problem(phase, problem)),
        Event::DevicesReplaced => Ok(on_replaced(phase)),
        Event::Claim(holder) => on_claim(phase, holder),
        Event::Prepared => Ok(on_prepared(phase)),
        Event::PrepareFailed {
            problem,
            is_device_suspect,
        } => Ok(on_prepare_failed(phase, problem, is_device_suspect)),
        Event::Undone => Ok(on_undone(phase)),
        Event::UndoFailed(problem) => Ok(on_undo_failed(phase, problem)),
        Event::Open => Ok(on_open(phase)),
        Event::GuestGone => Ok(on_guest_gone(phase)),
        Event::Release => Ok(on_release(phase)),
        Event::Wipe => on_wipe(phase),
        Event::Returned { devices } => Ok(on_returned(phase, devices)),
        Event::ReturnFailed(problem) => Ok(on_return_failed(phase, problem)),
        Event::WipeNoted { device, run } => Ok(on_lane(phase, device, Lane::Begun(run))),
        Event::WipeEnded { device, result } => {
            let lane = match result {
                Ok(wipe) => Lane::Done(wipe),
                Err(problem) => Lane::Failed(problem),
            };
            Ok(on_lane(phase, device, lane))
        }
        Event::Verified => Ok(on_verified(phase, generation)),
        Event::VerifyFailed(problem) => Ok(on_verify_failed(phase, problem)),
        Event::Quarantine(problem) => Ok(on_quarantine(phase, problem)),
    }
}

#[cfg(test)]
pub(crate) use tests::sample;

#[cfg(test)]
mod tests;
