//! The loop of one vCPU's thread: enter the guest, serve its exit, until the machine ends.
//!
//! ```text
//! Running ──exit──▶ Running
//!    │ triple fault / KVM gave up ──▶ Ending ──▶ Parked
//! ```
//! Owns the meaning of KVM's exits. Port and memory accesses go to the buses; the loop knows no
//! device. A vCPU whose machine has ended never enters the guest again: it parks until the process
//! ends.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_vmm_devices::bus::Bus;
use berth_vmm_sys::{GuestExit, Vcpu};
use kvm_ioctls::VcpuExit;

use super::gate::Gate;
use crate::ending::{Ended, Ending, Reset, VcpuPlace};

/// The kinds of exits that are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum ExitKind {
    /// A read from a port.
    PortRead,
    /// A write to a port.
    PortWrite,
    /// A read from memory that is not RAM.
    MmioRead,
    /// A write to memory that is not RAM.
    MmioWrite,
    /// A signal or a kick.
    Interrupted,
    /// Anything else that the guest survives.
    Other,
}

impl ExitKind {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 6] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Interrupted,
        Self::Other,
    ];

    /// The name in statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port_read",
            Self::PortWrite => "port_write",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }
}

/// How often each kind of exit happened on all vCPUs.
#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [AtomicU64; ExitKind::ALL.len()],
}

impl ExitCounters {
    fn bump(&self, kind: ExitKind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts by name.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        ExitKind::ALL
            .into_iter()
            .map(|kind| {
                let count = self.counts[kind as usize].load(Ordering::Relaxed);
                (kind.name().to_owned(), count)
            })
            .collect()
    }
}

/// What all vCPU threads share.
#[derive(Debug)]
pub struct VcpuShared {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
    /// Exit counters.
    pub exits: ExitCounters,
    /// How the machine ended, once it has.
    pub ending: Arc<Ending>,
    /// Passed before every entry into the guest.
    pub gate: Gate,
}

/// What each vCPU's thread does last before it enters the guest for the first time.
pub type BeforeGuest = fn() -> io::Result<()>;

/// Where the thread is.
enum State {
    Running,
    Ending(Ended),
    Parked,
}

/// Runs `vcpu` on the calling thread; returns only when the process is about to end.
pub fn run(mut vcpu: Vcpu, index: u8, shared: &VcpuShared, before_guest: BeforeGuest) {
    shared.gate.join();
    shared.gate.pass();
    let mut state = match before_guest() {
        Ok(()) => State::Running,
        Err(error) => State::Ending(Ended::Crash {
            place: place(&vcpu, index),
            reason: format!("not ready to run: {error}"),
        }),
    };
    loop {
        state = match state {
            State::Running => {
                shared.gate.pass();
                step(&mut vcpu, index, shared)
            }
            State::Ending(ended) => {
                shared.ending.set(ended);
                State::Parked
            }
            State::Parked => {
                shared.gate.give_up();
                std::thread::park();
                State::Parked
            }
        };
    }
}

/// Enters the guest once and serves what it exits with.
fn step(vcpu: &mut Vcpu, index: u8, shared: &VcpuShared) -> State {
    let reason = match vcpu.run() {
        Ok(exit) => match serve(exit, shared) {
            Served::Continue => return go_on(shared),
            Served::TripleFault => {
                let place = place(vcpu, index);
                return State::Ending(Ended::Reset(Reset::TripleFault(place)));
            }
            Served::InternalError => format!("internal error {}", vcpu.internal_error()),
            Served::Unserved(what) => what,
        },
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            shared.exits.bump(ExitKind::Interrupted);
            return go_on(shared);
        }
        // A vCPU that waits for its start-up interprocessor interrupt.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return go_on(shared),
        Err(error) => format!("KVM_RUN failed: {error}"),
    };
    let place = place(vcpu, index);
    State::Ending(Ended::Crash { place, reason })
}

fn go_on(shared: &VcpuShared) -> State {
    if shared.ending.is_set() {
        State::Parked
    } else {
        State::Running
    }
}

/// What became of one exit.
enum Served {
    Continue,
    TripleFault,
    InternalError,
    Unserved(String),
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "KVM's list grows; an exit that is not served here is reported by its name"
)]
fn serve(exit: GuestExit<'_>, shared: &VcpuShared) -> Served {
    let width = exit.port_width.max(1);
    // Counted before it is served: whoever sees what an exit did finds it in the counts.
    match exit.reason {
        VcpuExit::IoIn(port, data) => {
            shared.exits.bump(ExitKind::PortRead);
            for access in data.chunks_mut(width) {
                shared.ports.read(u64::from(port), access);
            }
        }
        VcpuExit::IoOut(port, data) => {
            shared.exits.bump(ExitKind::PortWrite);
            for access in data.chunks(width) {
                shared.ports.write(u64::from(port), access);
            }
        }
        VcpuExit::MmioRead(address, data) => {
            shared.exits.bump(ExitKind::MmioRead);
            shared.mmio.read(address, data);
        }
        VcpuExit::MmioWrite(address, data) => {
            shared.exits.bump(ExitKind::MmioWrite);
            shared.mmio.write(address, data);
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt | VcpuExit::IoapicEoi(_) => {
            shared.exits.bump(ExitKind::Other);
        }
        // A triple fault: the way to reset a PC that always works.
        VcpuExit::Shutdown => return Served::TripleFault,
        VcpuExit::InternalError => return Served::InternalError,
        other => return Served::Unserved(format!("{other:?}")),
    }
    Served::Continue
}

fn place(vcpu: &Vcpu, index: u8) -> VcpuPlace {
    VcpuPlace {
        vcpu: index,
        registers: describe_registers(vcpu),
    }
}

/// One line about where the guest was. Addresses only: no guest data reaches a log.
fn describe_registers(vcpu: &Vcpu) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(general), Ok(system)) => format!(
            "rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} \
             efer={:#x} cs={:#x}",
            general.rip,
            general.rsp,
            general.rflags,
            system.cr0,
            system.cr2,
            system.cr3,
            system.cr4,
            system.efer,
            system.cs.selector,
        ),
        (Err(error), _) | (_, Err(error)) => format!("registers are unreadable: {error}"),
    }
}
