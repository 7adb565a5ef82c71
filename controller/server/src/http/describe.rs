//! What a route takes and answers, read off its handler's own types.
//!
//! An extractor says what it takes ([`Takes`]), an answer what it is ([`Answers`]); a handler is made of
//! both ([`Documented`]). So the document cannot tell another story than the code, and a handler with
//! an extractor or an answer that says nothing of itself is no handler of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::State;
use berth_api::rest::{ErrorBody, ErrorCode};
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::App;
use crate::http::gate::{Scoped, Source};

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Path,
    Query,
    Header,
}

impl Place {
    fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
        }
    }
}

/// One route's page of the document.
#[derive(Debug)]
pub(crate) struct Sheet<'g> {
    schemas: &'g mut SchemaGenerator,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: BTreeMap<u16, Value>,
    codes: BTreeSet<ErrorCode>,
}

impl<'g> Sheet<'g> {
    pub(crate) fn new(schemas: &'g mut SchemaGenerator) -> Self {
        Self {
            schemas,
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
            codes: BTreeSet::new(),
        }
    }

    /// A text in the path.
    pub(crate) fn path(&mut self, name: &str, about: &str) {
        // Both the access and the handler may take the same one.
        let is_known = self
            .parameters
            .iter()
            .any(|found| found["in"] == "path" && found["name"] == name);
        if is_known {
            return;
        }
        let schema = json!({ "type": "string", "minLength": 1 });
        self.parameter(Place::Path, name, about, &schema, true);
    }

    /// A header that may be sent.
    pub(crate) fn header(&mut self, name: &str, about: &str, schema: &Value) {
        self.parameter(Place::Header, name, about, schema, false);
    }

    /// The fields of `T`, one query parameter each.
    pub(crate) fn query<T: JsonSchema>(&mut self) {
        let schema = T::json_schema(self.schemas);
        let required = schema.get("required").cloned().unwrap_or_default();
        let fields = schema.get("properties").and_then(Value::as_object);
        for (name, field) in fields.cloned().unwrap_or_default() {
            let mut field = without_null(field);
            let about = take_text(&mut field, "description");
            let is_required = required
                .as_array()
                .is_some_and(|names| names.iter().any(|found| *found == name));
            self.parameter(Place::Query, &name, &about, &field, is_required);
        }
    }

    fn parameter(&mut self, place: Place, name: &str, about: &str, schema: &Value, required: bool) {
        self.parameters.push(json!({
            "name": name,
            "in": place.as_str(),
            "description": about,
            "required": required,
            "schema": schema,
        }));
    }

    /// A JSON body.
    pub(crate) fn body<T: JsonSchema>(&mut self, required: bool) {
        let schema = self.schemas.subschema_for::<T>();
        self.body = Some(json!({
            "required": required,
            "content": { "application/json": { "schema": schema } },
        }));
    }

    /// An answer with a JSON body.
    pub(crate) fn json_answer<T: JsonSchema>(&mut self, status: u16, headers: &[&str]) {
        let schema = self.schemas.subschema_for::<T>();
        self.answer(status, headers, Some(("application/json", schema)));
    }

    /// An answer with another body, or with none.
    pub(crate) fn answer(&mut self, status: u16, headers: &[&str], body: Option<(&str, Schema)>) {
        let headers: Map<String, Value> = ["X-Request-Id"]
            .iter()
            .chain(headers)
            .map(|name| {
                (
                    (*name).to_owned(),
                    json!({ "schema": { "type": "string" } }),
                )
            })
            .collect();
        let mut answer = json!({ "description": reason(status), "headers": headers });
        if let Some((kind, schema)) = body {
            answer["content"] = json!({ kind: { "schema": schema } });
        }
        self.answers.insert(status, answer);
    }

    /// An answer that carries a tag may be left out for who has it.
    pub(crate) fn may_be_known(&mut self) {
        let has_tag = self
            .answers
            .get(&200)
            .is_some_and(|answer| answer["headers"].get("ETag").is_some());
        if has_tag {
            let about = "Answer 304 if this is still the tag, as ETag gave it";
            self.header("If-None-Match", about, &json!({ "type": "string" }));
            self.answer(304, &["ETag"], None);
        }
    }

    /// Codes with which it may be refused.
    pub(crate) fn refuses(&mut self, codes: &[ErrorCode]) {
        self.codes.extend(codes);
    }

