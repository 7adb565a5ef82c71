//! `/v1/agent`: enrolment and the long poll. Agents prove themselves by their signature.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use berth_api::agent::{
    CheckpointOffer, ENROLL_PAYLOAD_TYPE, EnrollReply, EnrollRequest, LONG_POLL_SECONDS,
    PROTOCOL_VERSION, SYNC_PAYLOAD_TYPE, SignedEnvelope, SyncReply, SyncRequest, TASK_PAYLOAD_TYPE,
};
use berth_api::ids::NodeId;
use berth_api::rest::ErrorCode;
use berth_api::slot::SLOT_TASK_PAYLOAD_TYPE;
use berth_controller_store::{Cause, EnrollDenied, SyncDenied};
use berth_ledger::envelope::{OpenError, open_self_signed, seal};
use berth_ledger::keys::PublicKey;
use serde::de::DeserializeOwned;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::Created;
use crate::http::body::AgentJson;
use crate::http::gate::Source;
use crate::http::nodes::is_node_name;
use crate::http::seeds;
use crate::join_tokens::secret_hash;
use crate::node_links::{RESEND_AFTER, patience};

const MAX_ID_CHARS: usize = 128;

pub(crate) async fn enroll(
    State(app): State<Arc<App>>,
    Source(source): Source,
    AgentJson(envelope): AgentJson<SignedEnvelope>,
) -> Result<Created<EnrollReply>, ApiError> {
    let (key, request) = open::<EnrollRequest>(ENROLL_PAYLOAD_TYPE, &envelope)?;
    must_speak(request.protocol_version)?;
    must_be_whole(&key, &request)?;
    let hash = secret_hash(&request.secret);
    let cause = Cause::node(&key, Some(source));
    let node = app
        .write(move |tx| tx.enroll(&hash, &key, &request, &cause))
        .await?
        .map_err(|denied| match denied {
            EnrollDenied::JoinToken | EnrollDenied::NodeName => ApiError::new(
                ErrorCode::InvalidToken,
                denied.to_string(),
                "Make a new one with POST /v1/nodes/join-tokens.",
            ),
            EnrollDenied::Exists => ApiError::new(
                ErrorCode::AlreadyExists,
                denied.to_string(),
                "Choose another node name.",
            ),
        })?;
    tracing::info!(node_id = %node.node_id, "node enrolled");
    Ok(Created::new(EnrollReply {
        node_id: node.node_id,
        node_epoch: node.epoch,
        task_public_keys: vec![app.task_key.public().to_base64()],
        ledger_public_key: app.store.ledger_key().to_base64(),
    }))
}

fn must_be_whole(key: &PublicKey, request: &EnrollRequest) -> Result<(), ApiError> {
    if request.node_public_key != key.to_base64() {
        return Err(ApiError::field(
            "node_public_key",
            "must be the key that signed the request",
        ));
    }
    if !is_node_name(&request.node_name) {
        return Err(ApiError::field("node_name", "must be a host name"));
    }
    for (field, text) in [
        ("machine_id", &request.machine_id),
        ("boot_id", &request.boot_id),
        ("agent_version", &request.agent_version),
    ] {
        if text.len() > MAX_ID_CHARS {
            return Err(ApiError::field(field, "must be at most 128 characters"));
        }
    }
    if request.capacity.memory_mib > 1 << 40 || request.capacity.disk_mib > 1 << 40 {
        return Err(ApiError::field("capacity", "no host has that much"));
    }
    Ok(())
}

pub(crate) async fn sync(
    State(app): State<Arc<App>>,
    AgentJson(envelope): AgentJson<SignedEnvelope>,
) -> Result<Json<SyncReply>, ApiError> {
    let (key, request) = open::<SyncRequest>(SYNC_PAYLOAD_TYPE, &envelope)?;
    must_speak(request.protocol_version)?;
    let request = Arc::new(request);
    let taken = Arc::clone(&request);
    let accepted = app
        .write(move |tx| tx.sync(&key, &taken))
        .await?
        .map_err(|denied| refuse(&denied))?;
    let node = request.node_id;
    let link = app.links.of(node);
    let run = request.agent_instance_id;
    let listener = (request.wait_seconds > 0).then_some(request.seq);
    link.begin(run, request.seq, listener.is_some());
    let mut work = link.watch();
    app.console.answer(node, &request.results);
    app.vms_changed(accepted.wake.into_iter().filter(|woken| *woken != node));
    let asked = Duration::from_secs(request.wait_seconds.min(LONG_POLL_SECONDS));
    let end = tokio::time::Instant::now() + patience(node, asked);
    let is_news = !accepted.acknowledged.is_empty() || !accepted.acknowledged_receipts.is_empty();
    let due = loop {
        work.mark_unchanged();
        let unanswered = unanswered(&app, node).await?;
        // A task may be on its way to the agent, or lost with the answer that carried it.
        let again = if unanswered.is_empty() {
            end
        } else {
            end.min(tokio::time::Instant::now() + RESEND_AFTER)
        };
        let Some(due) = link.due(run, listener, unanswered) else {
            break Vec::new();
        };
        // What was acknowledged is news to the agent as well.
        if !due.is_empty() || is_news {
            break due;
        }
        tokio::select! {
            changed = work.changed() => if changed.is_err() { break due; },
            () = tokio::time::sleep_until(again) => if again == end { break due; },
            () = app.stopped() => break due,
        }
    };
    let (slot_tasks, tasks): (Vec<_>, Vec<_>) = due
        .into_iter()
        .partition(|(_, sealed)| sealed.payload_type == SLOT_TASK_PAYLOAD_TYPE);
    let (tasks, seeds) = seeds::with_seeds(&app, &link, tasks).await?;
    Ok(Json(SyncReply {
        tasks,
        seeds,
        slot_tasks: slot_tasks.into_iter().map(|(_, sealed)| sealed).collect(),
        acknowledged_receipts: accepted.acknowledged_receipts,
        acknowledged: accepted.acknowledged,
        controller_time: jiff::Timestamp::now().as_second(),
        checkpoint: Some(checkpoint_for(&app, &request).await?),
    }))
}

