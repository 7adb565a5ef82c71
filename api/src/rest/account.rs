//! Service accounts and what they are in projects.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ProjectId, TenantId};

/// What a service account is in a project.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It looks.
    Viewer,
    /// It runs what is there: starts, stops, deletes, consoles.
    Runner,
    /// It makes too.
    Editor,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Runner, Self::Editor];

    /// As requests and rows name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Runner => "runner",
            Self::Editor => "editor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("must be viewer, runner or editor")]
pub struct ParseRoleError;

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(ParseRoleError)
    }
}

/// A holder of tokens that is no person: whatever token its key holds, it does no more with it than
/// its roles permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceAccount {
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its id inside the tenant.
    pub account_id: AccountId,
    /// The project that it belongs to and ends with.
    pub project_id: ProjectId,
    /// For people.
    pub display_name: String,
    /// base64url of its public key.
    pub subject_pubkey: String,
    /// Whether it is switched off.
    pub disabled: bool,
    /// What it is in each project of which it is a member.
    pub roles: BTreeMap<ProjectId, Role>,
    /// RFC 3339.
    pub created_at: String,
    /// Counts changes, from 1.
    pub revision: u64,
    /// Index of the ledger entry of the newest change.
    pub audit_index: u64,
}

/// `POST /v1/projects/{project}/service-accounts`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateServiceAccount {
    /// Stable, never used again in this tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    pub account_id: String,
    /// For people; the id unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Its Ed25519 public key, in any spelling that a token's holder has. One account has it, for ever.
    pub subject_pubkey: String,
    /// What it is in the project.
    pub role: Role,
}

/// `PATCH /v1/service-accounts/{account}`: what is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeServiceAccount {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Switch it off, or on again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// `PUT /v1/projects/{project}/members/{account}`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetMember {
    /// What it is in the project from here on.
    pub role: Role,
}

/// A member of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProjectMember {
    /// Which project.
    pub project_id: ProjectId,
    /// Which account.
    pub account_id: AccountId,
    /// What it is there.
    pub role: Role,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        for bad in ["", "admin", "Viewer", "owner"] {
            assert_eq!(bad.parse::<Role>(), Err(ParseRoleError), "{bad}");
        }
    }
}
