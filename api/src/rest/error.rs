//! The closed list of error codes, and the one error body.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{OperationId, RequestId};

macro_rules! error_codes { ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
    /// Every code that an error body can carry, with its HTTP status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
    pub enum ErrorCode { $($(#[$doc])* #[serde(rename = $text)] $name),* }

    impl ErrorCode {
        /// All codes.
        pub const ALL: &'static [Self] = &[$(Self::$name),*];

        /// The code as clients see it.
        #[must_use]
        pub fn as_str(self) -> &'static str {
            match self { $(Self::$name => $text),* }
        }

        /// The HTTP status that goes with it.
        #[must_use]
        pub fn status(self) -> u16 {
            match self { $(Self::$name => $status),* }
        }

        /// A short title for people.
        #[must_use]
        pub fn title(self) -> &'static str {
            match self { $(Self::$name => $title),* }
        }
    }
}}

error_codes! {
    /// A field's value is out of bounds, or the body is not JSON.
    InvalidRequest = "invalid_request", 400, "Invalid request";
    /// A field that does not exist.
    UnknownField = "unknown_field", 400, "Unknown field";
    /// Not a tenant id.
    InvalidTenantId = "invalid_tenant_id", 400, "Invalid tenant id";
    /// The body names another tenant than the token.
    TenantMismatch = "tenant_mismatch", 400, "Tenant mismatch";
    /// The field cannot be changed once the object exists.
    FieldImmutable = "field_immutable", 400, "Field immutable";
    /// No host could ever run this shape.
    ShapeNotSupported = "shape_not_supported", 400, "Shape not supported";
    /// No credentials.
    Unauthorized = "unauthorized", 401, "Unauthorized";
    /// Credentials that are not a token of ours.
    InvalidToken = "invalid_token", 401, "Invalid token";
    /// The token's time is over.
    TokenExpired = "token_expired", 401, "Token expired";
    /// The token was revoked.
    TokenRevoked = "token_revoked", 401, "Token revoked";
    /// The token does not cover this.
    PermissionDenied = "permission_denied", 403, "Permission denied";
    /// The tenant is suspended.
    TenantSuspended = "tenant_suspended", 403, "Tenant suspended";
    /// The tenant may not use slots of this class.
    SlotClassNotAllowed = "slot_class_not_allowed", 403, "Slot class not allowed";
    /// The slot was not approved on its host, or not admitted by an operator.
    SlotNotApproved = "slot_not_approved", 403, "Slot not approved";
    /// Absent, or somebody else's.
    NotFound = "not_found", 404, "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// The wanted state did not come in time.
    WaitTimeout = "wait_timeout", 408, "Wait timed out";
    /// That part of the event stream is not there.
    RevisionGone = "revision_gone", 410, "Revision gone";
    /// A live object has that name.
    AlreadyExists = "already_exists", 409, "Already exists";
    /// The tenant exists or existed.
    TenantExists = "tenant_exists", 409, "Tenant exists";
    /// Not possible in the object's state.
    InvalidState = "invalid_state", 409, "Invalid state";
    /// Somebody else has the slot.
    ClaimConflict = "claim_conflict", 409, "Claim conflict";
    /// The tenant still owns something.
    TenantNotEmpty = "tenant_not_empty", 409, "Tenant not empty";
    /// The same key with another body.
    IdempotencyConflict = "idempotency_conflict", 409, "Idempotency conflict";
    /// The same request under the same key is not answered yet.
    IdempotencyInProgress = "idempotency_in_progress", 409, "Idempotency in progress";
    /// Another operation works on the object; `operation_id` names it.
    OperationInProgress = "operation_in_progress", 409, "Operation in progress";
    /// The object is always there.
    Protected = "protected", 409, "Protected";
    /// The object is not what the caller has seen; `ETag` has its tag as it is.
    PreconditionFailed = "precondition_failed", 412, "Precondition failed";
    /// The body is too long.
    PayloadTooLarge = "payload_too_large", 413, "Payload too large";
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type", 415, "Unsupported media type";
    /// No node can ever take it as things are; see `reasons`.
    PlacementImpossible = "placement_impossible", 422, "Placement impossible";
    /// The host does not isolate the slot's devices.
    IommuGroupUnsafe = "iommu_group_unsafe", 422, "IOMMU group unsafe";
    /// The slot's devices are not those that were approved.
    DeviceIdentityChanged = "device_identity_changed", 422, "Device identity changed";
    /// The tenant's ceiling is reached.
    QuotaExceeded = "quota_exceeded", 429, "Quota exceeded";
    /// Too many requests.
    RateLimited = "rate_limited", 429, "Rate limited";
    /// A fault of ours.
    Internal = "internal", 500, "Internal error";
    /// The node answered with a failure.
    NodeError = "node_error", 502, "Node error";
    /// All nodes are full; see `reasons`.
    NoCapacity = "no_capacity", 503, "No capacity";
    /// The ledger cannot be written.
    AuditUnavailable = "audit_unavailable", 503, "Audit unavailable";
    /// The identity provider's keys cannot be read.
    IdentityUnavailable = "identity_unavailable", 503, "Identity unavailable";
    /// The node is silent.
    NodeUnreachable = "node_unreachable", 503, "Node unreachable";
    /// The controller is not ready.
    Starting = "starting", 503, "Starting";
    /// The node did not answer in time.
    NodeTimeout = "node_timeout", 504, "Node timeout";
}

/// The one error body: RFC 9457 members and a stable `code`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// A URI that names the code.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// [`ErrorCode::title`].
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: ErrorCode,
    /// What is wrong, in one sentence.
    pub error: String,
    /// What to do about it.
    pub detail: String,
    /// Whether the same request can succeed later without a change.
    pub retryable: bool,
    /// This request.
    pub request_id: RequestId,
    /// For `operation_in_progress`: what to wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<OperationId>,
    /// Field by field, for `invalid_request` and `unknown_field`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// For `permission_denied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required_scope: Option<String>,
    /// For `quota_exceeded` and `rate_limited`: the ceiling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// For `rate_limited`: seconds until it is worth trying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<u64>,
    /// For `quota_exceeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaDetail>,
    /// For `placement_impossible` and `no_capacity`: nodes per rejection, and slots per rejection as
    /// `slots.<class>.<why>`. For `tenant_not_empty`: what there is, by its kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u32>,
}

/// The numbers behind a `quota_exceeded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QuotaDetail {
    /// Such as `vms`; for slots `slots.` and a class.
    pub resource: String,
    /// The ceiling.
    pub limit: u64,
    /// Charged.
    pub used: u64,
    /// Asked for.
    pub requested: u64,
    /// What is left.
    pub remaining: u64,
    /// `tenant/<id>`, or `project/<tenant>/<id>`.
    pub scope: String,
    /// What is charged, by the states of the VMs that it is for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counted: BTreeMap<String, u64>,
}
