//! What a VM's guest may ask, and the tokens with which it does: `/v1/vms/{vm}/guest-tokens`,
//! `/v1/vms/{vm}/metadata`, `/v1/vms/{vm}/boot-report`, `/v1/vms/{vm}/cleanup`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::{TenantId, TokenId};
use berth_api::rest::{ErrorCode, GuestMetadata, IssueGuestToken, IssuedToken, Operation, Vm};
use berth_controller_store::{GuestTokenDenied, NewTokenRecord};
use berth_token::{NewLink, Resources, Scope, ScopeSet, SubjectKey};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Accepted, Created, NoContent, Shown};
use crate::http::body::{NoBody, OptionalJson};
use crate::http::gate::{Scoped, revoked};
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::tokens::{begin_for, checked_text, expiry_for, mint, not_recorded, rfc3339_s};
use crate::http::vm_orders;

const DEFAULT_LIFETIME_S: i64 = 86_400;
const MAX_LABEL_CHARS: usize = 200;

/// `POST /v1/vms/{vm}/guest-tokens`
pub(crate) async fn issue(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<Vm>,
    idempotency: Idempotency,
    body: OptionalJson<IssueGuestToken>,
) -> Result<Created<IssuedToken>, ApiError> {
    // A guest reads of its VM, so who may not does not make one that may.
    if !caller.grant.scopes.covers(Scope::VmRead) {
        return Err(ApiError::permission_denied(Scope::VmRead));
    }
    let key = idempotency.key(&caller, &body.bytes);
    let tenant = caller.own_tenant()?.clone();
    let label = checked_text("label", body.value.label.clone(), MAX_LABEL_CHARS)?;
    let link = link_for(&app, &caller, &tenant, &vm, &body.value)?;
    let token = mint(&app, &link)?;
    let record = NewTokenRecord {
        token_id: link.token_id,
        tenant_id: Some(tenant.clone()),
        scope: link.scopes.to_texts(),
        resources: link.resources.as_ref().map(Resources::to_texts),
        requires_pop: link.requires_pop,
        subject_pubkey: link.holder.to_base64url(),
        label,
        issued_at_s: link.not_before,
        expires_at_s: link.expires_at,
        vm_id: Some(vm.id),
    };
    let issued = IssuedToken {
        token,
        token_id: link.token_id,
        tenant_id: tenant.clone(),
        scope: record.scope.clone(),
        resources: record.resources.clone(),
        require_pop: link.requires_pop,
        subject_pubkey: record.subject_pubkey.clone(),
        issued_at: rfc3339_s(link.not_before),
        expires_at: rfc3339_s(link.expires_at),
    };
    let (cause, vm_id) = (caller.cause(), vm.id);
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| {
            let recorded = tx.record_guest_token(&tenant, vm_id, &record, &cause)?;
            Ok(recorded.map(|()| issued).map_err(not_made))
        },
        // A secret is not kept for a replay: it tells which token the first answer carried.
        |issued| IssuedToken {
            token: String::new(),
            ..issued.clone()
        },
    )
    .await?;
    Ok(done.answer(Created::new))
}

fn not_made(denied: GuestTokenDenied) -> ApiError {
    match denied {
        GuestTokenDenied::NoVm => ApiError::not_found(),
        GuestTokenDenied::NoGuest => ApiError::new(
            ErrorCode::InvalidState,
            denied.to_string(),
            "Start the VM first; each start needs a token of its own.",
        ),
        GuestTokenDenied::Token(denied) => not_recorded(denied),
    }
}

fn link_for(
    app: &App,
    caller: &Scoped,
    tenant: &TenantId,
    vm: &Vm,
    asked: &IssueGuestToken,
) -> Result<NewLink, ApiError> {
    let holder = holder_for(caller, asked)?;
    let now = begin_for(app, tenant, &holder)?;
    let expires_at = match asked.expires_in_seconds {
        Some(seconds) => expiry_for(caller, seconds, now)?,
        None => now
            .saturating_add(DEFAULT_LIFETIME_S)
            .min(caller.grant.expires_at),
    };
    Ok(NewLink {
        token_id: TokenId::generate(),
        tenant: Some(tenant.clone()),
        holder,
        scopes: ScopeSet::new([Scope::VmGuest]).map_err(|_| ApiError::internal())?,
        resources: Some(Resources::parse(&[vm.id.to_string()]).map_err(|_| ApiError::internal())?),
        not_before: now,
        expires_at,
        delegations: 0,
        // Who must sign its own requests does not make what need not.
        requires_pop: caller.grant.requires_pop,
    })
}

/// Whose the guest's token is: what ends its holder ends it too.
fn holder_for(caller: &Scoped, asked: &IssueGuestToken) -> Result<SubjectKey, ApiError> {
    let own = caller.grant.holder;
    let Some(text) = &asked.subject_pubkey else {
        return if caller.grant.requires_pop {
            Err(ApiError::field(
                "subject_pubkey",
                "is required of a token whose requests are signed: the guest signs with a key of its own",
            ))
        } else {
            Ok(own)
        };
    };
    let named = SubjectKey::parse(text)
        .map_err(|error| ApiError::field("subject_pubkey", &error.to_string()))?;
    if caller.is_account() && named != own {
        return Err(ApiError::field(
            "subject_pubkey",
            "leave it out: what a service account makes stays the account's",
        ));
    }
    Ok(named)
}

/// `GET /v1/vms/{vm}/metadata`
pub(crate) async fn metadata(vm: Owned<Vm>) -> Shown<GuestMetadata> {
    let vm = vm.into_inner();
    Shown(GuestMetadata {
        id: vm.id,
        name: vm.name,
        tenant_id: vm.tenant_id,
        project_id: vm.project_id,
        generation: vm.generation,
        vcpus: vm.vcpus,
        memory_mb: vm.memory_mb,
        disk_gb: vm.disk_gb,
        image: vm.image,
        labels: vm.labels,
        created_at: vm.created_at,
    })
}

/// `POST /v1/vms/{vm}/boot-report`: the guest is set up, and needs what it was given no more.
pub(crate) async fn boot_report(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<Vm>,
    _: NoBody,
) -> Result<NoContent, ApiError> {
    let (tenant, id, cause) = (caller.tenant()?.clone(), vm.id, caller.cause());
    let token = *caller.grant.token_ids.last().ok_or_else(revoked)?;
    let node = app
        .write(move |tx| {
            // An order may have come in between: then this run is over, and the next one's guest has
            // said nothing.
            let vm = tx.vm_of_guest_token(&tenant, token)?;
            let vm = vm.filter(|vm| vm.id == id);
            vm.map(|vm| tx.report_boot(&vm, &cause)).transpose()
        })
        .await?
        .ok_or_else(revoked)?;
    if let Some(node) = node {
        app.links.wake(node);
    }
    Ok(NoContent)
}

/// `POST /v1/vms/{vm}/cleanup`: the guest has done its work, its VM may go.
pub(crate) async fn cleanup(
    app: State<Arc<App>>,
    caller: Scoped,
    vm: Owned<Vm>,
    _: NoBody,
) -> Result<Accepted<Operation>, ApiError> {
    vm_orders::end(app, caller, vm.id).await
}
