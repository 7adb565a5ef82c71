//! The device status register as a pure state machine (virtio 1.2, 2.1 and 3.1).
//!
//! ```text
//! 0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK
//!      (in one write or two)   (each in a write of its own)
//! any -> FAILED, and 0 resets from anywhere
//! ```

/// The driver has noticed the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// The driver knows how to drive it.
pub(super) const DRIVER: u8 = 2;
/// The driver may use the device.
pub(super) const DRIVER_OK: u8 = 4;
/// Device and driver agree on features.
pub(super) const FEATURES_OK: u8 = 8;
/// The device asks for a reset; the driver's writes do not touch this bit.
pub(super) const NEEDS_RESET: u8 = 64;
/// The driver gave up.
pub(super) const FAILED: u8 = 128;

const KNOWN: u8 = ACKNOWLEDGE | DRIVER;
const AGREED: u8 = KNOWN | FEATURES_OK;
const RUNNING: u8 = AGREED | DRIVER_OK;

/// What a write to the status register means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StatusWrite {
    /// Back to the beginning.
    Reset,
    /// Take this status; nothing else happens.
    Set(u8),
    /// Take this status if the driver's features are acceptable.
    AcceptFeatures(u8),
    /// Take this status and start the device.
    Start(u8),
    /// The driver may not do that; the status stays.
    Refused,
}

/// Decides what writing `written` over `present` means.
pub(super) fn decide(present: u8, written: u8) -> StatusWrite {
    if written == 0 {
        return StatusWrite::Reset;
    }
    let written = written & !NEEDS_RESET;
    let added = written & !present;
    let clears = present & !written != 0;
    let is_reachable = matches!(
        written & !FAILED,
        0 | ACKNOWLEDGE | KNOWN | AGREED | RUNNING
    );
    if added == 0 && !clears {
        return StatusWrite::Set(present);
    }
    if clears || !is_reachable || present & FAILED != 0 {
        return StatusWrite::Refused;
    }
    match added & (FEATURES_OK | DRIVER_OK | FAILED) {
        0 | FAILED => StatusWrite::Set(written),
        FEATURES_OK => StatusWrite::AcceptFeatures(written),
        DRIVER_OK => StatusWrite::Start(written),
        _ => StatusWrite::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACHABLE: [u8; 5] = [0, ACKNOWLEDGE, KNOWN, AGREED, RUNNING];

    #[test]
    fn the_usual_sequence_is_taken_step_by_step() {
        assert_eq!(decide(0, ACKNOWLEDGE), StatusWrite::Set(ACKNOWLEDGE));
        assert_eq!(decide(0, KNOWN), StatusWrite::Set(KNOWN));
        assert_eq!(decide(ACKNOWLEDGE, KNOWN), StatusWrite::Set(KNOWN));
        assert_eq!(decide(KNOWN, AGREED), StatusWrite::AcceptFeatures(AGREED));
        assert_eq!(decide(AGREED, RUNNING), StatusWrite::Start(RUNNING));
    }

    #[test]
    fn zero_resets_from_everywhere_and_nothing_leaves_failed_otherwise() {
        for present in 0..=u8::MAX {
            assert_eq!(decide(present, 0), StatusWrite::Reset);
        }
        for status in REACHABLE {
            assert_eq!(
                decide(status, status | FAILED),
                StatusWrite::Set(status | FAILED)
            );
            for written in REACHABLE {
                let wanted = decide(status | FAILED, written | FAILED);
                assert!(
                    wanted == StatusWrite::Refused
                        || wanted == StatusWrite::Reset
                        || wanted == StatusWrite::Set(status | FAILED)
                );
            }
        }
    }

    #[test]
    fn the_devices_own_bit_is_not_the_drivers() {
        assert_eq!(
            decide(RUNNING, RUNNING | NEEDS_RESET),
            StatusWrite::Set(RUNNING)
        );
        assert_eq!(
            decide(AGREED, RUNNING | NEEDS_RESET),
            StatusWrite::Start(RUNNING)
        );
    }

    #[test]
    fn every_other_pair_is_refused() {
        for present in REACHABLE {
            for written in 1..=u8::MAX {
                let steps_up = REACHABLE.contains(&(written & !NEEDS_RESET))
                    && written & present == present
                    && !(present & FEATURES_OK == 0 && written & DRIVER_OK != 0)
                    && (written | NEEDS_RESET) != NEEDS_RESET;
                let only_fails = written & !(FAILED | NEEDS_RESET) == present
                    || (present == 0 && written & !(FAILED | NEEDS_RESET) == 0)
                    || written & FAILED != 0
                        && matches!(
                            (present, written & !(FAILED | NEEDS_RESET)),
                            (0, ACKNOWLEDGE | KNOWN) | (ACKNOWLEDGE, KNOWN)
                        );
                let is_refused = decide(present, written) == StatusWrite::Refused;
                assert_eq!(
                    is_refused,
                    !(steps_up || only_fails),
                    "{present:#x} -> {written:#x}"
                );
            }
        }
    }
}
