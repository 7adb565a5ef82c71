//! Who may pass: authenticate, then namespace, then permission, then rate. Quota and audit follow in
//! the transaction of the change itself.
//!
//! The tenant of a request comes from its token alone. Handlers get a [`Scoped`] and nothing else to
//! tell tenants apart by.

mod accounts;
mod authenticate;
mod guests;
mod rate;
mod resources;
pub(crate) mod standing;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_api::ids::{ProjectId, TenantId, TokenId, VmId};
use berth_api::rest::{AuditActor, AuditRequest, ErrorCode};
use berth_controller_core::authority::Permission;
use berth_controller_store::{AccountStanding, Cause, Db, NewEvent, StoreError, request_cause};
use berth_ledger::merkle::Hash;
use berth_token::{Grant, Scope};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::body;
use crate::http::frame::ThisRequest;

pub(crate) use authenticate::{check as check_token, revoked, still_good};
pub(crate) use guests::alive as check_guest;

/// Longest user agent that is written down, in characters.
const MAX_USER_AGENT_CHARS: usize = 200;

/// Who may use a route.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Anybody; agents prove themselves by the signature of what they send.
    Public,
    /// Any valid token. Not counted against the tenant's rate.
    AnyToken,
    /// Any valid token.
    AnyTokenRated,
    /// Operators alone.
    Operator(Scope),
    /// Operators, and tenants whose token names the tenant in the path.
    TenantPath(Scope),
    /// Tenants inside their namespace; operators see all of them.
    Namespace(Scope),
    /// Tenants inside their namespace, nobody else.
    Tenant(Scope),
    /// As `Tenant`, not counted against the tenant's rate.
    TenantUnrated(Scope),
}

impl Access {
    fn scope(self) -> Option<Scope> {
        match self {
            Self::Public | Self::AnyToken | Self::AnyTokenRated => None,
            Self::Operator(scope)
            | Self::TenantPath(scope)
            | Self::Namespace(scope)
            | Self::Tenant(scope)
            | Self::TenantUnrated(scope) => Some(scope),
        }
    }

    fn is_rated(self) -> bool {
        match self {
            Self::Public | Self::AnyToken | Self::TenantUnrated(_) => false,
            Self::AnyTokenRated
            | Self::Operator(_)
            | Self::TenantPath(_)
            | Self::Namespace(_)
            | Self::Tenant(_) => true,
        }
    }
}

/// A caller who has passed the gate.
#[derive(Clone, Debug)]
pub(crate) struct Scoped {
    /// What the token allows.
    pub(crate) grant: Grant,
    /// The request, for the ledger.
    pub(crate) request: AuditRequest,
    /// The tenant named in the path, checked.
    path_tenant: Option<TenantId>,
    /// The service accounts among the token's holders.
    accounts: Vec<AccountStanding>,
}

impl Scoped {
    /// The namespace: a tenant's own, or `None` for an operator, who sees all.
    pub(crate) fn namespace(&self) -> Option<&TenantId> {
        self.grant.tenant.as_ref()
    }

    /// The tenant that this request acts for.
    pub(crate) fn tenant(&self) -> Result<&TenantId, ApiError> {
        self.path_tenant
            .as_ref()
            .or(self.grant.tenant.as_ref())
            .ok_or_else(ApiError::internal)
    }

    /// The tenant whose token it is; an operator's is no tenant's.
    pub(crate) fn own_tenant(&self) -> Result<&TenantId, ApiError> {
        self.grant.tenant.as_ref().ok_or_else(no_tenant)
    }

    /// The only VMs that a list may show, in their order; `None` for all of the namespace.
    pub(crate) fn only_vms(&self) -> Option<Vec<VmId>> {
        let limit = self.grant.resources.as_ref()?;
        Some(limit.vms().collect())
    }

    /// The only projects whose things a list may show; `None` for all of the namespace.
    pub(crate) fn only_projects(&self) -> Option<BTreeSet<ProjectId>> {
        if self.accounts.is_empty() {
            return None;
        }
        let of_first = self.accounts.iter().take(1).flat_map(|one| one.projects());
        Some(
            of_first
                .filter(|project| self.permits(project, Permission::VmRead).is_ok())
                .cloned()
                .collect(),
        )
    }

    /// Whether the caller may do this in a project, as things were when the request came.
    pub(crate) fn permits(&self, project: &ProjectId, wanted: Permission) -> Result<(), ApiError> {
        accounts::permits(&self.accounts, project, wanted)
    }

    /// As [`Scoped::permits`], as things are in the transaction of the change.
    pub(crate) fn permits_now(
        &self,
        db: &Db<'_>,
        project: &ProjectId,
        wanted: Permission,
    ) -> Result<Result<(), ApiError>, StoreError> {
        let Some(tenant) = self.namespace().filter(|_| !self.accounts.is_empty()) else {
            return Ok(Ok(()));
        };
        let accounts = db.accounts_of(tenant, &holders(&self.grant))?;
        Ok(accounts::permits(&accounts, project, wanted))
    }

