//! Whether this host's KVM runs an unmodified guest.
//!
//! Owns three tiny guests that execute what some paravirtual and emulated KVMs cannot, each on a
//! machine of its own and under a watchdog. It judges the host only; nothing of a real machine is
//! built here.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use berth_vmm_devices::memory::Memory;
use berth_vmm_sys::{Vcpu, VcpuThread, Vm, install_kick_handler};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::boot;

/// How long one tiny guest may take: far more than any host needs.
const WATCHDOG: Duration = Duration::from_secs(2);
const MEMORY_BYTES: usize = 2 << 20;
const CODE: u64 = 0x10_0000;
const INTERRUPT_TABLE: u64 = 0x12_2000;
const STACK: u64 = 0x13_0000;
/// The port that a guest reports to.
const REPORT_PORT: u16 = 0x80;
/// The report of a guest that saw what it should see.
const REPORT_FINE: u8 = 0x5a;

/// One tiny guest.
struct Trial {
    what: &'static str,
    code: &'static [u8],
}

/// `mov al, REPORT_FINE; out REPORT_PORT, al; hlt` ends each of them.
const TRIALS: [Trial; 3] = [
    Trial {
        what: "lock cmpxchg16b",
        code: &[
            0x31,
            0xc0, // xor eax, eax
            0x31,
            0xd2, // xor edx, edx
            0xbb,
            1,
            0,
            0,
            0, // mov ebx, 1
            0x31,
            0xc9, // xor ecx, ecx
            0xbf,
            0,
            0,
            0x12,
            0, // mov edi, 0x120000
            0xf0,
            0x48,
            0x0f,
            0xc7,
            0x0f, // lock cmpxchg16b [rdi]
            0x75,
            0x09, // jnz to the last hlt
            0x83,
            0x3f,
            0x01, // cmp dword [rdi], 1
            0x75,
            0x04, // jnz to the last hlt
            0xb0,
            REPORT_FINE,
            0xe6,
            0x80, // report
            0xf4,
        ],
    },
    Trial {
        what: "int3 in kernel mode",
        code: &[
            0xcc, // int3, whose handler is an iretq
            0xb0,
            REPORT_FINE,
            0xe6,
            0x80,
            0xf4,
        ],
    },
    Trial {
        what: "xsave and xrstor",
        code: &[
            0x0f,
            0x20,
            0xe0, // mov rax, cr4
            0x0d,
            0x00,
            0x02,
            0x04,
            0x00, // or eax, OSXSAVE | OSFXSR
            0x0f,
            0x22,
            0xe0, // mov cr4, rax
            0x31,
            0xc9, // xor ecx, ecx
            0x31,
            0xd2, // xor edx, edx
            0xb8,
            3,
            0,
            0,
            0, // mov eax, x87 | SSE
            0x0f,
            0x01,
            0xd1, // xsetbv
            0xbf,
            0,
            0x30,
            0x12,
            0, // mov edi, 0x123000
            0x0f,
            0xae,
            0x27, // xsave [rdi]
            0x0f,
            0xae,
            0x2f, // xrstor [rdi]
            0xb0,
            REPORT_FINE,
            0xe6,
            0x80,
            0xf4,
        ],
    },
];

/// Runs the trials; the first one that fails is described.
///
/// # Errors
/// The sentence that says what this host's KVM cannot do.
pub fn runs_unmodified_guest(kvm: &Kvm) -> Result<(), String> {
    install_kick_handler().map_err(|error| format!("no signal handler could be set: {error}"))?;
    for trial in &TRIALS {
        let vcpu = prepare(kvm, trial)
            .map_err(|error| format!("KVM could not make a small guest: {error}"))?;
        run(vcpu)
            .map_err(|problem| format!("KVM cannot run {} in a guest: {problem}", trial.what))?;
    }
    Ok(())
}

fn prepare(kvm: &Kvm, trial: &Trial) -> Result<Vcpu, Box<dyn std::error::Error>> {
    let memory: Memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    let entry = boot::enter_long_mode(&memory, CODE)?;
    memory.write_slice(trial.code, GuestAddress(CODE))?;
    write_interrupt_table(&memory)?;
    let vm = Vm::create(kvm, memory)?;
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let vcpu = vm.create_vcpu(0, &cpuid)?;
    let mut system = vcpu.get_sregs()?;
    entry.apply_system(&mut system);
    system.idt.base = INTERRUPT_TABLE;
    system.idt.limit = 0xfff;
    vcpu.set_sregs(&system)?;
    let mut general = entry.general();
    general.rsp = STACK;
    vcpu.set_regs(&general)?;
    Ok(vcpu)
}

/// Gives every vector one gate, to an `iretq` after the table.
fn write_interrupt_table(memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    let handler = INTERRUPT_TABLE + 0x1000;
    memory.write_slice(&[0x48, 0xcf], GuestAddress(handler))?;
    let [a, b, c, d, ..] = handler.to_le_bytes();
    // Offset, selector 8, 64-bit interrupt gate.
    let gate = [a, b, 8, 0, 0, 0x8e, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    (0..256).try_for_each(|vector: u64| {
        memory.write_slice(&gate, GuestAddress(INTERRUPT_TABLE + vector * 16))
    })
}

/// Runs one guest on a thread of its own, which is kicked when its time is over.
fn run(vcpu: Vcpu) -> Result<(), String> {
    let (thread_sender, thread) = mpsc::channel();
    let (result_sender, result) = mpsc::channel();
    let runner = std::thread::spawn(move || {
        // Neither receiver goes away before this thread is joined.
        thread_sender.send(VcpuThread::current()).unwrap_or(());
        result_sender.send(run_to_end(vcpu)).unwrap_or(());
    });
    let thread = thread.recv().map_err(|error| error.to_string())?;
    let verdict = match result.recv_timeout(WATCHDOG) {
        Ok(verdict) => verdict,
        Err(RecvTimeoutError::Timeout) => {
            thread.kick().map_err(|error| error.to_string())?;
            Err(format!(
                "it did not come back within {} s",
                WATCHDOG.as_secs()
            ))
        }
        Err(RecvTimeoutError::Disconnected) => Err("its thread ended".to_owned()),
    };
    runner.join().map_err(|_| "its thread ended".to_owned())?;
    verdict
}

fn run_to_end(mut vcpu: Vcpu) -> Result<(), String> {
    let mut report = None;
    loop {
        match vcpu.run().map(|exit| exit.reason) {
            Ok(VcpuExit::IoOut(REPORT_PORT, &[value])) => report = Some(value),
            Ok(VcpuExit::Hlt) if report == Some(REPORT_FINE) => return Ok(()),
            Ok(VcpuExit::Hlt) => return Err("it had no effect".to_owned()),
            Ok(VcpuExit::InternalError) => {
                return Err(format!("internal error {}", vcpu.internal_error()));
            }
            Ok(other) => return Err(format!("it stopped with {other:?}")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}
