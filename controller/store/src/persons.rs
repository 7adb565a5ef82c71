//! People: who is linked to which tenant with which scopes, and the tokens that each of them has. Who a
//! person is was decided by the identity provider before; what it may do is decided by these rows alone.

use berth_api::ids::{PersonId, TenantId, TokenId};
use berth_api::rest::{AuditObject, Person};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::revocations::{RevokeDenied, Revoked};
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::tenants::object;
use crate::tokens::{NewTokenRecord, RecordTokenDenied};
use crate::writer::WriteTx;

const SELECT: &str = "SELECT person_id, tenant_id, issuer, subject, display_name, scopes,
    requires_pop, created_at, audit_index FROM person";
/// People that a tenant can have.
const MAX_PERSONS: u32 = 10_000;
/// Tokens of one person that are good at once: unlinking ends them all in one change.
const MAX_TOKENS: u32 = 32;

/// A person to be linked.
#[derive(Clone, Debug)]
pub struct NewPerson {
    /// The identity provider.
    pub issuer: String,
    /// Who it is there.
    pub subject: String,
    /// For people.
    pub display_name: String,
    /// What it may do.
    pub scope: Vec<String>,
    /// Whether each request with its tokens must be signed.
    pub requires_pop: bool,
}

/// Why a person was not linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkPersonDenied {
    /// The tenant is gone.
    #[error("the tenant does not exist")]
    NoTenant,
    /// The person is linked to the tenant already.
    #[error("the person is linked to the tenant as {0}")]
    Exists(PersonId),
    /// The tenant has as many as it can.
    #[error("a tenant has at most {MAX_PERSONS} persons")]
    TooMany,
}

/// Why a person got no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignInDenied {
    /// Nobody has linked the person, or the link or its tenant has ended.
    #[error("the person is not linked")]
    NotLinked,
    /// An operator suspended the tenant.
    #[error("the tenant is suspended")]
    Suspended,
    /// The operator did not give the tenant tokens to issue.
    #[error("the tenant may not issue tokens")]
    NotAllowed,
    /// The person has as many as it can.
    #[error("the person has {MAX_TOKENS} tokens that are good")]
    TooMany,
    /// The token could not be recorded.
    #[error(transparent)]
    Token(#[from] RecordTokenDenied),
}

impl Db<'_> {
    /// A person of this tenant, or of any if `tenant` is `None`.
    pub fn person(
        &self,
        tenant: Option<&TenantId>,
        id: PersonId,
    ) -> Result<Option<Person>, StoreError> {
        let sql = format!("{SELECT} WHERE person_id = ?1 AND (?2 IS NULL OR tenant_id = ?2)");
        self.conn
            .prepare_cached(&sql)?
            .query_row((id.to_string(), tenant.map(TenantId::as_str)), person_row)
            .optional()?
            .map(PersonRow::into_person)
            .transpose()
    }

    /// A tenant's people after an id, in the order of their linking.
    pub fn persons(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Person>, StoreError> {
        let sql =
            format!("{SELECT} WHERE tenant_id = ?1 AND person_id > ?2 ORDER BY person_id LIMIT ?3");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((tenant.as_str(), after, limit), person_row)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(PersonRow::into_person).collect()
    }

    /// Every link of one person, in the order of the tenants' ids; to tenants that are there.
    pub fn links_of(&self, issuer: &str, subject: &str) -> Result<Vec<Person>, StoreError> {
        let sql = format!("{SELECT} WHERE issuer = ?1 AND subject = ?2 ORDER BY tenant_id");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((issuer, subject), person_row)?
            .collect::<Result<Vec<_>, _>>()?;
        let mut links = Vec::new();
        for row in rows {
            let person = row.into_person()?;
            if self.tenant_standing(&person.tenant_id)?.is_some() {
                links.push(person);
            }
        }
        Ok(links)
    }
}

