//! People: linking them to tenants (`/v1/tenants/{tenant}/persons`, `/v1/persons/{person}`), and their
//! signing in (`/v1/identity/token`). What a person may do is what the link says; of what the identity
//! provider says, only who it is counts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::ids::TokenId;
use berth_api::rest::{
    AuditActor, ErrorCode, IssuedToken, LinkPerson, ListQuery, Page, Person, SignIn,
};
use berth_controller_store::{
    LinkPersonDenied, NewPerson, NewTokenRecord, RevokeDenied, Revoked, SignInDenied, request_cause,
};
use berth_token::{NewLink, ScopeSet, SubjectKey};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::answer::{Created, NoContent, Shown};
use crate::http::body::{self, QueryOf};
use crate::http::gate::{Scoped, Source, admit_stranger, refuse_stranger};
use crate::http::once::{Idempotency, once};
use crate::http::owned::Owned;
use crate::http::page::{limit_of, page};
use crate::http::precondition::IfMatch;
use crate::http::tenants::must_be_display_name;
use crate::http::tokens::{
    begin_for, mint, must_issue, not_recorded, not_revoked, rfc3339_s, scopes_for,
};
use crate::identity::{IdentityError, IdentityProvider, JwtError};

const LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=3_600;
const DEFAULT_LIFETIME_S: u64 = 3_600;
const MAX_SUBJECT_CHARS: usize = 255;

/// `POST /v1/tenants/{tenant}/persons`
pub(crate) async fn link(
    State(app): State<Arc<App>>,
    caller: Scoped,
    idempotency: Idempotency,
    body: body::Json<LinkPerson>,
) -> Result<Created<Person>, ApiError> {
    let key = idempotency.key(&caller, &body.bytes);
    let asked = body.value;
    let tenant = caller.tenant()?.clone();
    must_issue(&caller)?;
    let scopes = scopes_for(&caller, asked.scope)?;
    if !(1..=MAX_SUBJECT_CHARS).contains(&asked.subject.chars().count()) {
        return Err(ApiError::field("subject", "must be 1 to 255 characters"));
    }
    let display_name = asked.display_name.unwrap_or_else(|| asked.subject.clone());
    must_be_display_name(&display_name)?;
    let provider = app.identity.as_ref().ok_or_else(|| {
        ApiError::new(
            ErrorCode::InvalidState,
            "no identity provider is configured",
            "An operator names one in controller.toml: docs/identity.md.",
        )
    })?;
    let new = NewPerson {
        issuer: provider.issuer().to_owned(),
        subject: asked.subject,
        display_name,
        scope: scopes.to_texts(),
        // Who must sign its own requests lets nobody in who need not.
        requires_pop: caller.grant.requires_pop,
    };
    let cause = caller.cause();
    let done = once(
        &app,
        key,
        StatusCode::CREATED,
        move |tx| Ok(tx.link_person(&tenant, &new, &cause)?.map_err(not_linked)),
        Clone::clone,
    )
    .await?;
    Ok(done.answer(|person| {
        let location = format!("/v1/persons/{}", person.id);
        Created::at(person, location)
    }))
}

fn not_linked(denied: LinkPersonDenied) -> ApiError {
    match denied {
        LinkPersonDenied::NoTenant => ApiError::not_found(),
        LinkPersonDenied::Exists(_) => ApiError::new(
            ErrorCode::AlreadyExists,
            denied.to_string(),
            "Unlink it first, and link it anew with what it is to be able to do.",
        ),
        LinkPersonDenied::TooMany => ApiError::new(
            ErrorCode::InvalidState,
            denied.to_string(),
            "Unlink those who have left.",
        ),
    }
}

/// `GET /v1/tenants/{tenant}/persons`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Scoped,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page<Person>>, ApiError> {
    let limit = limit_of(query.limit)?;
    let after = query.page_token.unwrap_or_default();
    let tenant = caller.tenant()?.clone();
    let persons = app
        .read(move |db| match db.tenant(&tenant)? {
            None => Ok(None),
            Some(_) => db.persons(&tenant, &after, limit + 1).map(Some),
        })
        .await?
        .ok_or_else(ApiError::not_found)?;
    Ok(page(persons, limit, |person| person.id.to_string()))
}

pub(crate) async fn get(person: Owned<Person>) -> Shown<Person> {
    Shown(person.into_inner())
}

/// The person's tokens open nothing from here on.
pub(crate) async fn unlink(
    State(app): State<Arc<App>>,
    caller: Scoped,
    person: Owned<Person>,
    if_match: IfMatch,
) -> Result<NoContent, ApiError> {
    if_match.check(&*person)?;
    let person = person.into_inner();
    let tenant = person.tenant_id.clone();
    let cause = caller.cause();
    let ended: Result<Vec<TokenId>, RevokeDenied> = app
        .write(move |tx| tx.unlink_person(&person, &cause))
        .await?;
    for token in ended.map_err(|denied| not_revoked(&denied))? {
        app.tokens
            .revoke(Some(tenant.clone()), &Revoked::Link(token));
    }
    Ok(NoContent)
}

