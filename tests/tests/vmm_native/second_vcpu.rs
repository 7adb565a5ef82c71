//! How a tiny guest starts its other vCPUs: the INIT and SIPI messages of the local APIC, and a
//! real-mode trampoline that leads them to 32-bit code.

use berth_tests::tiny_guest::{Code, Width};
use berth_vmm_machine::layout::{BOOT_GDT, LOCAL_APIC, MEMORY_MAP, PAGE_TABLES};

/// The page of the trampoline, between structures of the boot protocol.
const TRAMPOLINE: u32 = 0x8000;
const _: () = assert!(MEMORY_MAP.end <= TRAMPOLINE as u64);
const _: () = assert!(TRAMPOLINE as u64 + 0x1000 <= PAGE_TABLES.start);
/// How many other vCPUs came up.
const COUNTER: u32 = TRAMPOLINE + 0xf00;

/// To all but oneself, asserted.
const INIT: u32 = 0x000c_4500;
/// The same, with the page number of the trampoline.
const STARTUP: u32 = 0x000c_4600 | TRAMPOLINE >> 12;
const INTERRUPT_COMMAND: u8 = 0;

/// Starts all other vCPUs, which count themselves and then run what `others` emits, and waits until
/// `count` of them have come. Returns the counter's address. In 32-bit mode only.
pub(crate) fn start_others(code: &mut Code, count: u8, others: impl FnOnce(&mut Code)) -> u32 {
    let entry = emit_aside(code, |code| {
        // mov ax, 0x10; mov ds, ax; mov es, ax; lock inc dword [COUNTER]
        code.raw(&[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0]);
        code.raw(&[0xf0, 0xff, 0x05]).raw(&COUNTER.to_le_bytes());
        others(code);
    });
    for (place, word) in (TRAMPOLINE..)
        .step_by(4)
        .zip(trampoline(entry).chunks_exact(4))
    {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        code.set_esi(place).set_eax(word).store(Width::Double, 0);
    }
    let command = u32::try_from(LOCAL_APIC.start).unwrap() + 0x300;
    code.set_esi(command)
        .set_eax(INIT)
        .store(Width::Double, INTERRUPT_COMMAND);
    code.spin(30_000_000);
    code.set_esi(command)
        .set_eax(STARTUP)
        .store(Width::Double, INTERRUPT_COMMAND);
    code.set_esi(COUNTER);
    // again: pause; mov al, [esi]; cmp al, count; jb again
    code.raw(&[0xf3, 0x90, 0x8a, 0x06, 0x3c, count, 0x72, 0xf8]);
    COUNTER
}

/// Emits code that is not run here, and tells its address.
fn emit_aside(code: &mut Code, emit: impl FnOnce(&mut Code)) -> u32 {
    // Emitted once on a copy to learn its length: jmp rel32 over it.
    let mut copy = code.clone();
    copy.raw(&[0xe9, 0, 0, 0, 0]);
    let entry = copy.address();
    emit(&mut copy);
    let emitted = copy.bytes_from(entry);
    let length = u32::try_from(emitted.len()).unwrap();
    code.raw(&[0xe9]).raw(&length.to_le_bytes()).raw(&emitted);
    entry
}

/// Real-mode code that goes to `entry` in 32-bit mode with the GDT of the boot protocol.
fn trampoline(entry: u32) -> Vec<u8> {
    const GDT_POINTER: usize = 0x20;
    let mut code = Vec::new();
    // cli; xor ax, ax; mov ds, ax; lgdt [TRAMPOLINE + GDT_POINTER]
    let pointer = u16::try_from(TRAMPOLINE).unwrap() + u16::try_from(GDT_POINTER).unwrap();
    code.extend([0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x0f, 0x01, 0x16]);
    code.extend(pointer.to_le_bytes());
    // mov eax, cr0; or al, 1; mov cr0, eax; jmp far 8:entry
    code.extend([0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea]);
    code.extend(entry.to_le_bytes());
    code.extend([0x08, 0x00]);
    assert!(code.len() <= GDT_POINTER);
    code.resize(GDT_POINTER, 0);
    code.extend(u16::try_from(BOOT_GDT.bytes() - 1).unwrap().to_le_bytes());
    code.extend(u32::try_from(BOOT_GDT.start).unwrap().to_le_bytes());
    code.resize(code.len().next_multiple_of(4), 0);
    code
}