impl WriteTx<'_> {
    /// Let a person sign in for a tenant.
    pub fn link_person(
        &mut self,
        tenant: &TenantId,
        new: &NewPerson,
        cause: &Cause,
    ) -> Result<Result<Person, LinkPersonDenied>, StoreError> {
        if self.tenant_standing(tenant)?.is_none() {
            return Ok(Err(LinkPersonDenied::NoTenant));
        }
        let links = self.links_of(&new.issuer, &new.subject)?;
        if let Some(linked) = links.iter().find(|link| link.tenant_id == *tenant) {
            return Ok(Err(LinkPersonDenied::Exists(linked.id)));
        }
        let count: u32 = self
            .conn
            .prepare_cached("SELECT COUNT(*) FROM person WHERE tenant_id = ?1")?
            .query_row((tenant.as_str(),), |row| row.get(0))?;
        if count >= MAX_PERSONS {
            return Ok(Err(LinkPersonDenied::TooMany));
        }
        let id = PersonId::generate();
        let detail = json!({
            "issuer": new.issuer,
            "subject": new.subject,
            "display_name": new.display_name,
            "scope": new.scope,
            "require_pop": new.requires_pop,
        });
        let index = self.append(about("PERSON_LINKED", tenant, id, detail), cause)?;
        self.conn
            .prepare_cached(
                "INSERT INTO person (tenant_id, person_id, issuer, subject, display_name, scopes,
                   requires_pop, created_at, audit_index)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .send((
                tenant.as_str(),
                id.to_string(),
                &new.issuer,
                &new.subject,
                &new.display_name,
                json!(new.scope).to_string(),
                i64::from(new.requires_pop),
                self.now,
                index,
            ))?;
        let linked = self.person(Some(tenant), id)?;
        Ok(Ok(linked.ok_or(StoreError::Corrupt { what: "new person" })?))
    }

    /// End a link and the tokens that were given for it; which ones.
    pub fn unlink_person(
        &mut self,
        person: &Person,
        cause: &Cause,
    ) -> Result<Result<Vec<TokenId>, RevokeDenied>, StoreError> {
        let tenant = &person.tenant_id;
        if self.person(Some(tenant), person.id)?.is_none() {
            return Ok(Err(RevokeDenied::NotFound));
        }
        let key = (tenant.as_str(), person.id.to_string());
        let rows: Vec<(String, i64)> = self
            .conn
            .prepare_cached(
                "SELECT token_id, expires_at FROM person_token
                 WHERE tenant_id = ?1 AND person_id = ?2 ORDER BY token_id",
            )?
            .query_map(key.clone(), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut ended = Vec::new();
        for (token, expires_at) in rows {
            if expires_at <= self.now {
                continue;
            }
            let token = parsed(&token, "token id")?;
            let link = Revoked::Link(token);
            let why = Some("the person was unlinked");
            if let Err(denied) = self.put_revocation(Some(tenant), &link, expires_at, why, cause)? {
                return Ok(Err(denied));
            }
            ended.push(token);
        }
        let detail = json!({
            "issuer": person.issuer,
            "subject": person.subject,
            "tokens": ended.len(),
        });
        self.append(about("PERSON_UNLINKED", tenant, person.id, detail), cause)?;
        // Not before all of them are revoked: a refusal leaves the link and what it gave as they were known.
        self.conn
            .prepare_cached("DELETE FROM person_token WHERE tenant_id = ?1 AND person_id = ?2")?
            .execute(key.clone())?;
        self.conn
            .prepare_cached("DELETE FROM person WHERE tenant_id = ?1 AND person_id = ?2")?
            .send(key)?;
        Ok(Ok(ended))
    }

    /// Record a token that a person gets, if the link is still there.
    pub fn record_person_token(
        &mut self,
        person: &Person,
        new: &NewTokenRecord,
        cause: &Cause,
    ) -> Result<Result<(), SignInDenied>, StoreError> {
        let tenant = &person.tenant_id;
        if self.person(Some(tenant), person.id)?.is_none() {
            return Ok(Err(SignInDenied::NotLinked));
        }
        let Some(standing) = self.tenant_standing(tenant)? else {
            return Ok(Err(SignInDenied::NotLinked));
        };
        if standing.is_suspended {
            return Ok(Err(SignInDenied::Suspended));
        }
        if !standing.allows("token.issue") {
            return Ok(Err(SignInDenied::NotAllowed));
        }
        let id = person.id.to_string();
        self.conn
            .prepare_cached(
                "DELETE FROM person_token
                 WHERE tenant_id = ?1 AND person_id = ?2 AND expires_at <= ?3",
            )?
            .send((tenant.as_str(), &id, self.now))?;
        let count: u32 = self
            .conn
            .prepare_cached(
                "SELECT COUNT(*) FROM person_token WHERE tenant_id = ?1 AND person_id = ?2",
            )?
            .query_row((tenant.as_str(), &id), |row| row.get(0))?;
        if count >= MAX_TOKENS {
            return Ok(Err(SignInDenied::TooMany));
        }
        if let Err(denied) = self.record_token(new, cause)? {
            return Ok(Err(denied.into()));
        }
        self.conn
            .prepare_cached(
                "INSERT INTO person_token (tenant_id, person_id, token_id, expires_at)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .send((
                tenant.as_str(),
                &id,
                new.token_id.to_string(),
                new.expires_at_s.saturating_mul(1000),
            ))?;
        let detail = json!({
            "issuer": person.issuer,
            "subject": person.subject,
            "token_id": new.token_id,
        });
        self.append(about("PERSON_SIGNED_IN", tenant, person.id, detail), cause)?;
        Ok(Ok(()))
    }
}

fn about(
    event_type: &'static str,
    tenant: &TenantId,
    person: PersonId,
    detail: serde_json::Value,
) -> NewEvent {
    NewEvent {
        event_type,
        tenant_id: Some(tenant.clone()),
        object: Some(AuditObject {
            kind: "person".to_owned(),
            id: person.to_string(),
        }),
        outcome: "completed",
        detail: object(detail),
        ..NewEvent::default()
    }
}

struct PersonRow {
    person_id: String,
    tenant_id: String,
    issuer: String,
    subject: String,
    display_name: String,
    scopes: String,
    requires_pop: i64,
    created_at: i64,
    audit_index: u64,
}

fn person_row(row: &Row<'_>) -> crate::sql::Result<PersonRow> {
    Ok(PersonRow {
        person_id: row.get(0)?,
        tenant_id: row.get(1)?,
        issuer: row.get(2)?,
        subject: row.get(3)?,
        display_name: row.get(4)?,
        scopes: row.get(5)?,
        requires_pop: row.get(6)?,
        created_at: row.get(7)?,
        audit_index: row.get(8)?,
    })
}

impl PersonRow {
    fn into_person(self) -> Result<Person, StoreError> {
        Ok(Person {
            id: parsed(&self.person_id, "person's id")?,
            tenant_id: parsed(&self.tenant_id, "tenant id")?,
            issuer: self.issuer,
            subject: self.subject,
            display_name: self.display_name,
            scope: serde_json::from_str(&self.scopes)
                .map_err(|_| StoreError::Corrupt { what: "scope list" })?,
            require_pop: self.requires_pop != 0,
            created_at: rfc3339(self.created_at),
            audit_index: self.audit_index,
        })
    }
}

#[cfg(test)]
mod tests;
