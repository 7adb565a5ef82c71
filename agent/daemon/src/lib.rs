//! The berth-agent daemon: it joins a controller, pulls signed tasks and carries them out.
//!
//! Wiring and persistence order only. Decisions are `berth-agent-core`'s, effects are
//! `berth-agent-host`'s; what is left here is *verify, write down, act, report*, and starting over
//! from what was written down.
#![forbid(unsafe_code)]

pub mod agent;
mod clock;
pub mod config;
pub mod controller;
pub mod host;
pub mod join;
mod launch;
pub mod log_memory;
pub mod node;
mod registry;
pub mod slot_sources;
pub mod slots;
pub mod sync_loop;
mod vm_actor;
