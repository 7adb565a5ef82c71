//! What was revoked: links by id, holders by key, everything before a moment. Each namespace for
//! itself.

use std::collections::HashMap;

use berth_api::ids::{TenantId, TokenId};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::parsed;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::tenants::object;
use crate::tokens::FORGOTTEN_AT_ONCE;
use crate::writer::WriteTx;

/// The namespace of operators. No tenant id begins with an underscore.
const PLATFORM: &str = "_platform";
/// Most revocations of one namespace that are in force at once.
pub(crate) const MAX_REVOCATIONS: u32 = 10_000;
const MS_PER_DAY: i64 = 86_400_000;
/// Longest life of a link that this controller has no record of, in days: a tenant's, an operator's.
const LONGEST_LIFE_DAYS: (i64, i64) = (31, 366);
/// No token begins so late: an epoch that refuses all.
const NEVER_S: i64 = 1 << 52;

/// What is revoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Revoked {
    /// A link, and what hangs on it.
    Link(TokenId),
    /// All links of a holder (base64url of its public key), and what hangs on them.
    Holder(String),
    /// Root links that begin before this second of the epoch, and what hangs on them.
    Before(i64),
}

/// Why nothing was revoked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RevokeDenied {
    /// There is no such token.
    #[error("there is no such token")]
    NotFound,
    /// So many that it is time to revoke all.
    #[error("{MAX_REVOCATIONS} revocations are in force")]
    TooMany,
}

/// When things of one namespace were revoked, in milliseconds since the epoch.
pub(crate) struct RevokedAt {
    links: HashMap<String, i64>,
    holders: HashMap<String, i64>,
    epoch: Option<(i64, i64)>,
}

impl RevokedAt {
    /// When a token of this holder that is made now has to begin, in seconds since the epoch; `None` if
    /// the holder was revoked. A token that was revoked together with all before it must not hide one
    /// issued in that second.
    pub(crate) fn begin(&self, holder: &str, now_s: i64) -> Option<i64> {
        let epoch = self.epoch.map_or(now_s, |(second, _)| second);
        (!self.holders.contains_key(holder)).then_some(now_s.max(epoch))
    }

    /// Since when a token counts no longer. `issued_at` in milliseconds since the epoch.
    pub(crate) fn of(
        &self,
        token: TokenId,
        parents: &[TokenId],
        holder: &str,
        issued_at: i64,
    ) -> Option<i64> {
        let links = std::iter::once(&token)
            .chain(parents)
            .filter_map(|id| self.links.get(&id.to_string()).copied());
        let by_epoch = self
            .epoch
            .filter(|(min_not_before_s, _)| issued_at < min_not_before_s.saturating_mul(1000))
            .map(|(_, at)| at);
        links
            .chain(self.holders.get(holder).copied())
            .chain(by_epoch)
            .min()
    }
}

/// The namespace of a tenant, or of operators.
pub(crate) fn namespace(tenant: Option<&TenantId>) -> &str {
    tenant.map_or(PLATFORM, TenantId::as_str)
}

fn kind_and_subject(revoked: &Revoked) -> (&'static str, String, i64) {
    match revoked {
        Revoked::Link(id) => ("link", id.to_string(), 0),
        Revoked::Holder(key) => ("holder", key.clone(), 0),
        Revoked::Before(second) => ("epoch", String::new(), *second),
    }
}

fn tenant_of(namespace: &str) -> Result<Option<TenantId>, StoreError> {
    match namespace {
        PLATFORM => Ok(None),
        tenant => parsed(tenant, "tenant id").map(Some),
    }
}

impl Db<'_> {
    /// Everything revoked at or after a moment (milliseconds since the epoch).
    pub fn revocations_since(
        &self,
        since_ms: i64,
    ) -> Result<Vec<(Option<TenantId>, Revoked)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT namespace, kind, subject, min_not_before_s FROM revocation
             WHERE revoked_at >= ?1",
        )?;
        let rows = select
            .query_map((since_ms,), |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, i64>(3)?,
                ))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|(namespace, kind, subject, second)| {
                let revoked = match kind.as_str() {
                    "link" => Revoked::Link(parsed(&subject, "token id")?),
                    "holder" => Revoked::Holder(subject),
                    _ => Revoked::Before(second),
                };
                Ok((tenant_of(&namespace)?, revoked))
            })
            .collect()
    }

    pub(crate) fn revoked_at(&self, tenant: &TenantId) -> Result<RevokedAt, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT kind, subject, min_not_before_s, revoked_at FROM revocation
             WHERE namespace = ?1",
        )?;
        let mut found = RevokedAt {
            links: HashMap::new(),
            holders: HashMap::new(),
            epoch: None,
        };
        let rows = select.query_map((tenant.as_str(),), |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
            ))
        })?;
        for row in rows {
            let (kind, subject, second, at) = row?;
            match kind.as_str() {
                "link" => drop(found.links.insert(subject, at)),
                "holder" => drop(found.holders.insert(subject, at)),
                _ => found.epoch = Some((second, at)),
            }
        }
        Ok(found)
    }

    /// The namespace of a recorded token, looked for in one tenant's or, if `tenant` is `None`, among
    /// all issued ones; and when it expires, in milliseconds since the epoch.
    fn recorded(
        &self,
        tenant: Option<&TenantId>,
        token_id: TokenId,
    ) -> Result<Option<(Option<TenantId>, i64)>, StoreError> {
        let row: Option<(String, i64)> = self
            .conn
            .prepare_cached(
                "SELECT COALESCE(tenant_id, '_platform'), expires_at FROM token
                 WHERE token_id = ?1 AND (CAST(?2 AS TEXT) IS NULL OR tenant_id = CAST(?2 AS TEXT))
                 UNION ALL
                 SELECT namespace, expires_at FROM derived_token
                 WHERE token_id = ?1 AND namespace = COALESCE(CAST(?2 AS TEXT), '_platform')
                 LIMIT 1",
            )?
            .query_row(
                (token_id.to_string(), tenant.map(TenantId::as_str)),
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        row.map(|(namespace, expires_at)| Ok((tenant_of(&namespace)?, expires_at)))
            .transpose()
    }
}

