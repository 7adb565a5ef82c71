//! `/v1/vms`, `/v1/operations`, `/v1/images`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use berth_api::ids::{OperationId, TenantId, VmId};
use berth_api::rest::{
    CreateVm, ErrorCode, Image, ListQuery, Operation, Page, StopVm, Vm, VmState,
};
use berth_controller_core::shape;
use berth_controller_core::stop::StopOrder;
use berth_controller_store::{CreatedVm, Db, IdempotencyKey, StoreError, VmRef, VmWish};
use serde::Deserialize;

use crate::api_error::{ApiError, wire};
use crate::app::App;
use crate::http::body::{self, NoBody, OptionalJson, QueryOf};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, Once, once};
use crate::http::page::{limit_of, page};
use crate::http::tenants::namespace_or_named;
use crate::http::waiting::{WaitQuery, patience, wait_for};

/// `GET /v1/vms`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmListQuery {
    limit: Option<u32>,
    page_token: Option<String>,
    tenant_id: Option<String>,
}

/// `GET /v1/vms/{vm}/wait`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateQuery {
    state: VmState,
    timeout: Option<u64>,
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<WaitQuery>,
    idempotency: Idempotency,
    body: body::Json<CreateVm>,
) -> Result<Response, ApiError> {
    let wish = query.wish()?;
    namespace_or_named(&caller, body.value.tenant_id.as_deref())?;
    let tenant = caller.tenant()?.clone();
    let shape = shape::validate(body.value)?;
    let key = idempotency.key(&caller, &body.bytes);
    let cause = caller.cause();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| {
            Ok(tx
                .create_vm(&tenant, shape, &cause)?
                .map_err(ApiError::from))
        },
        |created: &CreatedVm| created.vm.clone(),
    )
    .await?;
    let CreatedVm { mut vm, wake } = match done {
        Once::Replayed(answer) => return Ok(answer),
        Once::Done(created) => created,
    };
    tracing::info!(vm_id = %vm.id, tenant_id = %vm.tenant_id, request_id = %caller.request.id, "VM accepted");
    app.vms_changed(wake);
    if let Some((state, patience)) = wish {
        vm = wait_for(&app, vm.id, state, patience).await?.unwrap_or(vm);
    }
    let location = format!("/v1/vms/{}", vm.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(vm),
    )
        .into_response())
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<VmListQuery>,
) -> Result<Json<Page<Vm>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let tenant = namespace_or_named(&caller, query.tenant_id.as_deref())?;
    let after = query.page_token.unwrap_or_default();
    let only = caller.only_vms();
    let vms = app
        .read(move |db| match only {
            None => db.vms(tenant.as_ref(), &after, limit + 1),
            Some(ids) => listed(db, tenant.as_ref(), &ids, &after, limit + 1),
        })
        .await?;
    Ok(page(vms, limit, |vm| vm.id.to_string()))
}

/// Those of certain VMs that live, after an id. A token names few enough to look at each.
fn listed(
    db: &Db<'_>,
    tenant: Option<&TenantId>,
    ids: &[VmId],
    after: &str,
    limit: u32,
) -> Result<Vec<Vm>, StoreError> {
    ids.iter()
        .filter(|id| id.to_string().as_str() > after)
        .filter_map(|id| db.vm(tenant, &VmRef::Id(*id)).transpose())
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .collect()
}

async fn find(app: &Arc<App>, caller: &Scoped, text: &str) -> Result<Vm, ApiError> {
    let namespace = caller.namespace().cloned();
    let vm = VmRef::parse(text);
    app.read(move |db| db.vm(namespace.as_ref(), &vm))
        .await?
        .ok_or_else(ApiError::not_found)
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Scoped,
    Path(vm): Path<String>,
) -> Result<Json<Vm>, ApiError> {
    find(&app, &caller, &vm).await.map(Json)
}

