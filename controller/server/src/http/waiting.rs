//! Waiting for a VM's state without asking again and again.

use std::sync::Arc;
use std::time::Duration;

use berth_api::ids::VmId;
use berth_api::rest::{Vm, VmState};
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;

const MAX_WAIT_S: u64 = 120;
const DEFAULT_WAIT_S: u64 = 30;

/// `?wait=<state>&timeout=<seconds>` of a change.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitQuery {
    wait: Option<VmState>,
    timeout: Option<u64>,
}

impl WaitQuery {
    /// What to wait for and how long, if anything.
    pub(crate) fn wish(self) -> Result<Option<(VmState, Duration)>, ApiError> {
        let patience = patience(self.timeout)?;
        Ok(self.wait.map(|state| (state, patience)))
    }
}

/// A timeout within its bounds.
pub(crate) fn patience(asked: Option<u64>) -> Result<Duration, ApiError> {
    match asked {
        None => Ok(Duration::from_secs(DEFAULT_WAIT_S)),
        Some(seconds) if seconds <= MAX_WAIT_S => Ok(Duration::from_secs(seconds)),
        Some(_) => Err(ApiError::field("timeout", "must be 0 to 120 seconds")),
    }
}

/// The VM once it is in the state, or cannot get there by itself any more, or the time is over;
/// whichever comes first. `None` if there is no such VM.
pub(crate) async fn wait_for(
    app: &Arc<App>,
    id: VmId,
    wanted: VmState,
    patience: Duration,
) -> Result<Option<Vm>, ApiError> {
    let mut changes = app.watch_vms();
    let end = tokio::time::Instant::now() + patience;
    loop {
        // Mark first, read second: a change between the two is seen by the wait below.
        changes.mark_unchanged();
        let Some(vm) = app.read(move |db| db.vm_or_tombstone(id)).await? else {
            return Ok(None);
        };
        if is_over(vm.state, wanted) {
            return Ok(Some(vm));
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(Some(vm));
                }
            }
            () = tokio::time::sleep_until(end) => return Ok(Some(vm)),
            () = app.stopped() => return Ok(Some(vm)),
        }
    }
}

/// Whether waiting on is of no use: it is there, or it has ended elsewhere.
fn is_over(state: VmState, wanted: VmState) -> bool {
    state == wanted
        || state == VmState::Deleted
        || (state == VmState::Failed && wanted != VmState::Deleted)
}
