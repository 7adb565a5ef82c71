//! From a failure to the one error body. Only this file chooses texts and statuses.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_api::ids::{OperationId, RequestId, SlotId};
use berth_api::rest::{EndOfEvents, ErrorBody, ErrorCode, PlanRefusal, QuotaDetail};
use berth_controller_core::quota::QuotaDenied;
use berth_controller_core::shape::ShapeDenied;
use berth_controller_core::slot::{Obstacle, is_shared_device_word};
use berth_controller_core::vm::Denied;
use berth_controller_store::{
    AccountDenied, ActOnSlotDenied, ActOnVmDenied, ChangeNodeDenied, CreateVmDenied,
    DeleteTenantDenied, JoinTokenDenied, ProjectDenied, StoreError,
};
use berth_token::Scope;

use crate::sizes::SizeDenied;

/// An error on its way to the client. The request's id is added by the outermost layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError(Box<Problem>);

#[derive(Clone, Debug, PartialEq)]
struct Problem {
    code: ErrorCode,
    error: String,
    detail: String,
    retryable: bool,
    fields: BTreeMap<String, String>,
    required_scope: Option<String>,
    limit: Option<u64>,
    retry_after_s: Option<u64>,
    quota: Option<QuotaDetail>,
    reasons: BTreeMap<String, u32>,
    /// The tag of the object as it is.
    etag: Option<String>,
    operation_id: Option<OperationId>,
}

impl ApiError {
    pub(crate) fn new(
        code: ErrorCode,
        error: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self(Box::new(Problem {
            code,
            error: error.into(),
            detail: detail.into(),
            retryable: false,
            fields: BTreeMap::new(),
            required_scope: None,
            limit: None,
            retry_after_s: None,
            quota: None,
            reasons: BTreeMap::new(),
            etag: None,
            operation_id: None,
        }))
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.0.code
    }

    fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// A field that is not what it should be.
    pub(crate) fn field(field: &str, problem: &str) -> Self {
        Self::field_as(ErrorCode::InvalidRequest, field, problem)
    }

    pub(crate) fn field_as(code: ErrorCode, field: &str, problem: &str) -> Self {
        let mut error = Self::new(
            code,
            format!("field `{field}`: {problem}"),
            "Correct the field and send the request again.",
        );
        error.0.fields.insert(field.to_owned(), problem.to_owned());
        error
    }

    pub(crate) fn unknown_field(field: &str) -> Self {
        if is_shared_device_word(field) {
            return Self::field_as(
                ErrorCode::ShapeNotSupported,
                field,
                "slots hold whole devices; shared GPUs, MIG and vGPU are not given",
            );
        }
        let mut error = Self::new(
            ErrorCode::UnknownField,
            format!("there is no field `{field}` here"),
            "Remove it or correct its spelling; nothing was changed.",
        );
        error
            .0
            .fields
            .insert(field.to_owned(), "unknown".to_owned());
        error
    }

