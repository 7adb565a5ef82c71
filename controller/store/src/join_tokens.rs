//! Join tokens: who may make them, and what is known of one.

use berth_api::ids::TenantId;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed_option, rfc3339};
use crate::sql::OptionalExtension as _;
use crate::tenants::object;
use crate::writer::WriteTx;

/// Nodes and unused join tokens that one tenant may have of its own at once.
const MAX_OWN: u32 = 64;

/// A join token as it is stored: never its secret.
#[derive(Clone, Debug)]
pub struct NewJoinToken {
    /// SHA-256 of the secret.
    pub secret_hash: Vec<u8>,
    /// The only name that may enrol with it.
    pub node_name: Option<String>,
    /// Milliseconds since the epoch.
    pub expires_at: i64,
    /// The tenant that enrols a node of its own with it; `None` for an operator.
    pub tenant_id: Option<TenantId>,
}

/// Why a join token was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenDenied {
    /// Its tenant does not exist.
    #[error("the tenant does not exist")]
    NoTenant,
    /// The tenant has as many nodes, or tokens for some, as a tenant may have.
    #[error("a tenant has at most {MAX_OWN} nodes of its own, unused join tokens among them")]
    TooMany,
}

impl JoinTokenDenied {
    /// How many a tenant may have.
    pub const LIMIT: u32 = MAX_OWN;
}

/// What is known of a join token.
pub(crate) struct StoredJoinToken {
    /// The only name that may enrol with it.
    pub(crate) bound_to: Option<String>,
    /// Milliseconds since the epoch.
    pub(crate) expires_at: i64,
    /// The node that enrolled with it.
    pub(crate) used_by: Option<String>,
    /// The tenant that made it, if one did.
    pub(crate) owner: Option<TenantId>,
}

impl WriteTx<'_> {
    /// Store a join token. One that a tenant makes enrols a node that is that tenant's alone.
    pub fn add_join_token(
        &mut self,
        new: &NewJoinToken,
        cause: &Cause,
    ) -> Result<Result<(), JoinTokenDenied>, StoreError> {
        if let Some(tenant) = &new.tenant_id {
            if self.tenant_standing(tenant)?.is_none() {
                return Ok(Err(JoinTokenDenied::NoTenant));
            }
            if self
                .own_nodes(tenant)?
                .saturating_add(self.open_join_tokens(tenant)?)
                >= MAX_OWN
            {
                return Ok(Err(JoinTokenDenied::TooMany));
            }
        }
        self.append(
            NewEvent {
                event_type: "JOIN_TOKEN_ISSUED",
                tenant_id: new.tenant_id.clone(),
                outcome: "completed",
                detail: object(json!({
                    "node_name": new.node_name,
                    "expires_at": rfc3339(new.expires_at),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "INSERT INTO join_token (secret_hash, node_name, expires_at, tenant_id)
             VALUES (?1, ?2, ?3, ?4)",
            (
                &new.secret_hash,
                &new.node_name,
                new.expires_at,
                new.tenant_id.as_ref().map(TenantId::as_str),
            ),
        )?;
        Ok(Ok(()))
    }

    fn own_nodes(&self, tenant: &TenantId) -> Result<u32, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT COUNT(*) FROM node WHERE owned_by = ?1")?
            .query_row([tenant.as_str()], |row| row.get(0))?)
    }

    fn open_join_tokens(&self, tenant: &TenantId) -> Result<u32, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT COUNT(*) FROM join_token
                 WHERE tenant_id = ?1 AND used_by IS NULL AND expires_at > ?2",
            )?
            .query_row((tenant.as_str(), self.now), |row| row.get(0))?)
    }

    /// Whether a tenant that made a join token may still enrol nodes of its own.
    pub(crate) fn may_enroll(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        let standing = self.tenant_standing(tenant)?;
        Ok(standing
            .is_some_and(|standing| !standing.is_suspended && standing.allows("node.enroll")))
    }

    /// The join token of this secret.
    pub(crate) fn join_token(
        &self,
        secret_hash: &[u8],
    ) -> Result<Option<StoredJoinToken>, StoreError> {
        let row = self
            .conn
            .query_row(
                "SELECT node_name, expires_at, used_by, tenant_id FROM join_token
                 WHERE secret_hash = ?1",
                [secret_hash],
                |row| {
                    let token = StoredJoinToken {
                        bound_to: row.get(0)?,
                        expires_at: row.get(1)?,
                        used_by: row.get(2)?,
                        owner: None,
                    };
                    Ok((token, row.get::<_, Option<String>>(3)?))
                },
            )
            .optional()?;
        row.map(|(token, owner)| {
            Ok(StoredJoinToken {
                owner: parsed_option(owner, "tenant id")?,
                ..token
            })
        })
        .transpose()
    }
}
