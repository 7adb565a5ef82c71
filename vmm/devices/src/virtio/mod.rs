//! virtio 1.x: the device trait, the PCI transport and the devices.

pub mod block;
pub mod config;
pub mod device;
pub mod entropy;
pub mod executor;
pub mod interrupt;
pub mod queue;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod vsock;
