//! KVM's list of the VFIO files whose devices its guest has.
//!
//! KVM must know them before a device runs, to keep caches coherent and to let the interrupts of
//! devices that need it reach the guest.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use kvm_bindings::{KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, kvm_device_attr};
use kvm_ioctls::DeviceFd;

/// One machine's list.
#[derive(Debug)]
pub struct KvmVfioRegistry(DeviceFd);

impl KvmVfioRegistry {
    pub(crate) fn new(device: DeviceFd) -> Self {
        Self(device)
    }

    /// Adds a group, or a device where the kernel has no groups.
    ///
    /// # Errors
    /// What KVM says; `EEXIST` if it has the file.
    pub fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let descriptor: RawFd = file.as_raw_fd();
        let attribute = kvm_device_attr {
            group: KVM_DEV_VFIO_FILE,
            attr: u64::from(KVM_DEV_VFIO_FILE_ADD),
            // KVM reads one `int` there, which lives through the call.
            addr: u64::try_from((&raw const descriptor).addr()).map_err(io::Error::other)?,
            flags: 0,
        };
        Ok(self.0.set_device_attr(&attribute)?)
    }
}
