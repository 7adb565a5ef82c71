//! Between Rust values and columns: times, ids, states, JSON.

use std::str::FromStr;

use berth_api::rest::VmState;
use serde_json::Value;

use crate::error::StoreError;

/// Milliseconds since the epoch as RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|time| format!("{time:.3}"))
        .unwrap_or_default()
}

/// The wall clock in milliseconds since the epoch.
pub(crate) fn clock_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// A stored text as the type that wrote it.
pub(crate) fn parsed<T: FromStr>(text: &str, what: &'static str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt { what })
}

/// A stored optional text as the type that wrote it.
pub(crate) fn parsed_option<T: FromStr>(
    text: Option<String>,
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    text.map(|text| parsed(&text, what)).transpose()
}

/// A VM state as it is stored: the same word as on the wire.
pub(crate) fn state_text(state: VmState) -> &'static str {
    match state {
        VmState::Pending => "pending",
        VmState::Scheduling => "scheduling",
        VmState::Provisioning => "provisioning",
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Stopping => "stopping",
        VmState::Stopped => "stopped",
        VmState::Failed => "failed",
        VmState::Unreachable => "unreachable",
        VmState::Deleting => "deleting",
        VmState::Deleted => "deleted",
    }
}

/// A stored VM state.
pub(crate) fn state_of(text: &str) -> Result<VmState, StoreError> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|_| StoreError::Corrupt { what: "VM state" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_792_000_000_007), "2026-10-14T17:46:40.007Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_state_is_stored_as_it_is_said() {
        for state in [
            VmState::Pending,
            VmState::Scheduling,
            VmState::Provisioning,
            VmState::Starting,
            VmState::Running,
            VmState::Stopping,
            VmState::Stopped,
            VmState::Failed,
            VmState::Unreachable,
            VmState::Deleting,
            VmState::Deleted,
        ] {
            assert_eq!(state_of(state_text(state)).unwrap(), state);
        }
    }
}