    /// Whether the caller, who was let in to ask about a VM, would be still: whatever takes its time asks
    /// this while it does.
    pub(crate) async fn still_counts(&self, app: &App, vm: VmId) -> Result<(), ApiError> {
        still_good(app, &self.grant)?;
        guests::alive(app, &self.grant).await?;
        if self.accounts.is_empty() {
            return Ok(());
        }
        let asker = self.clone();
        app.read(move |db| match db.vm_or_tombstone(vm)? {
            Some(vm) => asker.permits_now(db, &vm.project_id, Permission::VmRead),
            None => Ok(Err(ApiError::not_found())),
        })
        .await?
    }

    /// The token's id; the last link's, where there are several.
    pub(crate) fn token_id(&self) -> Result<TokenId, ApiError> {
        self.grant
            .token_ids
            .last()
            .copied()
            .ok_or_else(ApiError::internal)
    }

    /// Whether a service account is among the token's holders.
    pub(crate) fn is_account(&self) -> bool {
        !self.accounts.is_empty()
    }

    /// Who and what is behind a change, for the ledger.
    pub(crate) fn cause(&self) -> Cause {
        let mut actor = actor(Some(&self.grant));
        if self.grant.is_guests() {
            "guest".clone_into(&mut actor.kind);
        } else if !self.accounts.is_empty() {
            "service_account".clone_into(&mut actor.kind);
        }
        request_cause(actor, self.request.clone())
    }
}

/// The keys of all who ever held a token.
fn holders(grant: &Grant) -> Vec<String> {
    grant
        .holders
        .iter()
        .map(|holder| holder.to_base64url())
        .collect()
}

/// The holder of a token; `unknown` where nobody proved who they are.
fn actor(grant: Option<&Grant>) -> AuditActor {
    let kind = match grant {
        Some(grant) if grant.tenant.is_some() => "tenant",
        Some(_) => "operator",
        None => "unknown",
    };
    AuditActor {
        kind: kind.to_owned(),
        token_id: grant.and_then(|grant| grant.token_ids.last().copied()),
        subject_key: grant.map(|grant| grant.holder.to_base64url()),
    }
}

impl<S: Sync> FromRequestParts<S> for Scoped {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Absent only if a public route asks for it, which is our own mistake.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(ApiError::internal)
    }
}

/// Where a request came from; present on every route.
#[derive(Clone, Debug)]
pub(crate) struct Source(pub(crate) AuditRequest);

impl Source {
    fn address(&self) -> Result<IpAddr, ApiError> {
        self.0.source_ip.parse().map_err(|_| ApiError::internal())
    }
}

impl<S: Sync> FromRequestParts<S> for Source {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(ApiError::internal)
    }
}

/// Let somebody try who has no token of ours: what an address may send is bounded.
pub(crate) fn admit_stranger(app: &App, source: &Source) -> Result<(), ApiError> {
    rate::of_address(app, source.address()?)
}

/// What is answered to somebody who has no token of ours and gets none; written down like any refused
/// credential.
pub(crate) async fn refuse_stranger(app: &App, source: &Source, error: ApiError) -> ApiError {
    let Ok(address) = source.address() else {
        return error;
    };
    let error = rate::of_failure(app, address, error);
    if matches!(error.code().status(), 401 | 403) {
        note_denial(app, address, source.0.clone(), None, error.code()).await;
    }
    error
}

/// The layer around every handler.
pub(crate) async fn guard(
    State((app, access)): State<(Arc<App>, Access)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    path: MatchedPath,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let source = audit_request(&request, peer, path.as_str());
    request.extensions_mut().insert(Source(source.clone()));
    if matches!(access, Access::Public) {
        return next.run(request).await;
    }
    let (grant, request) = match authenticate::authenticate(&app, peer.ip(), request).await {
        Ok(passed) => passed,
        Err(error) => return denied(&app, peer, source, None, error).await,
    };
    let path_tenant = match admit(access, &grant, &params) {
        Ok(path_tenant) => path_tenant,
        Err(error) => return denied(&app, peer, source, Some(&grant), error).await,
    };
    let method = request.method().clone();
    let taken = match rate::rated(&app, access, &grant, &method, path.as_str()).await {
        Ok(taken) => taken,
        Err(error) => return error.into_response(),
    };
    let mut scoped = Scoped {
        grant,
        request: source,
        path_tenant,
        accounts: Vec::new(),
    };
    let asked = (&method, path.as_str());
    let mut response = match taken {
        Some(taken) if !taken.standing.allowed => rate::too_many(taken).into_response(),
        Some(_) | None => match passed(&app, &mut scoped, access, asked, &params).await {
            Err(error) => error.into_response(),
            Ok(()) => match digested(request, &mut scoped.request).await {
                Ok(mut request) => {
                    request.extensions_mut().insert(scoped);
                    next.run(request).await
                }
                Err(error) => error.into_response(),
            },
        },
    };
    if let Some(taken) = taken {
        rate::show(&mut response, taken);
    }
    response
}

