//! People: who signs in at the identity provider, and what each of them may do here.

use serde::{Deserialize, Serialize};

use crate::ids::{PersonId, TenantId};
use crate::rest::OneOrMany;

/// `POST /v1/tenants/{tenant}/persons`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LinkPerson {
    /// Who it is to the identity provider: the `sub` of its tokens, 1 to 255 characters. Not an address
    /// that somebody else can have later.
    pub subject: String,
    /// What the person may do: one scope or several.
    pub scope: OneOrMany,
    /// For people; the subject unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
}

/// A person who may sign in for a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Person {
    /// The link's id: the same person in another tenant, or linked anew, has another one.
    pub id: PersonId,
    /// For whom.
    pub tenant_id: TenantId,
    /// The identity provider.
    pub issuer: String,
    /// Who it is there.
    pub subject: String,
    /// For people.
    pub display_name: String,
    /// What the person may do.
    pub scope: Vec<String>,
    /// Whether each request with the person's tokens must be signed.
    pub require_pop: bool,
    /// RFC 3339.
    pub created_at: String,
    /// The ledger entry of the link.
    pub audit_index: u64,
}

/// `POST /v1/identity/token`
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// What the identity provider gave the person: an OpenID Connect ID token.
    pub id_token: String,
    /// The key that will hold the token, spelled as for `POST /v1/tokens`.
    pub subject_pubkey: String,
    /// The tenant; only who is linked to several has to say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// 60 to 3,600, which it is unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignIn")
    }
}