pub(crate) async fn wait(
    State(app): State<Arc<App>>,
    caller: Scoped,
    Path(vm): Path<String>,
    QueryOf(query): QueryOf<StateQuery>,
) -> Result<Json<Vm>, ApiError> {
    let patience = patience(query.timeout)?;
    // Of a VM that is gone its tenant may still learn that it is gone.
    let id = match VmRef::parse(&vm) {
        VmRef::Id(id) if query.state == VmState::Deleted => {
            let namespace = caller.namespace().cloned();
            app.read(move |db| db.vm_or_tombstone(id))
                .await?
                .filter(|vm| namespace.is_none_or(|own| own == vm.tenant_id))
                .ok_or_else(ApiError::not_found)?
                .id
        }
        VmRef::Id(_) | VmRef::Name(_) => find(&app, &caller, &vm).await?.id,
    };
    let vm = wait_for(&app, id, query.state, patience)
        .await?
        .ok_or_else(ApiError::not_found)?;
    if vm.state == query.state {
        return Ok(Json(vm));
    }
    Err(ApiError::timed_out(
        ErrorCode::WaitTimeout,
        &format!("the VM is {}, not {}", wire(&vm.state), wire(&query.state)),
        "Wait again, or look at the VM's state_reason.",
    ))
}

async fn act(
    app: Arc<App>,
    caller: Scoped,
    vm: &str,
    wish: VmWish,
    query: WaitQuery,
    key: Option<IdempotencyKey>,
) -> Result<Response, ApiError> {
    let waiting = query.wish()?;
    let tenant = caller.tenant()?.clone();
    let cause = caller.cause();
    let vm = VmRef::parse(vm);
    let done = once(
        &app,
        key,
        StatusCode::ACCEPTED,
        move |tx| {
            Ok(tx
                .act_on_vm(&tenant, &vm, wish, &cause)?
                .map_err(ApiError::from))
        },
        |(_, operation)| operation.clone(),
    )
    .await?;
    let (vm, mut operation) = match done {
        Once::Replayed(answer) => return Ok(answer),
        Once::Done(taken) => taken,
    };
    tracing::info!(vm_id = %vm.id, tenant_id = %vm.tenant_id, request_id = %caller.request.id, operation_id = %operation.id, ?wish, "wish accepted");
    app.vms_changed(vm.node_id);
    if let Some((state, patience)) = waiting {
        wait_for(&app, vm.id, state, patience).await?;
        let id = operation.id;
        if let Some(now) = app.read(move |db| db.operation(None, id)).await? {
            operation = now;
        }
    }
    let location = format!("/v1/operations/{}", operation.id);
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        Json(operation),
    )
        .into_response())
}

pub(crate) async fn start(
    State(app): State<Arc<App>>,
    caller: Scoped,
    Path(vm): Path<String>,
    QueryOf(query): QueryOf<WaitQuery>,
    idempotency: Idempotency,
    _: NoBody,
) -> Result<Response, ApiError> {
    let key = idempotency.key(&caller, b"");
    act(app, caller, &vm, VmWish::Start, query, key).await
}

pub(crate) async fn stop(
    State(app): State<Arc<App>>,
    caller: Scoped,
    Path(vm): Path<String>,
    QueryOf(query): QueryOf<WaitQuery>,
    idempotency: Idempotency,
    body: OptionalJson<StopVm>,
) -> Result<Response, ApiError> {
    let order = StopOrder::try_from(body.value)
        .map_err(|error| ApiError::field("timeout_s", &error.to_string()))?;
    let key = idempotency.key(&caller, &body.bytes);
    act(app, caller, &vm, VmWish::Stop(order), query, key).await
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Scoped,
    Path(vm): Path<String>,
    QueryOf(query): QueryOf<WaitQuery>,
) -> Result<Response, ApiError> {
    act(app, caller, &vm, VmWish::Delete, query, None).await
}

pub(crate) async fn operation(
    State(app): State<Arc<App>>,
    caller: Scoped,
    Path(operation): Path<String>,
) -> Result<Json<Operation>, ApiError> {
    let id: OperationId = operation.parse().map_err(|_| ApiError::not_found())?;
    let namespace = caller.namespace().cloned();
    app.read(move |db| db.operation(namespace.as_ref(), id))
        .await?
        .map(Json)
        .ok_or_else(ApiError::not_found)
}

pub(crate) async fn images(
    State(app): State<Arc<App>>,
    _caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Image>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let images = app.read(move |db| db.images(&after, limit + 1)).await?;
    Ok(page(images, limit, |image| image.name.clone()))
}
