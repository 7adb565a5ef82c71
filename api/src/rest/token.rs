//! Tokens as they are asked for, issued and listed.

use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use crate::ids::{ProjectId, TenantId, TokenId, VmId};

/// `POST /v1/tenants/{tenant}/tokens`, `POST /v1/tokens`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct IssueToken {
    /// The holder's Ed25519 public key: base64 or base64url of 32 bytes, 64 hex digits, or an
    /// OpenSSH `ssh-ed25519 …` line.
    pub subject_pubkey: String,
    /// One scope or several.
    pub scope: OneOrMany,
    /// 60 to 2,592,000 (30 days).
    pub expires_in_seconds: u64,
    /// For people.
    pub label: Option<String>,
    /// Ids of the only VMs and slots that it is good for; everything of the tenant if left out. An
    /// empty list is nothing.
    pub resources: Option<Vec<String>>,
    /// Whether each request with it must be signed by the holder's key (RFC 9421).
    pub require_pop: Option<bool>,
    /// How often it may be narrowed by its holders, 0 to 3; 3 if left out.
    pub delegations: Option<u8>,
    /// The tenant; only an operator says it, and only to `POST /v1/tokens`.
    pub tenant_id: Option<String>,
}

/// `POST /v1/vms/{vm}/guest-tokens`; the body may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct IssueGuestToken {
    /// 60 to 2,592,000 (30 days); a day unless given, and never longer than the caller's own token.
    pub expires_in_seconds: Option<u64>,
    /// The guest's own Ed25519 public key, spelled as for `POST /v1/tokens`; the caller's unless given.
    pub subject_pubkey: Option<String>,
    /// For people.
    pub label: Option<String>,
}

/// `GET /v1/vms/{vm}/metadata`: what a guest may know of the VM that it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestMetadata {
    /// The VM's id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub tenant_id: TenantId,
    /// The part of its owner that it belongs to.
    pub project_id: ProjectId,
    /// Which run of it this is; a start is another.
    pub generation: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_mb: u64,
    /// Root disk.
    pub disk_gb: u32,
    /// The image that it was made from.
    pub image: String,
    /// What its tenant labelled it.
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
}

/// `POST /v1/tokens/verify`
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VerifyToken {
    /// The token.
    pub token: String,
}

impl std::fmt::Debug for VerifyToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VerifyToken")
    }
}

/// What a valid token allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifiedToken {
    /// Always `true`: of a token that is not, the answer is 401 with the reason.
    pub valid: bool,
    /// The ids of its links, the issued one first.
    pub token_ids: Vec<TokenId>,
    /// The tenant, or `null` for an operator.
    pub tenant_id: Option<TenantId>,
    /// What it may do.
    pub scope: Vec<String>,
    /// The only VMs and slots that it is good for, or `null`.
    pub resources: Option<Vec<String>>,
    /// Whether each request with it must be signed.
    pub require_pop: bool,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// `POST /v1/tokens/revoke`: exactly one of the first three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeTokens {
    /// One link, recorded or not, and what hangs on it.
    pub token_id: Option<TokenId>,
    /// All links of one holder, in any spelling of its key, and what hangs on them.
    pub subject_pubkey: Option<String>,
    /// `true`: every token of the namespace from before this moment.
    pub all: Option<bool>,
    /// The tenant, which only an operator says; left out, an operator means operators' tokens.
    pub tenant_id: Option<String>,
    /// For the ledger.
    pub reason: Option<String>,
}

/// One text or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single text.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl OneOrMany {
    /// The texts as a list.
    #[must_use]
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A token just issued; the only time that `token` is shown. Under an `Idempotency-Key` a repeat
/// gets this again with an empty `token`, as the secret is not kept: revoke `token_id` and issue
/// another under a new key if the first answer was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct IssuedToken {
    /// The bearer token.
    pub token: String,
    /// Its id (`jti`).
    pub token_id: TokenId,
    /// The tenant that it speaks for.
    pub tenant_id: TenantId,
    /// What it may do.
    pub scope: Vec<String>,
    /// The only VMs and slots that it is good for, or `null`.
    pub resources: Option<Vec<String>>,
    /// Whether each request with it must be signed.
    #[serde(default)]
    pub require_pop: bool,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// RFC 3339.
    pub issued_at: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// A token's record, without the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenRecord {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for.
    pub tenant_id: TenantId,
    /// What it may do.
    pub scope: Vec<String>,
    /// The only VMs and slots that it is good for, or `null`.
    pub resources: Option<Vec<String>>,
    /// Whether each request with it must be signed.
    #[serde(default)]
    pub require_pop: bool,
    /// The links that it hangs on, the issued one first; none if it was issued itself.
    #[serde(default)]
    pub parent_ids: Vec<TokenId>,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// For people.
    pub label: Option<String>,
    /// RFC 3339; of a token that its holder derived, when it was first used.
    pub issued_at: String,
    /// RFC 3339.
    pub expires_at: String,
    /// RFC 3339, to some seconds, once used.
    pub last_used_at: Option<String>,
    /// RFC 3339, once revoked.
    pub revoked_at: Option<String>,
}

/// `GET /v1/me`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Me {
    /// The tenant, or `null` for an operator.
    pub tenant_id: Option<TenantId>,
    /// The token's id.
    pub token_id: TokenId,
    /// What it may do.
    pub scope: Vec<String>,
    /// RFC 3339.
    pub expires_at: String,
}
