//! What a problem means: whether it can end as it came, whether it ends a tenancy, and what a proof is
//! worth after it.

use berth_api::slot::SlotProblemCode;

use super::Past;

/// Whether a problem is the host's or the owner's, so that it can end as it came.
pub(super) fn heals(code: SlotProblemCode) -> bool {
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
pub(super) fn may_end(past: &Past, code: SlotProblemCode) -> bool {
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
pub(super) fn takes_devices_away(code: SlotProblemCode) -> bool {
    matches!(
        code,
        SlotProblemCode::DeviceMissing
            | SlotProblemCode::DeviceIdentityChanged
            | SlotProblemCode::ForeignUser
    )
}

/// What a proof is worth after a problem: a device that was away, changed or failed may come back
/// with anything on it.
pub(super) fn after_problem(past: Past, code: SlotProblemCode) -> Past {
    match past {
        Past::Untouched => Past::Untouched,
        Past::Clean(clean) if heals(code) || code == SlotProblemCode::OperatorRequest => {
            Past::Clean(clean)
        }
        Past::Clean(_) | Past::Dirty => Past::Dirty,
    }
}