/// `POST /v1/identity/token`
pub(crate) async fn sign_in(
    State(app): State<Arc<App>>,
    source: Source,
    body: body::Json<SignIn>,
) -> Result<Created<IssuedToken>, ApiError> {
    admit_stranger(&app, &source)?;
    let provider = app.identity.as_ref().ok_or_else(|| {
        ApiError::new(
            ErrorCode::NotFound,
            "no identity provider is configured",
            "Ask your administrator for a token.",
        )
    })?;
    match try_sign_in(&app, provider, &source, body.value).await {
        Ok(issued) => Ok(Created::new(issued)),
        Err(error) => Err(refuse_stranger(&app, &source, error).await),
    }
}

async fn try_sign_in(
    app: &Arc<App>,
    provider: &IdentityProvider,
    source: &Source,
    asked: SignIn,
) -> Result<IssuedToken, ApiError> {
    let holder = SubjectKey::parse(&asked.subject_pubkey)
        .map_err(|error| ApiError::field("subject_pubkey", &error.to_string()))?;
    let lifetime_s = asked.expires_in_seconds.unwrap_or(DEFAULT_LIFETIME_S);
    if !LIFETIME_S.contains(&lifetime_s) {
        return Err(ApiError::field("expires_in_seconds", "must be 60 to 3600"));
    }
    let now_s = jiff::Timestamp::now().as_second();
    let subject = provider.subject(&asked.id_token, now_s).await?;
    let issuer = provider.issuer().to_owned();
    let links = app.read(move |db| db.links_of(&issuer, &subject)).await?;
    let person = one_of(links, asked.tenant_id.as_deref())?;
    let link = link_of(app, &person, holder, lifetime_s)?;
    let token = mint(app, &link)?;
    let record = NewTokenRecord {
        token_id: link.token_id,
        tenant_id: link.tenant.clone(),
        scope: link.scopes.to_texts(),
        resources: None,
        requires_pop: link.requires_pop,
        subject_pubkey: link.holder.to_base64url(),
        label: Some(person.display_name.clone()),
        issued_at_s: link.not_before,
        expires_at_s: link.expires_at,
        vm_id: None,
    };
    let issued = IssuedToken {
        token,
        token_id: link.token_id,
        tenant_id: person.tenant_id.clone(),
        scope: record.scope.clone(),
        resources: None,
        require_pop: link.requires_pop,
        subject_pubkey: record.subject_pubkey.clone(),
        issued_at: rfc3339_s(link.not_before),
        expires_at: rfc3339_s(link.expires_at),
    };
    let actor = AuditActor {
        kind: "person".to_owned(),
        token_id: None,
        subject_key: Some(record.subject_pubkey.clone()),
    };
    let cause = request_cause(actor, source.0.clone());
    app.write(move |tx| tx.record_person_token(&person, &record, &cause))
        .await?
        .map_err(not_signed_in)?;
    Ok(issued)
}

/// The link that is meant. Of tenants that a person is not linked to, nothing is told.
fn one_of(links: Vec<Person>, tenant: Option<&str>) -> Result<Person, ApiError> {
    let is_several = links.len() > 1;
    let mut meant = links
        .into_iter()
        .filter(|link| tenant.is_none_or(|named| named == link.tenant_id.as_str()));
    match meant.next() {
        None => Err(stranger()),
        Some(_) if tenant.is_none() && is_several => Err(ApiError::field(
            "tenant_id",
            "is required: the person is linked to several tenants",
        )),
        Some(link) => Ok(link),
    }
}

/// A token that nothing hangs on: it is not narrowed and issues no other, so that it ends whole.
fn link_of(
    app: &App,
    person: &Person,
    holder: SubjectKey,
    lifetime_s: u64,
) -> Result<NewLink, ApiError> {
    let begin = begin_for(app, &person.tenant_id, &holder)?;
    let lifetime = i64::try_from(lifetime_s).unwrap_or(i64::MAX);
    Ok(NewLink {
        token_id: TokenId::generate(),
        tenant: Some(person.tenant_id.clone()),
        holder,
        scopes: ScopeSet::parse(&person.scope).map_err(|_| ApiError::internal())?,
        resources: None,
        not_before: begin,
        expires_at: begin.saturating_add(lifetime),
        delegations: 0,
        requires_pop: person.require_pop,
    })
}

fn stranger() -> ApiError {
    ApiError::new(
        ErrorCode::PermissionDenied,
        "the identity provider knows the person, and nobody here has let the person in",
        "Ask the tenant's administrator to link the subject (`sub`) of your ID token.",
    )
}

fn not_signed_in(denied: SignInDenied) -> ApiError {
    match denied {
        SignInDenied::NotLinked => stranger(),
        SignInDenied::Suspended => ApiError::suspended(),
        SignInDenied::NotAllowed => ApiError::action_not_allowed("token.issue"),
        SignInDenied::TooMany => ApiError::new(
            ErrorCode::InvalidState,
            denied.to_string(),
            "Use one of them, or wait until one has ended; none lasts longer than an hour.",
        ),
        SignInDenied::Token(denied) => not_recorded(denied),
    }
}

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        let token = |code, why: JwtError| {
            Self::new(
                code,
                format!("the ID token is not taken: {why}"),
                "Sign in at the identity provider again, and send the new ID token.",
            )
        };
        match error {
            IdentityError::Token(JwtError::Expired) => {
                token(ErrorCode::TokenExpired, JwtError::Expired)
            }
            IdentityError::Token(why) => token(ErrorCode::InvalidToken, why),
            IdentityError::Unavailable => Self::under_way(
                ErrorCode::IdentityUnavailable,
                "the identity provider's keys cannot be read",
                "Try again in a moment; tokens that were issued before go on.",
            ),
        }
    }
}
