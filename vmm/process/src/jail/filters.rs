//! The system call filters, as `build.rs` compiled them from `system_calls.rs`.
//!
//! Owns who gets which: one base for all threads, with every call that any of them may make, and for
//! each kind of thread a narrower one on top, with the arguments. The base is put on all threads at
//! once, so that none can be forgotten; the kernel wants it to come first.

use std::io;

use berth_vmm_sys::seccomp::{FilterInstruction, filter_all_threads, filter_this_thread};

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// Filters all threads of the process, and the calling one as the thread that does the I/O. From here
/// on there are no other threads than those there are. Needs `no_new_privs`.
///
/// # Errors
/// What the kernel says; the process must not go on then.
pub fn shut() -> io::Result<()> {
    filter_all_threads(&BASE)?;
    filter_this_thread(&for_this_process(IO))
}

/// Narrows the calling thread to what a vCPU's thread does. Comes after [`shut`].
///
/// # Errors
/// What the kernel says; the thread must not run a guest then.
pub fn narrow_vcpu() -> io::Result<()> {
    filter_this_thread(&for_this_process(VCPU))
}

/// Puts in the one number that is not known when the program is built.
fn for_this_process<const N: usize>(mut filter: [FilterInstruction; N]) -> [FilterInstruction; N] {
    let own = std::process::id();
    for instruction in &mut filter {
        if instruction.k == OWN_PROCESS {
            instruction.k = own;
        }
    }
    filter
}
