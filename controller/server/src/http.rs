//! The HTTP surface: one row per route, and the layers around them.
//!
//! A route cannot be added without saying who may use it ([`gate::Access`]), and not with a handler
//! whose extractors and answer do not say what they are ([`describe`]).

mod accounts;
mod agent;
mod answer;
mod audit;
mod body;
mod console;
mod describe;
mod events;
mod export;
mod frame;
mod gate;
mod guests;
mod health;
mod nodes;
mod once;
mod openapi;
mod owned;
mod page;
mod persons;
mod precondition;
mod projects;
mod seeds;
mod slots;
mod table;
mod tenants;
mod tokens;
mod usage;
mod vm_orders;
mod vms;
mod waiting;

use std::sync::Arc;

use axum::Router;
use berth_api::rest::ErrorCode as Code;
use berth_token::Scope;

use crate::app::App;
use gate::Access;
use table::Method::{Delete, Get, Patch, Post, Put};
use table::{Says, Table};
pub(crate) use tokens::rfc3339_s;

/// The whole service.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes = table().into_router(&app);
    frame::around(routes).with_state(app)
}

/// The API's document, as it is committed.
pub(crate) fn document() -> &'static str {
    openapi::text()
}

/// Every route of the service.
fn table() -> Table {
    let routes = for_everybody(Table::new());
    let routes = for_operators(routes);
    let routes = for_slots(routes);
    let routes = for_tenants(routes);
    let routes = for_projects(routes);
    let routes = for_accounts(routes);
    let routes = for_persons(routes);
    let routes = for_guests(routes);
    for_vms(routes)
}

fn for_everybody(routes: Table) -> Table {
    let public = Access::Public;
    let checkpoint = "/v1/audit/checkpoint";
    routes
        .add(Get, "/healthz", public, ALIVE, health::healthz)
        .add(Get, "/readyz", public, READY, health::readyz)
        .add(Get, "/openapi.json", public, DOCUMENT, openapi::document)
        .add(Get, "/v1/version", public, VERSION, health::version)
        .add(Get, checkpoint, public, CHECKPOINT, audit::checkpoint)
        .add(Get, "/v1/audit/tile/{*path}", public, TILE, audit::tile)
        .add(Get, "/v1/me", Access::AnyToken, ME, health::me)
        .add(Post, "/v1/agent/enroll", public, ENROLL, agent::enroll)
        .add(Post, "/v1/agent/sync", public, SYNC, agent::sync)
}

const ALIVE: Says = Says("Whether the process answers", &[]);
const READY: Says = Says("Whether the service can do its work", &[]);
const DOCUMENT: Says = Says("This document", &[]);
const VERSION: Says = Says("Version, and what this controller can", &[]);
const CHECKPOINT: Says = Says("The newest signed checkpoint of the ledger's log", &[]);
const TILE: Says = Says("A tile of the ledger's log", &[Code::NotFound]);
const ME: Says = Says("What the token in use may do", &[]);
const ENROLL: Says = Says(
    "Enrol a node; signed by its key",
    &[Code::InvalidToken, Code::AlreadyExists],
);
const SYNC: Says = Says(
    "A node's reports and its long poll for work; signed by its key",
    &[Code::InvalidToken, Code::InvalidState],
);

