//! From a release, or an operator's wish, to the proof of a wipe.

use berth_api::pci::PciAddress;
use berth_api::slot::{SlotHolder, SlotProblem, SlotProblemCode};

use super::{
    Clean, CleanBy, Denied, Effect, Lane, Lanes, Next, Past, Phase, Says, busy, quarantine,
    unchanged,
};

pub(super) fn on_release(phase: Phase) -> Next {
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

pub(super) fn on_wipe(phase: Phase) -> Result<Next, Denied> {
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

pub(super) fn on_returned(phase: Phase, devices: Vec<PciAddress>) -> Next {
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

pub(super) fn on_return_failed(phase: Phase, problem: SlotProblem) -> Next {
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

pub(super) fn on_lane(phase: Phase, device: PciAddress, lane: Lane) -> Next {
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

pub(super) fn on_verified(phase: Phase, generation: u64) -> Next {
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

pub(super) fn on_verify_failed(phase: Phase, problem: SlotProblem) -> Next {
    let Phase::Verifying { .. } = phase else {
        return unchanged(phase);
    };
    quarantine(problem, None, Past::Dirty)
}
