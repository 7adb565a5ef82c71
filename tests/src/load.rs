//! Load on a real controller and its store: the measurements behind `cargo xtask bench controller` and
//! `cargo xtask bench ledger`, and their reports.
//!
//! `load-run`, built like the programs that it loads, does the measuring and prints a report as JSON;
//! the task runner reads it back, prints it for people and judges its promises. Controllers are met as
//! a user meets them, over HTTP; only what has no request of its own is measured at the store's calls.

pub mod client;
pub mod controller;
pub mod fleet;
pub mod latency;
pub mod ledger;
pub mod pace;
pub mod plot;
pub mod process;
pub mod promise;
pub mod served;
