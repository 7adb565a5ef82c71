//! Tokens as they are asked for, issued and listed.

use serde::{Deserialize, Serialize};

use crate::ids::{TenantId, TokenId};

/// `POST /v1/tenants/{tenant}/tokens`
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
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// For people.
    pub label: Option<String>,
    /// RFC 3339.
    pub issued_at: String,
    /// RFC 3339.
    pub expires_at: String,
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
