//! Reading bodies and queries: bounded, strict, and with errors that name the field.

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use berth_api::rest::ErrorCode;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::api_error::ApiError;
use crate::http::describe::{Sheet, Takes};

/// Longest body of a tenant's or operator's request, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// Longest body of an agent: a sync with a full console read and many VMs, in bytes.
pub(crate) const MAX_AGENT_BODY_BYTES: usize = 4 * 1024 * 1024;

/// A JSON body, and its bytes for the idempotency digest.
#[derive(Debug)]
pub(crate) struct Json<T> {
    pub(crate) value: T,
    pub(crate) bytes: Bytes,
}

/// A JSON body that may be left out or be an empty object, and its bytes for the idempotency digest.
#[derive(Debug)]
pub(crate) struct OptionalJson<T> {
    pub(crate) value: T,
    pub(crate) bytes: Bytes,
}

/// A JSON body of an agent.
#[derive(Debug)]
pub(crate) struct AgentJson<T>(pub(crate) T);

/// No body at all; an empty JSON object is let pass.
#[derive(Debug)]
pub(crate) struct NoBody;

/// The query string.
#[derive(Debug)]
pub(crate) struct QueryOf<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        must_be_json(request.headers())?;
        let bytes = bounded(request, MAX_BODY_BYTES).await?;
        Ok(Self {
            value: parse(&bytes)?,
            bytes,
        })
    }
}

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for AgentJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        must_be_json(request.headers())?;
        parse(&bounded(request, MAX_AGENT_BODY_BYTES).await?).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let headers = request.headers().clone();
        let bytes = bounded(request, MAX_BODY_BYTES).await?;
        if says_nothing(&bytes) {
            return Ok(Self {
                value: T::default(),
                bytes: Bytes::new(),
            });
        }
        must_be_json(&headers)?;
        Ok(Self {
            value: parse(&bytes)?,
            bytes,
        })
    }
}

impl<S: Sync> FromRequest<S> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = bounded(request, MAX_BODY_BYTES).await?;
        if says_nothing(&bytes) {
            Ok(Self)
        } else {
            Err(ApiError::new(
                ErrorCode::InvalidRequest,
                "this request takes no body",
                "Send it without a body.",
            ))
        }
    }
}

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::<T>::try_from_uri(&parts.uri)
            .map(|Query(value)| Self(value))
            .map_err(|rejection| explain(&rejection.body_text(), None))
    }
}

/// How any body can be refused.
const BODY_REFUSALS: &[ErrorCode] = &[ErrorCode::InvalidRequest, ErrorCode::PayloadTooLarge];
/// How a JSON body can be refused beyond that.
const JSON_REFUSALS: &[ErrorCode] = &[
    ErrorCode::UnknownField,
    ErrorCode::ShapeNotSupported,
    ErrorCode::UnsupportedMediaType,
];

impl<T: JsonSchema> Takes for Json<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.body::<T>(true);
        sheet.refuses(BODY_REFUSALS);
        sheet.refuses(JSON_REFUSALS);
    }
}

impl<T: JsonSchema> Takes for OptionalJson<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.body::<T>(false);
        sheet.refuses(BODY_REFUSALS);
        sheet.refuses(JSON_REFUSALS);
    }
}

impl<T: JsonSchema> Takes for AgentJson<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.body::<T>(true);
        sheet.refuses(BODY_REFUSALS);
        sheet.refuses(JSON_REFUSALS);
    }
}

impl Takes for NoBody {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.refuses(BODY_REFUSALS);
    }
}

impl<T: JsonSchema> Takes for QueryOf<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.query::<T>();
        sheet.refuses(&[
            ErrorCode::InvalidRequest,
            ErrorCode::UnknownField,
            ErrorCode::ShapeNotSupported,
        ]);
    }
}

fn says_nothing(body: &[u8]) -> bool {
    matches!(body, b"" | b"{}")
}

fn must_be_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if is_json {
        Ok(())
    } else {
        Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "the body must be JSON",
            "Send `Content-Type: application/json`.",
        ))
    }
}

