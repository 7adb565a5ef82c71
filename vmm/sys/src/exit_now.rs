//! The end of the process without destructors.

/// Ends the process at once: no destructors, no `atexit` handlers, no waiting for other threads.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit takes an integer and does not return; nothing of ours can observe the missing
    // destructors, and the kernel takes back every resource of the process.
    unsafe { libc::_exit(libc::c_int::from(status)) }
}
