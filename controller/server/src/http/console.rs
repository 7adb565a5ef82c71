//! `GET /v1/vms/{vm}/console/log`: the node is asked, nothing is kept here.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::agent::{MAX_CONSOLE_BYTES, TASK_PAYLOAD_TYPE, Task, TaskAction, TaskOutcome};
use berth_api::ids::TaskId;
use berth_api::rest::{ErrorCode, Vm};
use berth_controller_core::liveness::Liveness;
use berth_controller_store::{VmRef, VmTarget};
use berth_ledger::envelope;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::ConsoleText;
use crate::http::body::QueryOf;
use crate::http::gate::Scoped;
use crate::http::owned::Owned;

/// How long the node has to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the task may be carried out after it was signed, in seconds.
const TASK_LIFETIME_S: i64 = 60;

/// `GET /v1/vms/{vm}/console/log`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    /// Bytes from the end.
    tail: Option<u64>,
}

pub(crate) async fn log(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<Vm>,
    QueryOf(query): QueryOf<LogQuery>,
) -> Result<ConsoleText, ApiError> {
    let tail_bytes = query.tail.unwrap_or(MAX_CONSOLE_BYTES);
    if !(1..=MAX_CONSOLE_BYTES).contains(&tail_bytes) {
        return Err(ApiError::field(
            "tail",
            &format!("must be 1 to {MAX_CONSOLE_BYTES} bytes"),
        ));
    }
    let namespace = caller.namespace().cloned();
    let id = vm.id;
    let vm = VmRef::Id(id);
    let target = app
        .read(move |db| db.vm_target(namespace.as_ref(), &vm))
        .await?
        .ok_or_else(ApiError::not_found)?;
    let Some((node, epoch, liveness)) = target.node else {
        return Ok(ConsoleText {
            offset: 0,
            bytes: Vec::new(),
        });
    };
    if liveness == Liveness::Unreachable {
        return Err(ApiError::timed_out(
            ErrorCode::NodeUnreachable,
            "the VM's node is silent",
            "Try again when the node is back.",
        ));
    }
    let task = console_task(&target, node, epoch, tail_bytes);
    let sealed = envelope::seal(&app.task_key, TASK_PAYLOAD_TYPE, &task)
        .map_err(|_| ApiError::internal())?;
    let mut waiting = app.console.ask(node, task.task_id, sealed).ok_or_else(|| {
        ApiError::timed_out(
            ErrorCode::NodeTimeout,
            "too many console reads wait for that node",
            "Try again in a moment.",
        )
    })?;
    app.links.wake(node);
    let outcome = tokio::select! {
        outcome = &mut waiting.answer => outcome.map_err(|_| ApiError::internal())?,
        () = tokio::time::sleep(PATIENCE) => {
            return Err(ApiError::timed_out(
                ErrorCode::NodeTimeout,
                "the node did not answer in time",
                "Try again.",
            ));
        }
        () = app.stopped() => {
            return Err(ApiError::timed_out(ErrorCode::Starting, "the controller is restarting", "Try again."));
        }
    };
    caller.still_counts(&app, id).await?;
    answer(outcome)
}

fn console_task(
    target: &VmTarget,
    node: berth_api::ids::NodeId,
    epoch: u64,
    tail_bytes: u64,
) -> Task {
    let now = jiff::Timestamp::now().as_second();
    Task {
        task_id: TaskId::generate(),
        node_id: node,
        node_epoch: epoch,
        vm_id: target.vm_id,
        tenant_id: target.tenant_id.clone(),
        generation: target.generation,
        not_before: now,
        expires_at: now.saturating_add(TASK_LIFETIME_S),
        ledger_index: target.ledger_index,
        action: TaskAction::VmConsoleRead { tail_bytes },
    }
}

fn answer(outcome: TaskOutcome) -> Result<ConsoleText, ApiError> {
    let failed = |what: &str| {
        ApiError::new(
            ErrorCode::NodeError,
            what,
            "Look at the VM's state; its node's journal says more.",
        )
    };
    match outcome {
        TaskOutcome::Console { offset, data } => {
            let bytes = STANDARD
                .decode(data)
                .map_err(|_| failed("the node's answer is not readable"))?;
            Ok(ConsoleText { offset, bytes })
        }
        TaskOutcome::Done { .. } => Err(failed("the node's answer carries no console")),
        TaskOutcome::Refused { .. } => Err(failed("the node refused to read the console")),
        TaskOutcome::Failed { .. } => Err(failed("the node could not read the console")),
    }
}
