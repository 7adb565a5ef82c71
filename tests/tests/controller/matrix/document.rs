//! The routes as the controller's own document tells them.

use std::fmt;

use serde_json::Value;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Public,
    AnyToken,
    Operator,
    TenantPath,
    Namespace,
    Tenant,
}

/// Where an id can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Path,
    Query,
    Body,
    /// In what a list shows.
    List,
    /// In a stream of events.
    Stream,
}

impl Place {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Body => "body",
            Self::List => "list",
            Self::Stream => "event stream",
        }
    }
}

/// One route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) scope: Option<String>,
    pub(super) segments: Vec<String>,
    pub(super) required_query: Vec<String>,
    pub(super) query_ids: Vec<String>,
    /// Such as `slots[].slot_id`.
    pub(super) body_ids: Vec<String>,
    pub(super) body: Option<Value>,
    pub(super) is_stream: bool,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Route {
    /// Whether it begins or changes something, rather than looking at it or ending it.
    pub(super) fn begins(&self) -> bool {
        let ends = ["/stop", "/cleanup", "/verify"]
            .iter()
            .any(|end| self.path.ends_with(end));
        matches!(self.method.as_str(), "post" | "put" | "patch") && !ends
    }

    /// Whether a tenant's good token gets past the access.
    pub(super) fn is_for_tenants(&self) -> bool {
        matches!(self.kind, Kind::TenantPath | Kind::Namespace | Kind::Tenant)
    }
}

/// All routes of a document.
pub(super) fn routes(document: &Value) -> Vec<Route> {
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, page) in methods.as_object().unwrap() {
            found.push(route(document, method, path, page));
        }
    }
    assert!(!found.is_empty());
    found
}

fn route(document: &Value, method: &str, path: &str, page: &Value) -> Route {
    let access = &page["x-berth-access"];
    let parameters = page["parameters"].as_array().cloned().unwrap_or_default();
    let named = |place: &str, keep: &dyn Fn(&Value) -> bool| -> Vec<String> {
        parameters
            .iter()
            .filter(|parameter| parameter["in"] == place && keep(parameter))
            .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let body = page
        .pointer("/requestBody/content/application~1json/schema")
        .map(|schema| resolved(document, schema).clone());
    let mut body_ids = Vec::new();
    if let Some(schema) = &body {
        collect_ids(document, schema, "", &mut body_ids, 0);
    }
    Route {
        method: method.to_owned(),
        path: path.to_owned(),
        kind: kind_of(access["kind"].as_str().unwrap()),
        scope: access["scope"].as_str().map(ToOwned::to_owned),
        segments: named("path", &|_| true),
        required_query: named("query", &|parameter| parameter["required"] == true),
        query_ids: named("query", &|parameter| {
            is_id(
                document,
                parameter["name"].as_str().unwrap(),
                &parameter["schema"],
            )
        }),
        body_ids,
        body,
        is_stream: page
            .pointer("/responses/200/content/text~1event-stream")
            .is_some(),
    }
}

fn kind_of(text: &str) -> Kind {
    match text {
        "public" => Kind::Public,
        "any_token" => Kind::AnyToken,
        "operator" => Kind::Operator,
        "tenant_path" => Kind::TenantPath,
        "namespace" => Kind::Namespace,
        "tenant" => Kind::Tenant,
        other => panic!("the matrix does not know the access `{other}`"),
    }
}

fn resolved<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(reference) => document
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{reference} leads nowhere")),
        None => schema,
    }
}

/// Whether a field names a thing: by its name, or by the pattern of its text.
fn is_id(document: &Value, name: &str, schema: &Value) -> bool {
    let by_name = name == "id" || name.ends_with("_id") || name.ends_with("_ids");
    let things = [
        "vm",
        "node",
        "slot",
        "tenant",
        "token",
        "operation",
        "project",
        "account",
        "person",
    ];
    by_name || things.contains(&name) || has_id_pattern(document, schema)
}

fn has_id_pattern(document: &Value, schema: &Value) -> bool {
    let schema = resolved(document, schema);
    let has = schema["pattern"]
        .as_str()
        .is_some_and(|pattern| pattern.contains("[0-9a-hjkmnp-tv-z]{25}"));
    let variants = ["anyOf", "oneOf", "allOf"]
        .iter()
        .filter_map(|word| schema[*word].as_array())
        .flatten();
    has || variants
        .into_iter()
        .any(|variant| has_id_pattern(document, variant))
}

fn collect_ids(document: &Value, schema: &Value, path: &str, found: &mut Vec<String>, depth: u8) {
    assert!(depth < 8, "bodies are not that deep");
    let schema = resolved(document, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}{name}");
        if is_id(document, name, field) {
            found.push(here.clone());
        }
        collect_ids(document, field, &format!("{here}."), found, depth + 1);
    }
    if schema["items"].is_object() {
        let here = format!("{}[].", path.trim_end_matches('.'));
        collect_ids(document, &schema["items"], &here, found, depth + 1);
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for variant in schema[word].as_array().into_iter().flatten() {
            collect_ids(document, variant, path, found, depth + 1);
        }
    }
}
