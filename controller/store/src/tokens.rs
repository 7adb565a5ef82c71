//! Records of tokens: those issued, and those that holders derived and used. The tokens themselves
//! are never stored. What is revoked is `revocations`' business.

use berth_api::ids::{TenantId, TokenId, VmId};
use berth_api::rest::TokenRecord;
use berth_controller_core::quota::QuotaDenied;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::revocations::{RevokedAt, namespace};
use crate::rows::{parsed, rfc3339};
use crate::sql::Row;
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// Rows whose time is over that one change clears away, so that no request pays for a whole day.
pub(crate) const FORGOTTEN_AT_ONCE: u32 = 8;

/// A token just minted, as it is recorded.
#[derive(Clone, Debug)]
pub struct NewTokenRecord {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant_id: Option<TenantId>,
    /// What it may do.
    pub scope: Vec<String>,
    /// The VMs and slots that it is limited to, if it is.
    pub resources: Option<Vec<String>>,
    /// Whether it is good with a signed request alone.
    pub requires_pop: bool,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// For people.
    pub label: Option<String>,
    /// Seconds since the epoch.
    pub issued_at_s: i64,
    /// Seconds since the epoch.
    pub expires_at_s: i64,
    /// The VM for whose guest it is, if it is a guest's.
    pub vm_id: Option<VmId>,
}

/// Why a token was not recorded, and so must not be handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordTokenDenied {
    /// Its tenant does not exist.
    #[error("the tenant does not exist")]
    NoTenant,
    /// Its tenant has as many as it may have.
    #[error(transparent)]
    Quota(#[from] QuotaDenied),
}

/// A link that a holder made, seen for the first time.
#[derive(Clone, Debug)]
pub struct DerivedToken {
    /// Its id, as its maker chose it.
    pub token_id: TokenId,
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant_id: Option<TenantId>,
    /// The links that it hangs on, root first.
    pub parent_ids: Vec<TokenId>,
    /// What it may do.
    pub scope: Vec<String>,
    /// The VMs and slots that it is limited to, if it is.
    pub resources: Option<Vec<String>>,
    /// Whether it is good with a signed request alone.
    pub requires_pop: bool,
    /// base64url of the holder's public key.
    pub subject_pubkey: String,
    /// Seconds since the epoch.
    pub expires_at_s: i64,
}

/// When a token was last used.
#[derive(Clone, Debug)]
pub struct TokenUse {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant_id: Option<TenantId>,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
}

impl Db<'_> {
    /// A tenant's tokens after an id, issued and derived, in the order of their ids.
    pub fn tokens(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<TokenRecord>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT token_id, scopes, resources, requires_pop, subject_key, label, issued_at,
               expires_at, last_used_at, '[]' AS parent_ids, (SELECT ended_at FROM guest_token
                 WHERE guest_token.token_id = token.token_id)
             FROM token WHERE tenant_id = ?1 AND token_id > ?2
             UNION ALL
             SELECT token_id, scopes, resources, requires_pop, subject_key, NULL, first_used_at,
               expires_at, last_used_at, parent_ids, NULL
             FROM derived_token WHERE namespace = ?1 AND token_id > ?2
             ORDER BY token_id LIMIT ?3",
        )?;
        let rows = select
            .query_map((tenant.as_str(), after, limit), token_row)?
            .collect::<Result<Vec<_>, _>>()?;
        let revoked = self.revoked_at(tenant)?;
        rows.into_iter()
            .map(|row| row.into_record(tenant, &revoked))
            .collect()
    }
}

