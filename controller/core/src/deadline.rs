//! How long a VM may be in a state that it should leave by itself. Passing a deadline stops nothing:
//! it is shown and told, so that somebody looks.

use berth_api::rest::VmState;

/// A node asks for work at least every 30 seconds, and takes it as it asks.
const SCHEDULING_S: u32 = 60;
/// A root disk is copied from an image: 100 GB at 200 MB/s take 500 seconds. To be looked at again when
/// disks get larger.
const PROVISIONING_S: u32 = 600;
/// systemd gives a unit 90 seconds to start, and slots are reset before.
const STARTING_S: u32 = 180;
/// What a stop may take beyond the guest's own time: the order's way to the node, and back.
const STOPPING_S: u32 = 60;
/// The unit ends, files are removed, slots are given back. Their wiping is not waited for.
const DELETING_S: u32 = 300;
/// Waiting for room, which nobody promised.
const PENDING_S: u32 = 600;

/// Seconds after which a VM that entered this state is overdue; `None` for a state in which it may
/// stay. `stop_timeout_s`: what a guest that is being stopped was given, in seconds.
#[must_use]
pub fn deadline_s(state: VmState, stop_timeout_s: u32) -> Option<u32> {
    match state {
        VmState::Pending => Some(PENDING_S),
        VmState::Scheduling => Some(SCHEDULING_S),
        VmState::Provisioning => Some(PROVISIONING_S),
        VmState::Starting => Some(STARTING_S),
        VmState::Stopping => Some(STOPPING_S.saturating_add(stop_timeout_s)),
        VmState::Deleting => Some(DELETING_S),
        VmState::Running
        | VmState::Stopped
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{Event, transition};

    const STATES: [VmState; 11] = [
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
    ];

    #[test]
    fn a_state_has_a_deadline_where_an_order_is_at_work_and_nowhere_else() {
        let transient = [
            VmState::Pending,
            VmState::Scheduling,
            VmState::Provisioning,
            VmState::Starting,
            VmState::Stopping,
            VmState::Deleting,
        ];
        for state in STATES {
            let has = deadline_s(state, 30).is_some();
            assert_eq!(has, transient.contains(&state), "{state:?}");
        }
    }

    #[test]
    fn a_guest_has_all_the_time_that_its_stop_gives_it() {
        for timeout_s in [1, 30, 3_600] {
            assert!(deadline_s(VmState::Stopping, timeout_s).unwrap() > timeout_s);
        }
    }

    #[test]
    fn a_deletion_is_taken_in_every_state_of_a_live_vm() {
        for state in STATES {
            let taken = transition(state, Event::Delete).is_ok();
            assert_eq!(taken, state != VmState::Deleted, "{state:?}");
        }
    }
}
