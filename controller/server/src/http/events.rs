//! `/v1/vms/{vm}/events` and `/v1/events`: what happened, in the ledger's order.
//!
//! The stream reads the ledger's rows, so it misses nothing and invents nothing, and whoever was cut off
//! goes on where it was. It ends with its token: revoked or expired, nobody listens on. Its last event says
//! why it ended.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use berth_api::ids::TenantId;
use berth_api::rest::{AuditBody, AuditEntry, ErrorCode, Event, HistoryQuery, Page, StreamQuery};
use berth_controller_store::EntryFilter;
use berth_token::Grant;
use futures_core::Stream;
use serde_json::json;
use tokio::sync::mpsc;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body::QueryOf;
use crate::http::describe::{Answers, Sheet, Takes};
use crate::http::gate::{Scoped, still_good};
use crate::http::owned::{Owned, VmOrTombstone};
use crate::http::page::{limit_of, page};
use crate::streams::Seat;

/// Entries that are read at once.
const BATCH: u32 = 200;
/// Longest rest between two looks at the ledger, as another controller may have written; and at the token.
const REST: Duration = Duration::from_secs(1);
/// A comment is sent after this long without an event, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that wait for a slow reader; then the reading waits too.
const QUEUE: usize = 32;
/// Most types that a filter names.
const MAX_TYPES: usize = 64;

fn event_of(entry: &AuditEntry) -> Result<Event, ApiError> {
    let body: AuditBody = serde_json::from_str(&entry.body).map_err(|_| ApiError::internal())?;
    Ok(Event {
        revision: entry.index,
        time: body.time,
        event_type: body.event_type,
        tenant_id: body.tenant_id,
        vm_id: body.vm_id,
        node_id: body.node_id,
        actor: body.actor.kind,
        token_id: body.actor.token_id,
        request_id: body.request.map(|request| request.id),
        outcome: body.outcome,
        code: body.code,
        detail: body.detail,
    })
}

/// Of a VM that is gone too, by its id.
pub(crate) async fn of_vm(
    State(app): State<Arc<App>>,
    vm: Owned<VmOrTombstone>,
    QueryOf(query): QueryOf<HistoryQuery>,
) -> Result<Json<Page<Event>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let filter = EntryFilter {
        tenant_id: Some(vm.tenant_id.clone()),
        vm_id: Some(vm.id),
        since_index: query.since.unwrap_or(0),
        limit: limit + 1,
        ..EntryFilter::default()
    };
    let entries = app.read(move |db| db.entries(&filter)).await?;
    let events = entries.iter().map(event_of).collect::<Result<_, _>>()?;
    // The next page begins after the last event: pass it as `since`.
    Ok(page(events, limit, |event: &Event| {
        event.revision.saturating_add(1).to_string()
    }))
}

/// The last event that a client saw before it was cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastEventId(Option<u64>);

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .headers
            .get("last-event-id")
            .map(|value| value.to_str().ok().and_then(|text| text.parse().ok()))
            .map(|number| {
                number.ok_or_else(|| ApiError::field("Last-Event-ID", "must be a revision"))
            })
            .transpose()
            .map(Self)
    }
}

impl Takes for LastEventId {
    fn describe(sheet: &mut Sheet<'_>) {
        let about = "The last revision that was seen; the stream goes on after it";
        sheet.header(
            "Last-Event-ID",
            about,
            &json!({ "type": "string", "pattern": "^[0-9]+$" }),
        );
        sheet.refuses(&[ErrorCode::InvalidRequest]);
    }
}

/// `text/event-stream`: each event has its revision as `id`, its type as `event`, and an [`Event`] as
/// `data`. The last one has no `id`, is an `end`, and says why in an
/// [`EndOfEvents`](berth_api::rest::EndOfEvents).
pub(crate) struct EventStream(mpsc::Receiver<sse::Event>);

impl Stream for EventStream {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        Sse::new(self)
            .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
            .into_response()
    }
}

impl Answers for EventStream {
    fn describe(sheet: &mut Sheet<'_>) {
        let text = schemars::json_schema!({ "type": "string" });
        sheet.answer(200, &[], Some(("text/event-stream", text)));
    }
}

