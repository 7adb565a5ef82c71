//! What stands between a tenant and an action, whatever its token says: a suspension, and actions that
//! its operator did not give it.
//!
//! A suspended tenant can look, and can end what costs it: stop and delete VMs, revoke tokens. What
//! would begin or change something is refused. The transactions that create and start VMs ask again,
//! so that a suspension which comes in between holds.

use axum::http::Method;
use berth_controller_store::TenantStanding;

use crate::api_error::ApiError;

/// Refuse what the caller's tenant may not do now.
pub(super) fn let_in(
    standing: &TenantStanding,
    method: &Method,
    route: &str,
) -> Result<(), ApiError> {
    if standing.is_suspended && changes(method, route) {
        return Err(ApiError::suspended());
    }
    match action_of(method, route) {
        Some(action) if !standing.allows(action) => Err(ApiError::action_not_allowed(action)),
        Some(_) | None => Ok(()),
    }
}

/// Whether a request begins or changes something, rather than looking at it or ending it.
pub(crate) fn changes(method: &Method, route: &str) -> bool {
    let ends = ["/stop", "/cleanup", "/verify"]
        .iter()
        .any(|end| route.ends_with(end));
    matches!(*method, Method::POST | Method::PUT | Method::PATCH) && !ends
}

/// The action that a request is, as `allowed_actions` names it.
fn action_of(method: &Method, route: &str) -> Option<&'static str> {
    let is_change = *method != Method::GET && *method != Method::HEAD;
    match (method, route) {
        (&Method::POST, "/v1/vms") => Some("vm.create"),
        (&Method::POST, "/v1/vms/{vm}/start") => Some("vm.start"),
        (
            &Method::POST,
            "/v1/tokens"
            | "/v1/tenants/{tenant}/tokens"
            | "/v1/tenants/{tenant}/persons"
            | "/v1/vms/{vm}/guest-tokens",
        ) => Some("token.issue"),
        (&Method::POST, "/v1/nodes/join-tokens") => Some("node.enroll"),
        (_, route) if route.starts_with("/v1/vms/{vm}/console") => Some("vm.console"),
        (_, route) if is_change && route.starts_with("/v1/projects") => Some("project.change"),
        (_, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::rest::TENANT_ACTIONS;

    #[test]
    fn looking_and_ending_are_no_changes() {
        for (method, route, expected) in [
            (Method::GET, "/v1/vms", false),
            (Method::POST, "/v1/vms", true),
            (Method::PATCH, "/v1/vms/{vm}", true),
            (Method::POST, "/v1/vms/{vm}/start", true),
            (Method::POST, "/v1/vms/{vm}/stop", false),
            (Method::POST, "/v1/vms/{vm}/cleanup", false),
            (Method::POST, "/v1/vms/{vm}/guest-tokens", true),
            (Method::DELETE, "/v1/vms/{vm}", false),
            (Method::DELETE, "/v1/tokens/{token}", false),
            (Method::POST, "/v1/tenants/{tenant}/tokens", true),
            (Method::PUT, "/v1/tenant", true),
        ] {
            assert_eq!(changes(&method, route), expected, "{method} {route}");
        }
    }

    #[test]
    fn every_action_that_can_be_forbidden_is_some_request() {
        let requests = [
            (Method::POST, "/v1/vms"),
            (Method::POST, "/v1/vms/{vm}/start"),
            (Method::GET, "/v1/vms/{vm}/console/log"),
            (Method::POST, "/v1/tenants/{tenant}/tokens"),
            (Method::DELETE, "/v1/projects/{project}"),
            (Method::POST, "/v1/nodes/join-tokens"),
        ];
        let found: Vec<_> = requests
            .iter()
            .filter_map(|(method, route)| action_of(method, route))
            .collect();
        assert_eq!(found, TENANT_ACTIONS);
        assert_eq!(action_of(&Method::GET, "/v1/projects"), None);
        assert_eq!(action_of(&Method::POST, "/v1/vms/{vm}/stop"), None);
    }
}
