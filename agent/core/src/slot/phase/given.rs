//! From a claim to a guest: made ready, undone, opened, and left by the guest.

use berth_api::slot::{SlotHolder, SlotProblem, SlotProblemCode};

use super::problems::takes_devices_away;
use super::{Denied, Effect, Next, Past, Phase, Says, busy, quarantine, unchanged};

pub(super) fn on_claim(phase: Phase, claimant: SlotHolder) -> Result<Next, Denied> {
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

pub(super) fn on_prepared(phase: Phase) -> Next {
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

pub(super) fn on_prepare_failed(
    phase: Phase,
    problem: SlotProblem,
    is_device_suspect: bool,
) -> Next {
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

pub(super) fn on_undone(phase: Phase) -> Next {
    let Phase::Undoing { clean } = phase else {
        return unchanged(phase);
    };
    unchanged(Phase::Free { clean })
}

pub(super) fn on_undo_failed(phase: Phase, problem: SlotProblem) -> Next {
    let Phase::Undoing { clean } = phase else {
        return unchanged(phase);
    };
    quarantine(problem, None, Past::Clean(clean))
}

pub(super) fn on_open(phase: Phase) -> Next {
    let Phase::Claimed {
        holder,
        is_ready: true,
    } = phase
    else {
        return unchanged(phase);
    };
    unchanged(Phase::InUse { holder })
}

pub(super) fn on_guest_gone(phase: Phase) -> Next {
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
