//! Installing a given system call filter.
//!
//! Owns the two calls to the kernel. Which calls a filter allows is the business of whoever made it;
//! a filter can never be taken away or widened again.

use std::io;

/// One instruction of a filter: classic BPF over the number and the arguments of a system call.
pub use libc::sock_filter as FilterInstruction;

/// Adds `filter` to the calling thread and those that it will start. Needs `no_new_privs`.
///
/// # Errors
/// What the kernel says, for instance that the filter is none.
pub fn filter_this_thread(filter: &[FilterInstruction]) -> io::Result<()> {
    install(filter, 0)
}

/// Adds `filter` to all threads of the process at once. Needs `no_new_privs`.
///
/// # Errors
/// What the kernel says; also if a thread has a filter that the calling thread has not, and then no
/// thread gets this one.
pub fn filter_all_threads(filter: &[FilterInstruction]) -> io::Result<()> {
    install(filter, libc::SECCOMP_FILTER_FLAG_TSYNC)
}

fn install(filter: &[FilterInstruction], flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the `len` instructions that it points to live until the call returns. The
    // kernel copies them, writes to neither, and checks the program itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        1.. => Err(io::Error::other(format!(
            "thread {result} has a filter of its own"
        ))),
        _ => Err(io::Error::last_os_error()),
    }
}
