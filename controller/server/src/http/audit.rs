//! `/v1/audit`: the ledger as its readers see it.
//!
//! Entries are for whom they belong to. Checkpoint and tiles are for everybody: leaves hide what they
//! bind, and what anybody can check needs nobody's token. With `/v1/audit` as the prefix this is a log
//! as C2SP's tlog-tiles has it.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use berth_api::rest::{
    AuditEntry, AuditHead, AuditQuery, ConsistencyProof, ConsistencyQuery, ErrorCode,
    HostCosignature, InclusionProof, InclusionQuery, ListQuery, Page,
};
use berth_controller_store::{EntryFilter, LogHead};
use berth_ledger::keys::PublicKey;
use berth_ledger::merkle::{BuildProofError, Hash};
use berth_ledger::note::{KeyName, Note};
use berth_ledger::proof::TlogProof;
use berth_ledger::tile::Resource;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body::QueryOf;
use crate::http::describe::{Answers, Sheet, Takes};
use crate::http::gate::Scoped;
use crate::http::page::{limit_of, page};
use crate::http::tenants::namespace_or_named;

/// What never changes once it is there.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// The checkpoint is as new as readers need it.
const FRESH: &str = "public, max-age=1";

pub(crate) async fn entries(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<AuditQuery>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let filter = EntryFilter {
        limit: limit + 1,
        ..filter_of(&caller, query)?
    };
    let entries = app.read(move |db| db.entries(&filter)).await?;
    // The next page begins with the index after the last one: pass it as `since_index`.
    Ok(page(entries, limit, |entry| {
        entry.index.saturating_add(1).to_string()
    }))
}

/// What a caller may see of what it asks for.
pub(crate) fn filter_of(caller: &Scoped, query: AuditQuery) -> Result<EntryFilter, ApiError> {
    let since_ms = query
        .since
        .map(|text| text.parse::<jiff::Timestamp>())
        .transpose()
        .map_err(|_| ApiError::field("since", "must be a time as RFC 3339 has it"))?;
    Ok(EntryFilter {
        tenant_id: namespace_or_named(caller, query.tenant_id.as_deref())?,
        event_type: query.event_type,
        vm_id: id("vm_id", "must be a VM's id", query.vm_id)?,
        node_id: id("node_id", "must be a node's id", query.node_id)?,
        slot_id: id("slot_id", "must be a slot's id", query.slot_id)?,
        outcome: query.outcome,
        token_id: id("token_id", "must be a token's id", query.token_id)?,
        since_index: query.since_index.unwrap_or(0),
        since_ms: since_ms.map(jiff::Timestamp::as_millisecond),
        ..EntryFilter::default()
    })
}

fn id<T: FromStr>(
    field: &'static str,
    problem: &'static str,
    text: Option<String>,
) -> Result<Option<T>, ApiError> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|_| ApiError::field(field, problem))
}

pub(crate) async fn head(
    State(app): State<Arc<App>>,
    _caller: Scoped,
) -> Result<Json<AuditHead>, ApiError> {
    let shown = app.ledger.shown();
    let key = app.store.ledger_key();
    let previous = app.store.ledger_keys().get(1);
    let origin = KeyName::new(&shown.origin).map_err(|_| ApiError::internal())?;
    Ok(Json(AuditHead {
        vkey: LogHead::vkey_of(origin.clone(), &key).to_string(),
        previous_public_key: previous.map(PublicKey::to_base64),
        previous_vkey: previous.map(|key| LogHead::vkey_of(origin, key).to_string()),
        origin: shown.origin,
        size: shown.size,
        root: shown.root.to_string(),
        public_key: key.to_base64(),
        checkpoint: shown.note,
        published_size: app
            .publisher
            .as_ref()
            .and_then(|publisher| publisher.progress().size),
        witnesses: app.ledger.witnesses(),
    }))
}

/// A signed checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint(String);

impl IntoResponse for Checkpoint {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::CACHE_CONTROL, FRESH),
        ];
        (headers, self.0).into_response()
    }
}

impl Answers for Checkpoint {
    fn describe(sheet: &mut Sheet<'_>) {
        let text = schemars::json_schema!({ "type": "string" });
        sheet.answer(200, &["Cache-Control"], Some(("text/plain", text)));
    }
}

pub(crate) async fn checkpoint(State(app): State<Arc<App>>) -> Checkpoint {
    Checkpoint(app.ledger.shown().note)
}

/// What follows `/v1/audit/tile/`: the name of something public.
#[derive(Clone, Debug)]
pub(crate) struct TilePath(String);

