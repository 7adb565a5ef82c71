//! Tokens that are limited to certain VMs and slots.
//!
//! Judged here by what the path names, so no handler can forget it. A route whose path names neither
//! a VM nor a slot is closed to such a token, unless it is on the list of those that show nothing
//! else, or that leave out what the token does not name ([`Scoped::only_vms`](super::Scoped)).

use axum::extract::RawPathParams;
use axum::http::Method;
use berth_api::ids::{OperationId, VmId};
use berth_api::rest::ErrorCode;
use berth_controller_store::VmRef;
use berth_token::{Grant, Resource, Resources};

use crate::api_error::ApiError;
use crate::app::App;

/// Routes without an id that such a token may read, and the one that says what a token is.
const OPEN: &[(Method, &str)] = &[
    (Method::GET, "/v1/me"),
    (Method::GET, "/v1/vms"),
    (Method::GET, "/v1/images"),
    (Method::GET, "/v1/sizes"),
    (Method::GET, "/v1/slot-classes"),
    (Method::POST, "/v1/tokens/verify"),
];

/// Whether a limited token may make this request; any other may.
pub(super) async fn within(
    app: &App,
    grant: &Grant,
    method: &Method,
    route: &str,
    params: &RawPathParams,
) -> Result<(), ApiError> {
    let Some(limit) = &grant.resources else {
        return Ok(());
    };
    let mut named = false;
    for (name, value) in params.iter() {
        let allowed = match name {
            "vm" => names_vm(app, grant, limit, value).await?,
            "slot" => value
                .parse()
                .is_ok_and(|id| limit.contains(Resource::Slot(id))),
            "operation" => names_operation(app, grant, limit, value).await?,
            // Of other things it is not known which VM or slot they belong to.
            _ => return Err(limited()),
        };
        if !allowed {
            return Err(ApiError::not_found());
        }
        named = true;
    }
    let open = OPEN
        .iter()
        .any(|(open, path)| open == method && *path == route);
    if named || open {
        Ok(())
    } else {
        Err(limited())
    }
}

async fn names_vm(
    app: &App,
    grant: &Grant,
    limit: &Resources,
    text: &str,
) -> Result<bool, ApiError> {
    let id: Option<VmId> = match VmRef::parse(text) {
        VmRef::Id(id) => Some(id),
        by_name @ VmRef::Name(_) => {
            let tenant = grant.tenant.clone();
            app.read(move |db| db.vm(tenant.as_ref(), &by_name))
                .await?
                .map(|vm| vm.id)
        }
    };
    Ok(id.is_some_and(|id| limit.contains(Resource::Vm(id))))
}

async fn names_operation(
    app: &App,
    grant: &Grant,
    limit: &Resources,
    text: &str,
) -> Result<bool, ApiError> {
    let Ok(id) = text.parse::<OperationId>() else {
        return Ok(false);
    };
    let tenant = grant.tenant.clone();
    let found = app
        .read(move |db| db.operation(tenant.as_ref(), id))
        .await?;
    Ok(found.is_some_and(|operation| limit.contains(Resource::Vm(operation.vm_id))))
}

fn limited() -> ApiError {
    ApiError::new(
        ErrorCode::PermissionDenied,
        "the token is good for certain VMs and slots alone",
        "Name one of them, or ask for a token without `resources`.",
    )
}