fn for_operators(routes: Table) -> Table {
    let operator = Access::Operator(Scope::PlatformAdmin);
    let watcher = Access::Operator(Scope::Metrics);
    let tenant = "/v1/tenants/{tenant}";
    let suspend = "/v1/tenants/{tenant}/suspend";
    let resume = "/v1/tenants/{tenant}/resume";
    let overrides = "/v1/tenants/{tenant}/quota-overrides";
    let join = "/v1/nodes/join-tokens";
    let witnesses = "/v1/audit/cosignatures";
    let node = "/v1/nodes/{node}";
    // A tenant's administrator and readers, for the nodes that the tenant enrolled itself.
    let owner = Access::Namespace(Scope::TenantAdmin);
    let reader = Access::Namespace(Scope::VmRead);
    let cordon = "/v1/nodes/{node}/cordon";
    let uncordon = "/v1/nodes/{node}/uncordon";
    routes
        .add(Post, "/v1/tenants", operator, NEW_TENANT, tenants::create)
        .add(Get, "/v1/tenants", operator, TENANTS, tenants::list)
        .add(Patch, tenant, operator, CHANGE_TENANT, tenants::change)
        .add(Delete, tenant, operator, DELETE_TENANT, tenants::delete)
        .add(Post, suspend, operator, SUSPEND, tenants::suspend)
        .add(Post, resume, operator, RESUME, tenants::resume)
        .add(Post, overrides, operator, OVERRIDE, tenants::override_quota)
        .add(Post, join, owner, NEW_JOIN_TOKEN, nodes::join_token)
        .add(Get, "/v1/nodes", reader, NODES, nodes::list)
        .add(Get, node, reader, NODE, nodes::get)
        .add(Patch, node, operator, CHANGE_NODE, nodes::change)
        .add(Post, cordon, operator, CORDON, nodes::cordon)
        .add(Post, uncordon, operator, UNCORDON, nodes::uncordon)
        .add(Get, "/metrics", watcher, METRICS, health::metrics)
        .add(Get, witnesses, operator, WITNESSES, audit::cosignatures)
}

const NEW_TENANT: Says = Says(
    "Make a tenant",
    &[Code::InvalidTenantId, Code::TenantExists],
);
const TENANTS: Says = Says("All tenants", &[]);
const CHANGE_TENANT: Says = Says(
    "Change a tenant; a limit may be put below what is in use",
    &[Code::FieldImmutable],
);
const DELETE_TENANT: Says = Says(
    "Delete a tenant that owns nothing; its id is never used again",
    &[Code::TenantNotEmpty],
);
const SUSPEND: Says = Says(
    "Suspend a tenant: it can look, stop and delete, and nothing else",
    &[],
);
const RESUME: Says = Says("End a tenant's suspension", &[]);
const OVERRIDE: Says = Says("Let another ceiling hold for a while", &[]);
const NEW_JOIN_TOKEN: Says = Says(
    "Make a token with which one node can enrol; one that a tenant makes enrols a node that is its own",
    &[Code::NotFound, Code::QuotaExceeded],
);
const METRICS: Says = Says("What monitoring reads, as OpenMetrics text", &[]);
const NODES: Says = Says(
    "All nodes; for a tenant, those that it enrolled itself",
    &[],
);
const WITNESSES: Says = Says("What each host has seen of the ledger, cosigned by it", &[]);
const NODE: Says = Says("One node; its tag stands for what operators set", &[]);
const CHANGE_NODE: Says = Says(
    "Change what placement goes by; VMs that are there stay",
    &[Code::FieldImmutable],
);
const CORDON: Says = Says(
    "Give a node no VMs from here on; those that are there stay",
    &[],
);
const UNCORDON: Says = Says("Give a node VMs again", &[]);

fn for_slots(routes: Table) -> Table {
    let operator = Access::Operator(Scope::PlatformAdmin);
    let reader = Access::Namespace(Scope::VmRead);
    let approve = "/v1/slots/{slot}/approve";
    let quarantine = "/v1/slots/{slot}/quarantine";
    let release = "/v1/slots/{slot}/release-quarantine";
    let wipe = "/v1/slots/{slot}/wipe";
    let receipts = "/v1/vms/{vm}/receipts";
    let passport = "/v1/vms/{vm}/passport";
    routes
        .add(Get, "/v1/slots", operator, SLOTS, slots::list)
        .add(Get, "/v1/slots/{slot}", operator, SLOT, slots::get)
        .add(Post, approve, operator, APPROVE_SLOT, slots::approve)
        .add(Post, quarantine, operator, QUARANTINE, slots::quarantine)
        .add(Post, release, operator, RELEASE, slots::release_quarantine)
        .add(Post, wipe, operator, WIPE, slots::wipe)
        .add(Get, "/v1/slot-classes", reader, CLASSES, slots::classes)
        .add(Get, receipts, reader, RECEIPTS, slots::vm_receipts)
        .add(Get, passport, reader, PASSPORT, slots::vm_passport)
}

