//! virtio 1.x: the device trait, the PCI transport and the devices.

pub mod balloon;
pub mod block;
pub mod config;
pub mod console;
pub mod device;
pub mod entropy;
pub mod executor;
pub mod interrupt;
pub mod net;
pub mod queue;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod vsock;
