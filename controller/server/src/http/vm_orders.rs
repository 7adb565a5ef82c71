//! Orders about VMs, `/v1/vms/{vm}/…` and its deletion, and the operations that come of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use berth_api::ids::VmId;
use berth_api::rest::{ErrorCode, Operation, Page, StopVm, Vm};
use berth_controller_core::stop::StopOrder;
use berth_controller_store::{IdempotencyKey, OperationFilter, VmRef, VmWish};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Accepted, NoContent, Shown};
use crate::http::body::{NoBody, OptionalJson, QueryOf};
use crate::http::describe::{Sheet, Takes};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, Once, once};
use crate::http::owned::{Owned, VmOrTombstone};
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;
use crate::http::waiting::{Patience, WaitQuery, patience, settled, wait_for};

/// The headers of an order.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    once: Idempotency,
    if_match: IfMatch,
    prefer: Patience,
}

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self {
            once: Idempotency::from_request_parts(parts, state).await?,
            if_match: IfMatch::from_request_parts(parts, state).await?,
            prefer: Patience::from_request_parts(parts, state).await?,
        })
    }
}

impl Takes for Conditions {
    fn describe(sheet: &mut Sheet<'_>) {
        Idempotency::describe(sheet);
        IfMatch::describe(sheet);
        Patience::describe(sheet);
    }
}

/// An order about one VM.
struct Order {
    vm: VmId,
    wish: VmWish,
    key: Option<IdempotencyKey>,
    if_match: IfMatch,
    prefer: Patience,
}

async fn act(
    app: Arc<App>,
    caller: Scoped,
    query: WaitQuery,
    order: Order,
) -> Result<Accepted<Operation>, ApiError> {
    let waiting = query.wish()?;
    let tenant = caller.tenant()?.clone();
    let cause = caller.cause();
    let Order {
        vm,
        wish,
        key,
        if_match,
        prefer,
    } = order;
    let named = VmRef::Id(vm);
    let done = once(
        &app,
        key,
        StatusCode::ACCEPTED,
        move |tx| {
            if let Some(current) = tx.vm(Some(&tenant), &named)?
                && let Err(stale) = if_match.check(&current)
            {
                return Ok(Err(stale));
            }
            Ok(tx
                .act_on_vm(&tenant, &named, wish, &cause)?
                .map_err(ApiError::from))
        },
        |(_, operation)| operation.clone(),
    )
    .await?;
    let (vm, mut operation) = match done {
        Once::Replayed(replay) => return Ok(Accepted::Replayed(replay)),
        Once::Done(taken) => taken,
    };
    tracing::info!(vm_id = %vm.id, tenant_id = %vm.tenant_id, request_id = %caller.request.id, operation_id = %operation.id, ?wish, "wish accepted");
    app.vms_changed(vm.node_id);
    if let Some((state, patience)) = waiting {
        // The order is taken, whatever comes of the wait.
        if wait_for(&app, &caller, vm.id, state, patience)
            .await
            .is_ok()
        {
            let waited = settled(&app, &caller, operation.id, Duration::ZERO).await;
            operation = waited.unwrap_or(operation);
        }
    } else if let Some(patience) = prefer.asked() {
        let waited = settled(&app, &caller, operation.id, patience).await;
        operation = waited.unwrap_or(operation);
    }
    let location = format!("/v1/operations/{}", operation.id);
    Ok(Accepted::at(operation, location))
}

/// A repeat under the same key is answered even after the VM's end.
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<VmOrTombstone>,
    QueryOf(query): QueryOf<WaitQuery>,
    conditions: Conditions,
    _: NoBody,
) -> Result<Accepted<Operation>, ApiError> {
    let order = Order {
        vm: vm.id,
        wish: VmWish::Start,
        key: conditions.once.key(&caller, b""),
        if_match: conditions.if_match,
        prefer: conditions.prefer,
    };
    act(app, caller, query, order).await
}

