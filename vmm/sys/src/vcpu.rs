//! One vCPU's descriptor, tied to the machine whose memory it runs in.
//!
//! Owns KVM_RUN together with the kick that can interrupt it. What an exit means is the run loop's
//! business.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use kvm_bindings::{kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_4 as PortExit};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::vcpu_kick;
use crate::vm::Vm;

/// One exit of the guest.
#[derive(Debug)]
pub struct GuestExit<'a> {
    /// What happened.
    pub reason: VcpuExit<'a>,
    /// After a port exit, the width in bytes of each access: a string instruction makes several,
    /// whose data follow each other. Meaningless after other exits.
    pub port_width: usize,
}

/// A vCPU. It keeps its machine, and so the guest's memory, alive.
#[derive(Debug)]
pub struct Vcpu {
    // Declared first, so closed before the machine can be.
    fd: VcpuFd,
    _vm: Arc<Vm>,
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd, vm: Arc<Vm>) -> Self {
        Self { fd, _vm: vm }
    }

    /// Runs the guest until its next exit to us.
    ///
    /// # Errors
    /// `EINTR` if the thread was kicked or got another signal, `EAGAIN` if the vCPU waits for its
    /// start-up; anything else is KVM's failure.
    pub fn run(&mut self) -> io::Result<GuestExit<'_>> {
        let armed = vcpu_kick::arm(&mut self.fd)?;
        let page: *const kvm_run = self.fd.get_kvm_run();
        let exit = self.fd.run();
        drop(armed);
        let reason = exit?;
        // SAFETY: `page` points to the mapped kvm_run page, which lives as long as `self.fd`. This
        // only computes an address.
        let details = unsafe { &raw const (*page).__bindgen_anon_1 };
        let port_exit = details.cast::<PortExit>();
        // SAFETY: a port exit's details are the union's first bytes; it is larger than they are, and
        // any bytes are a valid `PortExit`. The slices that `reason` may hold lie elsewhere: port
        // data in the page after this one, MMIO data further on in the union.
        let port_width = unsafe { port_exit.read() }.size;
        Ok(GuestExit {
            reason,
            port_width: usize::from(port_width),
        })
    }

    /// Why KVM gave up, after [`VcpuExit::InternalError`]: its sub-error number.
    pub fn internal_error(&mut self) -> u32 {
        let run = self.fd.get_kvm_run();
        // SAFETY: every variant of the union is plain integers, so reading any of them is defined;
        // the number means something only after that exit, as this function's contract says.
        unsafe { run.__bindgen_anon_1.internal.suberror }
    }
}

/// The ioctls that need no exclusive access.
impl Deref for Vcpu {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.fd
    }
}
