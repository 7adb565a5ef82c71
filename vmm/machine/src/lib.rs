//! One guest machine: its spec, its memory map, how it boots, its devices' wiring and its vCPUs.
//!
//! Built once from a [`spec::MachineSpec`] and run until its guest ends. It may not parse arguments,
//! talk to a control socket or open a path, and it has no `unsafe`.
#![forbid(unsafe_code)]

pub mod acpi;
mod balloon;
pub mod boot;
pub mod console;
pub mod console_input;
pub mod device_set;
pub mod disk_failures;
pub mod disk_file;
pub mod ending;
pub mod host_facts;
pub mod irq_routes;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod network;
pub mod preflight;
pub mod queue_executor;
pub mod refusal;
pub mod spec;
pub mod tap_queue;
mod timer;
pub mod vcpu;
pub mod vfio;
pub mod vsock_sockets;
pub mod warnings;

pub use machine::{Machine, MachineEvent, RunningMachine};
pub use memory::Prefaulted;
pub use refusal::{BuildMachineError, Refusal};
pub use spec::MachineSpec;
