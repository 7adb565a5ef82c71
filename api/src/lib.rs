//! The words that berth's programs share: ids and the three contracts.
//!
//! Data only: no I/O, no logic beyond parsing and bounds, no async. It sits on the ground floor and
//! knows no other crate of berth. `rest` is the tenants' surface, `slot` what is said of rented devices, `agent` what controller and agent
//! say to each other, `vmm` what the agent says to one VMM process.
#![forbid(unsafe_code)]

#[macro_use]
mod schema;

pub mod agent;
pub mod ids;
pub mod pci;
pub mod rest;
pub mod slot;
pub mod vmm;
