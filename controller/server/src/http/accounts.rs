//! `/v1/service-accounts` and the members of projects.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::rest::{
    ChangeServiceAccount, CreateServiceAccount, ListQuery, Page, Project, ProjectMember,
    ServiceAccount, SetMember,
};
use berth_controller_store::{AccountChange, NewServiceAccount};
use berth_token::SubjectKey;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent, Shown};
use crate::http::body::{self, QueryOf};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;
use crate::http::tenants::must_be_display_name;

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Scoped,
    project: Owned<Project>,
    idempotency: Idempotency,
    body: body::Json<CreateServiceAccount>,
) -> Result<Created<ServiceAccount>, ApiError> {
    let asked = body.value;
    let account_id = asked.account_id.parse().map_err(|_| {
        let rule = berth_api::ids::ParseAccountIdError.to_string();
        ApiError::field("account_id", &rule)
    })?;
    let display_name = asked
        .display_name
        .unwrap_or_else(|| asked.account_id.clone());
    must_be_display_name(&display_name)?;
    let key = SubjectKey::parse(&asked.subject_pubkey)
        .map_err(|error| ApiError::field("subject_pubkey", &error.to_string()))?;
    let new = NewServiceAccount {
        account_id,
        display_name,
        subject_pubkey: key.to_base64url(),
        role: asked.role,
    };
    let remembered = idempotency.key(&caller, &body.bytes);
    let (tenant, id) = (project.tenant_id.clone(), project.project_id.clone());
    let cause = caller.cause();
    let done = once(
        &app,
        remembered,
        StatusCode::CREATED,
        move |tx| {
            Ok(tx
                .create_service_account(&tenant, &id, &new, &cause)?
                .map_err(ApiError::from))
        },
        Clone::clone,
    )
    .await?;
    Ok(done.answer(|account| {
        let location = format!("/v1/service-accounts/{}", account.account_id);
        Created::at(account, location)
    }))
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<ServiceAccount>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = caller.tenant()?.clone();
    let accounts = app
        .read(move |db| db.service_accounts(&tenant, &after, limit + 1))
        .await?;
    Ok(page(accounts, limit, |account| {
        account.account_id.to_string()
    }))
}

pub(crate) async fn get(account: Owned<ServiceAccount>) -> Shown<ServiceAccount> {
    Shown(account.into_inner())
}

pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Scoped,
    account: Owned<ServiceAccount>,
    if_match: IfMatch,
    body: body::Json<ChangeServiceAccount>,
) -> Result<Shown<ServiceAccount>, ApiError> {
    let asked = body.value;
    let display_name = asked.display_name.as_deref();
    display_name.map_or(Ok(()), must_be_display_name)?;
    let change = AccountChange {
        display_name: asked.display_name,
        disabled: asked.disabled,
    };
    let (tenant, id) = (account.tenant_id.clone(), account.account_id.clone());
    let cause = caller.cause();
    app.write(move |tx| {
        if let Some(current) = tx.service_account(&tenant, &id)?
            && let Err(stale) = if_match.check(&current)
        {
            return Ok(Err(stale));
        }
        Ok(tx
            .change_service_account(&tenant, &id, change, &cause)?
            .map_err(ApiError::from))
    })
    .await?
    .map(Shown)
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Scoped,
    account: Owned<ServiceAccount>,
    if_match: IfMatch,
) -> Result<NoContent, ApiError> {
    let (tenant, id) = (account.tenant_id.clone(), account.account_id.clone());
    let cause = caller.cause();
    app.write(move |tx| {
        if let Some(current) = tx.service_account(&tenant, &id)?
            && let Err(stale) = if_match.check(&current)
        {
            return Ok(Err(stale));
        }
        Ok(tx
            .delete_service_account(&tenant, &id, &cause)?
            .map_err(ApiError::from))
    })
    .await?
    .map(|()| NoContent)
}

pub(crate) async fn members(
    State(app): State<Arc<App>>,
    project: Owned<Project>,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<ProjectMember>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let (tenant, id) = (project.tenant_id.clone(), project.project_id.clone());
    let members = app
        .read(move |db| db.project_members(&tenant, &id, &after, limit + 1))
        .await?;
    Ok(page(members, limit, |member| member.account_id.to_string()))
}

pub(crate) async fn set_member(
    State(app): State<Arc<App>>,
    caller: Scoped,
    project: Owned<Project>,
    account: Owned<ServiceAccount>,
    body: body::Json<SetMember>,
) -> Result<Shown<ProjectMember>, ApiError> {
    let (tenant, id) = (project.tenant_id.clone(), project.project_id.clone());
    let account = account.account_id.clone();
    let role = body.value.role;
    let cause = caller.cause();
    app.write(move |tx| {
        Ok(tx
            .set_project_member(&tenant, &id, &account, role, &cause)?
            .map_err(ApiError::from))
    })
    .await?
    .map(Shown)
}

pub(crate) async fn remove_member(
    State(app): State<Arc<App>>,
    caller: Scoped,
    project: Owned<Project>,
    account: Owned<ServiceAccount>,
) -> Result<NoContent, ApiError> {
    let (tenant, id) = (project.tenant_id.clone(), project.project_id.clone());
    let account = account.account_id.clone();
    let cause = caller.cause();
    app.write(move |tx| {
        Ok(tx
            .remove_project_member(&tenant, &id, &account, &cause)?
            .map_err(ApiError::from))
    })
    .await?
    .map(|()| NoContent)
}
