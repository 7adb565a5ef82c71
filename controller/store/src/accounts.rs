//! Service accounts: who they are, and what they are in projects. What they may do is decided by
//! `berth_controller_core::authority`; tokens are `tokens`' business.

use std::collections::BTreeMap;

use berth_api::ids::{AccountId, ProjectId, TenantId};
use berth_api::rest::{ProjectMember, Role, ServiceAccount};
use berth_controller_core::authority::{
    Actor, Denied, Membership, Permission, Presence, admit, decide,
};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{parsed, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

const SELECT: &str = "SELECT account_id, project_id, display_name, subject_key,
    disabled_at IS NOT NULL, created_at, revision, audit_index FROM service_account
    WHERE tenant_id = ?1 AND deleted_at IS NULL";

/// Service accounts that a tenant can ever have, deleted ones included: each keeps its row.
const MAX_ACCOUNTS: u32 = 1_000;

/// A service account to be made.
#[derive(Clone, Debug)]
pub struct NewServiceAccount {
    /// Its id, for ever.
    pub account_id: AccountId,
    /// For people.
    pub display_name: String,
    /// base64url of its public key.
    pub subject_pubkey: String,
    /// What it is in its project.
    pub role: Role,
}

/// What to change of a service account; `None` leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct AccountChange {
    /// For people.
    pub display_name: Option<String>,
    /// Switch it off or on.
    pub disabled: Option<bool>,
}

/// Why a service account was not made or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountDenied {
    /// There is no such account, or no such project.
    #[error("there is no such service account")]
    NotFound,
    /// It exists, or it existed.
    #[error("a service account of that id exists or existed, and ids are never used again")]
    Exists,
    /// Another account has the key, or had it.
    #[error("another service account has or had that key")]
    KeyTaken,
    /// The tenant has had as many as it can.
    #[error("a tenant has at most {MAX_ACCOUNTS} service accounts, deleted ones included")]
    TooMany,
}

/// How a service account stands when it asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountStanding {
    /// Which account.
    pub account_id: AccountId,
    actor: Actor,
    memberships: BTreeMap<ProjectId, Membership>,
}

impl AccountStanding {
    /// Whether it is let in at all.
    pub fn admit(&self) -> Result<(), Denied> {
        admit(self.actor)
    }

    /// Whether it may do this in a project of its tenant.
    pub fn decide(&self, project: &ProjectId, wanted: Permission) -> Result<(), Denied> {
        decide(self.actor, self.memberships.get(project).copied(), wanted)
    }

    /// The projects of which it is a member.
    pub fn projects(&self) -> impl Iterator<Item = &ProjectId> {
        self.memberships.keys()
    }
}

fn presence(is_there: bool) -> Presence {
    if is_there {
        Presence::There
    } else {
        Presence::Deleted
    }
}

impl Db<'_> {
    /// A tenant's live service account.
    pub fn service_account(
        &self,
        tenant: &TenantId,
        account: &AccountId,
    ) -> Result<Option<ServiceAccount>, StoreError> {
        let sql = format!("{SELECT} AND account_id = ?2");
        self.conn
            .prepare_cached(&sql)?
            .query_row((tenant.as_str(), account.as_str()), account_row)
            .optional()?
            .map(|row| row.into_account(tenant, self))
            .transpose()
    }

    /// A tenant's live service accounts after an id, in the order of their ids.
    pub fn service_accounts(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<ServiceAccount>, StoreError> {
        let sql = format!("{SELECT} AND account_id > ?2 ORDER BY account_id LIMIT ?3");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select
            .query_map((tenant.as_str(), after, limit), account_row)?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|row| row.into_account(tenant, self))
            .collect()
    }

    /// The live members of a project after an id, in the order of their ids.
    pub fn project_members(
        &self,
        tenant: &TenantId,
        project: &ProjectId,
        after: &str,
        limit: u32,
    ) -> Result<Vec<ProjectMember>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT member.account_id, member.role FROM project_member AS member
             JOIN service_account AS account ON account.tenant_id = member.tenant_id
               AND account.account_id = member.account_id AND account.deleted_at IS NULL
             WHERE member.tenant_id = ?1 AND member.project_id = ?2 AND member.account_id > ?3
             ORDER BY member.account_id LIMIT ?4",
        )?;
        let rows = select
            .query_map((tenant.as_str(), project.as_str(), after, limit), |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|(account, role)| {
                Ok(ProjectMember {
                    project_id: project.clone(),
                    account_id: parsed(&account, "service account's id")?,
                    role: parsed(&role, "role")?,
                })
            })
            .collect()
    }

    /// The service accounts of a tenant, deleted ones too, among the holders of a token.
    pub fn accounts_of(
        &self,
        tenant: &TenantId,
        holders: &[String],
    ) -> Result<Vec<AccountStanding>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT account.account_id, account.disabled_at IS NOT NULL,
               account.deleted_at IS NULL AND project.deleted_at IS NULL
             FROM service_account AS account JOIN project
               ON project.tenant_id = account.tenant_id AND project.project_id = account.project_id
             WHERE account.tenant_id = ?1 AND account.subject_key = ?2",
        )?;
        let mut found = Vec::new();
        for holder in holders {
            let row: Option<(String, bool, bool)> = select
                .query_row((tenant.as_str(), holder), |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()?;
            if let Some((account, is_disabled, is_there)) = row {
                found.push(AccountStanding {
                    memberships: self.memberships(tenant, &account)?,
                    account_id: parsed(&account, "service account's id")?,
                    actor: Actor::Account {
                        presence: presence(is_there),
                        is_disabled,
                    },
                });
            }
        }
        Ok(found)
    }

    fn memberships(
        &self,
        tenant: &TenantId,
        account: &str,
    ) -> Result<BTreeMap<ProjectId, Membership>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT member.project_id, member.role, project.deleted_at IS NULL
             FROM project_member AS member JOIN project
               ON project.tenant_id = member.tenant_id AND project.project_id = member.project_id
             WHERE member.tenant_id = ?1 AND member.account_id = ?2 ORDER BY member.project_id",
        )?;
        let rows = select
            .query_map((tenant.as_str(), account), |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, bool>(2)?,
                ))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|(project, role, is_there)| {
                let membership = Membership {
                    role: parsed(&role, "role")?,
                    presence: Presence::There,
                    project: presence(is_there),
                };
                Ok((parsed(&project, "project id")?, membership))
            })
            .collect()
    }
}

