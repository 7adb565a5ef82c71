//! `/v1/nodes`, for operators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_api::ids::TenantId;
use berth_api::rest::{ChangeNode, CreateJoinToken, IssuedJoinToken, ListQuery, Node, Page};
use berth_controller_core::shape::{is_name, validate_names};
use berth_controller_store::{NewJoinToken, NodeChange};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, tag_of};
use crate::http::body::{self, NoBody, OptionalJson, QueryOf};
use crate::http::describe::{Answers, Sheet};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;
use crate::join_tokens::{self, Wanted};

const LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=86_400;
const DEFAULT_LIFETIME_S: u64 = 3_600;
const MAX_NODE_NAME_CHARS: usize = 253;

/// Whether a text can name a node: a host name.
pub(crate) fn is_node_name(text: &str) -> bool {
    (1..=MAX_NODE_NAME_CHARS).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

pub(crate) async fn join_token(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: OptionalJson<CreateJoinToken>,
) -> Result<Created<IssuedJoinToken>, ApiError> {
    let key = idempotency.key(&caller, &body.bytes);
    let owner = caller.namespace().cloned();
    let (new, issued) = fresh_join_token(&app, owner, body.value)?;
    let cause = caller.cause();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| {
            let added = tx.add_join_token(&new, &cause)?;
            Ok(added.map(|()| issued).map_err(ApiError::from))
        },
        // A secret is not kept for a replay.
        |issued| IssuedJoinToken {
            token: String::new(),
            install_command: String::new(),
            expires_at: issued.expires_at.clone(),
        },
    )
    .await?;
    Ok(done.answer(Created::new))
}

/// A join token with a new secret: what is stored of it, and what its holder is told.
fn fresh_join_token(
    app: &App,
    owner: Option<TenantId>,
    asked: CreateJoinToken,
) -> Result<(NewJoinToken, IssuedJoinToken), ApiError> {
    if asked
        .node_name
        .as_deref()
        .is_some_and(|name| !is_node_name(name))
    {
        return Err(ApiError::field("node_name", "must be a host name"));
    }
    let lifetime = asked.ttl_s.unwrap_or(DEFAULT_LIFETIME_S);
    if !LIFETIME_S.contains(&lifetime) {
        return Err(ApiError::field("ttl_s", "must be 60 to 86400"));
    }
    join_tokens::fresh(Wanted {
        public_url: &app.public_url,
        node_name: asked.node_name,
        owner,
        lifetime_s: lifetime,
    })
    .map_err(|error| {
        tracing::error!(%error, "a join token could not be made");
        ApiError::internal()
    })
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Node>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let owner = caller.namespace().cloned();
    let nodes = app
        .read(move |db| db.nodes(owner.as_ref(), &after, limit + 1))
        .await?;
    Ok(page(nodes, limit, |node| node.id.to_string()))
}

/// 200: one node. Its tag stands for what operators set, as what its host reports changes all the time.
#[derive(Clone, Debug)]
pub(crate) struct ShownNode(Node);

/// What a node's tag stands for.
fn settings(node: &Node) -> (String, u64) {
    (node.id.to_string(), node.revision)
}

impl IntoResponse for ShownNode {
    fn into_response(self) -> Response {
        let Ok(settings) = serde_json::to_vec(&settings(&self.0)) else {
            return ApiError::internal().into_response();
        };
        ([(header::ETAG, tag_of(&settings))], Json(self.0)).into_response()
    }
}

impl Answers for ShownNode {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.json_answer::<Node>(200, &["ETag"]);
    }
}

pub(crate) async fn get(node: Owned<Node>) -> ShownNode {
    ShownNode(node.into_inner())
}

/// What placement goes by. VMs that are there stay.
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Scoped,
    node: Owned<Node>,
    if_match: IfMatch,
    body: body::Json<ChangeNode>,
) -> Result<ShownNode, ApiError> {
    let change = change_of(body.value)?;
    let (id, cause) = (node.id, caller.cause());
    let changed = app
        .write(move |tx| {
            if let Some(current) = tx.node(id)?
                && let Err(stale) = if_match.check(&settings(&current))
            {
                return Ok(Err(stale));
            }
            Ok(tx.change_node(id, change, &cause)?.map_err(ApiError::from))
        })
        .await??;
    Ok(ShownNode(changed))
}

fn change_of(asked: ChangeNode) -> Result<NodeChange, ApiError> {
    let zone = asked.zone.as_ref().and_then(Option::as_deref);
    if zone.is_some_and(|zone| !is_name(zone)) {
        return Err(ApiError::field(
            "zone",
            "use 1 to 63 lower-case letters, digits and inner hyphens",
        ));
    }
    validate_names(None, asked.labels.as_ref())?;
    Ok(NodeChange {
        is_reserved: asked.reserved,
        dedicated_to: asked.dedicated_to,
        zone: asked.zone,
        labels: asked.labels,
        max_vms: asked.max_vms_per_node,
    })
}

pub(crate) async fn cordon(
    app: State<Arc<App>>,
    caller: Scoped,
    node: Owned<Node>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<ShownNode, ApiError> {
    set_cordoned(app, caller, node, if_match, true).await
}

pub(crate) async fn uncordon(
    app: State<Arc<App>>,
    caller: Scoped,
    node: Owned<Node>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<ShownNode, ApiError> {
    set_cordoned(app, caller, node, if_match, false).await
}

async fn set_cordoned(
    State(app): State<Arc<App>>,
    caller: Scoped,
    node: Owned<Node>,
    if_match: IfMatch,
    is_cordoned: bool,
) -> Result<ShownNode, ApiError> {
    let (id, cause) = (node.id, caller.cause());
    let changed = app
        .write(move |tx| {
            if let Some(current) = tx.node(id)?
                && let Err(stale) = if_match.check(&settings(&current))
            {
                return Ok(Err(stale));
            }
            let changed = tx.cordon_node(id, is_cordoned, &cause)?;
            Ok(changed.ok_or_else(ApiError::not_found))
        })
        .await??;
    Ok(ShownNode(changed))
}
