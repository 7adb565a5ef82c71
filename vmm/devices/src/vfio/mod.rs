//! A host's PCI function passed through to the guest: what the guest sees of it.
//!
//! Owns every decision about configuration space, BARs, vectors and power states. It makes no
//! system call: the host's side of the device is behind [`ops::VfioOps`]. The device is as little
//! trusted as the guest: whatever it says about itself is checked before it is used.
//!
//! The machine opens the devices, makes a [`function::VfioPci`] of each, has
//! [`bar_layout::place_bars`] find addresses, hands them out by [`window::place`] and, once all
//! guest memory is mapped for DMA, calls [`function::VfioPci::allow_dma`].

pub mod bar_layout;
pub mod bars;
pub mod capabilities;
mod config_policy;
mod effects;
pub mod function;
mod host;
mod msi;
pub mod msix;
pub mod ops;
pub mod probe;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vectors;
pub mod window;
