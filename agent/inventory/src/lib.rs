//! What the host's devices are and what uses them: read from sysfs, procfs and config space alone,
//! never through a vendor's driver.
//!
//! Fills the snapshot of `berth_agent_core::slot` and judges nothing. Every path is below a root that
//! the caller names, so that a test can lay out a host in a folder. It writes nothing.
#![forbid(unsafe_code)]

mod approvals;
pub mod config_space;
mod files;
mod function;
mod iommu;
mod snapshot;
#[cfg(test)]
mod tree;
mod uses;
pub mod watch;

pub use approvals::read_approvals;
pub use function::memory_bytes;
pub use snapshot::{ReadHostError, read};
