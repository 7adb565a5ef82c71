//! Host devices for the guest: opened, their guest's memory mapped for them, wired to KVM.
//!
//! Owns the order of the setup: groups before the IOMMU, the IOMMU before memory, all memory before
//! the first device is opened, and KVM told of every file before its device runs. What the guest
//! sees of a device is the model's business; who may have which device was decided by the sender.
//! Nothing is taken down: the process ends, and the kernel does the rest.

mod host_device;
mod host_events;
pub mod iommu;
mod setup;

pub use host_events::HostEvents;
pub use setup::{Frame, OpenDevices, Passthrough, open};
