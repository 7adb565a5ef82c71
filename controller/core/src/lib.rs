//! The controller's pure rules: authority, deadlines, quota, placement, shapes, rates, and what a VM may do next.
//!
//! No SQL, no HTTP, no clock, no async: times come in as arguments. The store calls [`vm::transition`]
//! and [`placement::place`] inside its transactions, the server calls the rest.
#![forbid(unsafe_code)]

pub mod authority;
pub mod deadline;
pub mod liveness;
pub mod passport;
pub mod placement;
pub mod quota;
pub mod rate;
pub mod seed;
pub mod shape;
pub mod slot;
pub mod stop;
pub mod vm;
