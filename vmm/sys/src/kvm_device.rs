//! An open `/dev/kvm` that came from somebody else, as a [`Kvm`].
//!
//! Owns the hand-over of the descriptor. Whether the descriptor really is `/dev/kvm` is checked by
//! the caller; if it is not, every ioctl on it fails with an error.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Kvm;

/// Makes the descriptor a [`Kvm`], which closes it at the end of its life.
#[must_use]
pub fn kvm_from_descriptor(descriptor: OwnedFd) -> Kvm {
    // SAFETY: `from_raw_fd` wants an open descriptor that nobody else owns; `into_raw_fd` gives up
    // exactly that. That it is /dev/kvm is no matter of memory safety: KVM's ioctl numbers fail with
    // ENOTTY on other files.
    unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) }
}
