//! How a VM is to be stopped, with what a tenant leaves open filled in.

use berth_api::agent::StopMode;
use berth_api::rest::StopVm;

/// How long a guest has to power itself off unless its tenant says, in seconds.
const DEFAULT_TIMEOUT_S: u32 = 30;
/// The times that a tenant may give a guest, in seconds.
const TIMEOUT_S: std::ops::RangeInclusive<u32> = 1..=3_600;

/// The way to stop a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopOrder {
    mode: StopMode,
    timeout_s: u32,
}

/// A stop that would leave the guest no time, or too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("must be 1 to 3600")]
pub struct TimeoutOutOfBounds;

impl StopOrder {
    /// How.
    #[must_use]
    pub fn mode(self) -> StopMode {
        self.mode
    }

    /// Seconds that the guest has to power itself off; a hard stop does not wait for them.
    #[must_use]
    pub fn timeout_s(self) -> u32 {
        self.timeout_s
    }
}

impl Default for StopOrder {
    fn default() -> Self {
        Self {
            mode: StopMode::Graceful,
            timeout_s: DEFAULT_TIMEOUT_S,
        }
    }
}

impl TryFrom<StopVm> for StopOrder {
    type Error = TimeoutOutOfBounds;

    fn try_from(asked: StopVm) -> Result<Self, TimeoutOutOfBounds> {
        let default = Self::default();
        let timeout_s = asked.timeout_s.unwrap_or(default.timeout_s);
        if !TIMEOUT_S.contains(&timeout_s) {
            return Err(TimeoutOutOfBounds);
        }
        Ok(Self {
            mode: asked.mode.unwrap_or(default.mode),
            timeout_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(mode: Option<StopMode>, timeout_s: Option<u32>) -> Option<(StopMode, u32)> {
        StopOrder::try_from(StopVm { mode, timeout_s })
            .ok()
            .map(|order| (order.mode(), order.timeout_s()))
    }

    #[test]
    fn what_is_left_open_is_a_graceful_stop_within_thirty_seconds() {
        assert_eq!(order(None, None), Some((StopMode::Graceful, 30)));
        assert_eq!(order(None, Some(5)), Some((StopMode::Graceful, 5)));
        assert_eq!(
            order(Some(StopMode::Hard), None),
            Some((StopMode::Hard, 30))
        );
    }

    #[test]
    fn a_guest_has_from_a_second_to_an_hour() {
        for (timeout_s, taken) in [(0, false), (1, true), (3_600, true), (3_601, false)] {
            assert_eq!(order(None, Some(timeout_s)).is_some(), taken, "{timeout_s}");
        }
    }
}
