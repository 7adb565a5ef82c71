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

use std::collections::BTreeMap;

use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceWipe, SlotHolder, SlotProblem, SlotProblemCode, SlotState};
use serde::{Deserialize, Serialize};

use crate::slot::wipe::WipeRun;

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

fn denied<T>(code: SlotProblemCode, message: impl Into<String>) -> Result<T, Denied> {
    Err(Denied(SlotProblem {
        code,
        message: message.into(),
    }))
}

fn busy<T>(what: &str) -> Result<T, Denied> {
    denied(SlotProblemCode::SlotBusy, what)
}

impl Phase {
    /// The state that everybody is told.
    #[must_use]
    pub fn state(&self) -> SlotState {
        match self {
            Self::Discovered { .. } => SlotState::Discovered,
            Self::Unapproved { .. } => SlotState::Unapproved,
            Self::Free { .. } => SlotState::Free,
            Self::Preparing { .. } | Self::Claimed { .. } => SlotState::Claimed,
            Self::InUse { .. } => SlotState::InUse,
            Self::Undoing { .. } | Self::Releasing { .. } => SlotState::Releasing,
            Self::Wiping { .. } => SlotState::Wiping,
            Self::Verifying { .. } => SlotState::Verifying,
            Self::Quarantined { .. } => SlotState::Quarantined,
        }
    }

    /// The phase as one word, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Discovered { .. } => "discovered",
            Self::Unapproved { .. } => "unapproved",
            Self::Free { .. } => "free",
            Self::Preparing { .. } => "preparing",
            Self::Undoing { .. } => "undoing",
            Self::Claimed { .. } => "claimed",
            Self::InUse { .. } => "in_use",
            Self::Releasing { .. } => "releasing",
            Self::Wiping { .. } => "wiping",
            Self::Verifying { .. } => "verifying",
            Self::Quarantined { .. } => "quarantined",
        }
    }

    /// Who has it, or had it last where that is still to be settled.
    #[must_use]
    pub fn holder(&self) -> Option<&SlotHolder> {
        match self {
            Self::Preparing { holder, .. }
            | Self::Claimed { holder, .. }
            | Self::InUse { holder } => Some(holder),
            Self::Releasing { holder }
            | Self::Wiping { holder, .. }
            | Self::Verifying { holder, .. }
            | Self::Quarantined { holder, .. } => holder.as_ref(),
            Self::Discovered { .. }
            | Self::Unapproved { .. }
            | Self::Free { .. }
            | Self::Undoing { .. } => None,
        }
    }

    /// Who has a right to it now: not those who gave it back.
    #[must_use]
    pub fn right_holder(&self) -> Option<&SlotHolder> {
        match self {
            Self::Releasing { .. } | Self::Wiping { .. } | Self::Verifying { .. } => None,
            Self::Discovered { .. }
            | Self::Unapproved { .. }
            | Self::Free { .. }
            | Self::Preparing { .. }
            | Self::Undoing { .. }
            | Self::Claimed { .. }
            | Self::InUse { .. }
            | Self::Quarantined { .. } => self.holder(),
        }
    }

    /// Why it cannot be claimed, where that is not its state alone.
    #[must_use]
    pub fn problem(&self) -> Option<&SlotProblem> {
        match self {
            Self::Unapproved { problem, .. } | Self::Quarantined { problem, .. } => Some(problem),
            Self::Discovered { .. }
            | Self::Free { .. }
            | Self::Preparing { .. }
            | Self::Undoing { .. }
            | Self::Claimed { .. }
            | Self::InUse { .. }
            | Self::Releasing { .. }
            | Self::Wiping { .. }
            | Self::Verifying { .. } => None,
        }
    }

    /// The wipes that are to be verified.
    #[must_use]
    pub fn wiped(&self) -> &[DeviceWipe] {
        if let Self::Verifying { devices, .. } = self {
            devices
        } else {
            &[]
        }
    }

    /// Whether a tenant's data may be on the devices, so that no driver of the host may have them.
    #[must_use]
    pub fn may_hold_data(&self) -> bool {
        match self {
            Self::Discovered { .. }
            | Self::Unapproved { .. }
            | Self::Free { .. }
            | Self::Undoing { .. } => false,
            Self::Preparing { clean, .. } => clean.is_none(),
            Self::Quarantined { past, .. } => *past == Past::Dirty,
            Self::Claimed { .. }
            | Self::InUse { .. }
            | Self::Releasing { .. }
            | Self::Wiping { .. }
            | Self::Verifying { .. } => true,
        }
    }
}

