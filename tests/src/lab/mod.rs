//! The metal lab: a Debian host with KVM, an IOMMU and devices, emulated on any machine.
//!
//! [`image`] makes disks and keeps them by content, [`node`] boots one host and talks to it over
//! ssh, [`devices`] is what a scenario may plug in, [`scenario`] lists what can be shown. The node is
//! installed from our own packages and nothing else. All of it lies under `build/lab/`.

pub mod apt;
pub mod cache;
pub mod contest;
pub mod devices;
pub mod document;
pub mod host;
pub mod host_slots;
pub mod image;
pub mod initrd;
pub mod kept;
pub mod monitor;
pub mod node;
pub mod scenario;
pub mod scenarios;
pub mod scripted_guest;
pub mod site;
pub mod slots;
pub mod ssh;
