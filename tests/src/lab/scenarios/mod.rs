//! One file per scenario. A scenario boots its own node and leaves nothing running.

pub(crate) mod boot_debian;
pub(crate) mod seed_001;
pub(crate) mod vm_lifecycle;
