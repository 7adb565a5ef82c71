//! `/v1/vms`, `/v1/sizes` and `/v1/images`: making, listing and reading VMs. Orders about them are in `vm_orders`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_api::ids::{ProjectId, TenantId, VmId};
use berth_api::rest::{
    ChangeVm, CreateVm, ErrorCode, Image, ListQuery, Page, PlanOutcome, Size, Vm, VmPlan, VmState,
};
use berth_controller_core::authority::Permission;
use berth_controller_core::shape::{self, Shape};
use berth_controller_store::{
    ChangeVmDenied, CreateVmDenied, CreatedVm, Db, PlannedVm, StoreError, VmChange, VmRef,
};
use berth_token::Scope;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::{ApiError, wire};
use crate::app::App;
use crate::http::answer::{Created, Shown};
use crate::http::body::{self, QueryOf};
use crate::http::describe::{Answers, Sheet};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, Once, once};
use crate::http::owned::{Owned, VmOrTombstone};
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;
use crate::http::tenants::namespace_or_named;
use crate::http::waiting::{Patience, WaitQuery, patience, settled, wait_for};

/// Times that one page of a list reads on for VMs that pass its filters.
const MAX_READS: u32 = 10;

/// `GET /v1/vms`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmListQuery {
    /// 1 to 1000; 100 unless given.
    limit: Option<u32>,
    /// From the page before.
    page_token: Option<String>,
    /// For operators: only this tenant's.
    tenant_id: Option<String>,
    /// Only VMs in this state.
    state: Option<VmState>,
    /// Only VMs with this label: `key=value`.
    label: Option<String>,
}

/// `GET /v1/vms/{vm}/wait`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateQuery {
    /// What to wait for.
    state: VmState,
    /// Seconds, 0 to 120; 30 unless given.
    timeout: Option<u64>,
}

/// Which VMs a list shows.
#[derive(Debug, Default)]
struct Sieve {
    state: Option<VmState>,
    label: Option<(String, String)>,
    projects: Option<BTreeSet<ProjectId>>,
}

impl Sieve {
    fn of(state: Option<VmState>, label: Option<&str>) -> Result<Self, ApiError> {
        let label = label
            .map(|text| {
                text.split_once('=')
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .ok_or_else(|| ApiError::field("label", "must be key=value"))
            })
            .transpose()?;
        Ok(Self {
            state,
            label,
            projects: None,
        })
    }

    fn lets_pass(&self, vm: &Vm) -> bool {
        self.state.is_none_or(|state| state == vm.state)
            && self
                .label
                .as_ref()
                .is_none_or(|(key, value)| vm.labels.get(key) == Some(value))
            && self
                .projects
                .as_ref()
                .is_none_or(|projects| projects.contains(&vm.project_id))
    }
}

/// `POST /v1/vms`
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateQuery {
    /// Answer when the VM is in this state.
    wait: Option<VmState>,
    /// Or after this many seconds, 0 to 120; 30 unless given.
    timeout: Option<u64>,
    /// Say what would become of it instead. Operators may do this alone, and name the tenant.
    dry_run: Option<DryRun>,
}

/// How little is done.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DryRun {
    /// Nothing is charged, stored or ordered.
    Plan,
}

/// A VM, or what would become of one.
#[derive(Debug)]
pub(crate) enum Creation {
    Made(Created<Vm>),
    Planned(Box<VmPlan>),
}

impl IntoResponse for Creation {
    fn into_response(self) -> Response {
        match self {
            Self::Made(made) => made.into_response(),
            Self::Planned(plan) => Json(plan).into_response(),
        }
    }
}

