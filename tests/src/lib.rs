//! Everything that needs more than one crate: the metal lab, its scenarios, and the measurements.
//!
//! The task runner calls this library; nothing else does. It links none of the programs: they are
//! met as a user meets them, as packages, units, sockets and command lines.
#![forbid(unsafe_code)]

pub mod command;
pub mod foreign_verifiers;
pub mod host_devices;
pub mod lab;
pub mod launch;
pub mod ledger_speed;
pub mod load;
pub mod postgres;
pub mod postgres_proxy;
pub mod processor_time;
pub mod progress;
pub mod published_log;
pub mod simulated_agent;
pub mod slot_devices;
pub mod slot_steps;
pub mod startup;
pub mod tap_host;
pub mod tiny_guest;
pub mod token_checks;
pub mod unit_launch;
pub mod vsock_host;
pub mod workspace;
