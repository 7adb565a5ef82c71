//! The one way from an id in the path to the thing: inside the caller's namespace, or not at all.
//!
//! A handler of the table cannot take a path apart itself (`Path` says nothing of itself to the
//! document, so it is no extractor of the table). What it gets is what [`InPath::find`] found for this
//! caller; absent and foreign are one answer.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use berth_api::ids::{AccountId, OperationId, ProjectId, TenantId, TokenId};
use berth_api::rest::{
    ErrorCode, Node, Operation, Person, Project, ServiceAccount, Slot, Tenant, Vm, VmState,
};
use berth_controller_store::{Db, StoreError, VmRef};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::describe::{Sheet, Takes};
use crate::http::gate::Scoped;

/// A thing that a path can name.
pub(crate) trait InPath: Sized + Send + 'static {
    /// The path's segment that names it.
    const SEGMENT: &'static str;
    /// How it is named, for the document.
    const ABOUT: &'static str;

    /// The thing of this name inside the namespace; in all of them for `None`, which is an operator.
    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError>;
}

/// A thing that the path named and that the caller may know of.
#[derive(Clone, Debug)]
pub(crate) struct Owned<T>(T);

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Owned<T> {
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

async fn segment(parts: &mut Parts, app: &Arc<App>, name: &str) -> Result<String, ApiError> {
    let params = RawPathParams::from_request_parts(parts, app)
        .await
        .map_err(|_| ApiError::not_found())?;
    params
        .iter()
        .find(|(found, _)| *found == name)
        .map(|(_, text)| text.to_owned())
        .ok_or_else(ApiError::internal)
}

fn caller_of(parts: &Parts) -> Result<Scoped, ApiError> {
    // Absent only if a public route asks for an owned thing, which is our own mistake.
    parts
        .extensions
        .get::<Scoped>()
        .cloned()
        .ok_or_else(ApiError::internal)
}

impl<T: InPath> FromRequestParts<Arc<App>> for Owned<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let text = segment(parts, app, T::SEGMENT).await?;
        let namespace = caller_of(parts)?.namespace().cloned();
        app.read(move |db| T::find(db, namespace.as_ref(), &text))
            .await?
            .map(Self)
            .ok_or_else(ApiError::not_found)
    }
}

impl<T: InPath> Takes for Owned<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.path(T::SEGMENT, T::ABOUT);
        sheet.refuses(&[ErrorCode::NotFound]);
    }
}

/// An id that the store resolves inside the namespace itself, in the transaction that uses it: the two
/// go together.
#[derive(Clone)]
pub(crate) struct InNamespace<I> {
    /// The caller's; `None` is an operator's, who sees all.
    pub(crate) namespace: Option<TenantId>,
    pub(crate) id: I,
}

impl<I: fmt::Debug> fmt::Debug for InNamespace<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.id, self.namespace)
    }
}

impl FromRequestParts<Arc<App>> for InNamespace<TokenId> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let text = segment(parts, app, "token").await?;
        Ok(Self {
            namespace: caller_of(parts)?.namespace().cloned(),
            id: text.parse().map_err(|_| ApiError::not_found())?,
        })
    }
}

impl Takes for InNamespace<TokenId> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.path("token", "A token's id");
        sheet.refuses(&[ErrorCode::NotFound]);
    }
}

/// A live VM.
impl InPath for Vm {
    const SEGMENT: &'static str = "vm";
    const ABOUT: &'static str = "A VM's id, or its name for its tenant";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        db.vm(namespace, &VmRef::parse(text))
    }
}

/// A VM, or by its id what is left of one that is gone.
#[derive(Clone, Debug)]
pub(crate) struct VmOrTombstone(Vm);

impl VmOrTombstone {
    pub(crate) fn is_gone(&self) -> bool {
        self.0.state == VmState::Deleted
    }
}

impl Deref for VmOrTombstone {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.0
    }
}

impl InPath for VmOrTombstone {
    const SEGMENT: &'static str = Vm::SEGMENT;
    const ABOUT: &'static str = Vm::ABOUT;

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        let found = match VmRef::parse(text) {
            VmRef::Id(id) => db
                .vm_or_tombstone(id)?
                .filter(|vm| namespace.is_none_or(|own| *own == vm.tenant_id)),
            name @ VmRef::Name(_) => db.vm(namespace, &name)?,
        };
        Ok(found.map(Self))
    }
}

impl InPath for Operation {
    const SEGMENT: &'static str = "operation";
    const ABOUT: &'static str = "An operation's id";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        match text.parse::<OperationId>() {
            Ok(id) => db.operation(namespace, id),
            Err(_) => Ok(None),
        }
    }
}

impl InPath for Tenant {
    const SEGMENT: &'static str = "tenant";
    const ABOUT: &'static str = "A tenant's id";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        match text.parse::<TenantId>() {
            Ok(id) if namespace.is_none_or(|own| *own == id) => db.tenant(&id),
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

/// A project is named inside its tenant alone.
impl InPath for Project {
    const SEGMENT: &'static str = "project";
    const ABOUT: &'static str = "A project's id";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        match (namespace, text.parse::<ProjectId>()) {
            (Some(tenant), Ok(id)) => db.project(tenant, &id),
            (None, _) | (Some(_), Err(_)) => Ok(None),
        }
    }
}

/// As a project.
impl InPath for ServiceAccount {
    const SEGMENT: &'static str = "account";
    const ABOUT: &'static str = "A service account's id";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        match (namespace, text.parse::<AccountId>()) {
            (Some(tenant), Ok(id)) => db.service_account(tenant, &id),
            (None, _) | (Some(_), Err(_)) => Ok(None),
        }
    }
}

impl InPath for Person {
    const SEGMENT: &'static str = "person";
    const ABOUT: &'static str = "The id of a person's link";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        match text.parse() {
            Ok(id) => db.person(namespace, id),
            Err(_) => Ok(None),
        }
    }
}

/// A node belongs to the namespace of the tenant that enrolled it, if one did.
impl InPath for Node {
    const SEGMENT: &'static str = "node";
    const ABOUT: &'static str = "A node's id or name";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        let node = match text.parse() {
            Ok(id) => db.node(id)?,
            Err(_) => db.node_named(namespace, text)?,
        };
        Ok(node.filter(|node| namespace.is_none() || node.owned_by.as_ref() == namespace))
    }
}

/// Slots belong to nobody's namespace: operators alone.
impl InPath for Slot {
    const SEGMENT: &'static str = "slot";
    const ABOUT: &'static str = "A slot's id";

    fn find(
        db: &Db<'_>,
        namespace: Option<&TenantId>,
        text: &str,
    ) -> Result<Option<Self>, StoreError> {
        for_operators(namespace, text, |id| db.slot(id))
    }
}

/// What no namespace holds: whoever comes with one finds nothing.
fn for_operators<I: FromStr, T>(
    namespace: Option<&TenantId>,
    text: &str,
    find: impl FnOnce(I) -> Result<Option<T>, StoreError>,
) -> Result<Option<T>, StoreError> {
    match (namespace, text.parse()) {
        (None, Ok(id)) => find(id),
        (Some(_), _) | (None, Err(_)) => Ok(None),
    }
}