impl Answers for Creation {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.json_answer::<VmPlan>(200, &[]);
        Created::<Vm>::describe(sheet);
    }
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<CreateQuery>,
    prefer: Patience,
    idempotency: Idempotency,
    body: body::Json<CreateVm>,
) -> Result<Creation, ApiError> {
    let wish = WaitQuery::of(query.wait, query.timeout).wish()?;
    let named = namespace_or_named(&caller, body.value.tenant_id.as_deref())?;
    if let Some(DryRun::Plan) = query.dry_run {
        let tenant =
            named.ok_or_else(|| ApiError::field("tenant_id", "is required of an operator"))?;
        let shape = shape::validate(app.sizes.fill(body.value)?)?;
        caller
            .permits(&shape.project, Permission::VmCreate)
            .map_err(|denied| not_there(denied, shape.project.clone()))?;
        let plan = plan(&app, &caller, tenant, shape).await?;
        return Ok(Creation::Planned(Box::new(plan)));
    }
    let tenant = caller.own_tenant()?.clone();
    let shape = shape::validate(app.sizes.fill(body.value)?)?;
    if shape.guest_token {
        may_give_tokens(&caller)?;
    }
    let key = idempotency.key(&caller, &body.bytes);
    let cause = caller.cause();
    let asker = caller.clone();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| {
            if let Err(denied) = asker.permits_now(tx, &shape.project, Permission::VmCreate)? {
                return Ok(Err(not_there(denied, shape.project)));
            }
            Ok(tx
                .create_vm(&tenant, shape, &cause)?
                .map_err(ApiError::from))
        },
        |created: &CreatedVm| created.vm.clone(),
    )
    .await?;
    let CreatedVm { mut vm, wake } = match done {
        Once::Replayed(replay) => return Ok(Creation::Made(Created::Replayed(replay))),
        Once::Done(created) => created,
    };
    tracing::info!(vm_id = %vm.id, tenant_id = %vm.tenant_id, request_id = %caller.request.id, "VM accepted");
    app.vms_changed(wake);
    if let Some((state, patience)) = wish {
        // It is made, whatever comes of the wait.
        let waited = wait_for(&app, &caller, vm.id, state, patience).await;
        vm = waited.ok().flatten().unwrap_or(vm);
    } else if let (Some(patience), Some(operation)) = (prefer.asked(), vm.operation)
        && settled(&app, &caller, operation, patience).await.is_ok()
    {
        let id = vm.id;
        let found = app.read(move |db| db.vm_or_tombstone(id)).await;
        vm = found.ok().flatten().unwrap_or(vm);
    }
    let location = format!("/v1/vms/{}", vm.id);
    Ok(Creation::Made(Created::at(vm, location)))
}

/// Whose VMs' guests get tokens could make such tokens too. A guest cannot sign its requests with a key
/// that it does not have, so who must sign gives none.
fn may_give_tokens(caller: &Scoped) -> Result<(), ApiError> {
    let needed = [Scope::VmControl, Scope::VmRead];
    let missing = needed
        .into_iter()
        .find(|scope| !caller.grant.scopes.covers(*scope));
    match missing {
        Some(missing) => Err(ApiError::permission_denied(missing)),
        None if caller.grant.requires_pop => Err(ApiError::field(
            "guest_token",
            "is not for a token whose requests are signed; leave it out, and issue one for the guest's own key with POST /v1/vms/{vm}/guest-tokens",
        )),
        None => Ok(()),
    }
}

/// To a service account that is no member a project is as one that is not there.
fn not_there(denied: ApiError, project: ProjectId) -> ApiError {
    if denied.code() == ErrorCode::NotFound {
        CreateVmDenied::NoProject(project).into()
    } else {
        denied
    }
}

/// What would become of it. Of single nodes operators alone are told.
async fn plan(
    app: &Arc<App>,
    caller: &Scoped,
    tenant: TenantId,
    shape: Shape,
) -> Result<VmPlan, ApiError> {
    let is_operator = caller.namespace().is_none();
    let planned = app
        .read(move |db| db.plan_vm(&tenant, &shape, is_operator))
        .await?;
    let PlannedVm {
        disk_gb,
        charges,
        outcome,
        zone,
        verdicts,
    } = planned;
    let (outcome, placement, refusal) = match outcome {
        Ok(Some(placement)) => (PlanOutcome::Accepted, Some(placement), None),
        Ok(None) => (PlanOutcome::Waits, None, None),
        Err(denied) => {
            let refusal = ApiError::from(denied).into_plan();
            (PlanOutcome::Refused, None, Some(refusal))
        }
    };
    let (nodes, candidates) = verdicts.unzip();
    Ok(VmPlan {
        outcome,
        disk_gb,
        charges,
        node_id: placement.as_ref().map(|placement| placement.node_id),
        zone,
        slots: placement
            .map(|placement| placement.slots)
            .unwrap_or_default(),
        refusal,
        candidates,
        nodes,
    })
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<VmListQuery>,
) -> Result<Json<Page<Vm>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let tenant = namespace_or_named(&caller, query.tenant_id.as_deref())?;
    let mut sieve = Sieve::of(query.state, query.label.as_deref())?;
    sieve.projects = caller.only_projects();
    let after = query.page_token.unwrap_or_default();
    let only = caller.only_vms();
    let found = app
        .read(move |db| match only {
            None => sifted(db, tenant.as_ref(), after, limit, &sieve),
            Some(ids) => named(db, tenant.as_ref(), &ids, &after, limit, &sieve),
        })
        .await?;
    Ok(Json(found))
}

