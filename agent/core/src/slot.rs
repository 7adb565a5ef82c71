//! Everything that is decided about slots: what a host shows ([`snapshot`]), what its owner approved
//! ([`approval`]), how a wipe may be done and where it stands ([`wipe`]), what a slot may become
//! ([`phase`]), what remains to be done for it ([`plan`]) and what is remembered of it ([`record`]).
//!
//! Pure. `berth-inventory` fills the snapshot; `berthctl` prints what is judged here, and the agent acts
//! on it.

pub mod approval;
pub mod device_memory;
pub mod judge;
pub mod phase;
pub mod plan;
pub mod record;
pub mod reset;
pub mod snapshot;
pub mod udev_rules;
pub mod wipe;