    /// The page in OpenAPI's form, and what may be answered.
    pub(crate) fn finish(self) -> (Map<String, Value>, Told) {
        let told = Told {
            statuses: self.answers.keys().copied().collect(),
            codes: self.codes.clone(),
        };
        let problem = self.schemas.subschema_for::<ErrorBody>();
        let mut answers: Map<String, Value> = self
            .answers
            .into_iter()
            .map(|(status, answer)| (status.to_string(), answer))
            .collect();
        for (status, codes) in by_status(&self.codes) {
            let answer = answers
                .entry(status.to_string())
                .or_insert_with(|| json!({ "description": "" }));
            answer["description"] = json!(format!("Refused: {}", codes.join(", ")));
            answer["content"]["application/problem+json"] = json!({ "schema": {
                "allOf": [problem, { "properties": { "code": { "enum": codes } } }],
            } });
        }
        let mut page = Map::new();
        if !self.parameters.is_empty() {
            page.insert("parameters".to_owned(), Value::Array(self.parameters));
        }
        if let Some(body) = self.body {
            page.insert("requestBody".to_owned(), body);
        }
        page.insert("responses".to_owned(), Value::Object(answers));
        (page, told)
    }
}

/// What a route says that it answers.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) statuses: BTreeSet<u16>,
    pub(crate) codes: BTreeSet<ErrorCode>,
}

fn by_status(codes: &BTreeSet<ErrorCode>) -> BTreeMap<u16, Vec<&'static str>> {
    let mut found: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for code in codes {
        found.entry(code.status()).or_default().push(code.as_str());
    }
    found
}

fn reason(status: u16) -> &'static str {
    axum::http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Answer")
}

/// A query has no `null`: what may be left out is left out.
fn without_null(mut schema: Value) -> Value {
    if let Some(kinds) = schema.get_mut("type").and_then(Value::as_array_mut) {
        kinds.retain(|kind| kind != "null");
        if let [only] = kinds.as_slice() {
            schema["type"] = only.clone();
        }
    }
    if let Some(variants) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        variants.retain(|variant| variant.get("type") != Some(&json!("null")));
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("default");
    }
    schema
}

fn take_text(schema: &mut Value, name: &str) -> String {
    schema
        .as_object_mut()
        .and_then(|fields| fields.remove(name))
        .and_then(|text| text.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

/// An extractor that says what it takes from a request.
pub(crate) trait Takes {
    fn describe(sheet: &mut Sheet<'_>);
}

/// An answer that says what it is.
pub(crate) trait Answers {
    fn describe(sheet: &mut Sheet<'_>);
}

impl Takes for State<Arc<App>> {
    fn describe(_: &mut Sheet<'_>) {}
}

/// What the caller may do is the access's to say.
impl Takes for Scoped {
    fn describe(_: &mut Sheet<'_>) {}
}

impl Takes for Source {
    fn describe(_: &mut Sheet<'_>) {}
}

impl<T: Answers> Answers for Result<T, ApiError> {
    fn describe(sheet: &mut Sheet<'_>) {
        T::describe(sheet);
    }
}

impl<T: JsonSchema> Answers for axum::Json<T> {
    fn describe(sheet: &mut Sheet<'_>) {
        sheet.json_answer::<T>(200, &[]);
    }
}

/// A handler all of whose extractors and whose answer say what they are. `T` is the same list of
/// types as in axum's `Handler`.
pub(crate) trait Documented<T, R> {
    fn describe(sheet: &mut Sheet<'_>);
}

impl<F, Fut, R> Documented<((),), R> for F
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = R>,
    R: Answers,
{
    fn describe(sheet: &mut Sheet<'_>) {
        R::describe(sheet);
    }
}

macro_rules! documented { ($($extractor:ident),+) => {
    impl<F, Fut, R, M, $($extractor),+> Documented<(M, $($extractor,)+), R> for F
    where
        F: FnOnce($($extractor),+) -> Fut,
        Fut: Future<Output = R>,
        R: Answers,
        $($extractor: Takes),+
    {
        fn describe(sheet: &mut Sheet<'_>) {
            $($extractor::describe(sheet);)+
            R::describe(sheet);
        }
    }
}}

documented!(A);
documented!(A, B);
documented!(A, B, C);
documented!(A, B, C, D);
documented!(A, B, C, D, E);
documented!(A, B, C, D, E, G);
documented!(A, B, C, D, E, G, H);
