//! Waiting for a VM's state without asking again and again.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use berth_api::ids::{OperationId, VmId};
use berth_api::rest::{Operation, Vm, VmState};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::describe::{Sheet, Takes};
use crate::http::gate::Scoped;

const MAX_WAIT_S: u64 = 120;
const DEFAULT_WAIT_S: u64 = 30;
/// How often it is asked whether who waits still counts.
const LOOK: Duration = Duration::from_secs(1);

/// `?wait=<state>&timeout=<seconds>` of a change.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitQuery {
    /// Answer when the VM is in this state.
    wait: Option<VmState>,
    /// Or after this many seconds, 0 to 120; 30 unless given.
    timeout: Option<u64>,
}

impl WaitQuery {
    /// The same out of a query that has more.
    pub(crate) fn of(wait: Option<VmState>, timeout: Option<u64>) -> Self {
        Self { wait, timeout }
    }

    /// What to wait for and how long, if anything.
    pub(crate) fn wish(self) -> Result<Option<(VmState, Duration)>, ApiError> {
        let patience = patience(self.timeout)?;
        Ok(self.wait.map(|state| (state, patience)))
    }
}

/// `Prefer: wait=<seconds>` (RFC 7240): answer when the operation has ended, or after that long as if
/// nothing had been preferred. A preference that is not understood is none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience(Option<Duration>);

impl Patience {
    pub(crate) fn asked(self) -> Option<Duration> {
        self.0
    }
}

impl<S: Sync> FromRequestParts<S> for Patience {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let seconds = parts
            .headers
            .get_all("prefer")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
            .find_map(|part| {
                part.trim()
                    .strip_prefix("wait=")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            });
        Ok(Self(seconds.map(|seconds| {
            Duration::from_secs(seconds.min(MAX_WAIT_S))
        })))
    }
}

impl Takes for Patience {
    fn describe(sheet: &mut Sheet<'_>) {
        let about = "`wait=<seconds>`, at most 120: answer when the operation has ended";
        sheet.header("Prefer", about, &json!({ "type": "string" }));
    }
}

/// Until something has changed, which is `true`, or there is no use in waiting on. An error is why the
/// one who waits may hear no more.
async fn next_change(
    app: &App,
    caller: &Scoped,
    vm: VmId,
    changes: &mut watch::Receiver<u64>,
    end: Instant,
) -> Result<bool, ApiError> {
    loop {
        let over = tokio::select! {
            changed = changes.changed() => Some(changed.is_ok()),
            () = tokio::time::sleep_until(end) => Some(false),
            () = app.stopped() => Some(false),
            () = tokio::time::sleep(LOOK) => None,
        };
        caller.still_counts(app, vm).await?;
        if let Some(changed) = over {
            return Ok(changed);
        }
    }
}

/// The operation once it has ended, or as it is when the time is over.
pub(crate) async fn settled(
    app: &Arc<App>,
    caller: &Scoped,
    id: OperationId,
    patience: Duration,
) -> Result<Operation, ApiError> {
    let mut changes = app.watch_vms();
    let end = Instant::now() + patience;
    loop {
        changes.mark_unchanged();
        let operation = app
            .read(move |db| db.operation(None, id))
            .await?
            .ok_or_else(ApiError::not_found)?;
        if operation.state != "running"
            || !next_change(app, caller, operation.vm_id, &mut changes, end).await?
        {
            return Ok(operation);
        }
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
    caller: &Scoped,
    id: VmId,
    wanted: VmState,
    patience: Duration,
) -> Result<Option<Vm>, ApiError> {
    let mut changes = app.watch_vms();
    let end = Instant::now() + patience;
    loop {
        // Mark first, read second: a change between the two is seen by the wait below.
        changes.mark_unchanged();
        let Some(vm) = app.read(move |db| db.vm_or_tombstone(id)).await? else {
            return Ok(None);
        };
        if is_over(vm.state, wanted) || !next_change(app, caller, id, &mut changes, end).await? {
            return Ok(Some(vm));
        }
    }
}

/// Whether waiting on is of no use: it is there, or it has ended elsewhere.
fn is_over(state: VmState, wanted: VmState) -> bool {
    state == wanted
        || state == VmState::Deleted
        || (state == VmState::Failed && wanted != VmState::Deleted)
}