pub(crate) async fn stream(
    State(app): State<Arc<App>>,
    caller: Scoped,
    last: LastEventId,
    QueryOf(query): QueryOf<StreamQuery>,
) -> Result<EventStream, ApiError> {
    let types = types_of(query.types.as_deref())?;
    let size = app.read(|db| db.log_head()).await?.size;
    let since = match (last.0, query.since) {
        (Some(seen), _) => seen.saturating_add(1),
        (None, Some(since)) => since,
        (None, None) => size,
    };
    if since > size {
        return Err(ApiError::new(
            ErrorCode::RevisionGone,
            format!("there is no revision {since}: the ledger ends before {size}"),
            "This is not the ledger that you have seen. Read the lists anew, then events from now on.",
        ));
    }
    let namespace = caller.namespace().cloned();
    let seat = app
        .streams
        .take(namespace.as_ref())
        .ok_or_else(ApiError::too_many_streams)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let reader = Reader {
        grant: caller.grant.clone(),
        namespace,
        types,
        since,
        sender,
        _seat: seat,
    };
    tokio::spawn(reader.run(app));
    Ok(EventStream(receiver))
}

fn types_of(text: Option<&str>) -> Result<Option<BTreeSet<String>>, ApiError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let types: BTreeSet<String> = text.split(',').map(ToOwned::to_owned).collect();
    let fits = |name: &String| {
        (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    if types.len() <= MAX_TYPES && types.iter().all(fits) {
        Ok(Some(types))
    } else {
        Err(ApiError::field(
            "types",
            "must be at most 64 types of events, such as VM_STARTED, with commas between",
        ))
    }
}

/// Until the token or the service ends: why.
async fn until_over(app: &App, grant: &Grant) -> ApiError {
    loop {
        if let Err(reason) = still_good(app, grant) {
            return reason;
        }
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = app.stopped() => {
                return ApiError::timed_out(
                    ErrorCode::Starting,
                    "the controller is restarting",
                    "Come again and go on after the last revision that you saw.",
                );
            }
        }
    }
}

/// One stream's way through the ledger.
struct Reader {
    grant: Grant,
    namespace: Option<TenantId>,
    types: Option<BTreeSet<String>>,
    since: u64,
    sender: mpsc::Sender<sse::Event>,
    _seat: Seat,
}

impl Reader {
    /// Ends with the listener, the token or the service. One who reads slowly holds nothing up.
    async fn run(mut self, app: Arc<App>) {
        let sender = self.sender.clone();
        let grant = self.grant.clone();
        let reason = tokio::select! {
            () = self.read_on(&app) => return,
            reason = until_over(&app, &grant) => reason,
        };
        if let Ok(last) = sse::Event::default()
            .event("end")
            .json_data(reason.into_end())
        {
            // To a full queue it is not told: the connection ends all the same.
            drop(sender.try_send(last));
        }
    }

    /// Ends with the listener, or if the ledger cannot be read.
    async fn read_on(&mut self, app: &App) {
        let mut changes = app.watch_vms();
        loop {
            // What the token may not hear any more is `until_over`'s to tell.
            if still_good(app, &self.grant).is_err() {
                return std::future::pending().await;
            }
            changes.mark_unchanged();
            let filter = EntryFilter {
                tenant_id: self.namespace.clone(),
                since_index: self.since,
                limit: BATCH,
                ..EntryFilter::default()
            };
            // The failure is logged where it happens; the client comes again and goes on.
            let Ok(entries) = app.read(move |db| db.entries(&filter)).await else {
                return;
            };
            let is_full = entries.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX);
            if self.send(&entries).await.is_none() {
                return;
            }
            if is_full {
                continue;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(REST) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// `None` if nobody listens any more, or an entry is not readable.
    async fn send(&mut self, entries: &[AuditEntry]) -> Option<()> {
        for entry in entries {
            let event = event_of(entry).ok()?;
            self.since = event.revision.saturating_add(1);
            let is_wanted = self
                .types
                .as_ref()
                .is_none_or(|types| types.contains(&event.event_type));
            if !is_wanted {
                continue;
            }
            let sent = sse::Event::default()
                .id(event.revision.to_string())
                .event(&event.event_type)
                .json_data(&event)
                .ok()?;
            self.sender.send(sent).await.ok()?;
        }
        Some(())
    }
}
