//! `GET /openapi.json`: the table of routes as an OpenAPI 3.1 document.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::http::describe::{Answers, Sheet};
use crate::http::table::{Row, Table};

/// The document of this service, made once.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| text_of(super::table()));

/// The document as text, as it is committed.
pub(crate) fn text() -> &'static str {
    &DOCUMENT
}

/// The document as an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document;

impl IntoResponse for Document {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], text()).into_response()
    }
}

impl Answers for Document {
    fn describe(sheet: &mut Sheet<'_>) {
        let any = schemars::json_schema!({ "type": "object" });
        sheet.answer(200, &[], Some(("application/json", any)));
    }
}

pub(crate) async fn document() -> Document {
    Document
}

fn text_of(table: Table) -> String {
    let (rows, schemas) = table.into_pages();
    let document = whole(rows, schemas);
    // A value of maps with text keys has a text.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn whole(rows: Vec<Row>, schemas: Map<String, Value>) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for row in rows {
        let page = Value::Object(row.page);
        paths
            // The router's sign for the rest of a path is none of the document's.
            .entry(row.path.replace("{*", "{"))
            .or_default()
            .insert(row.method.as_str().to_owned(), page);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "berth",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A capability token; POST /v1/tenants/{tenant}/tokens issues them.",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pages() -> Vec<(String, String, Value)> {
        let document: Value = serde_json::from_str(text()).unwrap();
        let mut pages = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, page) in methods.as_object().unwrap() {
                pages.push((method.clone(), path.clone(), page.clone()));
            }
        }
        pages
    }

    #[test]
    fn every_name_in_a_path_is_taken_by_its_handler() {
        for (method, path, page) in pages() {
            let in_path: BTreeSet<&str> = path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .map(|name| name.trim_start_matches('*'))
                .collect();
            let no_parameters = Vec::new();
            let taken: BTreeSet<&str> = page["parameters"]
                .as_array()
                .unwrap_or(&no_parameters)
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            assert_eq!(in_path, taken, "{method} {path}");
        }
    }

    #[test]
    fn every_route_has_its_own_id_and_an_answer() {
        let pages = pages();
        let ids: BTreeSet<_> = pages
            .iter()
            .map(|(_, _, page)| page["operationId"].to_string())
            .collect();
        assert_eq!(ids.len(), pages.len());
        for (method, path, page) in pages {
            let answers = page["responses"].as_object().unwrap();
            assert!(
                answers.keys().any(|status| status.starts_with('2')),
                "{method} {path}"
            );
            assert!(
                page["summary"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty())
            );
        }
    }

    #[test]
    fn what_is_changed_or_removed_can_be_tied_to_what_was_seen() {
        for (method, path, page) in pages() {
            // A token has no tag: nothing of it changes but that it ends. A membership is one word,
            // and is seen in a list.
            if path.starts_with("/v1/tokens/") || path.contains("/members/") {
                continue;
            }
            if matches!(method.as_str(), "patch" | "put" | "delete") {
                assert!(
                    page["responses"]["412"].is_object(),
                    "{method} {path} takes no If-Match"
                );
            }
        }
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let document: Value = serde_json::from_str(text()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let found: BTreeSet<&str> = text()
            .split("\"#/components/schemas/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert!(found.len() > 20);
        for name in found {
            assert!(schemas.contains_key(name), "{name}");
        }
    }
}
