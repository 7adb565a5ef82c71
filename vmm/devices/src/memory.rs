//! The one type for guest RAM, so that every device and the machine name the same one.

/// Guest RAM as the machine maps it. Shared as `Arc<Memory>`; a device copies in, checks the copy
/// and acts on the copy, and never holds a Rust reference into it.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
