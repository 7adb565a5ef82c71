//! Is this host fit to run tenants' VMs?
//!
//! `snapshot` reads the machine and judges nothing; `judge` reads nothing and judges; `probe` runs
//! the one program that can say whether KVM here runs an unmodified guest.

pub(crate) mod judge;
pub(crate) mod probe;
pub(crate) mod slots;
pub(crate) mod snapshot;