async fn bounded(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    to_bytes(request.into_body(), limit).await.map_err(|error| {
        let too_long = std::error::Error::source(&error)
            .is_some_and(|source| source.to_string().contains("length limit"));
        if too_long {
            ApiError::new(
                ErrorCode::PayloadTooLarge,
                format!("the body has more than {limit} bytes"),
                "Send less.",
            )
        } else {
            ApiError::new(
                ErrorCode::InvalidRequest,
                "the body did not arrive whole",
                "Send it again.",
            )
        }
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let field = (path != "." && path != "?").then_some(path);
        explain(&error.inner().to_string(), field.as_deref())
    })?;
    reader
        .end()
        .map_err(|error| explain(&error.to_string(), None))?;
    Ok(value)
}

/// From serde's text to an error that names the field and does not repeat the value.
fn explain(text: &str, path: Option<&str>) -> ApiError {
    if let Some(field) = quoted_after(text, "unknown field `") {
        return ApiError::unknown_field(field);
    }
    for (marker, problem) in [
        ("missing field `", "is required"),
        ("duplicate field `", "is given twice"),
    ] {
        if let Some(field) = quoted_after(text, marker) {
            return ApiError::field(field, problem);
        }
    }
    let wanted = text
        .rsplit_once("expected ")
        .map(|(_, rest)| rest.split(" at line").next().unwrap_or(rest));
    match (path, wanted) {
        (Some(field), Some(wanted)) => ApiError::field(field, &format!("must be {wanted}")),
        (Some(field), None) => ApiError::field(field, "is not valid"),
        (None, _) => ApiError::new(
            ErrorCode::InvalidRequest,
            "the request is not readable",
            "Send one JSON object with the documented fields; queries as name=value.",
        ),
    }
}

fn quoted_after<'t>(text: &'t str, marker: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(marker)?;
    rest.split('`').next()
}

#[cfg(test)]
mod tests {
    use berth_api::rest::{CreateTenant, CreateVm};

    use super::*;

    fn refusal<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> (ErrorCode, String) {
        let body = parse::<T>(text.as_bytes())
            .unwrap_err()
            .into_body(berth_api::ids::RequestId::generate());
        let field = body.fields.keys().next().cloned().unwrap_or_default();
        (body.code, field)
    }

    #[test]
    fn every_bad_body_names_its_field() {
        let good = r#"{"tenant_id":"a","display_name":"A","max_vms":1,"storage_quota_gb":1,"api_rate_limit_rpm":1"#;
        let invalid = ErrorCode::InvalidRequest;
        for (tail, code, field) in [
            (r#","max_vmz":1}"#, ErrorCode::UnknownField, "max_vmz"),
            (r#","max_vms":2}"#, invalid, "max_vms"),
            ("} x", invalid, ""),
            ("", invalid, ""),
        ] {
            let text = format!("{good}{tail}");
            assert_eq!(
                refusal::<CreateTenant>(&text),
                (code, field.to_owned()),
                "{tail}"
            );
        }
        for (text, field) in [
            (r#"{"tenant_id":"a"}"#, "display_name"),
            (r#"{"tenant_id":7}"#, "tenant_id"),
            (r#"{"max_vms":-1}"#, "max_vms"),
            (r#"{"max_vms":1.5}"#, "max_vms"),
            (r#"{"max_vms":4294967296}"#, "max_vms"),
        ] {
            assert_eq!(
                refusal::<CreateTenant>(text),
                (invalid, field.to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            refusal::<CreateVm>(r#"{"image":"x","labels":{"a":1}}"#),
            (invalid, "labels.a".to_owned())
        );
    }

    #[test]
    fn a_value_is_never_repeated() {
        let error = parse::<CreateTenant>(br#"{"max_vms":"s3cret-value"}"#).unwrap_err();
        let body = error.into_body(berth_api::ids::RequestId::generate());
        assert!(!serde_json::to_string(&body).unwrap().contains("s3cret"));
    }
}
