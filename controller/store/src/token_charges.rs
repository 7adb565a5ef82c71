//! What tenants are charged for their tokens: each issued one, from its mint until it is revoked or has
//! expired. Links that holders derive offline cost nothing.
//!
//! A token belongs to the whole tenant, so its charge stands in the tenant's default project. One that
//! has expired counts no longer at once; its row goes with the next token's charge.

use berth_api::ids::{ProjectId, TenantId, TokenId};
use berth_controller_core::quota::{QuotaDenied, Resource};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::quota::Amounts;
use crate::revocations::Revoked;
use crate::rows::parsed;
use crate::sql::Value;
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// Of one tenant's charged tokens: what `?2` is compared with.
const EXPIRED: &str = "expires_at <= ?2";
const LINK: &str = "token_id = ?2";
const HOLDER: &str =
    "token_id IN (SELECT token_id FROM token WHERE tenant_id = ?1 AND subject_key = ?2)";
const EARLIER: &str =
    "token_id IN (SELECT token_id FROM token WHERE tenant_id = ?1 AND issued_at < ?2)";

impl Db<'_> {
    /// Whether a tenant may have one more token now.
    pub(crate) fn would_admit_token(
        &self,
        tenant: &TenantId,
    ) -> Result<Result<(), QuotaDenied>, StoreError> {
        let one = Amounts::from([(Resource::Tokens, 1)]);
        self.would_admit(tenant, &ProjectId::default(), &one)
    }
}

impl WriteTx<'_> {
    /// Charge a tenant for one more token, or say why not. A refusal is in the ledger.
    pub(crate) fn charge_token(
        &mut self,
        tenant: &TenantId,
        token_id: TokenId,
        expires_at_ms: i64,
        cause: &Cause,
    ) -> Result<Result<(), QuotaDenied>, StoreError> {
        self.end_charges_where(tenant, EXPIRED, &Value::Integer(self.now))?;
        let project = ProjectId::default();
        let one = Amounts::from([(Resource::Tokens, 1)]);
        let marks = match self.charge(tenant, &project, &one)? {
            Ok(marks) => marks,
            Err(denied) => {
                self.append(
                    NewEvent {
                        event_type: "TOKEN_ISSUE_DENIED",
                        tenant_id: Some(tenant.clone()),
                        outcome: "denied",
                        code: Some("quota_exceeded".to_owned()),
                        detail: object(json!({ "quota": denied.to_detail() })),
                        ..NewEvent::default()
                    },
                    cause,
                )?;
                return Ok(Err(denied));
            }
        };
        self.conn
            .prepare_cached(
                "INSERT INTO token_charge (tenant_id, project_id, token_id, expires_at)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .send((
                tenant.as_str(),
                project.as_str(),
                token_id.to_string(),
                expires_at_ms,
            ))?;
        self.note_marks(tenant, marks, cause)?;
        Ok(Ok(()))
    }

    /// What is revoked is charged no longer.
    pub(crate) fn end_token_charges(
        &mut self,
        tenant: &TenantId,
        revoked: &Revoked,
    ) -> Result<(), StoreError> {
        let (condition, value) = match revoked {
            Revoked::Link(id) => (LINK, Value::Text(id.to_string())),
            Revoked::Holder(key) => (HOLDER, Value::Text(key.clone())),
            Revoked::Before(second) => (EARLIER, Value::Integer(second.saturating_mul(1000))),
        };
        self.end_charges_where(tenant, condition, &value)
    }

    fn end_charges_where(
        &mut self,
        tenant: &TenantId,
        condition: &'static str,
        value: &Value,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM token_charge WHERE tenant_id = ?1 AND {condition} RETURNING project_id"
        );
        let projects: Vec<String> = self
            .conn
            .prepare_cached(&sql)?
            .query_map((tenant.as_str(), value), |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let one = Amounts::from([(Resource::Tokens, 1)]);
        for project in projects {
            self.uncharge(tenant, &parsed(&project, "project id")?, &one)?;
        }
        Ok(())
    }
}