/// What may stand against an order about a slot.
const SLOT_ORDER: &[Code] = &[Code::InvalidState, Code::SlotNotApproved];
const SLOTS: Says = Says("All slots", &[]);
const SLOT: Says = Says("One slot, with its newest receipts", &[]);
const APPROVE_SLOT: Says = Says("Let tenants have a slot", SLOT_ORDER);
const QUARANTINE: Says = Says("Let nobody have a slot", SLOT_ORDER);
const RELEASE: Says = Says("End a slot's quarantine", SLOT_ORDER);
const WIPE: Says = Says("Wipe a slot", SLOT_ORDER);
const CLASSES: Says = Says("Classes of slots, and how many are free", &[]);
const RECEIPTS: Says = Says("What hosts signed about a VM's slots", &[]);
const PASSPORT: Says = Says(
    "That a VM's slots were wiped after whoever had them before, to be checked without a network",
    &[],
);

fn for_tenants(routes: Table) -> Table {
    let reader = Access::TenantPath(Scope::VmRead);
    let admin = Access::TenantPath(Scope::TenantAdmin);
    let issuer = Access::Namespace(Scope::TenantAdmin);
    let revoker = Access::Namespace(Scope::TokenRevoke);
    let anybody = Access::AnyTokenRated;
    let auditor = Access::Namespace(Scope::LedgerRead);
    let of_tenant = "/v1/tenants/{tenant}/tokens";
    let usage_of = "/v1/tenants/{tenant}/usage";
    let token = "/v1/tokens/{token}";
    let inclusion = "/v1/audit/proof/inclusion";
    let consistency = "/v1/audit/proof/consistency";
    routes
        .add(Get, "/v1/tenants/{tenant}", reader, TENANT, tenants::get)
        .add(Get, usage_of, reader, TENANT_USAGE, usage::of_tenant)
        .add(Post, of_tenant, admin, NEW_TOKEN, tokens::issue)
        .add(Get, of_tenant, admin, TOKENS, tokens::list)
        .add(Delete, token, revoker, REVOKE, tokens::revoke)
        .add(
            Post,
            "/v1/tokens",
            issuer,
            NEW_TOKEN_HERE,
            tokens::issue_here,
        )
        .add(
            Post,
            "/v1/tokens/revoke",
            revoker,
            REVOKE_ANY,
            tokens::revoke_any,
        )
        .add(Post, "/v1/tokens/verify", anybody, VERIFY, tokens::verify)
        .add(Get, "/v1/audit/entries", auditor, ENTRIES, audit::entries)
        .add(Get, "/v1/audit/head", auditor, HEAD, audit::head)
        .add(Get, "/v1/audit/export", auditor, EXPORT, export::export)
        .add(Get, inclusion, auditor, INCLUSION, audit::inclusion)
        .add(Get, consistency, auditor, CONSISTENCY, audit::consistency)
        .add(Get, "/v1/events", auditor, STREAM, events::stream)
}

fn for_projects(routes: Table) -> Table {
    let reader = Access::Tenant(Scope::VmRead);
    let admin = Access::Tenant(Scope::TenantAdmin);
    let project = "/v1/projects/{project}";
    routes
        .add(Get, "/v1/tenant", reader, OWN_TENANT, tenants::own)
        .add(Put, "/v1/tenant", admin, CHANGE_OWN, tenants::change_own)
        .add(Get, "/v1/status", reader, STATUS, usage::status)
        .add(Post, "/v1/projects", admin, NEW_PROJECT, projects::create)
        .add(Get, "/v1/projects", reader, PROJECTS, projects::list)
        .add(Get, project, reader, PROJECT, projects::get)
        .add(Patch, project, admin, CHANGE_PROJECT, projects::change)
        .add(Delete, project, admin, DELETE_PROJECT, projects::delete)
}

