//! What others are told of a phase, and what they may conclude from it.
//!
//! Reads phases alone; what becomes of them is decided by the parent and its other parts.

use berth_api::slot::{DeviceWipe, SlotHolder, SlotProblem, SlotState};

use super::{Past, Phase};

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