/// A page of certain VMs that pass. A token names few enough to look at each.
fn named(
    db: &Db<'_>,
    tenant: Option<&TenantId>,
    ids: &[VmId],
    after: &str,
    limit: u32,
    sieve: &Sieve,
) -> Result<Page<Vm>, StoreError> {
    let room = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut items = Vec::new();
    for id in ids.iter().filter(|id| id.to_string().as_str() > after) {
        items.extend(
            db.vm(tenant, &VmRef::Id(*id))?
                .filter(|vm| sieve.lets_pass(vm)),
        );
    }
    let more = items.len() > room;
    items.truncate(room);
    let next_page_token = items.last().filter(|_| more).map(|vm| vm.id.to_string());
    Ok(Page {
        items,
        next_page_token,
    })
}

/// A page of those that pass. After many that do not it ends early, and the next page goes on there.
fn sifted(
    db: &Db<'_>,
    tenant: Option<&TenantId>,
    mut after: String,
    limit: u32,
    sieve: &Sieve,
) -> Result<Page<Vm>, StoreError> {
    let room = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut items: Vec<Vm> = Vec::new();
    for _ in 0..MAX_READS {
        let read = db.vms(tenant, &after, limit + 1)?;
        let is_end = read.len() <= room;
        for vm in read {
            let id = vm.id.to_string();
            if sieve.lets_pass(&vm) {
                if items.len() == room {
                    return Ok(Page {
                        items,
                        next_page_token: Some(after),
                    });
                }
                items.push(vm);
            }
            after = id;
        }
        if is_end {
            return Ok(Page {
                items,
                next_page_token: None,
            });
        }
    }
    Ok(Page {
        items,
        next_page_token: Some(after),
    })
}

pub(crate) async fn get(vm: Owned<Vm>) -> Shown<Vm> {
    Shown(vm.into_inner())
}

/// Of a VM that is gone its tenant may still learn that it is gone.
pub(crate) async fn wait(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<VmOrTombstone>,
    QueryOf(query): QueryOf<StateQuery>,
) -> Result<Json<Vm>, ApiError> {
    let patience = patience(query.timeout)?;
    if vm.is_gone() && query.state != VmState::Deleted {
        return Err(ApiError::not_found());
    }
    let vm = wait_for(&app, &caller, vm.id, query.state, patience)
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

/// What the VM is called, and when it ends by itself; what it is made of does not change.
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Scoped,
    vm: Owned<Vm>,
    if_match: IfMatch,
    body: body::Json<ChangeVm>,
) -> Result<Shown<Vm>, ApiError> {
    let asked = body.value;
    shape::validate_names(asked.name.as_deref(), asked.labels.as_ref())?;
    shape::validate_ttl(asked.ttl_seconds.flatten())?;
    let change = VmChange {
        name: asked.name,
        labels: asked.labels,
        ttl_s: asked.ttl_seconds,
        is_deleted_on_stop: asked.auto_delete_on_stop,
    };
    let tenant = caller.tenant()?.clone();
    let id = vm.id;
    let cause = caller.cause();
    let changed = app
        .write(move |tx| {
            if let Some(current) = tx.vm(Some(&tenant), &VmRef::Id(id))?
                && let Err(stale) = if_match.check(&current)
            {
                return Ok(Err(stale));
            }
            Ok(tx
                .change_vm(&tenant, id, change, &cause)?
                .map_err(unchangeable))
        })
        .await??;
    Ok(Shown(changed))
}

fn unchangeable(denied: ChangeVmDenied) -> ApiError {
    match denied {
        ChangeVmDenied::NotFound => ApiError::not_found(),
        ChangeVmDenied::NameTaken => ApiError::new(
            ErrorCode::AlreadyExists,
            denied.to_string(),
            "Choose another name, or delete the VM that has it.",
        ),
    }
}

/// What the operator offers is the same for everybody.
pub(crate) async fn sizes(
    State(app): State<Arc<App>>,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Size>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let sizes = app.sizes.after(&after, limit + 1);
    Ok(page(sizes, limit, |size| size.name.clone()))
}

pub(crate) async fn images(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Image>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = caller.namespace().cloned();
    let images = app
        .read(move |db| match tenant {
            Some(tenant) => db.images_of(&tenant, &after, limit + 1),
            None => db.images(None, &after, limit + 1),
        })
        .await?;
    Ok(page(images, limit, |image| image.name.clone()))
}