/// Whether a problem is the host's or the owner's, so that it can end as it came.
fn heals(code: SlotProblemCode) -> bool {
    match code {
        SlotProblemCode::SlotNotApproved
        | SlotProblemCode::IommuGroupUnsafe
        | SlotProblemCode::DeviceInUse => true,
        SlotProblemCode::DeviceIdentityChanged
        | SlotProblemCode::DeviceMissing
        | SlotProblemCode::DeviceSettingsChanged
        | SlotProblemCode::ResetFailed
        | SlotProblemCode::BindFailed
        | SlotProblemCode::WipeFailed
        | SlotProblemCode::StaleClaim
        | SlotProblemCode::SlotBusy
        | SlotProblemCode::ForeignUser
        | SlotProblemCode::OperatorRequest
        | SlotProblemCode::RecordLost => false,
    }
}

/// Whether a quarantine of a slot that nobody has can end by itself.
fn may_end(past: &Past, code: SlotProblemCode) -> bool {
    match past {
        Past::Untouched => !matches!(
            code,
            SlotProblemCode::OperatorRequest | SlotProblemCode::RecordLost
        ),
        Past::Clean(_) => heals(code),
        Past::Dirty => false,
    }
}

/// Whether a problem of a slot that belongs to somebody ends that, even under a running guest.
fn takes_devices_away(code: SlotProblemCode) -> bool {
    matches!(
        code,
        SlotProblemCode::DeviceMissing
            | SlotProblemCode::DeviceIdentityChanged
            | SlotProblemCode::ForeignUser
    )
}

/// What a proof is worth after a problem: a device that was away, changed or failed may come back
/// with anything on it.
fn after_problem(past: Past, code: SlotProblemCode) -> Past {
    match past {
        Past::Untouched => Past::Untouched,
        Past::Clean(clean) if heals(code) || code == SlotProblemCode::OperatorRequest => {
            Past::Clean(clean)
        }
        Past::Clean(_) | Past::Dirty => Past::Dirty,
    }
}

fn unchanged(phase: Phase) -> Next {
    (phase, Vec::new())
}