/// As `start`.
pub(crate) async fn stop(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<VmOrTombstone>,
    QueryOf(query): QueryOf<WaitQuery>,
    conditions: Conditions,
    body: OptionalJson<StopVm>,
) -> Result<Accepted<Operation>, ApiError> {
    let stop = StopOrder::try_from(body.value)
        .map_err(|error| ApiError::field("timeout_s", &error.to_string()))?;
    let order = Order {
        vm: vm.id,
        wish: VmWish::Stop(stop),
        key: conditions.once.key(&caller, &body.bytes),
        if_match: conditions.if_match,
        prefer: conditions.prefer,
    };
    act(app, caller, query, order).await
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<Vm>,
    QueryOf(query): QueryOf<WaitQuery>,
    conditions: Conditions,
) -> Result<Accepted<Operation>, ApiError> {
    let order = Order {
        vm: vm.id,
        wish: VmWish::Delete,
        key: None,
        if_match: conditions.if_match,
        prefer: conditions.prefer,
    };
    act(app, caller, query, order).await
}

/// Delete a VM, whatever it is, and wait for nothing.
pub(crate) async fn end(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: VmId,
) -> Result<Accepted<Operation>, ApiError> {
    let order = Order {
        vm,
        wish: VmWish::Delete,
        key: None,
        if_match: IfMatch::default(),
        prefer: Patience::default(),
    };
    act(app, caller, WaitQuery::default(), order).await
}

/// `GET /v1/operations`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OperationListQuery {
    /// 1 to 1000; 100 unless given.
    limit: Option<u32>,
    /// From the page before.
    page_token: Option<String>,
    /// `running`, `done` or `failed`.
    state: Option<String>,
}

/// `GET /v1/operations/{operation}/wait`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimeoutQuery {
    /// Seconds, 0 to 120; 30 unless given.
    timeout: Option<u64>,
}

pub(crate) async fn operations(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<OperationListQuery>,
) -> Result<Json<Page<Operation>>, ApiError> {
    let limit = limit_of(query.limit)?;
    if let Some(state) = &query.state
        && !matches!(state.as_str(), "running" | "done" | "failed")
    {
        return Err(ApiError::field("state", "must be running, done or failed"));
    }
    let filter = OperationFilter {
        tenant_id: caller.namespace().cloned(),
        state: query.state,
        after: query.page_token.unwrap_or_default(),
        limit: limit + 1,
    };
    let operations = app.read(move |db| db.operations(&filter)).await?;
    Ok(page(operations, limit, |operation| {
        operation.id.to_string()
    }))
}

pub(crate) async fn operation(operation: Owned<Operation>) -> Shown<Operation> {
    Shown(operation.into_inner())
}

/// The operation once it has ended, or as it is when the time is over.
pub(crate) async fn wait_operation(
    State(app): State<Arc<App>>,
    caller: Scoped,
    operation: Owned<Operation>,
    QueryOf(query): QueryOf<TimeoutQuery>,
) -> Result<Json<Operation>, ApiError> {
    let patience = patience(query.timeout)?;
    let operation = settled(&app, &caller, operation.id, patience).await?;
    if operation.state == "running" {
        return Err(ApiError::timed_out(
            ErrorCode::WaitTimeout,
            "the operation is still running",
            "Wait again; GET on the operation tells its phase.",
        ));
    }
    Ok(Json(operation))
}

/// An order that was signed is the node's to carry out: it cannot be taken back, only overtaken.
pub(crate) async fn cancel_operation(
    operation: Owned<Operation>,
    if_match: IfMatch,
) -> Result<NoContent, ApiError> {
    if_match.check(&*operation)?;
    let (error, detail) = if operation.state == "running" {
        (
            "the operation cannot be cancelled: its order is with the node",
            "Overtake it: a deletion overtakes every order, a hard stop overtakes a stop.",
        )
    } else {
        (
            "the operation has ended",
            "There is nothing left to cancel.",
        )
    };
    Err(ApiError::new(ErrorCode::InvalidState, error, detail))
}
