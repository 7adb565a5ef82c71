//! Getting a vCPU's thread out of KVM_RUN.
//!
//! Owns one real-time signal and its handler. The handler runs on the kicked thread and sets that
//! thread's `immediate_exit` byte, so that a kick which arrives just before KVM_RUN is not lost; a
//! kick which arrives earlier still is remembered until the thread's next [`arm`]. What a kicked
//! thread does next is the run loop's decision.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_ioctls::VcpuFd;

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread is about to run or runs; else null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
    /// A kick came that no [`arm`] has seen yet.
    static PENDING: Cell<bool> = const { Cell::new(false) };
}

/// A thread that can be kicked, by its kernel id. A stale one is harmless: the handler does nothing
/// on a thread that runs no vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuThread {
    thread: libc::pid_t,
}

impl VcpuThread {
    /// The calling thread.
    #[must_use]
    pub fn current() -> Self {
        // SAFETY: gettid has no preconditions.
        let thread = unsafe { libc::gettid() };
        Self { thread }
    }

    /// Makes this thread's present or next KVM_RUN return `EINTR`.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn kick(self) -> io::Result<()> {
        // SAFETY: getpid has no preconditions.
        let process = unsafe { libc::getpid() };
        // SAFETY: tgkill takes three integers and touches no memory of ours; the handler that runs
        // then is sound on every thread.
        let result =
            unsafe { libc::syscall(libc::SYS_tgkill, process, self.thread, kick_signal()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Installs the handler for the whole process. Repeatable; needed before the first kick, which
/// would otherwise end the process.
///
/// # Errors
/// What the kernel says.
pub fn install_kick_handler() -> io::Result<()> {
    // SAFETY: sigaction is plain data for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = on_kick;
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: `action` is initialised, its handler has the signature that flags of 0 promise, and it
    // calls only what is allowed in a signal handler (it writes two thread-local cells).
    let result = unsafe { libc::sigaction(kick_signal(), &raw const action, ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: libc::c_int) {
    PENDING.set(true);
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: `arm` set this thread's pointer to a byte of the mapped kvm_run page, and `Armed`
        // sets it back to null on this very thread before the borrow of the vCPU ends.
        unsafe { byte.write_volatile(1) };
    }
}

/// While it lives, a kick reaches the vCPU.
pub(crate) struct Armed;

/// Points this thread's kicks at a vCPU.
///
/// # Errors
/// `EINTR` if a kick has already come; it is taken by that.
pub(crate) fn arm(vcpu: &mut VcpuFd) -> io::Result<Armed> {
    vcpu.set_kvm_immediate_exit(0);
    IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
    // The handler runs on this thread: program order is enough, the compiler must only keep it.
    compiler_fence(Ordering::SeqCst);
    let armed = Armed;
    if PENDING.replace(false) {
        return Err(io::Error::from_raw_os_error(libc::EINTR));
    }
    Ok(armed)
}

impl Drop for Armed {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
        compiler_fence(Ordering::SeqCst);
    }
}
