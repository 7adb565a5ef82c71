//! Slots that nobody has: judged by looks, offered or withheld, put into quarantine and out of it.

use berth_api::slot::{SlotProblem, SlotProblemCode};

use super::problems::{heals, may_end, takes_devices_away};
use super::{Clean, CleanBy, Effect, Next, Past, Phase, Says, quarantine, unchanged};

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

pub(super) fn on_fine(phase: Phase, generation: u64) -> Next {
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

pub(super) fn on_problem(phase: Phase, problem: SlotProblem) -> Next {
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

pub(super) fn on_replaced(phase: Phase) -> Next {
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

pub(super) fn on_quarantine(phase: Phase, problem: SlotProblem) -> Next {
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