    /// Absent or foreign: one text for both.
    pub(crate) fn not_found() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "there is no such object",
            "Check the id or name; GET on the collection lists what there is.",
        )
    }

    /// The object is not what the caller has seen; its tag as it is goes back with the refusal.
    pub(crate) fn precondition_failed(current: String) -> Self {
        let mut error = Self::new(
            ErrorCode::PreconditionFailed,
            "the object has changed since its tag was given",
            "Read it again; ETag is its tag as it is.",
        );
        error.0.etag = Some(current);
        error
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            ErrorCode::Internal,
            "the controller could not answer",
            "Give the request id to your administrator.",
        )
        .retryable()
    }

    pub(crate) fn permission_denied(required: Scope) -> Self {
        let mut error = Self::new(
            ErrorCode::PermissionDenied,
            format!("the token does not cover `{required}`"),
            "Ask for a token with that scope.",
        );
        error.0.required_scope = Some(required.as_str().to_owned());
        error
    }

    pub(crate) fn rate_limited(limit_rpm: u32, retry_after_s: u64) -> Self {
        let mut error = Self::new(
            ErrorCode::RateLimited,
            format!("more than {limit_rpm} requests per minute"),
            format!("Wait {retry_after_s} seconds, or ask your administrator for a higher rate."),
        )
        .retryable();
        error.0.limit = Some(limit_rpm.into());
        error.0.retry_after_s = Some(retry_after_s);
        error
    }

    /// The namespace has all the event streams that it may have.
    pub(crate) fn too_many_streams() -> Self {
        let most = crate::streams::MAX_PER_NAMESPACE;
        let mut error = Self::new(
            ErrorCode::RateLimited,
            format!("more than {most} event streams at once"),
            "End another stream, and try again.",
        )
        .retryable();
        error.0.limit = u64::try_from(most).ok();
        error.0.retry_after_s = Some(1);
        error
    }

    /// An operator suspended the caller's tenant.
    pub(crate) fn suspended() -> Self {
        Self::new(
            ErrorCode::TenantSuspended,
            "the tenant is suspended",
            "Reading, stopping and deleting still work; ask your administrator about the rest.",
        )
    }

    /// The operator did not give the caller's tenant this action.
    pub(crate) fn action_not_allowed(action: &str) -> Self {
        Self::new(
            ErrorCode::PermissionDenied,
            format!("the tenant may not do `{action}`"),
            "Ask your administrator to name it in the tenant's allowed_actions.",
        )
    }

    /// Something still belongs to what should go.
    pub(crate) fn not_empty(what: &str, counts: BTreeMap<String, u32>) -> Self {
        let list: Vec<_> = counts
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        Self::new(
            ErrorCode::TenantNotEmpty,
            format!("{what} still owns {}", list.join(", ")),
            "Delete them first; `reasons` has the counts.",
        )
        .with_reasons(counts)
    }

    /// A failure of the database. The reason is logged here, once, and not told.
    pub(crate) fn store(failure: &StoreError) -> Self {
        let chain = causes(failure);
        if failure.is_outcome_unknown() {
            tracing::error!(cause = %chain, "whether a change was committed is not known");
            return Self::new(
                ErrorCode::AuditUnavailable,
                "the commit was not confirmed: whether anything was changed is not known",
                "Look before you try again, or repeat the request with its Idempotency-Key.",
            )
            .retryable();
        }
        if failure.is_unavailable() {
            tracing::error!(cause = %chain, "the database or the ledger cannot be written");
            return Self::new(
                ErrorCode::AuditUnavailable,
                "the ledger cannot be written, so nothing was changed",
                "Your administrator must look at the controller's disk; then try again.",
            )
            .retryable();
        }
        tracing::error!(cause = %chain, "the database did not answer");
        Self::internal()
    }

    /// What others revoked is not known, as the database was not heard of for too long.
    pub(crate) fn revocations_unknown() -> Self {
        Self::new(
            ErrorCode::AuditUnavailable,
            "the database has not answered for 10 seconds, so nothing was changed",
            "Your administrator must look at the controller's database; then try again.",
        )
        .retryable()
    }

    /// A witness has seen what this log does not have, so nothing of it is signed any more.
    pub(crate) fn ledger_contradicted() -> Self {
        Self::new(
            ErrorCode::AuditUnavailable,
            "a witness of the ledger has seen another history of it, so nothing was changed",
            "Your administrator must find out whether the database went back in time.",
        )
    }

    /// Something is on its way, and the same request is worth another try soon.
    pub(crate) fn under_way(code: ErrorCode, error: &str, detail: &str) -> Self {
        let mut error = Self::new(code, error, detail).retryable();
        error.0.retry_after_s = Some(1);
        error
    }

    pub(crate) fn timed_out(code: ErrorCode, error: &str, detail: &str) -> Self {
        Self::new(code, error, detail).retryable()
    }

    fn with_reasons(mut self, reasons: BTreeMap<String, u32>) -> Self {
        self.0.reasons = reasons;
        self
    }

    /// The same as the last event of a stream.
    pub(crate) fn into_end(self) -> EndOfEvents {
        let problem = *self.0;
        EndOfEvents {
            code: problem.code,
            error: problem.error,
            detail: problem.detail,
            retryable: problem.retryable,
        }
    }

    /// The same as a part of a plan.
    pub(crate) fn into_plan(self) -> PlanRefusal {
        let problem = *self.0;
        PlanRefusal {
            status: problem.code.status(),
            code: problem.code,
            error: problem.error,
            detail: problem.detail,
            reasons: problem.reasons,
            quota: problem.quota,
        }
    }

    /// The body for this request.
    pub(crate) fn into_body(self, request_id: RequestId) -> ErrorBody {
        let problem = *self.0;
        ErrorBody {
            type_uri: format!("urn:berth:error:{}", problem.code.as_str()),
            title: problem.code.title().to_owned(),
            status: problem.code.status(),
            code: problem.code,
            error: problem.error,
            detail: problem.detail,
            retryable: problem.retryable,
            request_id,
            operation_id: problem.operation_id,
            fields: problem.fields,
            required_scope: problem.required_scope,
            limit: problem.limit,
            reset: problem.retry_after_s,
            quota: problem.quota,
            reasons: problem.reasons,
        }
    }
}

