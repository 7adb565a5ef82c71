//! The only agent crate that changes the host: one small trait, one Linux implementation and one
//! stateful fake per surface.
//!
//! It decides nothing: what to do comes from `berth-agent-core` through the daemon. It speaks no
//! HTTP and knows no task.
#![forbid(unsafe_code)]

pub mod capacity;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
mod file_copy;
mod folder;
pub mod folder_watch;
pub mod host_facts;
pub mod images;
pub mod kernel_check;
pub mod sealed_memory;
pub mod service_manager;
pub mod slot_devices;
pub mod slot_files;
pub mod vm_files;
pub mod vmm_socket;
pub mod vmm_unit;
