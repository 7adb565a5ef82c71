//! A host's PCI function passed through to the guest: what the guest sees of it.
//!
//! Owns every decision about configuration space, BARs, vectors and power states. It makes no
//! system call: the host's side of the device is behind [`ops::VfioOps`]. The device is as little
//! trusted as the guest: whatever it says about itself is checked before it is used.

pub mod ops;