impl WriteTx<'_> {
    /// Revoke a recorded token: of this tenant, or any issued one if `tenant` is `None`. Whose it
    /// was. Repeatable.
    pub fn revoke_token(
        &mut self,
        tenant: Option<&TenantId>,
        token_id: TokenId,
        reason: Option<&str>,
        cause: &Cause,
    ) -> Result<Result<Option<TenantId>, RevokeDenied>, StoreError> {
        let Some((owner, expires_at)) = self.recorded(tenant, token_id)? else {
            return Ok(Err(RevokeDenied::NotFound));
        };
        let link = Revoked::Link(token_id);
        let done = self.put_revocation(owner.as_ref(), &link, expires_at, reason, cause)?;
        Ok(done.map(|()| owner))
    }

    /// Revoke something in one namespace, recorded or not. Repeatable.
    pub fn revoke(
        &mut self,
        tenant: Option<&TenantId>,
        revoked: &Revoked,
        reason: Option<&str>,
        cause: &Cause,
    ) -> Result<Result<(), RevokeDenied>, StoreError> {
        let days = match tenant {
            Some(_) => LONGEST_LIFE_DAYS.0,
            None => LONGEST_LIFE_DAYS.1,
        };
        let expires_at = match revoked {
            Revoked::Link(_) | Revoked::Holder(_) => self.now.saturating_add(days * MS_PER_DAY),
            Revoked::Before(_) => i64::MAX,
        };
        self.put_revocation(tenant, revoked, expires_at, reason, cause)
    }

    /// From here on no token of the tenant counts, whatever it says. Part of the tenant's end, whose
    /// event the caller appends.
    pub(crate) fn end_all_tokens(&mut self, tenant: &TenantId) -> Result<(), StoreError> {
        self.insert_revocation(Some(tenant), &Revoked::Before(NEVER_S), i64::MAX)?;
        Ok(())
    }

    pub(crate) fn put_revocation(
        &mut self,
        tenant: Option<&TenantId>,
        revoked: &Revoked,
        expires_at: i64,
        reason: Option<&str>,
        cause: &Cause,
    ) -> Result<Result<(), RevokeDenied>, StoreError> {
        self.conn
            .prepare_cached(
                "DELETE FROM revocation WHERE (namespace, kind, subject) IN
                 (SELECT namespace, kind, subject FROM revocation WHERE expires_at <= ?1 LIMIT ?2)",
            )?
            .send((self.now, FORGOTTEN_AT_ONCE))?;
        let in_force: u32 = self
            .conn
            .prepare_cached("SELECT COUNT(*) FROM revocation WHERE namespace = ?1")?
            .query_row((namespace(tenant),), |row| row.get(0))?;
        // Revoking everything is one row, and is always possible.
        if in_force >= MAX_REVOCATIONS && !matches!(revoked, Revoked::Before(_)) {
            return Ok(Err(RevokeDenied::TooMany));
        }
        if !self.insert_revocation(tenant, revoked, expires_at)? {
            return Ok(Ok(()));
        }
        let (event_type, detail) = match revoked {
            Revoked::Link(id) => ("TOKEN_REVOKED", json!({ "token_id": id })),
            Revoked::Holder(key) => ("TOKEN_HOLDER_REVOKED", json!({ "subject_pubkey": key })),
            Revoked::Before(second) => ("TOKENS_ALL_REVOKED", json!({ "before_s": second })),
        };
        let mut detail = object(detail);
        if let Some(reason) = reason {
            detail.insert("reason".to_owned(), json!(reason));
        }
        self.append(
            NewEvent {
                event_type,
                tenant_id: tenant.cloned(),
                outcome: "completed",
                detail,
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(Ok(()))
    }

    /// `false` if it was revoked already.
    fn insert_revocation(
        &mut self,
        tenant: Option<&TenantId>,
        revoked: &Revoked,
        expires_at: i64,
    ) -> Result<bool, StoreError> {
        let (kind, subject, second) = kind_and_subject(revoked);
        let new = self
            .conn
            .prepare_cached(
                "INSERT INTO revocation (namespace, kind, subject, min_not_before_s, revoked_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (namespace, kind, subject) DO UPDATE
                 SET min_not_before_s = excluded.min_not_before_s, revoked_at = excluded.revoked_at
                 WHERE revocation.min_not_before_s < excluded.min_not_before_s",
            )?
            .execute((namespace(tenant), kind, subject, second, self.now, expires_at))?;
        if let (1.., Some(tenant)) = (new, tenant) {
            self.end_token_charges(tenant, revoked)?;
        }
        Ok(new > 0)
    }
}
