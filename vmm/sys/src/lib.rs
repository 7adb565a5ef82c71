//! The one VMM crate that may write `unsafe`.
//!
//! It owns the facts that the compiler cannot see: that guest memory stays mapped as long as KVM
//! may reach it ([`vm`], [`vcpu`]), that a signal handler touches nothing but a live `kvm_run`
//! page ([`vcpu_kick`]), that file transfers and discards stay within live guest memory
//! ([`vectored_io`], [`io_ring`], [`page_discard`], [`page_placement`]), that devices and the
//! host's own drivers reach guest memory only ([`vhost_net`]; devices are `berth-vfio`'s), what a tap's
//! ioctls read and write ([`tap`]), and what a raw descriptor is ([`kvm_device`]). It decides
//! nothing: policy,
//! configuration and the meaning of guest data are its callers' business.
#![allow(
    unsafe_code,
    reason = "this crate exists to hold the unsafe code of the VMM, each block with its proof"
)]

pub mod event;
pub mod exit_now;
pub mod guest_mapping;
pub mod identity;
pub mod io_ring;
pub mod kvm_device;
pub mod kvm_vfio_registry;
pub mod landlock;
pub mod page_discard;
pub mod page_placement;
pub mod seccomp;
pub mod stop_signal;
pub mod tap;
pub mod vcpu;
pub mod vcpu_kick;
pub mod vectored_io;
pub mod vhost_net;
pub mod vm;

pub use event::Event;
pub use exit_now::exit_now;
pub use guest_mapping::{AnonymousPages, has_pages_for, map_guest_file, map_guest_ram};
pub use kvm_device::kvm_from_descriptor;
pub use kvm_vfio_registry::KvmVfioRegistry;
pub use page_discard::discard_pages;
pub use page_placement::{allowed_nodes, bind_to_nodes, populate};
pub use stop_signal::watch_stop_signal;
pub use tap::{Tap, TapInterface};
pub use vcpu::{GuestExit, Vcpu};
pub use vcpu_kick::{VcpuThread, install_kick_handler};
pub use vhost_net::{VhostNet, VhostRing};
pub use vm::{CreateVmError, MsiRoute, Vm};