/// An error and its sources in one line, for the log.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl From<ShapeDenied> for ApiError {
    fn from(denied: ShapeDenied) -> Self {
        match denied {
            ShapeDenied::Field { field, problem } => Self::field(field, problem),
            ShapeDenied::TooLarge { field, max } => Self::field_as(
                ErrorCode::ShapeNotSupported,
                field,
                &format!("no host can run that; the most is {max}"),
            ),
            ShapeDenied::Unsupported { field, problem } => {
                Self::field_as(ErrorCode::ShapeNotSupported, field, problem)
            }
        }
    }
}

impl From<SizeDenied> for ApiError {
    fn from(denied: SizeDenied) -> Self {
        Self::field(denied.field(), &denied.to_string())
    }
}

impl From<QuotaDenied> for ApiError {
    fn from(denied: QuotaDenied) -> Self {
        let field = denied.counter.resource.limit_field();
        let mut error = Self::new(
            ErrorCode::QuotaExceeded,
            format!("Quota exceeded: {denied}"),
            format!("Delete something or ask your administrator to raise {field}."),
        );
        error.0.limit = denied.counter.limit;
        error.0.quota = Some(denied.to_detail());
        error
    }
}

impl From<DeleteTenantDenied> for ApiError {
    fn from(denied: DeleteTenantDenied) -> Self {
        match denied {
            DeleteTenantDenied::NotFound => Self::not_found(),
            DeleteTenantDenied::NotEmpty { counts } => Self::not_empty("the tenant", counts),
        }
    }
}

impl From<ProjectDenied> for ApiError {
    fn from(denied: ProjectDenied) -> Self {
        match denied {
            ProjectDenied::NotFound => Self::not_found(),
            ProjectDenied::Exists(_) => Self::new(
                ErrorCode::AlreadyExists,
                "a project of that id exists already",
                "Choose another id, or change the project with PATCH.",
            ),
            ProjectDenied::Tombstone(_) => Self::new(
                ErrorCode::AlreadyExists,
                "a project of that id existed, and ids are never used again",
                "Choose another id.",
            ),
            ProjectDenied::TooMany => Self::new(
                ErrorCode::InvalidState,
                denied.to_string(),
                "Use the projects that there are.",
            ),
            ProjectDenied::IsDefault => Self::new(
                ErrorCode::Protected,
                denied.to_string(),
                "Delete what is in it instead.",
            ),
            ProjectDenied::NotEmpty { vms } => Self::new(
                ErrorCode::InvalidState,
                denied.to_string(),
                "Delete them first.",
            )
            .with_reasons(BTreeMap::from([("vms".to_owned(), vms)])),
        }
    }
}

