//! `GET /v1/audit/export`: entries with their proofs, one JSON line each, as long as there are any.
//!
//! The file is `berth_ledger::bundle`'s and verifies without a network. It is made as it is sent: what
//! is in memory is one page of it. A fault cuts it short, which its reader sees by the missing end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::ids::TenantId;
use berth_api::rest::ExportQuery;
use berth_controller_store::{EntryFilter, LogHead, NewEvent};
use berth_ledger::bundle::{End, FORMAT, Header, Line, Scope};
use berth_ledger::merkle::Hash;
use berth_ledger::note::KeyName;
use berth_ledger::tenant_view::{BodyLink, FIRST_SEQUENCE, NO_PREVIOUS};
use berth_token::Grant;
use futures_core::Stream;
use serde_json::json;
use tokio::sync::mpsc;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body::QueryOf;
use crate::http::describe::{Answers, Sheet};
use crate::http::gate::{Scoped, still_good};
use crate::http::tenants::namespace_or_named;
use crate::ledger_desk::Shown;

/// Entries that are read, proved and sent at once.
const PAGE: u32 = 200;
/// Pages that wait for a slow reader.
const WAITING_PAGES: usize = 2;

pub(crate) async fn export(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ExportQuery>,
) -> Result<Export, ApiError> {
    let tenant_id = namespace_or_named(&caller, query.tenant_id.as_deref())?;
    let event = NewEvent {
        event_type: "AUDIT_EXPORTED",
        tenant_id: tenant_id.clone(),
        outcome: "accepted",
        detail: [
            ("from".to_owned(), json!(query.from)),
            ("to".to_owned(), json!(query.to)),
            ("view_key".to_owned(), json!(query.view_key)),
        ]
        .into_iter()
        .collect(),
        ..NewEvent::default()
    };
    let cause = caller.cause();
    let index = app.write(move |tx| tx.append(event, &cause)).await?;
    let shown = app.ledger.shown_from(index.saturating_add(1)).await;
    let filter = EntryFilter {
        tenant_id,
        since_index: query.from.unwrap_or(0),
        until_index: Some(query.to.unwrap_or(shown.size).min(shown.size)),
        limit: PAGE,
        ..EntryFilter::default()
    };
    let header = header_of(&app, &shown, &filter, query.view_key == Some(true)).await?;
    let (lines, sent) = mpsc::channel(WAITING_PAGES);
    tokio::spawn(send_all(
        Arc::clone(&app),
        caller.grant,
        header,
        (filter, shown.size),
        lines,
    ));
    Ok(Export(Lines(sent)))
}

/// A bundle on its way.
pub(crate) struct Export(Lines);

impl IntoResponse for Export {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/jsonl"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        (headers, Body::from_stream(self.0)).into_response()
    }
}

impl Answers for Export {
    fn describe(sheet: &mut Sheet<'_>) {
        let text = schemars::json_schema!({ "type": "string" });
        sheet.answer(200, &["Cache-Control"], Some(("application/jsonl", text)));
    }
}

async fn header_of(
    app: &App,
    shown: &Shown,
    filter: &EntryFilter,
    with_view_key: bool,
) -> Result<Line, ApiError> {
    let origin = KeyName::new(&shown.origin).map_err(|_| ApiError::internal())?;
    let keys = app.store.ledger_keys().iter();
    let vkeys = keys.map(|key| LogHead::vkey_of(origin.clone(), key).to_string());
    let scope = match &filter.tenant_id {
        Some(tenant) => scope_of(app, tenant.clone(), filter.clone(), with_view_key).await?,
        None => Scope::Selection {},
    };
    Ok(Line::Header(Header {
        format: FORMAT.to_owned(),
        checkpoint: shown.note.clone(),
        log_keys: vkeys.collect(),
        scope,
    }))
}

/// Where in the tenant's sequence the export begins, which its first entry says.
async fn scope_of(
    app: &App,
    tenant: TenantId,
    filter: EntryFilter,
    with_view_key: bool,
) -> Result<Scope, ApiError> {
    let first = EntryFilter { limit: 1, ..filter };
    let (head, entries) = app
        .read(move |db| Ok((db.log_head()?, db.entries(&first)?)))
        .await?;
    let link: Option<BodyLink> = entries
        .first()
        .map(|entry| serde_json::from_str(&entry.body))
        .transpose()
        .map_err(|_| ApiError::internal())?;
    let (first_sequence, previous): (u64, Hash) = match link {
        Some(link) => (link.tenant_seq, link.prev),
        None => (FIRST_SEQUENCE, NO_PREVIOUS),
    };
    let view_key = head.view_key(tenant.as_str());
    Ok(Scope::Holder {
        tenant_id: Some(tenant.to_string()),
        first_sequence,
        previous,
        view_key: with_view_key.then(|| STANDARD.encode(view_key.as_bytes())),
    })
}

/// Ends early, without its last line, if nobody reads any more, the token ends or the database fails.
async fn send_all(
    app: Arc<App>,
    grant: Grant,
    header: Line,
    (mut filter, size): (EntryFilter, u64),
    lines: mpsc::Sender<Bytes>,
) {
    let Some(text) = text_of([header]) else {
        return;
    };
    if lines.send(text).await.is_err() {
        return;
    }
    let mut events = 0_u64;
    loop {
        if still_good(&app, &grant).is_err() {
            return;
        }
        let page = filter.clone();
        let Ok(entries) = app.read(move |db| db.proven_entries(&page, size)).await else {
            return;
        };
        let Some(last) = entries.last() else {
            break;
        };
        filter.since_index = last.index.saturating_add(1);
        events = events.saturating_add(u64::try_from(entries.len()).unwrap_or(u64::MAX));
        let Some(text) = text_of(entries.into_iter().map(Line::Event)) else {
            return;
        };
        if lines.send(text).await.is_err() {
            return;
        }
    }
    if let Some(text) = text_of([Line::End(End { events })]) {
        // Whoever stopped reading does not want the end either.
        drop(lines.send(text).await);
    }
}

fn text_of(lines: impl IntoIterator<Item = Line>) -> Option<Bytes> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, &line).ok()?;
        text.push(b'\n');
    }
    Some(text.into())
}

/// Lines as a body.
struct Lines(mpsc::Receiver<Bytes>);

impl Stream for Lines {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|text| text.map(Ok))
    }
}
