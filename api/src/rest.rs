//! The tenants' and operators' REST surface: bodies and error codes. Paths are in the controller.
//!
//! `snake_case`, RFC 3339 UTC times with milliseconds, units in the names. Requests refuse unknown
//! fields; clients ignore unknown response fields. [`ErrorCode`] is the closed list of codes. One file
//! per subject; all names are reached from here.

mod account;
mod audit;
mod error;
mod event;
mod node;
mod person;
mod placement;
mod size;
mod slot;
mod tenant;
mod token;
mod vm;

pub use account::*;
pub use audit::*;
pub use error::*;
pub use event::*;
pub use node::*;
pub use person::*;
pub use placement::*;
pub use size::*;
pub use slot::*;
pub use tenant::*;
pub use token::*;
pub use vm::*;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Where a controller listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9221";

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page<T> {
    /// Objects in creation order.
    pub items: Vec<T>,
    /// Pass as `page_token` to read on; `null` at the end.
    pub next_page_token: Option<String>,
}

/// Query of every list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// 1 to 1000; 100 unless given.
    pub limit: Option<u32>,
    /// From the page before.
    pub page_token: Option<String>,
}

/// `GET /v1/version`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Version {
    /// The controller's version.
    pub version: String,
    /// What this controller can, for clients that must know.
    pub api_features: Vec<String>,
    /// What a token may allow.
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// `GET /healthz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// `GET /readyz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Readiness {
    /// `ok` or `failing`.
    pub status: String,
    /// The same for each part.
    pub checks: BTreeMap<String, String>,
}

/// Apart: a field that is `null`, and one that is left out.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
