//! The nouns of the command line, one module each: its arguments, its calls, its tables.

pub(crate) mod api;
pub(crate) mod catalogue;
pub(crate) mod explain;
pub(crate) mod host;
pub(crate) mod isolation;
pub(crate) mod ledger;
pub(crate) mod node;
pub(crate) mod person;
pub(crate) mod project;
pub(crate) mod receipt;
pub(crate) mod service_account;
pub(crate) mod shell;
pub(crate) mod slot;
pub(crate) mod tenant;
pub(crate) mod token;
pub(crate) mod vm;
