//! Service accounts: a token among whose holders one stands does no more than that account's roles
//! permit, in the order actor, membership, permission.
//!
//! Judged here by what the path names, so no handler can forget it. A route whose path names nothing
//! of a project is closed to service accounts, unless it is on the list of those that tell nothing of
//! any project, or that ask for themselves ([`Scoped::permits`](super::Scoped),
//! [`Scoped::only_projects`](super::Scoped)).

use axum::extract::RawPathParams;
use axum::http::Method;
use berth_api::ids::{OperationId, ProjectId, TenantId};
use berth_api::rest::ErrorCode;
use berth_controller_core::authority::{Denied, Permission};
use berth_controller_store::{AccountStanding, Db, StoreError, VmRef};
use berth_token::Scope;

use crate::api_error::ApiError;
use crate::app::App;

/// Routes that a service account may ask though their path names nothing of a project.
const OPEN: &[(Method, &str)] = &[
    (Method::GET, "/v1/me"),
    (Method::GET, "/v1/vms"),
    (Method::POST, "/v1/vms"),
    (Method::GET, "/v1/projects"),
    (Method::GET, "/v1/usage"),
    (Method::GET, "/v1/images"),
    (Method::GET, "/v1/sizes"),
    (Method::GET, "/v1/slot-classes"),
    (Method::POST, "/v1/tokens/verify"),
];

/// What a route of this scope asks of a role.
fn permission_of(scope: Option<Scope>) -> Permission {
    match scope {
        None | Some(Scope::VmRead) => Permission::VmRead,
        Some(Scope::VmCreate) => Permission::VmCreate,
        Some(Scope::VmControl | Scope::VmGuest) => Permission::VmControl,
        Some(Scope::VmConsole) => Permission::VmConsole,
        Some(
            Scope::PlatformAdmin
            | Scope::TenantAdmin
            | Scope::Metrics
            | Scope::LedgerRead
            | Scope::TokenRevoke,
        ) => Permission::Tenant,
    }
}

/// Refuse what the service accounts among a token's holders may not do here; each has to permit it.
pub(super) async fn within(
    app: &App,
    tenant: &TenantId,
    accounts: &[AccountStanding],
    scope: Option<Scope>,
    request: (&Method, &str),
    params: &RawPathParams,
) -> Result<(), ApiError> {
    for account in accounts {
        account.admit().map_err(refused)?;
    }
    if accounts.is_empty() || OPEN.iter().any(|(method, path)| (method, *path) == request) {
        return Ok(());
    }
    let Some(named) = Named::of(params) else {
        return Err(beyond_projects());
    };
    let tenant = tenant.clone();
    let project = app
        .read(move |db| named.project(db, &tenant))
        .await?
        .ok_or_else(ApiError::not_found)?;
    permits(accounts, &project, permission_of(scope))
}

/// Whether all of these service accounts may do this in a project.
pub(super) fn permits(
    accounts: &[AccountStanding],
    project: &ProjectId,
    wanted: Permission,
) -> Result<(), ApiError> {
    accounts
        .iter()
        .try_for_each(|account| account.decide(project, wanted).map_err(refused))
}

/// What in a path tells the project.
enum Named {
    Vm(VmRef),
    Operation(OperationId),
    Project(ProjectId),
    Nothing,
}

impl Named {
    /// `None` if the path names nothing of a project.
    fn of(params: &RawPathParams) -> Option<Self> {
        params.iter().find_map(|(name, text)| match name {
            "vm" => Some(Self::Vm(VmRef::parse(text))),
            "operation" => Some(text.parse().map_or(Self::Nothing, Self::Operation)),
            "project" => Some(text.parse().map_or(Self::Nothing, Self::Project)),
            _ => None,
        })
    }

    fn project(self, db: &Db<'_>, tenant: &TenantId) -> Result<Option<ProjectId>, StoreError> {
        let of_vm = |vm: VmRef| -> Result<Option<ProjectId>, StoreError> {
            let found = match vm {
                VmRef::Id(id) => db.vm_or_tombstone(id)?,
                name @ VmRef::Name(_) => db.vm(Some(tenant), &name)?,
            };
            Ok(found
                .filter(|vm| vm.tenant_id == *tenant)
                .map(|vm| vm.project_id))
        };
        match self {
            Self::Vm(vm) => of_vm(vm),
            Self::Operation(id) => match db.operation(Some(tenant), id)? {
                Some(operation) => of_vm(VmRef::Id(operation.vm_id)),
                None => Ok(None),
            },
            Self::Project(project) => Ok(Some(project)),
            Self::Nothing => Ok(None),
        }
    }
}

/// Of a project of which it is no member an account learns nothing, not even that it is there.
fn refused(denied: Denied) -> ApiError {
    match denied {
        Denied::Membership => ApiError::not_found(),
        Denied::Actor => ApiError::new(
            ErrorCode::PermissionDenied,
            denied.to_string(),
            "Ask your tenant's administrator.",
        ),
        Denied::Permission { .. } => ApiError::new(
            ErrorCode::PermissionDenied,
            denied.to_string(),
            "Ask your tenant's administrator for another role in the project.",
        ),
    }
}

fn beyond_projects() -> ApiError {
    ApiError::new(
        ErrorCode::PermissionDenied,
        "a service account acts inside its projects alone",
        "Use a token of the tenant's administrator for what concerns the whole tenant.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_the_whole_tenant_is_in_no_role() {
        for scope in Scope::ALL {
            let wanted = permission_of(Some(*scope));
            let is_of_vms = scope.as_str().starts_with("vm.");
            assert_eq!(wanted != Permission::Tenant, is_of_vms, "{scope}");
        }
    }
}