fn for_accounts(routes: Table) -> Table {
    let admin = Access::Tenant(Scope::TenantAdmin);
    let in_project = "/v1/projects/{project}/service-accounts";
    let members = "/v1/projects/{project}/members";
    let member = "/v1/projects/{project}/members/{account}";
    let all = "/v1/service-accounts";
    let account = "/v1/service-accounts/{account}";
    routes
        .add(Post, in_project, admin, NEW_ACCOUNT, accounts::create)
        .add(Get, all, admin, ACCOUNTS, accounts::list)
        .add(Get, account, admin, ACCOUNT, accounts::get)
        .add(Patch, account, admin, CHANGE_ACCOUNT, accounts::change)
        .add(Delete, account, admin, DELETE_ACCOUNT, accounts::delete)
        .add(Get, members, admin, MEMBERS, accounts::members)
        .add(Put, member, admin, SET_MEMBER, accounts::set_member)
        .add(Delete, member, admin, END_MEMBER, accounts::remove_member)
}

fn for_persons(routes: Table) -> Table {
    let of_tenant = "/v1/tenants/{tenant}/persons";
    let person = "/v1/persons/{person}";
    let linker = Access::TenantPath(Scope::TenantAdmin);
    let admin = Access::Namespace(Scope::TenantAdmin);
    let sign_in = "/v1/identity/token";
    routes
        .add(Post, of_tenant, linker, LINK_PERSON, persons::link)
        .add(Get, of_tenant, linker, PERSONS, persons::list)
        .add(Get, person, admin, PERSON, persons::get)
        .add(Delete, person, admin, UNLINK_PERSON, persons::unlink)
        .add(Post, sign_in, Access::Public, SIGN_IN, persons::sign_in)
}

const LINK_PERSON: Says = Says(
    "Let a person of the identity provider sign in for a tenant, with these scopes",
    &[Code::AlreadyExists, Code::InvalidState],
);
const PERSONS: Says = Says("The people who may sign in for a tenant", &[]);
const PERSON: Says = Says("One person's link to a tenant", &[]);
const UNLINK_PERSON: Says = Says(
    "Let a person sign in no more; the person's tokens end",
    &[Code::InvalidState],
);
const SIGN_IN: Says = Says(
    "A token for a person whom the identity provider vouches for and somebody here has linked",
    &[
        Code::InvalidToken,
        Code::TokenExpired,
        Code::PermissionDenied,
        Code::TenantSuspended,
        Code::NotFound,
        Code::InvalidState,
        Code::QuotaExceeded,
        Code::RateLimited,
        Code::IdentityUnavailable,
    ],
);

const NEW_ACCOUNT: Says = Says(
    "Make a service account of a project; neither its id nor its key is ever used again in the tenant",
    &[Code::AlreadyExists, Code::InvalidState],
);
const ACCOUNTS: Says = Says("The tenant's service accounts", &[]);
const ACCOUNT: Says = Says("One service account", &[]);
const CHANGE_ACCOUNT: Says = Says("Rename a service account, or switch it off or on", &[]);
const DELETE_ACCOUNT: Says = Says(
    "Delete a service account: its tokens open nothing ever again",
    &[],
);
const MEMBERS: Says = Says("The members of a project and their roles", &[]);
const SET_MEMBER: Says = Says("Give a service account a role in a project", &[]);
const END_MEMBER: Says = Says("End a service account's membership of a project", &[]);

const OWN_TENANT: Says = Says("The caller's own tenant", &[Code::NotFound]);
const CHANGE_OWN: Says = Says("What the tenant says of itself", &[Code::NotFound]);
const STATUS: Says = Says("The tenant at a glance", &[Code::NotFound]);
const NEW_PROJECT: Says = Says(
    "Make a project; its id is never used again in the tenant",
    &[Code::AlreadyExists, Code::InvalidState],
);
const PROJECTS: Says = Says("The tenant's projects", &[]);
const PROJECT: Says = Says("One project", &[]);
const CHANGE_PROJECT: Says = Says(
    "Change a project; a limit may be put below what is in use",
    &[],
);
const DELETE_PROJECT: Says = Says(
    "Delete a project that owns nothing",
    &[Code::InvalidState, Code::Protected],
);
const TENANT_USAGE: Says = Says(
    "A tenant's limits, and what is used of them",
    &[Code::NotFound],
);