/// What is left to do once a request is counted.
async fn passed(
    app: &App,
    scoped: &mut Scoped,
    access: Access,
    (method, route): (&Method, &str),
    params: &RawPathParams,
) -> Result<(), ApiError> {
    if let Some(tenant) = scoped.grant.tenant.clone() {
        let holders = holders(&scoped.grant);
        let own = tenant.clone();
        let (standing, accounts) = app
            .read(move |db| Ok((db.tenant_standing(&own)?, db.accounts_of(&own, &holders)?)))
            .await?;
        // A tenant that is gone is told so where its token is.
        standing.map_or(Ok(()), |standing| {
            standing::let_in(&standing, method, route)
        })?;
        scoped.accounts = accounts;
        let scope = access.scope();
        accounts::within(
            app,
            &tenant,
            &scoped.accounts,
            scope,
            (method, route),
            params,
        )
        .await?;
    }
    authenticate::note_first_use(app, &scoped.grant, method, scoped.cause()).await?;
    resources::within(app, &scoped.grant, method, route, params).await
}

fn audit_request(request: &Request, peer: SocketAddr, route: &str) -> AuditRequest {
    let id = request
        .extensions()
        .get::<ThisRequest>()
        .map_or_else(berth_api::ids::RequestId::generate, |this| this.0);
    let user_agent = request.headers().get(header::USER_AGENT).map(|value| {
        String::from_utf8_lossy(value.as_bytes())
            .chars()
            .take(MAX_USER_AGENT_CHARS)
            .collect()
    });
    AuditRequest {
        id,
        source_ip: peer.ip().to_string(),
        user_agent,
        method: request.method().to_string(),
        route: route.to_owned(),
        digest_sha256: None,
    }
}

/// The request with its body read, and the body's digest for the ledger. Not before the caller has
/// passed: nobody else's body is waited for.
async fn digested(request: Request, told: &mut AuditRequest) -> Result<Request, ApiError> {
    if request.body().is_end_stream() || !takes_body(request.method()) {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let bytes = body::bounded(body, body::MAX_BODY_BYTES).await?;
    if !bytes.is_empty() {
        told.digest_sha256 = Some(Hash::of_bytes(&bytes).to_string());
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Methods whose routes read a body.
fn takes_body(method: &Method) -> bool {
    *method == Method::POST || *method == Method::PUT || *method == Method::PATCH
}

/// Namespace, then permission. The tenant in the path, if the route has one.
fn admit(
    access: Access,
    grant: &Grant,
    params: &RawPathParams,
) -> Result<Option<TenantId>, ApiError> {
    let mut path_tenant = None;
    match access {
        Access::Public | Access::AnyToken | Access::AnyTokenRated | Access::Namespace(_) => {}
        Access::Operator(scope) => {
            if grant.tenant.is_some() {
                return Err(ApiError::permission_denied(scope));
            }
        }
        Access::TenantPath(_) => path_tenant = Some(tenant_in_path(grant, params)?),
        Access::Tenant(_) | Access::TenantUnrated(_) => {
            if grant.tenant.is_none() {
                return Err(no_tenant());
            }
        }
    }
    match access.scope() {
        Some(scope) if !grant.scopes.covers(scope) => Err(ApiError::permission_denied(scope)),
        Some(_) | None => Ok(path_tenant),
    }
}

fn no_tenant() -> ApiError {
    ApiError::new(
        ErrorCode::PermissionDenied,
        "an operator's token belongs to no tenant",
        "Issue a token for the tenant (POST /v1/tenants/{tenant}/tokens) and use that.",
    )
}

fn tenant_in_path(grant: &Grant, params: &RawPathParams) -> Result<TenantId, ApiError> {
    let text = params
        .iter()
        .find(|(name, _)| *name == "tenant")
        .map(|(_, value)| value)
        .ok_or_else(ApiError::internal)?;
    match &grant.tenant {
        Some(own) if own.as_str() == text => Ok(own.clone()),
        Some(_) => Err(ApiError::not_found()),
        None => text.parse().map_err(|_| ApiError::not_found()),
    }
}

/// Refuse, and write it down unless this source was refused just now.
async fn denied(
    app: &App,
    peer: SocketAddr,
    request: AuditRequest,
    grant: Option<&Grant>,
    error: ApiError,
) -> Response {
    // A foreign or absent object is an answer, not a refused credential.
    if error.code() != ErrorCode::NotFound {
        note_denial(app, peer.ip(), request, grant, error.code()).await;
    }
    error.into_response()
}

/// Write down one refusal of a source now and then.
async fn note_denial(
    app: &App,
    source: IpAddr,
    request: AuditRequest,
    grant: Option<&Grant>,
    code: ErrorCode,
) {
    if !app.samples_denial(source) {
        return;
    }
    let event = NewEvent {
        event_type: "AUTH_DENIED",
        tenant_id: grant.and_then(|grant| grant.tenant.clone()),
        outcome: "denied",
        code: Some(code.as_str().to_owned()),
        ..NewEvent::default()
    };
    let cause = request_cause(actor(grant), request);
    // The refusal stands whether or not it can be written down; `write` logs the failure.
    drop(app.write(move |tx| tx.append(event, &cause)).await);
}
