//! The HTTP surface: one line per route, and the layers around them.
//!
//! A route cannot be added without saying who may use it ([`gate::Access`]).

mod agent;
mod audit;
mod body;
mod console;
mod frame;
mod gate;
mod health;
mod nodes;
mod once;
mod page;
mod tenants;
mod tokens;
mod vms;
mod waiting;

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, MethodRouter, on};
use berth_token::Scope;

use crate::app::App;
use gate::Access;

/// Builds the router so that every route names its rule.
struct Routes {
    app: Arc<App>,
    router: Router<Arc<App>>,
}

impl Routes {
    fn add<H, T>(mut self, method: MethodFilter, path: &str, access: Access, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        let rule = (Arc::clone(&self.app), access);
        let guarded: MethodRouter<Arc<App>> =
            on(method, handler).route_layer(from_fn_with_state(rule, gate::guard));
        self.router = self.router.route(path, guarded);
        self
    }
}

/// The whole service.
pub(crate) fn router(app: Arc<App>) -> Router {
    const GET: MethodFilter = MethodFilter::GET;
    const POST: MethodFilter = MethodFilter::POST;
    const PATCH: MethodFilter = MethodFilter::PATCH;
    const DELETE: MethodFilter = MethodFilter::DELETE;
    let operator = Access::Operator(Scope::PlatformAdmin);
    let routes = Routes {
        app: Arc::clone(&app),
        router: Router::new(),
    };
    routes
        .add(GET, "/healthz", Access::Public, health::healthz)
        .add(GET, "/readyz", Access::Public, health::readyz)
        .add(GET, "/v1/version", Access::Public, health::version)
        .add(GET, "/v1/me", Access::AnyToken, health::me)
        .add(POST, "/v1/tenants", operator, tenants::create)
        .add(GET, "/v1/tenants", operator, tenants::list)
        .add(
            GET,
            "/v1/tenants/{tenant}",
            Access::TenantPath(Scope::VmRead),
            tenants::get,
        )
        .add(PATCH, "/v1/tenants/{tenant}", operator, tenants::change)
        .add(DELETE, "/v1/tenants/{tenant}", operator, tenants::delete)
        .add(
            POST,
            "/v1/tenants/{tenant}/tokens",
            Access::TenantPath(Scope::TenantAdmin),
            tokens::issue,
        )
        .add(
            GET,
            "/v1/tenants/{tenant}/tokens",
            Access::TenantPath(Scope::TenantAdmin),
            tokens::list,
        )
        .add(
            DELETE,
            "/v1/tokens/{token}",
            Access::Namespace(Scope::TokenRevoke),
            tokens::revoke,
        )
        .add(
            POST,
            "/v1/vms",
            Access::Tenant(Scope::VmCreate),
            vms::create,
        )
        .add(GET, "/v1/vms", Access::Namespace(Scope::VmRead), vms::list)
        .add(
            GET,
            "/v1/vms/{vm}",
            Access::Namespace(Scope::VmRead),
            vms::get,
        )
        .add(
            DELETE,
            "/v1/vms/{vm}",
            Access::Tenant(Scope::VmControl),
            vms::delete,
        )
        .add(
            POST,
            "/v1/vms/{vm}/start",
            Access::Tenant(Scope::VmControl),
            vms::start,
        )
        .add(
            POST,
            "/v1/vms/{vm}/stop",
            Access::Tenant(Scope::VmControl),
            vms::stop,
        )
        .add(
            GET,
            "/v1/vms/{vm}/wait",
            Access::Namespace(Scope::VmRead),
            vms::wait,
        )
        .add(
            GET,
            "/v1/vms/{vm}/console/log",
            Access::TenantUnrated(Scope::VmConsole),
            console::log,
        )
        .add(
            GET,
            "/v1/operations/{operation}",
            Access::Namespace(Scope::VmRead),
            vms::operation,
        )
        .add(
            GET,
            "/v1/images",
            Access::Namespace(Scope::VmRead),
            vms::images,
        )
        .add(
            GET,
            "/v1/usage",
            Access::Namespace(Scope::VmRead),
            tenants::usage,
        )
        .add(POST, "/v1/nodes/join-tokens", operator, nodes::join_token)
        .add(GET, "/v1/nodes", operator, nodes::list)
        .add(GET, "/v1/nodes/{node}", operator, nodes::get)
        .add(
            GET,
            "/v1/audit/entries",
            Access::Namespace(Scope::LedgerRead),
            audit::entries,
        )
        .add(
            GET,
            "/v1/audit/head",
            Access::Namespace(Scope::LedgerRead),
            audit::head,
        )
        .add(POST, "/v1/agent/enroll", Access::Public, agent::enroll)
        .add(POST, "/v1/agent/sync", Access::Public, agent::sync)
        .router
        .fallback(frame::no_such_route)
        .method_not_allowed_fallback(frame::no_such_method)
        .layer(from_fn(frame::survive_panics))
        .layer(from_fn(frame::frame))
        .with_state(app)
}
