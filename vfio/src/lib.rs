//! VFIO and iommufd: the host's devices and its IOMMU, as far as calls to the kernel go.
//!
//! Owns the ioctls of VFIO and iommufd, the mappings of devices' memory, and the proofs that none of
//! it lets a device reach this process's own memory. Every descriptor comes from somebody else: no
//! path is opened here. Which device, which address and when are the caller's business: a VMM passes
//! devices to its guest, an agent resets and wipes them.
#![allow(
    unsafe_code,
    reason = "this crate exists to hold the unsafe calls of VFIO, each with its proof"
)]

mod device;
mod device_mapping;
mod hot_reset;
mod iommufd;
mod kernel_call;
mod type1;

pub use device::{DeviceInfo, InterruptInfo, RegionInfo, VfioDevice};
pub use device_mapping::DeviceMapping;
pub use hot_reset::HotResetFunction;
pub use iommufd::Iommufd;
pub use type1::Type1;

/// Addresses that devices can use, first and last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct IovaRange {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}
