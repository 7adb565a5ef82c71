//! One file per scenario. A scenario boots its own node and leaves nothing running.

pub(crate) mod boot_debian;
pub(crate) mod quickstart;
pub mod seed_001;
pub mod vm_lifecycle;
pub(crate) mod vmm_devices;
