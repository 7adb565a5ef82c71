//! The HTTP surface: one line per route, and the layers around them.
//!
//! A route cannot be added without saying who may use it ([`gate::Access`]).

mod agent;
mod audit;
mod body;
mod console;
mod export;
mod frame;
mod gate;
mod health;
mod nodes;
mod once;
mod page;
mod slots;
mod tenants;
mod tokens;
mod vms;
mod waiting;

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
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
    let routes = Routes {
        app: Arc::clone(&app),
        router: Router::new(),
    };
    let routes = for_everybody(routes);
    let routes = for_operators(routes);
    let routes = for_slots(routes);
    let routes = for_tenants(routes);
    frame::around(for_vms(routes).router).with_state(app)
}

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const PATCH: MethodFilter = MethodFilter::PATCH;
const DELETE: MethodFilter = MethodFilter::DELETE;

fn for_everybody(routes: Routes) -> Routes {
    routes
        .add(GET, "/healthz", Access::Public, health::healthz)
        .add(GET, "/readyz", Access::Public, health::readyz)
        .add(GET, "/v1/version", Access::Public, health::version)
        .add(
            GET,
            "/v1/audit/checkpoint",
            Access::Public,
            audit::checkpoint,
        )
        .add(GET, "/v1/audit/tile/{*path}", Access::Public, audit::tile)
        .add(GET, "/v1/me", Access::AnyToken, health::me)
        .add(POST, "/v1/agent/enroll", Access::Public, agent::enroll)
        .add(POST, "/v1/agent/sync", Access::Public, agent::sync)
}

fn for_operators(routes: Routes) -> Routes {
    let operator = Access::Operator(Scope::PlatformAdmin);
    routes
        .add(POST, "/v1/tenants", operator, tenants::create)
        .add(GET, "/v1/tenants", operator, tenants::list)
        .add(PATCH, "/v1/tenants/{tenant}", operator, tenants::change)
        .add(DELETE, "/v1/tenants/{tenant}", operator, tenants::delete)
        .add(POST, "/v1/nodes/join-tokens", operator, nodes::join_token)
        .add(GET, "/v1/nodes", operator, nodes::list)
        .add(GET, "/v1/nodes/{node}", operator, nodes::get)
}

fn for_slots(routes: Routes) -> Routes {
    let operator = Access::Operator(Scope::PlatformAdmin);
    let reader = Access::Namespace(Scope::VmRead);
    let release = "/v1/slots/{slot}/release-quarantine";
    routes
        .add(GET, "/v1/slots", operator, slots::list)
        .add(GET, "/v1/slots/{slot}", operator, slots::get)
        .add(POST, "/v1/slots/{slot}/approve", operator, slots::approve)
        .add(
            POST,
            "/v1/slots/{slot}/quarantine",
            operator,
            slots::quarantine,
        )
        .add(POST, release, operator, slots::release_quarantine)
        .add(POST, "/v1/slots/{slot}/wipe", operator, slots::wipe)
        .add(GET, "/v1/slot-classes", reader, slots::classes)
        .add(GET, "/v1/vms/{vm}/receipts", reader, slots::vm_receipts)
}

fn for_tenants(routes: Routes) -> Routes {
    let reader = Access::TenantPath(Scope::VmRead);
    let admin = Access::TenantPath(Scope::TenantAdmin);
    let revoker = Access::Namespace(Scope::TokenRevoke);
    let auditor = Access::Namespace(Scope::LedgerRead);
    routes
        .add(GET, "/v1/tenants/{tenant}", reader, tenants::get)
        .add(POST, "/v1/tenants/{tenant}/tokens", admin, tokens::issue)
        .add(GET, "/v1/tenants/{tenant}/tokens", admin, tokens::list)
        .add(DELETE, "/v1/tokens/{token}", revoker, tokens::revoke)
        .add(GET, "/v1/audit/entries", auditor, audit::entries)
        .add(GET, "/v1/audit/head", auditor, audit::head)
        .add(GET, "/v1/audit/export", auditor, export::export)
        .add(GET, "/v1/audit/proof/inclusion", auditor, audit::inclusion)
        .add(
            GET,
            "/v1/audit/proof/consistency",
            auditor,
            audit::consistency,
        )
}

fn for_vms(routes: Routes) -> Routes {
    let reader = Access::Namespace(Scope::VmRead);
    let creator = Access::Tenant(Scope::VmCreate);
    let control = Access::Tenant(Scope::VmControl);
    let console = Access::TenantUnrated(Scope::VmConsole);
    routes
        .add(POST, "/v1/vms", creator, vms::create)
        .add(GET, "/v1/vms", reader, vms::list)
        .add(GET, "/v1/vms/{vm}", reader, vms::get)
        .add(DELETE, "/v1/vms/{vm}", control, vms::delete)
        .add(POST, "/v1/vms/{vm}/start", control, vms::start)
        .add(POST, "/v1/vms/{vm}/stop", control, vms::stop)
        .add(GET, "/v1/vms/{vm}/wait", reader, vms::wait)
        .add(GET, "/v1/vms/{vm}/console/log", console, console::log)
        .add(GET, "/v1/operations/{operation}", reader, vms::operation)
        .add(GET, "/v1/images", reader, vms::images)
        .add(GET, "/v1/usage", reader, tenants::usage)
}
