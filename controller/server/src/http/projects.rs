//! `/v1/projects`: the parts of a tenant, and their ceilings inside its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::TenantId;
use berth_api::rest::{CreateProject, ListQuery, Page, Project};
use berth_controller_core::quota::{Ceilings, MAX_CEILING, Resource};
use berth_controller_core::shape::validate_names;
use berth_controller_store::{NewProject, ProjectChange};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent, Shown};
use crate::http::body::{self, QueryOf};
use crate::http::gate::Scoped;
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;
use crate::http::tenants::{given, must_be_display_name};

const MAX_DEPARTMENT_CHARS: usize = 200;
const MAX_QUOTAS: usize = 80;

/// `PATCH /v1/projects/{project}`: what is not named stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeProject {
    display_name: Option<String>,
    #[serde(default, deserialize_with = "given")]
    department: Option<Option<String>>,
    labels: Option<BTreeMap<String, String>>,
    /// Ceilings by resource; `null` takes one away.
    #[serde(default)]
    quotas: BTreeMap<String, Option<u64>>,
}

/// The tenant whose projects these are. Operators name it in the path of another route; here everybody
/// is inside a namespace.
fn tenant_of(caller: &Scoped) -> Result<TenantId, ApiError> {
    caller.tenant().cloned()
}

/// Ceilings by the names of resources; `null` is none.
fn ceilings_of(asked: BTreeMap<String, Option<u64>>) -> Result<Ceilings, ApiError> {
    if asked.len() > MAX_QUOTAS {
        return Err(ApiError::field("quotas", "must name at most 80 resources"));
    }
    asked
        .into_iter()
        .map(|(name, ceiling)| {
            let resource = Resource::of_name(&name)
                .filter(|resource| !matches!(resource, Resource::Images | Resource::Tokens))
                .ok_or_else(|| {
                    ApiError::field(
                        "quotas",
                        "name resources as GET /v1/usage does; images and tokens are the whole tenant's",
                    )
                })?;
            match ceiling {
                Some(ceiling) if ceiling > MAX_CEILING => {
                    let most = format!("a ceiling is at most {MAX_CEILING}");
                    Err(ApiError::field("quotas", &most))
                }
                Some(_) | None => Ok((resource, ceiling)),
            }
        })
        .collect()
}

fn must_be_department(department: Option<&str>) -> Result<(), ApiError> {
    match department {
        Some(text)
            if text.chars().count() > MAX_DEPARTMENT_CHARS
                || text.chars().any(char::is_control) =>
        {
            Err(ApiError::field(
                "department",
                "must be at most 200 characters, none of them control characters",
            ))
        }
        Some(_) | None => Ok(()),
    }
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<CreateProject>,
) -> Result<Created<Project>, ApiError> {
    let asked = body.value;
    let project_id = asked.project_id.parse().map_err(|_| {
        let rule = berth_api::ids::ParseProjectIdError.to_string();
        ApiError::field("project_id", &rule)
    })?;
    let display_name = asked
        .display_name
        .unwrap_or_else(|| asked.project_id.clone());
    must_be_display_name(&display_name)?;
    must_be_department(asked.department.as_deref())?;
    validate_names(None, Some(&asked.labels))?;
    let new = NewProject {
        project_id,
        display_name,
        department: asked.department,
        labels: asked.labels,
        ceilings: ceilings_of(asked.quotas)?,
    };
    let key = idempotency.key(&caller, &body.bytes);
    let tenant = tenant_of(&caller)?;
    let cause = caller.cause();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| {
            Ok(tx
                .create_project(&tenant, new, &cause)?
                .map_err(ApiError::from))
        },
        Clone::clone,
    )
    .await?;
    Ok(done.answer(|project| {
        let location = format!("/v1/projects/{}", project.project_id);
        Created::at(project, location)
    }))
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Project>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = tenant_of(&caller)?;
    let only = caller.only_projects();
    let projects = app
        .read(move |db| match only {
            None => db.projects(&tenant, &after, limit + 1),
            Some(only) => only
                .iter()
                .filter(|id| id.as_str() > after.as_str())
                .filter_map(|id| db.project(&tenant, id).transpose())
                .take(usize::try_from(limit + 1).unwrap_or(usize::MAX))
                .collect(),
        })
        .await?;
    Ok(page(projects, limit, |project| {
        project.project_id.to_string()
    }))
}

pub(crate) async fn get(project: Owned<Project>) -> Shown<Project> {
    Shown(project.into_inner())
}

pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Scoped,
    project: Owned<Project>,
    if_match: IfMatch,
    body: body::Json<ChangeProject>,
) -> Result<Shown<Project>, ApiError> {
    let asked = body.value;
    let display_name = asked.display_name.as_deref();
    display_name.map_or(Ok(()), must_be_display_name)?;
    must_be_department(asked.department.as_ref().and_then(|text| text.as_deref()))?;
    validate_names(None, asked.labels.as_ref())?;
    let change = ProjectChange {
        display_name: asked.display_name,
        department: asked.department,
        labels: asked.labels,
        ceilings: ceilings_of(asked.quotas)?,
    };
    let (tenant, id) = (project.tenant_id.clone(), project.project_id.clone());
    let cause = caller.cause();
    app.write(move |tx| {
        if let Some(current) = tx.project(&tenant, &id)?
            && let Err(stale) = if_match.check(&current)
        {
            return Ok(Err(stale));
        }
        Ok(tx
            .change_project(&tenant, &id, change, &cause)?
            .map_err(ApiError::from))
    })
    .await?
    .map(Shown)
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Scoped,
    project: Owned<Project>,
    if_match: IfMatch,
) -> Result<NoContent, ApiError> {
    let (tenant, id) = (project.tenant_id.clone(), project.project_id.clone());
    let cause = caller.cause();
    app.write(move |tx| {
        if let Some(current) = tx.project(&tenant, &id)?
            && let Err(stale) = if_match.check(&current)
        {
            return Ok(Err(stale));
        }
        Ok(tx
            .delete_project(&tenant, &id, &cause)?
            .map_err(ApiError::from))
    })
    .await?
    .map(|()| NoContent)
}
