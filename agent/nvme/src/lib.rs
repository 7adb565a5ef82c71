//! Our own small NVMe driver: the admin queue and one I/O queue of a drive that no host driver may
//! touch, what it takes to wipe the drive, and how far a wipe can be proved.
//!
//! Speaks to a drive through a trait: registers and memory that the drive can reach. VFIO is one
//! implementation, in `berth-agent-host`; a scriptable controller model is the other. Opens no file
//! and has no unsafe code.
#![forbid(unsafe_code)]

mod command;
pub mod drive;
pub mod error;
mod fields;
pub mod identify;
mod queue;
mod registers;
pub mod status;
pub mod transport;