impl WriteTx<'_> {
    /// Record a token and charge its tenant for it. A refusal charges nothing.
    pub fn record_token(
        &mut self,
        new: &NewTokenRecord,
        cause: &Cause,
    ) -> Result<Result<(), RecordTokenDenied>, StoreError> {
        if let Some(tenant) = &new.tenant_id {
            if self.tenant_standing(tenant)?.is_none() {
                return Ok(Err(RecordTokenDenied::NoTenant));
            }
            let expires_at_ms = new.expires_at_s.saturating_mul(1000);
            if let Err(denied) = self.charge_token(tenant, new.token_id, expires_at_ms, cause)? {
                return Ok(Err(denied.into()));
            }
        }
        self.append(
            NewEvent {
                event_type: "TOKEN_ISSUED",
                tenant_id: new.tenant_id.clone(),
                vm_id: new.vm_id,
                outcome: "completed",
                detail: object(json!({
                    "token_id": new.token_id,
                    "scope": new.scope,
                    "resources": new.resources,
                    "require_pop": new.requires_pop,
                    "subject_pubkey": new.subject_pubkey,
                    "expires_at": rfc3339(new.expires_at_s.saturating_mul(1000)),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn
            .prepare_cached(
                "INSERT INTO token (token_id, tenant_id, scopes, subject_key, label, issued_at,
                   expires_at, resources, requires_pop)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .send((
                new.token_id.to_string(),
                new.tenant_id.as_ref().map(TenantId::as_str),
                json!(new.scope).to_string(),
                &new.subject_pubkey,
                &new.label,
                new.issued_at_s.saturating_mul(1000),
                new.expires_at_s.saturating_mul(1000),
                new.resources.as_ref().map(|ids| json!(ids).to_string()),
                i64::from(new.requires_pop),
            ))?;
        Ok(Ok(()))
    }

    /// Record a link that a holder made, the first time that it is used. Repeatable.
    pub fn record_derived(&mut self, seen: &DerivedToken, cause: &Cause) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "DELETE FROM derived_token WHERE (namespace, token_id) IN
                 (SELECT namespace, token_id FROM derived_token WHERE expires_at <= ?1 LIMIT ?2)",
            )?
            .send((self.now, FORGOTTEN_AT_ONCE))?;
        let new = self
            .conn
            .prepare_cached(
                "INSERT INTO derived_token (namespace, token_id, parent_ids, scopes, resources,
                   requires_pop, subject_key, first_used_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (namespace, token_id) DO NOTHING",
            )?
            .execute((
                namespace(seen.tenant_id.as_ref()),
                seen.token_id.to_string(),
                json!(seen.parent_ids).to_string(),
                json!(seen.scope).to_string(),
                seen.resources.as_ref().map(|ids| json!(ids).to_string()),
                i64::from(seen.requires_pop),
                &seen.subject_pubkey,
                self.now,
                seen.expires_at_s.saturating_mul(1000),
            ))?;
        if new == 0 {
            return Ok(());
        }
        self.append(
            NewEvent {
                event_type: "TOKEN_FIRST_USED",
                tenant_id: seen.tenant_id.clone(),
                outcome: "completed",
                detail: object(json!({
                    "token_id": seen.token_id,
                    "parent_ids": seen.parent_ids,
                    "scope": seen.scope,
                    "resources": seen.resources,
                    "require_pop": seen.requires_pop,
                    "subject_pubkey": seen.subject_pubkey,
                    "expires_at": rfc3339(seen.expires_at_s.saturating_mul(1000)),
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(())
    }

    /// Write down when tokens were last used. Not a change of what anybody may do, so no event.
    pub fn note_token_uses(&mut self, uses: &[TokenUse]) -> Result<(), StoreError> {
        for used in uses {
            let own = namespace(used.tenant_id.as_ref());
            let id = used.token_id.to_string();
            let derived = self
                .conn
                .prepare_cached(
                    "UPDATE derived_token SET last_used_at = ?3
                     WHERE namespace = ?1 AND token_id = ?2",
                )?
                .execute((own, &id, used.at_ms))?;
            if derived == 0 {
                self.conn
                    .prepare_cached(
                        "UPDATE token SET last_used_at = ?2 WHERE token_id = ?1
                         AND (tenant_id = ?3 OR (tenant_id IS NULL AND ?3 = '_platform'))",
                    )?
                    .send((&id, used.at_ms, own))?;
            }
        }
        Ok(())
    }

    /// Use a signed request's nonce; `false` if this holder has used it. `expires_at_s`: from when
    /// on it need not be remembered, in seconds since the epoch.
    pub fn use_nonce(
        &mut self,
        holder: &str,
        nonce: &str,
        expires_at_s: i64,
    ) -> Result<bool, StoreError> {
        self.conn
            .prepare_cached(
                "DELETE FROM pop_nonce WHERE (holder, nonce) IN
                 (SELECT holder, nonce FROM pop_nonce WHERE expires_at <= ?1 LIMIT ?2)",
            )?
            .send((self.now, FORGOTTEN_AT_ONCE))?;
        let new = self
            .conn
            .prepare_cached(
                "INSERT INTO pop_nonce (holder, nonce, expires_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (holder, nonce) DO NOTHING",
            )?
            .execute((holder, nonce, expires_at_s.saturating_mul(1000)))?;
        Ok(new > 0)
    }
}

struct TokenRow {
    token_id: String,
    scopes: String,
    resources: Option<String>,
    requires_pop: i64,
    subject_key: String,
    label: Option<String>,
    issued_at: i64,
    expires_at: i64,
    last_used_at: Option<i64>,
    parent_ids: String,
    ended_at: Option<i64>,
}

fn token_row(row: &Row<'_>) -> crate::sql::Result<TokenRow> {
    Ok(TokenRow {
        token_id: row.get(0)?,
        scopes: row.get(1)?,
        resources: row.get(2)?,
        requires_pop: row.get(3)?,
        subject_key: row.get(4)?,
        label: row.get(5)?,
        issued_at: row.get(6)?,
        expires_at: row.get(7)?,
        last_used_at: row.get(8)?,
        parent_ids: row.get(9)?,
        ended_at: row.get(10)?,
    })
}

impl TokenRow {
    fn into_record(
        self,
        tenant: &TenantId,
        revoked: &RevokedAt,
    ) -> Result<TokenRecord, StoreError> {
        let corrupt = |what| move |_| StoreError::Corrupt { what };
        let token_id: TokenId = parsed(&self.token_id, "token id")?;
        let parent_ids: Vec<TokenId> =
            serde_json::from_str(&self.parent_ids).map_err(corrupt("list of token ids"))?;
        let revoked_at = revoked
            .of(token_id, &parent_ids, &self.subject_key, self.issued_at)
            .into_iter()
            .chain(self.ended_at)
            .min();
        Ok(TokenRecord {
            token_id,
            tenant_id: tenant.clone(),
            scope: serde_json::from_str(&self.scopes).map_err(corrupt("scope list"))?,
            resources: self
                .resources
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(corrupt("resource list"))?,
            require_pop: self.requires_pop != 0,
            parent_ids,
            subject_pubkey: self.subject_key,
            label: self.label,
            issued_at: rfc3339(self.issued_at),
            expires_at: rfc3339(self.expires_at),
            last_used_at: self.last_used_at.map(rfc3339),
            revoked_at: revoked_at.map(rfc3339),
        })
    }
}
