//! One file per scenario. A scenario boots its own node and leaves nothing running.

pub(crate) mod boot_debian;
pub(crate) mod guest_seed;
pub(crate) mod power_cut;
pub(crate) mod quickstart;
pub(crate) mod rollback;
pub mod seed_001;
pub(crate) mod slot_crash;
pub(crate) mod slot_devices;
pub(crate) mod slot_life;
pub(crate) mod slot_refusals;
pub(crate) mod vfio_bigbar;
pub(crate) mod vfio_hostile;
pub(crate) mod vfio_multi;
pub(crate) mod vfio_narrow_iommu;
pub(crate) mod vfio_nvme;
pub mod vm_lifecycle;
pub(crate) mod vmm_devices;
