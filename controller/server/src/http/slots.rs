//! `/v1/slots` for operators, `/v1/slot-classes` and a VM's receipts and passport for tenants too.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_api::ids::NodeId;
use berth_api::rest::{ErrorCode, ListQuery, Page, QuarantineSlot, Slot, SlotClass, StoredReceipt};
use berth_api::slot::SlotState;
use berth_controller_store::{IdempotencyKey, LogHead, SlotFilter, SlotWish};
use berth_ledger::note::KeyName;
use berth_ledger::passport::{FORMAT, Passport};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Accepted, Changed, Done, Shown};
use crate::http::body::{self, NoBody, QueryOf};
use crate::http::describe::{Answers, Sheet};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::{Owned, VmOrTombstone};
use crate::http::page::{limit_of, page};

/// Receipts that one slot is shown with.
const SHOWN_RECEIPTS: u32 = 10;
const MAX_REASON_CHARS: usize = 500;

/// `GET /v1/slots`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SlotListQuery {
    limit: Option<u32>,
    page_token: Option<String>,
    state: Option<SlotState>,
    class: Option<String>,
    node: Option<String>,
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _caller: Scoped,
    QueryOf(query): QueryOf<SlotListQuery>,
) -> Result<Json<Page<Slot>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let node_id: Option<NodeId> = query
        .node
        .map(|text| text.parse())
        .transpose()
        .map_err(|_| ApiError::field("node", "must be a node's id"))?;
    let filter = SlotFilter {
        state: query.state,
        class: query.class,
        node_id,
        after: query.page_token.unwrap_or_default(),
        limit: limit + 1,
    };
    let slots = app.read(move |db| db.slots(&filter)).await?;
    Ok(page(slots, limit, |slot| slot.id.to_string()))
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    slot: Owned<Slot>,
) -> Result<Shown<Slot>, ApiError> {
    let mut slot = slot.into_inner();
    let id = slot.id;
    slot.receipts = app
        .read(move |db| db.slot_receipts(id, SHOWN_RECEIPTS))
        .await?;
    Ok(Shown(slot))
}

/// `STATUS` is 200 for what is done at once, 202 where the host does its part later.
async fn act<const STATUS: u16>(
    app: Arc<App>,
    caller: Scoped,
    slot: Owned<Slot>,
    wish: SlotWish,
    key: Option<IdempotencyKey>,
) -> Result<Changed<Slot, STATUS>, ApiError> {
    let id = slot.id;
    let cause = caller.cause();
    let by = caller.token_id()?.to_string();
    let status = StatusCode::from_u16(STATUS).map_err(|_| ApiError::internal())?;
    let taken = wish.clone();
    let done = once(
        &app,
        key,
        status,
        move |tx| {
            Ok(tx
                .act_on_slot(id, &taken, &by, &cause)?
                .map_err(ApiError::from))
        },
        Clone::clone,
    )
    .await?;
    Ok(done.answer(|slot| {
        tracing::info!(slot_id = %slot.id, node_id = %slot.node_id, request_id = %caller.request.id, ?wish, "wish accepted");
        app.links.wake(slot.node_id);
        Changed::new(slot)
    }))
}

pub(crate) async fn approve(
    State(app): State<Arc<App>>,
    caller: Scoped,
    slot: Owned<Slot>,
    idempotency: Idempotency,
    _: NoBody,
) -> Result<Done<Slot>, ApiError> {
    let key = idempotency.key(&caller, b"");
    act(app, caller, slot, SlotWish::Admit, key).await
}

pub(crate) async fn quarantine(
    State(app): State<Arc<App>>,
    caller: Scoped,
    slot: Owned<Slot>,
    idempotency: Idempotency,
    body: body::Json<QuarantineSlot>,
) -> Result<Accepted<Slot>, ApiError> {
    let reason = body.value.reason;
    let fits = (1..=MAX_REASON_CHARS).contains(&reason.chars().count());
    if !fits || reason.chars().any(char::is_control) {
        return Err(ApiError::field(
            "reason",
            "must be 1 to 500 characters, none of them control characters",
        ));
    }
    let key = idempotency.key(&caller, &body.bytes);
    act(app, caller, slot, SlotWish::Quarantine { reason }, key).await
}

pub(crate) async fn release_quarantine(
    State(app): State<Arc<App>>,
    caller: Scoped,
    slot: Owned<Slot>,
    idempotency: Idempotency,
    _: NoBody,
) -> Result<Accepted<Slot>, ApiError> {
    let key = idempotency.key(&caller, b"");
    act(app, caller, slot, SlotWish::ReleaseQuarantine, key).await
}

pub(crate) async fn wipe(
    State(app): State<Arc<App>>,
    caller: Scoped,
    slot: Owned<Slot>,
    idempotency: Idempotency,
    _: NoBody,
) -> Result<Accepted<Slot>, ApiError> {
    let key = idempotency.key(&caller, b"");
    act(app, caller, slot, SlotWish::Wipe, key).await
}

pub(crate) async fn classes(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<SlotClass>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = caller.namespace().cloned();
    let classes = app
        .read(move |db| db.slot_classes(tenant.as_ref(), &after, limit + 1))
        .await?;
    let classes = classes
        .into_iter()
        .map(|class| app.class_prices.on(class))
        .collect();
    Ok(page(classes, limit, |class| class.class.clone()))
}

/// Of a VM that is gone too, by its id: its wipes are proved after its end.
pub(crate) async fn vm_receipts(
    State(app): State<Arc<App>>,
    vm: Owned<VmOrTombstone>,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<StoredReceipt>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after: Option<u64> = query
        .page_token
        .map(|text| text.parse())
        .transpose()
        .map_err(|_| ApiError::field("page_token", "must be one that a page before this gave"))?;
    let id = vm.id;
    let receipts = app
        .read(move |db| db.vm_receipts(id, after, limit + 1))
        .await?;
    Ok(page(receipts, limit, |receipt| {
        receipt.audit_index.to_string()
    }))
}

/// A passport, as `berth_ledger::passport` has it: a file for keeps.
#[derive(Clone, Debug)]
pub(crate) struct PassportFile(Passport);

impl IntoResponse for PassportFile {
    fn into_response(self) -> Response {
        Json(self.0).into_response()
    }
}

impl Answers for PassportFile {
    fn describe(sheet: &mut Sheet<'_>) {
        let object = schemars::json_schema!({ "type": "object" });
        sheet.answer(200, &[], Some(("application/json", object)));
    }
}

/// Of a VM that is gone too, by its id.
pub(crate) async fn vm_passport(
    State(app): State<Arc<App>>,
    vm: Owned<VmOrTombstone>,
) -> Result<PassportFile, ApiError> {
    let vm_id = vm.id;
    let newest = app.read(|db| Ok(db.log_head()?.size)).await?;
    let shown = app.ledger.shown_from(newest).await;
    let size = shown.size;
    let slots = app
        .read(move |db| db.passages(vm_id, size))
        .await?
        .map_err(|none| {
            ApiError::new(
                ErrorCode::NotFound,
                none.to_string(),
                "GET /v1/vms/{vm}/receipts has what hosts signed about its slots.",
            )
        })?;
    let origin = KeyName::new(&shown.origin).map_err(|_| ApiError::internal())?;
    let log_key = LogHead::vkey_of(origin, &app.store.ledger_key());
    Ok(PassportFile(Passport {
        format: FORMAT.to_owned(),
        checkpoint: shown.note,
        log_keys: vec![log_key.to_string()],
        vm_id,
        slots,
    }))
}