impl From<AccountDenied> for ApiError {
    fn from(denied: AccountDenied) -> Self {
        let text = denied.to_string();
        match denied {
            AccountDenied::NotFound => Self::not_found(),
            AccountDenied::Exists => {
                Self::new(ErrorCode::AlreadyExists, text, "Choose another id.")
            }
            AccountDenied::KeyTaken => Self::new(
                ErrorCode::AlreadyExists,
                text,
                "Make a new key: `berthctl token keygen FILE`.",
            ),
            AccountDenied::TooMany => Self::new(
                ErrorCode::InvalidState,
                text,
                "Use the service accounts that there are.",
            ),
        }
    }
}

impl From<CreateVmDenied> for ApiError {
    fn from(denied: CreateVmDenied) -> Self {
        match denied {
            CreateVmDenied::NoTenant => Self::not_found(),
            CreateVmDenied::NameTaken { .. } => Self::new(
                ErrorCode::AlreadyExists,
                "a VM of that name exists already",
                "Choose another name, or delete the VM that has it.",
            ),
            CreateVmDenied::Suspended => Self::suspended(),
            CreateVmDenied::NotAllowed => Self::action_not_allowed("vm.create"),
            CreateVmDenied::NoTokens => Self::action_not_allowed("token.issue"),
            CreateVmDenied::NoProject(_) => Self::new(
                ErrorCode::NotFound,
                "there is no such project",
                "GET /v1/projects lists the tenant's projects; `default` is always there.",
            ),
            CreateVmDenied::Quota(denied) => denied.into(),
            CreateVmDenied::DiskTooSmall { least_gb } => {
                Self::field("disk_gb", &format!("the image needs at least {least_gb}"))
            }
            CreateVmDenied::NoSlot(_) => Self::new(
                ErrorCode::NotFound,
                "there is no such slot",
                "Ask for a class instead; GET /v1/slot-classes lists them.",
            ),
            CreateVmDenied::SlotClass { class } => Self::new(
                ErrorCode::SlotClassNotAllowed,
                format!("the tenant may not use slots of class {class}"),
                "Ask your administrator to name the class in slot_limits, or ask for another class.",
            ),
            CreateVmDenied::Slot {
                slot_id,
                class,
                obstacle,
            } => unclaimable(slot_id, &class, obstacle),
            CreateVmDenied::Impossible(reasons) => Self::new(
                ErrorCode::PlacementImpossible,
                "no node could take this VM even if it were empty",
                "See `reasons`; GET /v1/images and GET /v1/slot-classes list what nodes have.",
            )
            .with_reasons(reasons),
            CreateVmDenied::NoCapacity(reasons) => Self::new(
                ErrorCode::NoCapacity,
                "all nodes that could take this VM are full",
                "Try again later, or ask for less.",
            )
            .retryable()
            .with_reasons(reasons),
        }
    }
}

/// A slot that was asked for by its id and cannot be had.
fn unclaimable(slot_id: SlotId, class: &str, obstacle: Obstacle) -> ApiError {
    let other = "Ask for its class instead of this one, or ask your administrator to look at it.";
    match obstacle {
        Obstacle::Unapproved | Obstacle::NotAdmitted => ApiError::new(
            ErrorCode::SlotNotApproved,
            format!("slot {slot_id} is not approved"),
            other,
        ),
        Obstacle::IommuGroupUnsafe => ApiError::new(
            ErrorCode::IommuGroupUnsafe,
            format!("the host does not isolate slot {slot_id}"),
            other,
        ),
        Obstacle::DeviceIdentityChanged => ApiError::new(
            ErrorCode::DeviceIdentityChanged,
            format!("the devices of slot {slot_id} are not those that were approved"),
            other,
        ),
        Obstacle::Claimed => ApiError::new(
            ErrorCode::ClaimConflict,
            format!("slot {slot_id} is taken"),
            "Ask for its class instead of this one, or try again when it is free.",
        ),
        Obstacle::Wiping | Obstacle::Quarantined | Obstacle::Missing | Obstacle::Retired => {
            let reason = format!("slots.{class}.{}", obstacle.code());
            ApiError::new(
                ErrorCode::NoCapacity,
                format!("slot {slot_id} cannot be claimed now"),
                "Ask for its class instead of this one, or try again later.",
            )
            .retryable()
            .with_reasons(BTreeMap::from([(reason, 1)]))
        }
    }
}