/// What may stand against naming a tenant in a query.
const NAMES_TENANT: &[Code] = &[Code::TenantMismatch, Code::InvalidTenantId, Code::NotFound];
const TENANT: Says = Says("One tenant", &[]);
const NEW_TOKEN: Says = Says(
    "Issue a token; it is shown this once",
    &[Code::TenantMismatch, Code::NotFound, Code::QuotaExceeded],
);
const TOKENS: Says = Says("A tenant's tokens, without the tokens themselves", &[]);
const REVOKE: Says = Says("Revoke a token and what hangs on it", &[Code::InvalidState]);
const NEW_TOKEN_HERE: Says = Says(
    "Issue a token for the caller's tenant; an operator names one",
    &[
        Code::TenantMismatch,
        Code::InvalidTenantId,
        Code::NotFound,
        Code::QuotaExceeded,
    ],
);
const REVOKE_ANY: Says = Says(
    "Revoke a link, recorded or not, a holder, or everything so far",
    &[
        Code::TenantMismatch,
        Code::InvalidTenantId,
        Code::NotFound,
        Code::InvalidState,
    ],
);
const VERIFY: Says = Says(
    "What a token allows; 401 with the reason if it is not good",
    &[],
);
const ENTRIES: Says = Says("Entries of the ledger in their order", NAMES_TENANT);
const EXPORT: Says = Says(
    "Entries with their proofs, one JSON line each, which verify without a network",
    NAMES_TENANT,
);
const STREAM: Says = Says(
    "What happens, in the ledger's order, as server-sent events; goes on where `since` says",
    &[Code::RevisionGone, Code::RateLimited],
);
const INCLUSION: Says = Says("Proof that an entry is in the log", &[Code::NotFound]);
const CONSISTENCY: Says = Says("Proof that the log only grew", &[Code::NotFound]);
const HEAD: Says = Says("Where the ledger ends", &[]);

fn for_guests(routes: Table) -> Table {
    let control = Access::Tenant(Scope::VmControl);
    let guest = Access::Tenant(Scope::VmGuest);
    let tokens = "/v1/vms/{vm}/guest-tokens";
    let metadata = "/v1/vms/{vm}/metadata";
    let cleanup = "/v1/vms/{vm}/cleanup";
    let boot_report = "/v1/vms/{vm}/boot-report";
    routes
        .add(Post, tokens, control, NEW_GUEST_TOKEN, guests::issue)
        .add(Get, metadata, guest, METADATA, guests::metadata)
        .add(Post, boot_report, guest, BOOTED, guests::boot_report)
        .add(Post, cleanup, guest, CLEANUP, guests::cleanup)
}

const NEW_GUEST_TOKEN: Says = Says(
    "Issue a token for what runs in a VM: good for that VM alone, until this run of it ends",
    &[Code::InvalidState, Code::QuotaExceeded],
);
const METADATA: Says = Says("What a guest may know of the VM that it runs in", &[]);
const BOOTED: Says = Says(
    "Say that the guest is set up: what it was given is taken away, and it is given no user data again",
    &[],
);
const CLEANUP: Says = Says(
    "Have the VM deleted whose guest this is; its token ends with that",
    &[Code::InvalidState],
);