/// The ledger as it is, and that it grew out of what the host has seen. If it did not, there is no
/// proof, and the host decides what that means.
async fn checkpoint_for(app: &App, request: &SyncRequest) -> Result<CheckpointOffer, ApiError> {
    let seen = request.log.seen.as_ref();
    let from = seen.map_or(0, |seen| seen.size);
    let shown = app.ledger.shown_from(from).await;
    let is_same_log = seen.is_some_and(|seen| seen.origin == shown.origin);
    if is_same_log && from > shown.size && request.log.frozen.is_none() {
        tracing::error!(
            node_id = %request.node_id,
            seen = from,
            size = shown.size,
            "a host has seen more of the ledger than there is: did the database go back in time?"
        );
    }
    let consistency = if is_same_log && from > 0 && from <= shown.size {
        let size = shown.size;
        let proof = app
            .read(move |db| Ok(db.prove_consistency(from, size)))
            .await?;
        let hashes = proof.map_err(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "no consistency proof"
            );
            ApiError::internal()
        })?;
        hashes.iter().map(|hash| hash.to_base64()).collect()
    } else {
        Vec::new()
    };
    Ok(CheckpointOffer {
        note: shown.note,
        consistency,
        key_changes: app.ledger_key_changes.clone(),
    })
}

async fn unanswered(
    app: &App,
    node: NodeId,
) -> Result<Vec<(berth_api::ids::TaskId, SignedEnvelope)>, ApiError> {
    let (mut tasks, ejections) = app
        .read(move |db| {
            let mut tasks = db.pending_tasks(node)?;
            tasks.extend(db.pending_slot_tasks(node)?);
            Ok((tasks, db.pending_ejections(node)?))
        })
        .await?;
    for task in ejections {
        let sealed = seal(&app.task_key, TASK_PAYLOAD_TYPE, &task);
        tasks.push((task.task_id, sealed.map_err(|_| ApiError::internal())?));
    }
    tasks.extend(app.console.waiting(node));
    Ok(tasks)
}

fn open<T: DeserializeOwned>(
    payload_type: &str,
    envelope: &SignedEnvelope,
) -> Result<(PublicKey, T), ApiError> {
    open_self_signed(payload_type, envelope).map_err(|error| match error {
        OpenError::Payload(_) => ApiError::new(
            ErrorCode::InvalidRequest,
            error.to_string(),
            "Install an agent of this controller's version.",
        ),
        OpenError::PayloadType
        | OpenError::Malformed
        | OpenError::UnknownKey
        | OpenError::BadSignature => ApiError::new(
            ErrorCode::InvalidToken,
            error.to_string(),
            "Sign the request with the node's key.",
        ),
    })
}

fn must_speak(version: u32) -> Result<(), ApiError> {
    if version == PROTOCOL_VERSION {
        Ok(())
    } else {
        Err(ApiError::field(
            "protocol_version",
            &format!("must be {PROTOCOL_VERSION}; install an agent of this controller's version"),
        ))
    }
}

fn refuse(denied: &SyncDenied) -> ApiError {
    match denied {
        SyncDenied::UnknownKey | SyncDenied::WrongNode => ApiError::new(
            ErrorCode::InvalidToken,
            denied.to_string(),
            "Enrol the node with `berth-agent join`.",
        ),
        SyncDenied::OldEpoch { .. } | SyncDenied::Replayed => ApiError::new(
            ErrorCode::InvalidState,
            denied.to_string(),
            "Restart the agent.",
        ),
    }
}