fn quarantine(problem: SlotProblem, holder: Option<SlotHolder>, past: Past) -> Next {
    let past = after_problem(past, problem.code);
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

/// A slot that nobody has cannot be offered.
fn withhold(problem: SlotProblem, past: Past) -> Next {
    let is_owners = problem.code == SlotProblemCode::SlotNotApproved
        || past == Past::Untouched
            && matches!(
                problem.code,
                SlotProblemCode::DeviceMissing
                    | SlotProblemCode::DeviceIdentityChanged
                    | SlotProblemCode::DeviceSettingsChanged
            );
    let clean = match &past {
        Past::Untouched => None,
        Past::Clean(clean) => Some(clean.clone()),
        Past::Dirty => return quarantine(problem, None, past),
    };
    if is_owners {
        (
            Phase::Unapproved { problem, clean },
            vec![Effect::TaskFailed],
        )
    } else {
        quarantine(problem, None, past)
    }
}

/// A slot that nobody has can be offered.
fn offer(clean: Option<Clean>, generation: u64) -> Next {
    match clean {
        Some(clean) => (Phase::Free { clean }, vec![Effect::TaskDone]),
        None => {
            let clean = Clean {
                since: generation,
                by: CleanBy::Approval,
            };
            (
                Phase::Free { clean },
                vec![Effect::State(Says::Approval), Effect::TaskDone],
            )
        }
    }
}

fn past_of(clean: Option<Clean>) -> Past {
    clean.map_or(Past::Untouched, Past::Clean)
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

fn on_fine(phase: Phase, generation: u64) -> Next {
    match phase {
        Phase::Discovered { clean } | Phase::Unapproved { clean, .. } => offer(clean, generation),
        Phase::Quarantined {
            problem,
            holder: None,
            past: past @ (Past::Untouched | Past::Clean(_)),
        } if may_end(&past, problem.code) => offer(past.into_clean(), generation),
        // What is on it is its holder's, and the next start checks and resets it.
        Phase::Quarantined {
            problem,
            holder: Some(holder),
            past: Past::Dirty,
        } if heals(problem.code) => unchanged(Phase::Claimed {
            holder,
            is_ready: false,
        }),
        Phase::Quarantined { .. }
        | Phase::Free { .. }
        | Phase::Preparing { .. }
        | Phase::Undoing { .. }
        | Phase::Claimed { .. }
        | Phase::InUse { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. } => unchanged(phase),
    }
}

fn on_problem(phase: Phase, problem: SlotProblem) -> Next {
    match phase {
        Phase::Discovered { clean } => withhold(problem, past_of(clean)),
        Phase::Unapproved {
            problem: earlier,
            clean,
        } => {
            if earlier == problem {
                return unchanged(Phase::Unapproved { problem, clean });
            }
            withhold(problem, past_of(clean))
        }
        Phase::Free { clean } => withhold(problem, Past::Clean(clean)),
        Phase::Quarantined {
            problem: earlier,
            holder: None,
            past: past @ (Past::Untouched | Past::Clean(_)),
        } if may_end(&past, earlier.code) => {
            if earlier.code == problem.code {
                // The same in other words is no second quarantine.
                return unchanged(Phase::Quarantined {
                    problem,
                    holder: None,
                    past,
                });
            }
            withhold(problem, past)
        }
        // The rest is looked at before the next start.
        Phase::Claimed { holder, .. }
            if takes_devices_away(problem.code)
                || problem.code == SlotProblemCode::IommuGroupUnsafe =>
        {
            quarantine(problem, Some(holder), Past::Dirty)
        }
        Phase::InUse { holder } if takes_devices_away(problem.code) => {
            quarantine(problem, Some(holder), Past::Dirty)
        }
        // What is at work looks for itself.
        Phase::Claimed { .. }
        | Phase::InUse { .. }
        | Phase::Quarantined { .. }
        | Phase::Preparing { .. }
        | Phase::Undoing { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. } => unchanged(phase),
    }
}

fn on_replaced(phase: Phase) -> Next {
    match phase {
        Phase::Discovered { .. } | Phase::Unapproved { .. } | Phase::Free { .. } => {
            unchanged(Phase::Discovered { clean: None })
        }
        Phase::Quarantined {
            holder: None,
            ref past,
            ref problem,
        } if may_end(past, problem.code) => unchanged(Phase::Discovered { clean: None }),
        Phase::Quarantined { .. }
        | Phase::Preparing { .. }
        | Phase::Undoing { .. }
        | Phase::Claimed { .. }
        | Phase::InUse { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. } => unchanged(phase),
    }
}

fn on_claim(phase: Phase, claimant: SlotHolder) -> Result<Next, Denied> {
    match phase {
        Phase::Free { clean } => Ok(unchanged(Phase::Preparing {
            holder: claimant,
            clean: Some(clean),
        })),
        Phase::Preparing { ref holder, .. }
        | Phase::Claimed { ref holder, .. }
        | Phase::InUse { ref holder }
            if *holder != claimant =>
        {
            busy("another claim has the slot: release that one first")
        }
        Phase::Preparing { .. } | Phase::Claimed { is_ready: true, .. } => Ok(unchanged(phase)),
        Phase::Claimed { holder, .. } | Phase::InUse { holder } => {
            Ok(unchanged(Phase::Preparing {
                holder,
                clean: None,
            }))
        }
        Phase::Unapproved { problem, .. } | Phase::Quarantined { problem, .. } => {
            Err(Denied(problem))
        }
        Phase::Discovered { .. } => busy("the slot has not been judged yet: try again"),
        Phase::Undoing { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. } => busy("the slot is being taken back or wiped: wait for it"),
    }
}

fn on_prepared(phase: Phase) -> Next {
    let Phase::Preparing { holder, clean } = phase else {
        return unchanged(phase);
    };
    let effects = match clean {
        Some(_) => vec![Effect::State(Says::Claim)],
        // It is the same claim; its receipt was written when it began.
        None => Vec::new(),
    };
    let is_ready = true;
    (Phase::Claimed { holder, is_ready }, effects)
}

fn on_prepare_failed(phase: Phase, problem: SlotProblem, is_device_suspect: bool) -> Next {
    let Phase::Preparing { holder, clean } = phase else {
        return unchanged(phase);
    };
    match clean {
        Some(_)
            if is_device_suspect
                || takes_devices_away(problem.code)
                || problem.code == SlotProblemCode::DeviceSettingsChanged =>
        {
            quarantine(problem, None, Past::Dirty)
        }
        Some(clean) => unchanged(Phase::Undoing { clean }),
        None => quarantine(problem, Some(holder), Past::Dirty),
    }
}

fn on_undone(phase: Phase) -> Next {
    let Phase::Undoing { clean } = phase else {
        return unchanged(phase);
    };
    unchanged(Phase::Free { clean })
}

fn on_undo_failed(phase: Phase, problem: SlotProblem) -> Next {
    let Phase::Undoing { clean } = phase else {
        return unchanged(phase);
    };
    quarantine(problem, None, Past::Clean(clean))
}

fn on_open(phase: Phase) -> Next {
    let Phase::Claimed {
        holder,
        is_ready: true,
    } = phase
    else {
        return unchanged(phase);
    };
    unchanged(Phase::InUse { holder })
}

fn on_guest_gone(phase: Phase) -> Next {
    match phase {
        Phase::InUse { holder } | Phase::Claimed { holder, .. } => unchanged(Phase::Claimed {
            holder,
            is_ready: false,
        }),
        Phase::Discovered { .. }
        | Phase::Unapproved { .. }
        | Phase::Free { .. }
        | Phase::Preparing { .. }
        | Phase::Undoing { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. }
        | Phase::Quarantined { .. } => unchanged(phase),
    }
}

fn on_release(phase: Phase) -> Next {
    match phase {
        Phase::Preparing {
            clean: Some(clean), ..
        } => unchanged(Phase::Undoing { clean }),
        Phase::Preparing {
            holder,
            clean: None,
        }
        | Phase::Claimed { holder, .. }
        | Phase::InUse { holder } => unchanged(Phase::Releasing {
            holder: Some(holder),
        }),
        Phase::Quarantined { problem, past, .. } => unchanged(Phase::Quarantined {
            problem,
            holder: None,
            past,
        }),
        Phase::Discovered { .. }
        | Phase::Unapproved { .. }
        | Phase::Free { .. }
        | Phase::Undoing { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. } => unchanged(phase),
    }
}

fn on_wipe(phase: Phase) -> Result<Next, Denied> {
    match phase {
        Phase::Free { .. } | Phase::Quarantined { holder: None, .. } => {
            Ok(unchanged(Phase::Releasing { holder: None }))
        }
        Phase::Quarantined {
            holder: Some(holder),
            ..
        } => busy(&format!(
            "{} still has a right to what is on the slot: delete the VM first",
            holder.vm_id
        )),
        Phase::Preparing { .. } | Phase::Claimed { .. } | Phase::InUse { .. } => {
            busy("a claim has the slot: delete its VM first")
        }
        Phase::Unapproved { problem, .. } => Err(Denied(problem)),
        Phase::Discovered { .. } => busy("the slot has not been judged yet: try again"),
        Phase::Undoing { .. }
        | Phase::Releasing { .. }
        | Phase::Wiping { .. }
        | Phase::Verifying { .. } => busy("the slot is being taken back or wiped already"),
    }
}

fn on_returned(phase: Phase, devices: Vec<PciAddress>) -> Next {
    let Phase::Releasing { holder } = phase else {
        return unchanged(phase);
    };
    if devices.is_empty() {
        let problem = SlotProblem {
            code: SlotProblemCode::WipeFailed,
            message: "the slot has no device that could be wiped".to_owned(),
        };
        return quarantine(problem, None, Past::Dirty);
    }
    let effects = match &holder {
        Some(_) => vec![Effect::State(Says::Release)],
        None => Vec::new(),
    };
    let lanes = devices
        .into_iter()
        .map(|device| (device, Lane::Waiting))
        .collect();
    (Phase::Wiping { holder, lanes }, effects)
}

fn on_return_failed(phase: Phase, problem: SlotProblem) -> Next {
    match phase {
        Phase::Releasing { .. } | Phase::Wiping { .. } => quarantine(problem, None, Past::Dirty),
        Phase::Discovered { .. }
        | Phase::Unapproved { .. }
        | Phase::Free { .. }
        | Phase::Preparing { .. }
        | Phase::Undoing { .. }
        | Phase::Claimed { .. }
        | Phase::InUse { .. }
        | Phase::Verifying { .. }
        | Phase::Quarantined { .. } => unchanged(phase),
    }
}

fn on_lane(phase: Phase, device: PciAddress, lane: Lane) -> Next {
    let Phase::Wiping { holder, mut lanes } = phase else {
        return unchanged(phase);
    };
    // Only what was said to be wiped counts, and what has ended stays so.
    match lanes.get_mut(&device) {
        Some(known @ (Lane::Waiting | Lane::Begun(_))) => *known = lane,
        Some(Lane::Done(_) | Lane::Failed(_)) | None => {}
    }
    conclude(holder, lanes)
}

/// All lanes have to end before a slot becomes anything else: a wipe that runs cannot be called back.
fn conclude(holder: Option<SlotHolder>, lanes: Lanes) -> Next {
    let mut devices = Vec::new();
    let mut failed = None;
    for lane in lanes.values() {
        match lane {
            Lane::Waiting | Lane::Begun(_) => return unchanged(Phase::Wiping { holder, lanes }),
            Lane::Done(wipe) => devices.push((**wipe).clone()),
            Lane::Failed(problem) => failed = Some(problem.clone()),
        }
    }
    match failed {
        Some(problem) => quarantine(problem, None, Past::Dirty),
        None => unchanged(Phase::Verifying { holder, devices }),
    }
}

fn on_verified(phase: Phase, generation: u64) -> Next {
    let Phase::Verifying { .. } = phase else {
        return unchanged(phase);
    };
    let clean = Clean {
        since: generation,
        by: CleanBy::Wipe,
    };
    let phase = Phase::Discovered { clean: Some(clean) };
    (phase, vec![Effect::State(Says::Wipe)])
}

fn on_verify_failed(phase: Phase, problem: SlotProblem) -> Next {
    let Phase::Verifying { .. } = phase else {
        return unchanged(phase);
    };
    quarantine(problem, None, Past::Dirty)
}

fn on_quarantine(phase: Phase, problem: SlotProblem) -> Next {
    let (holder, past) = match phase {
        Phase::Discovered { clean } | Phase::Unapproved { clean, .. } => (None, past_of(clean)),
        Phase::Free { clean } | Phase::Undoing { clean } => (None, Past::Clean(clean)),
        Phase::Preparing {
            clean: Some(clean), ..
        } => (None, Past::Clean(clean)),
        Phase::Preparing {
            holder,
            clean: None,
        }
        | Phase::Claimed { holder, .. }
        | Phase::InUse { holder } => (Some(holder), Past::Dirty),
        Phase::Releasing { .. } | Phase::Wiping { .. } | Phase::Verifying { .. } => {
            (None, Past::Dirty)
        }
        Phase::Quarantined { holder, past, .. } => (holder, past),
    };
    let phase = Phase::Quarantined {
        problem,
        holder,
        past,
    };
    (
        phase,
        vec![Effect::State(Says::Quarantine), Effect::TaskDone],
    )
}

#[cfg(test)]
pub(crate) use tests::sample;

#[cfg(test)]
mod tests;
