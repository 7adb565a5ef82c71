//! What goes to guests along with the tasks that start them. Made for each answer: the tokens in it are
//! minted again from their records and stored nowhere.

use berth_api::agent::{GuestAccess, MAX_SEED_BYTES, SEED_PAYLOAD_TYPE, Seed, SignedEnvelope};
use berth_api::ids::{TaskId, VmId};
use berth_controller_store::{GivenToken, SeedOrder};
use berth_ledger::envelope::seal;
use berth_token::{NewLink, Resources, Scope, ScopeSet, SubjectKey};

use crate::api_error::ApiError;
use crate::app::App;
use crate::node_links::NodeLink;

/// The tasks that go out now, and the seeds of their guests. A task whose seed does not fit goes with the
/// next answer.
pub(crate) async fn with_seeds(
    app: &App,
    link: &NodeLink,
    tasks: Vec<(TaskId, SignedEnvelope)>,
) -> Result<(Vec<SignedEnvelope>, Vec<SignedEnvelope>), ApiError> {
    if tasks.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let ids: Vec<TaskId> = tasks.iter().map(|(id, _)| *id).collect();
    let orders = app
        .read(move |db| {
            ids.into_iter()
                .map(|id| db.seed_of_task(id))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let mut sent = Vec::new();
    let mut seeds: Vec<SignedEnvelope> = Vec::new();
    let mut bytes = 0_usize;
    for ((id, task), order) in tasks.into_iter().zip(orders) {
        if let Some(order) = order {
            let sealed = seal(&app.task_key, SEED_PAYLOAD_TYPE, &seed_for(app, order))
                .map_err(|_| ApiError::internal())?;
            bytes = bytes.saturating_add(sealed.payload.len());
            if bytes > MAX_SEED_BYTES && !seeds.is_empty() {
                link.put_back(id);
                continue;
            }
            seeds.push(sealed);
        }
        sent.push(task);
    }
    Ok((sent, seeds))
}

/// A guest whose token cannot be made runs without: its node's other tasks must not wait for that.
fn seed_for(app: &App, order: SeedOrder) -> Seed {
    let guest_access = order.token.as_ref().and_then(|token| {
        let minted = link_of(token, order.vm_id).and_then(|link| app.root_key.mint(&link).ok());
        if minted.is_none() {
            tracing::error!(token_id = %token.token_id, "a guest's token could not be made from its record");
        }
        Some(GuestAccess {
            controller_url: app.public_url.clone(),
            token: minted?,
        })
    });
    Seed {
        task_id: order.task_id,
        node_id: order.node_id,
        vm_id: order.vm_id,
        generation: order.generation,
        name: order.name,
        ssh_keys: order.ssh_keys,
        user_data: order.user_data,
        guest_access,
    }
}

/// The link that the record says, always the same one.
fn link_of(token: &GivenToken, vm_id: VmId) -> Option<NewLink> {
    Some(NewLink {
        token_id: token.token_id,
        tenant: Some(token.tenant_id.clone()),
        holder: SubjectKey::from_base64url(&token.holder).ok()?,
        scopes: ScopeSet::new([Scope::VmGuest]).ok()?,
        resources: Some(Resources::parse(&[vm_id.to_string()]).ok()?),
        not_before: token.issued_at_s,
        expires_at: token.expires_at_s,
        delegations: 0,
        requires_pop: false,
    })
}
