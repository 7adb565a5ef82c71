//! The real `berth-controller`, over real HTTP, with simulated agents for hosts.
//!
//! Every test starts its own controller in a temporary directory on a free port. Needs the binary:
//! `cargo build -p berth-controller`.
#![forbid(unsafe_code)]

mod harness;

mod crashes;
mod isolation;
mod life_of_a_vm;
mod nodes;
mod quota;
mod refusals;
mod routes;
mod seed_001;
mod tokens;