impl WriteTx<'_> {
    /// Make a service account of a live project, and make it a member there.
    pub fn create_service_account(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        new: &NewServiceAccount,
        cause: &Cause,
    ) -> Result<Result<ServiceAccount, AccountDenied>, StoreError> {
        if !self.has_project(tenant, project)? {
            return Ok(Err(AccountDenied::NotFound));
        }
        if let Some(denied) = self.stands_against(tenant, new)? {
            return Ok(Err(denied));
        }
        let audit_index = self.append(
            NewEvent {
                event_type: "SERVICE_ACCOUNT_CREATED",
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({
                    "account_id": new.account_id,
                    "project_id": project,
                    "display_name": new.display_name,
                    "subject_pubkey": new.subject_pubkey,
                    "role": new.role,
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn
            .prepare_cached(
                "INSERT INTO service_account (tenant_id, account_id, project_id, display_name,
                   subject_key, created_at, revision, audit_index)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7)",
            )?
            .send((
                tenant.as_str(),
                new.account_id.as_str(),
                project.as_str(),
                &new.display_name,
                &new.subject_pubkey,
                self.now,
                audit_index,
            ))?;
        self.put_member(tenant, project, &new.account_id, new.role)?;
        self.made(tenant, &new.account_id)
    }

    fn stands_against(
        &self,
        tenant: &TenantId,
        new: &NewServiceAccount,
    ) -> Result<Option<AccountDenied>, StoreError> {
        let count = |filter: &str, text: &str| -> Result<u32, StoreError> {
            let sql = format!(
                "SELECT COUNT(*) FROM service_account WHERE tenant_id = ?1 AND {filter} = ?2"
            );
            Ok(self
                .conn
                .prepare_cached(&sql)?
                .query_row((tenant.as_str(), text), |row| row.get(0))?)
        };
        if count("account_id", new.account_id.as_str())? > 0 {
            return Ok(Some(AccountDenied::Exists));
        }
        if count("subject_key", &new.subject_pubkey)? > 0 {
            return Ok(Some(AccountDenied::KeyTaken));
        }
        let known = count("tenant_id", tenant.as_str())?;
        Ok((known >= MAX_ACCOUNTS).then_some(AccountDenied::TooMany))
    }

    fn made(
        &self,
        tenant: &TenantId,
        account: &AccountId,
    ) -> Result<Result<ServiceAccount, AccountDenied>, StoreError> {
        self.service_account(tenant, account)?
            .map(Ok)
            .ok_or(StoreError::Corrupt {
                what: "service account",
            })
    }

    /// Change a live service account.
    pub fn change_service_account(
        &mut self,
        tenant: &TenantId,
        account: &AccountId,
        change: AccountChange,
        cause: &Cause,
    ) -> Result<Result<ServiceAccount, AccountDenied>, StoreError> {
        let Some(old) = self.service_account(tenant, account)? else {
            return Ok(Err(AccountDenied::NotFound));
        };
        let display_name = change.display_name.unwrap_or(old.display_name);
        let disabled = change.disabled.unwrap_or(old.disabled);
        let audit_index = self.append(
            NewEvent {
                event_type: "SERVICE_ACCOUNT_CHANGED",
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({
                    "account_id": account,
                    "display_name": display_name,
                    "disabled": disabled,
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn
            .prepare_cached(
                "UPDATE service_account SET display_name = ?3, disabled_at = ?4,
                 revision = revision + 1, audit_index = ?5
                 WHERE tenant_id = ?1 AND account_id = ?2",
            )?
            .send((
                tenant.as_str(),
                account.as_str(),
                &display_name,
                disabled.then_some(self.now),
                audit_index,
            ))?;
        self.made(tenant, account)
    }

    /// Delete a service account; its row stays, so that its key authorises nothing ever again.
    pub fn delete_service_account(
        &mut self,
        tenant: &TenantId,
        account: &AccountId,
        cause: &Cause,
    ) -> Result<Result<(), AccountDenied>, StoreError> {
        if self.service_account(tenant, account)?.is_none() {
            return Ok(Err(AccountDenied::NotFound));
        }
        let audit_index = self.append(
            NewEvent {
                event_type: "SERVICE_ACCOUNT_DELETED",
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(json!({ "account_id": account })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn
            .prepare_cached(
                "UPDATE service_account SET deleted_at = ?3, revision = revision + 1,
                 audit_index = ?4 WHERE tenant_id = ?1 AND account_id = ?2",
            )?
            .send((tenant.as_str(), account.as_str(), self.now, audit_index))?;
        Ok(Ok(()))
    }

    /// Make an account a member of a live project, or give it another role there. What is as wished
    /// already is no change and no event.
    pub fn set_project_member(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        account: &AccountId,
        role: Role,
        cause: &Cause,
    ) -> Result<Result<ProjectMember, AccountDenied>, StoreError> {
        let Some(found) = self.service_account(tenant, account)? else {
            return Ok(Err(AccountDenied::NotFound));
        };
        if !self.has_project(tenant, project)? {
            return Ok(Err(AccountDenied::NotFound));
        }
        let member = ProjectMember {
            project_id: project.clone(),
            account_id: account.clone(),
            role,
        };
        if found.roles.get(project) == Some(&role) {
            return Ok(Ok(member));
        }
        let detail = json!({
            "account_id": account,
            "project_id": project,
            "role": role,
            "old_role": found.roles.get(project),
        });
        self.note_membership("PROJECT_MEMBER_SET", tenant, account, detail, cause)?;
        self.put_member(tenant, project, account, role)?;
        Ok(Ok(member))
    }

    /// End an account's membership of a project.
    pub fn remove_project_member(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        account: &AccountId,
        cause: &Cause,
    ) -> Result<Result<(), AccountDenied>, StoreError> {
        let found = self.service_account(tenant, account)?;
        let Some(role) = found.and_then(|found| found.roles.get(project).copied()) else {
            return Ok(Err(AccountDenied::NotFound));
        };
        let detail = json!({ "account_id": account, "project_id": project, "old_role": role });
        self.note_membership("PROJECT_MEMBER_REMOVED", tenant, account, detail, cause)?;
        self.conn
            .prepare_cached(
                "DELETE FROM project_member
                 WHERE tenant_id = ?1 AND account_id = ?2 AND project_id = ?3",
            )?
            .send((tenant.as_str(), account.as_str(), project.as_str()))?;
        Ok(Ok(()))
    }

    fn note_membership(
        &mut self,
        event_type: &'static str,
        tenant: &TenantId,
        account: &AccountId,
        detail: serde_json::Value,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let audit_index = self.append(
            NewEvent {
                event_type,
                tenant_id: Some(tenant.clone()),
                outcome: "completed",
                detail: object(detail),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.conn
            .prepare_cached(
                "UPDATE service_account SET revision = revision + 1, audit_index = ?3
                 WHERE tenant_id = ?1 AND account_id = ?2",
            )?
            .send((tenant.as_str(), account.as_str(), audit_index))?;
        Ok(())
    }

    fn put_member(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        account: &AccountId,
        role: Role,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO project_member (tenant_id, account_id, project_id, role)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (tenant_id, account_id, project_id) DO UPDATE SET role = excluded.role",
            )?
            .send((
                tenant.as_str(),
                account.as_str(),
                project.as_str(),
                role.as_str(),
            ))?;
        Ok(())
    }
}

struct AccountRow {
    account_id: String,
    project_id: String,
    display_name: String,
    subject_key: String,
    disabled: bool,
    created_at: i64,
    revision: u64,
    audit_index: u64,
}

fn account_row(row: &Row<'_>) -> crate::sql::Result<AccountRow> {
    Ok(AccountRow {
        account_id: row.get(0)?,
        project_id: row.get(1)?,
        display_name: row.get(2)?,
        subject_key: row.get(3)?,
        disabled: row.get(4)?,
        created_at: row.get(5)?,
        revision: row.get(6)?,
        audit_index: row.get(7)?,
    })
}

impl AccountRow {
    fn into_account(self, tenant: &TenantId, db: &Db<'_>) -> Result<ServiceAccount, StoreError> {
        let memberships = db.memberships(tenant, &self.account_id)?;
        Ok(ServiceAccount {
            tenant_id: tenant.clone(),
            account_id: parsed(&self.account_id, "service account's id")?,
            project_id: parsed(&self.project_id, "project id")?,
            display_name: self.display_name,
            subject_pubkey: self.subject_key,
            disabled: self.disabled,
            roles: memberships
                .into_iter()
                .filter(|(_, membership)| membership.project == Presence::There)
                .map(|(project, membership)| (project, membership.role))
                .collect(),
            created_at: rfc3339(self.created_at),
            revision: self.revision,
            audit_index: self.audit_index,
        })
    }
}
