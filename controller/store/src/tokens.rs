//! Records of tokens, and which are revoked. The tokens themselves are never stored.

use std::collections::HashSet;

use berth_api::ids::{TenantId, TokenId};
use berth_api::rest::TokenRecord;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// A token just minted, as it is recorded.
#[derive(Clone, Debug)]
pub struct NewTokenRecord {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant_id: Option<TenantId>,
    /// What it may do.
    pub scope: Vec<String>,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// For people.
    pub label: Option<String>,
    /// Seconds since the epoch.
    pub issued_at_s: i64,
    /// Seconds since the epoch.
    pub expires_at_s: i64,
}

impl Db<'_> {
    /// A tenant's tokens after an id, in the order of issue.
    pub fn tokens(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<TokenRecord>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT t.token_id, tenant_id, scopes, subject_key, label, issued_at, expires_at, revoked_at
             FROM token t LEFT JOIN revoked r ON r.token_id = t.token_id
             WHERE tenant_id = ?1 AND t.token_id > ?2 ORDER BY t.token_id LIMIT ?3",
        )?;
        let rows = select
            .query_map((tenant.as_str(), after, limit), token_row)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(TokenRow::into_record).collect()
    }

    /// Every revoked token.
    pub fn revoked_tokens(&self) -> Result<HashSet<TokenId>, StoreError> {
        let mut select = self.conn.prepare_cached("SELECT token_id FROM revoked")?;
        let texts = select
            .query_map([], |row| row.get::<_, String>(0))?
            .collect::<Result<Vec<_>, _>>()?;
        texts.iter().map(|text| parsed(text, "token id")).collect()
    }

    /// The tokens of a tenant that are recorded, revoked or not.
    pub fn token_ids(&self, tenant: &TenantId) -> Result<Vec<TokenId>, StoreError> {
        let mut select = self
            .conn
            .prepare_cached("SELECT token_id FROM token WHERE tenant_id = ?1")?;
        let texts = select
            .query_map([tenant.as_str()], |row| row.get::<_, String>(0))?
            .collect::<Result<Vec<_>, _>>()?;
        texts.iter().map(|text| parsed(text, "token id")).collect()
    }
}

impl WriteTx<'_> {
    /// Record a token; `false` if its tenant does not exist.
    pub fn record_token(
        &mut self,
        new: &NewTokenRecord,
        cause: &Cause,
    ) -> Result<bool, StoreError> {
        if let Some(tenant) = &new.tenant_id
            && self.tenant(tenant)?.is_none()
        {
            return Ok(false);
        }
        self.append(
            NewEvent {
                event_type: "TOKEN_ISSUED",
                tenant_id: new.tenant_id.clone(),
                outcome: "completed",
                detail: object(json!({
                    "token_id": new.token_id,
                    "scope": new.scope,
                    "subject_pubkey": new.subject_pubkey,
                    "expires_at": rfc3339(new.expires_at_s.saturating_mul(1000)),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn.execute(
            "INSERT INTO token (token_id, tenant_id, scopes, subject_key, label, issued_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                new.token_id.to_string(),
                new.tenant_id.as_ref().map(TenantId::as_str),
                json!(new.scope).to_string(),
                &new.subject_pubkey,
                &new.label,
                new.issued_at_s.saturating_mul(1000),
                new.expires_at_s.saturating_mul(1000),
            ),
        )?;
        Ok(true)
    }

    /// Revoke a recorded token: of this tenant, or any if `tenant` is `None`. `false` if there is
    /// none. Repeatable.
    pub fn revoke_token(
        &mut self,
        tenant: Option<&TenantId>,
        token_id: TokenId,
        cause: &Cause,
    ) -> Result<bool, StoreError> {
        let owner: Option<Option<String>> = self
            .conn
            .query_row(
                "SELECT tenant_id FROM token WHERE token_id = ?1",
                [token_id.to_string()],
                |row| row.get(0),
            )
            .optional()?;
        let Some(owner) = owner else {
            return Ok(false);
        };
        if tenant.is_some_and(|tenant| owner.as_deref() != Some(tenant.as_str())) {
            return Ok(false);
        }
        let new = self.conn.execute(
            "INSERT INTO revoked (token_id, revoked_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            (token_id.to_string(), self.now),
        )?;
        if new > 0 {
            let tenant_id = crate::rows::parsed_option(owner, "tenant id")?;
            self.append(
                NewEvent {
                    event_type: "TOKEN_REVOKED",
                    tenant_id,
                    outcome: "completed",
                    detail: object(json!({ "token_id": token_id })),
                    ..NewEvent::default()
                },
                cause,
            )?;
        }
        Ok(true)
    }
}

struct TokenRow {
    token_id: String,
    tenant_id: String,
    scopes: String,
    subject_key: String,
    label: Option<String>,
    issued_at: i64,
    expires_at: i64,
    revoked_at: Option<i64>,
}

fn token_row(row: &Row<'_>) -> crate::sql::Result<TokenRow> {
    Ok(TokenRow {
        token_id: row.get(0)?,
        tenant_id: row.get(1)?,
        scopes: row.get(2)?,
        subject_key: row.get(3)?,
        label: row.get(4)?,
        issued_at: row.get(5)?,
        expires_at: row.get(6)?,
        revoked_at: row.get(7)?,
    })
}

impl TokenRow {
    fn into_record(self) -> Result<TokenRecord, StoreError> {
        Ok(TokenRecord {
            token_id: parsed(&self.token_id, "token id")?,
            tenant_id: parsed(&self.tenant_id, "tenant id")?,
            scope: serde_json::from_str(&self.scopes)
                .map_err(|_| StoreError::Corrupt { what: "scope list" })?,
            subject_pubkey: self.subject_key,
            label: self.label,
            issued_at: rfc3339(self.issued_at),
            expires_at: rfc3339(self.expires_at),
            revoked_at: self.revoked_at.map(rfc3339),
        })
    }
}
