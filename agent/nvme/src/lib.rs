//! Our own small NVMe driver: the admin queue and one I/O queue of a drive that no host driver may
//! touch, what it takes to wipe the drive, and how far a wipe can be proved.
//!
//! Speaks to a drive through a trait: registers and memory that the drive can reach. VFIO is one
//! implementation, in `berth-agent-host`; a scriptable controller model is the other. Opens no file
//! and has no unsafe code.
#![forbid(unsafe_code)]

mod blocks;
mod command;
pub mod drive;
pub mod error;
mod features;
mod fields;
mod format;
pub mod identify;
mod marks;
#[cfg(feature = "model")]
pub mod model;
mod namespaces;
mod overwrite;
mod plan;
mod queue;
mod read_back;
mod registers;
mod restore;
mod sample;
mod sanitize;
mod sanitize_log;
mod security;
pub mod status;
mod stream;
#[cfg(feature = "model")]
pub mod suite;
pub mod transport;
pub mod wipe;
pub mod wipe_error;
