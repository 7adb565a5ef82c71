//! Device models of one virtual machine: the PCI bus, virtio and the few legacy devices.
//!
//! Owns what a guest reads and writes. It may not touch KVM, open a path or use `unsafe`: memory,
//! files, interrupts and the thread that serves queues come from the machine through the traits
//! in [`interrupt`], [`virtio::executor`] and [`virtio::block::backend`]. Every device is a plain
//! struct that can be driven by a test or a fuzzer. A guest that breaks a rule is counted in
//! [`guest_error::GuestErrors`] and never ends the process.
#![forbid(unsafe_code)]

pub mod bus;
pub mod counters;
pub mod guest_error;
pub mod interrupt;
pub mod ioapic;
pub mod memory;
pub mod panic_device;
pub mod pci;
pub mod power;
pub mod power_button;
pub mod rate_limit;
pub mod serial;
mod sync;
pub mod vfio;
pub mod virtio;