impl<S: Send + Sync> FromRequestParts<S> for TilePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Path::<String>::from_request_parts(parts, state)
            .await
            .map(|Path(path)| Self(path))
            .map_err(|_| ApiError::not_found())
    }
}

impl Takes for TilePath {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.path("path", "A tile's path as C2SP's tlog-tiles has it");
        sheet.refuses(&[ErrorCode::NotFound]);
    }
}

/// A tile's bytes.
#[derive(Clone, Debug)]
pub(crate) struct Tile(Vec<u8>);

impl IntoResponse for Tile {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/octet-stream"),
            (header::CACHE_CONTROL, IMMUTABLE),
        ];
        (headers, self.0).into_response()
    }
}

impl Answers for Tile {
    fn describe(sheet: &mut Sheet<'_>) {
        let bytes = schemars::json_schema!({ "type": "string", "format": "binary" });
        let kind = "application/octet-stream";
        sheet.answer(200, &["Cache-Control"], Some((kind, bytes)));
    }
}

pub(crate) async fn tile(
    State(app): State<Arc<App>>,
    TilePath(path): TilePath,
) -> Result<Tile, ApiError> {
    let resource = Resource::parse(&format!("tile/{path}")).map_err(|_| ApiError::not_found())?;
    let size = app.ledger.shown().size;
    let bytes = app
        .read(move |db| db.published(&resource, size))
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(Tile(bytes))
}

pub(crate) async fn inclusion(
    State(app): State<Arc<App>>,
    _caller: Scoped,
    QueryOf(query): QueryOf<InclusionQuery>,
) -> Result<Json<InclusionProof>, ApiError> {
    let index = query.index;
    let wanted = query.size.unwrap_or_else(|| index.saturating_add(1));
    let shown = app.ledger.shown_from(wanted).await;
    let size = query.size.unwrap_or(shown.size);
    must_be_shown("size", size, shown.size)?;
    let hashes = app
        .read(move |db| Ok(db.prove_inclusion(index, size)))
        .await?
        .map_err(|error| no_proof("index", &error))?;
    let is_newest = size == shown.size;
    let checkpoint = is_newest.then(|| Note::parse(shown.note.as_bytes()).ok());
    Ok(Json(InclusionProof {
        index,
        size,
        hashes: texts(&hashes),
        tlog_proof: checkpoint.flatten().map(|checkpoint| {
            let extra = None;
            TlogProof {
                extra,
                index,
                hashes,
                checkpoint,
            }
            .to_string()
        }),
    }))
}

pub(crate) async fn consistency(
    State(app): State<Arc<App>>,
    _caller: Scoped,
    QueryOf(query): QueryOf<ConsistencyQuery>,
) -> Result<Json<ConsistencyProof>, ApiError> {
    let from = query.from;
    let shown = app.ledger.shown_from(query.to.unwrap_or(from)).await;
    let to = query.to.unwrap_or(shown.size);
    must_be_shown("to", to, shown.size)?;
    let hashes = app
        .read(move |db| Ok(db.prove_consistency(from, to)))
        .await?
        .map_err(|error| no_proof("from", &error))?;
    Ok(Json(ConsistencyProof {
        from,
        to,
        hashes: texts(&hashes),
    }))
}

/// What hosts have seen of the ledger, by their own signatures.
pub(crate) async fn cosignatures(
    State(app): State<Arc<App>>,
    _caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<HostCosignature>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let found = app
        .read(move |db| db.host_cosignatures(&after, limit + 1))
        .await?;
    Ok(page(found, limit, |host| host.node_id.to_string()))
}

fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(|hash| hash.to_base64()).collect()
}

/// Nothing is proved of what no checkpoint has been shown for.
fn must_be_shown(field: &'static str, size: u64, shown: u64) -> Result<(), ApiError> {
    if size <= shown {
        return Ok(());
    }
    Err(ApiError::field(
        field,
        &format!("must be at most {shown}, the size of the newest checkpoint"),
    ))
}

fn no_proof<E: std::error::Error + 'static>(
    field: &'static str,
    error: &BuildProofError<E>,
) -> ApiError {
    match error {
        BuildProofError::NoSuchLeaf { .. } => ApiError::new(
            ErrorCode::NotFound,
            error.to_string(),
            "GET /v1/audit/head says how many entries there are.",
        ),
        BuildProofError::Sizes { .. } => ApiError::field(field, &error.to_string()),
        BuildProofError::Read(cause) => {
            tracing::error!(%cause, "a node of the ledger's tree could not be read");
            ApiError::internal()
        }
    }
}