impl From<JoinTokenDenied> for ApiError {
    fn from(denied: JoinTokenDenied) -> Self {
        match denied {
            JoinTokenDenied::NoTenant => Self::not_found(),
            JoinTokenDenied::TooMany => {
                let mut error = Self::new(
                    ErrorCode::QuotaExceeded,
                    denied.to_string(),
                    "Use the join tokens that there are, or let them expire.",
                );
                error.0.limit = Some(JoinTokenDenied::LIMIT.into());
                error
            }
        }
    }
}

impl From<ChangeNodeDenied> for ApiError {
    fn from(denied: ChangeNodeDenied) -> Self {
        match denied {
            ChangeNodeDenied::NotFound => Self::not_found(),
            ChangeNodeDenied::Owned(_) => Self::field_as(
                ErrorCode::FieldImmutable,
                "dedicated_to",
                "the node's owner runs it, so it is that tenant's alone; cordon it instead",
            ),
            ChangeNodeDenied::NoTenant(_) => {
                Self::field("dedicated_to", "name a tenant as GET /v1/tenants lists it")
            }
        }
    }
}

impl From<ActOnSlotDenied> for ApiError {
    fn from(denied: ActOnSlotDenied) -> Self {
        match denied {
            ActOnSlotDenied::NotFound => Self::not_found(),
            ActOnSlotDenied::NotApproved => Self::new(
                ErrorCode::SlotNotApproved,
                denied.to_string(),
                "The host's owner approves it there first, with `berthctl slot approve`.",
            ),
            ActOnSlotDenied::InUse => Self::new(
                ErrorCode::InvalidState,
                denied.to_string(),
                "Delete the VM first; GET /v1/slots/{slot} names it.",
            ),
            ActOnSlotDenied::State { state, allowed: [] } => Self::new(
                ErrorCode::InvalidState,
                format!("the slot is {}", wire(&state)),
                "Nothing can be done with it any more.",
            ),
            ActOnSlotDenied::State { state, allowed } => Self::new(
                ErrorCode::InvalidState,
                format!("the slot is {}", wire(&state)),
                format!("Possible while it is: {}.", wire_list(allowed)),
            ),
        }
    }
}

impl From<ActOnVmDenied> for ApiError {
    fn from(denied: ActOnVmDenied) -> Self {
        match denied {
            ActOnVmDenied::NotFound => Self::not_found(),
            ActOnVmDenied::Suspended => Self::suspended(),
            ActOnVmDenied::NotAllowed => Self::action_not_allowed("vm.start"),
            ActOnVmDenied::Quota(denied) => denied.into(),
            ActOnVmDenied::InProgress {
                operation,
                denied: Denied { state, allowed },
            } => {
                let mut error = Self::new(
                    ErrorCode::OperationInProgress,
                    format!(
                        "the VM is {}, and operation {operation} works on it",
                        wire(&state)
                    ),
                    format!(
                        "Wait for the operation. Possible while it is: {}.",
                        wire_list(allowed)
                    ),
                )
                .retryable();
                error.0.operation_id = Some(operation);
                error
            }
            ActOnVmDenied::State(Denied { state, allowed }) => Self::new(
                ErrorCode::InvalidState,
                format!("the VM is {}", wire(&state)),
                format!("Possible while it is: {}.", wire_list(allowed)),
            ),
        }
    }
}

/// A value's own wire text.
pub(crate) fn wire(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

fn wire_list(values: &[impl serde::Serialize]) -> String {
    let texts: Vec<_> = values.iter().map(wire).collect();
    texts.join(", ")
}

impl IntoResponse for ApiError {
    /// Status and headers here; the body is written by the outermost layer, which knows the
    /// request's id.
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = if self.0.code == ErrorCode::Unauthorized {
                "Bearer realm=\"berth\""
            } else {
                "Bearer realm=\"berth\", error=\"invalid_token\""
            };
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        if let Some(tag) = self.0.etag.as_ref().and_then(|tag| tag.parse().ok()) {
            headers.insert(header::ETAG, tag);
        }
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}