fn for_vms(routes: Table) -> Table {
    let reader = Access::Namespace(Scope::VmRead);
    // Operators plan alone: what they ask for is never made.
    let planner = Access::Namespace(Scope::VmCreate);
    let control = Access::Tenant(Scope::VmControl);
    let console = Access::TenantUnrated(Scope::VmConsole);
    let vm = "/v1/vms/{vm}";
    let log = "/v1/vms/{vm}/console/log";
    let operation = "/v1/operations/{operation}";
    let await_end = "/v1/operations/{operation}/wait";
    routes
        .add(Post, "/v1/vms", planner, NEW_VM, vms::create)
        .add(Get, "/v1/vms", reader, VMS, vms::list)
        .add(Get, vm, reader, VM, vms::get)
        .add(Patch, vm, control, CHANGE_VM, vms::change)
        .add(Delete, vm, control, DELETE_VM, vm_orders::delete)
        .add(Post, "/v1/vms/{vm}/start", control, START, vm_orders::start)
        .add(Post, "/v1/vms/{vm}/stop", control, STOP, vm_orders::stop)
        .add(Get, "/v1/vms/{vm}/wait", reader, WAIT, vms::wait)
        .add(Get, "/v1/vms/{vm}/events", reader, HISTORY, events::of_vm)
        .add(Get, log, console, CONSOLE_LOG, console::log)
        .add(
            Get,
            "/v1/operations",
            reader,
            OPERATIONS,
            vm_orders::operations,
        )
        .add(Get, operation, reader, OPERATION, vm_orders::operation)
        .add(Get, await_end, reader, AWAIT_END, vm_orders::wait_operation)
        .add(
            Delete,
            operation,
            control,
            CANCEL,
            vm_orders::cancel_operation,
        )
        .add(Get, "/v1/images", reader, IMAGES, vms::images)
        .add(Get, "/v1/sizes", reader, SIZES, vms::sizes)
        .add(Get, "/v1/usage", reader, USAGE, usage::usage)
}

const NEW_VM: Says = Says(
    "Create a VM and start it; with `dry_run=plan` say what would become of it",
    &[
        Code::PermissionDenied,
        Code::InvalidTenantId,
        Code::TenantMismatch,
        Code::ShapeNotSupported,
        Code::NotFound,
        Code::AlreadyExists,
        Code::QuotaExceeded,
        Code::SlotClassNotAllowed,
        Code::SlotNotApproved,
        Code::ClaimConflict,
        Code::IommuGroupUnsafe,
        Code::DeviceIdentityChanged,
        Code::PlacementImpossible,
        Code::NoCapacity,
    ],
);
const VMS: Says = Says("The VMs that exist", NAMES_TENANT);
const VM: Says = Says("One VM", &[]);
const DELETE_VM: Says = Says("Delete a VM, whatever its state", &[Code::InvalidState]);
const START: Says = Says(
    "Start a VM; it is charged like a creation",
    &[
        Code::InvalidState,
        Code::OperationInProgress,
        Code::QuotaExceeded,
    ],
);
const STOP: Says = Says(
    "Stop a VM",
    &[Code::InvalidState, Code::OperationInProgress],
);
const WAIT: Says = Says("Wait until a VM is in a state", &[Code::WaitTimeout]);
const CONSOLE_LOG: Says = Says(
    "The end of what the guest wrote to its console",
    &[
        Code::NodeUnreachable,
        Code::NodeTimeout,
        Code::NodeError,
        Code::Starting,
    ],
);
const CHANGE_VM: Says = Says(
    "Change what a VM is called, and when it ends by itself",
    &[Code::AlreadyExists],
);
const HISTORY: Says = Says("What happened to a VM, in the ledger's order", &[]);
const OPERATIONS: Says = Says("Operations, oldest first", &[]);
const OPERATION: Says = Says("One operation", &[]);
const AWAIT_END: Says = Says("Wait until an operation has ended", &[Code::WaitTimeout]);
const CANCEL: Says = Says(
    "Cancel an operation, where `may_cancel` says that it can be",
    &[Code::InvalidState],
);
const IMAGES: Says = Says("Images from which VMs are made", &[]);
const SIZES: Says = Says("Sizes that VMs can be asked for by name", &[]);
const USAGE: Says = Says("Limits, and what is used of them", NAMES_TENANT);
