//! The state in which the first vCPU enters the guest, for both boot protocols.
//!
//! Owns the boot GDT and page tables in guest memory and the register values. Setting them on a
//! vCPU is [`crate::vcpu`]'s work, and only the first one gets any: the guest starts the others.

use berth_vmm_devices::memory::Memory;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::guest_write;
use crate::layout::{self, PAGE_BYTES, Range};
use crate::refusal::BuildMachineError;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x18;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Present, writable.
const TABLE_ENTRY: u64 = 0b11;
/// Present, writable, a page of 2 MiB.
const LARGE_PAGE: u64 = 0b1000_0011;
const ENTRIES_PER_TABLE: u64 = 512;

/// General registers at entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRegisters {
    instruction: u64,
    rbx: u64,
    rsi: u64,
}

/// How the first vCPU enters the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryState {
    registers: EntryRegisters,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// 32-bit protected mode, no paging.
    Protected,
    /// 64-bit mode with low memory mapped one to one.
    Long,
}

impl EntryState {
    /// The general registers.
    #[must_use]
    pub fn general(self) -> kvm_regs {
        kvm_regs {
            rip: self.registers.instruction,
            rbx: self.registers.rbx,
            rsi: self.registers.rsi,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        }
    }

    /// Changes KVM's own initial values to those that the protocol wants.
    pub fn apply_system(self, sregs: &mut kvm_sregs) {
        let code = segment(CODE_SELECTOR, 0xb, self.mode);
        let data = segment(DATA_SELECTOR, 0x3, self.mode);
        sregs.cs = code;
        for register in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *register = data;
        }
        sregs.tr = kvm_segment {
            limit: 0x67,
            selector: TSS_SELECTOR,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.gdt.base = layout::BOOT_GDT.start;
        sregs.gdt.limit = u16::try_from(layout::BOOT_GDT.bytes() - 1).expect("a GDT is small");
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
        sregs.cr4 = 0;
        sregs.efer = 0;
        if self.mode == Mode::Long {
            sregs.cr0 |= CR0_PAGING;
            sregs.cr3 = layout::PAGE_TABLES.start;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LONG_MODE;
        }
    }
}

fn segment(selector: u16, type_: u8, mode: Mode) -> kvm_segment {
    let is_code = type_ & 0x8 != 0;
    let is_long = mode == Mode::Long && is_code;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(is_long),
        db: u8::from(!is_long),
        ..Default::default()
    }
}

/// Prepares a PVH entry: EBX points to the start info.
pub(super) fn pvh(memory: &Memory, entry: u32) -> Result<EntryState, BuildMachineError> {
    // Flat 32-bit code and data.
    write_gdt(memory, 0x00cf_9b00_0000_ffff)?;
    let rbx = layout::START_INFO.start;
    Ok(EntryState {
        registers: EntryRegisters {
            instruction: u64::from(entry),
            rbx,
            rsi: 0,
        },
        mode: Mode::Protected,
    })
}

/// Prepares a 64-bit entry: RSI points to the zero page.
pub(crate) fn long_mode(memory: &Memory, entry: u64) -> Result<EntryState, BuildMachineError> {
    // 64-bit code, flat data.
    write_gdt(memory, 0x00af_9b00_0000_ffff)?;
    write_page_tables(memory)?;
    let rsi = layout::MEMORY_MAP.start;
    Ok(EntryState {
        registers: EntryRegisters {
            instruction: entry,
            rbx: 0,
            rsi,
        },
        mode: Mode::Long,
    })
}

fn write_gdt(memory: &Memory, code: u64) -> Result<(), BuildMachineError> {
    let data = 0x00cf_9300_0000_ffff_u64;
    let tss = 0x0000_8b00_0000_0067_u64;
    let bytes: Vec<u8> = [0, code, data, tss]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    guest_write::write(memory, layout::BOOT_GDT, "the boot GDT", &bytes)
}

/// Maps the first 4 GiB one to one with pages of 2 MiB.
fn write_page_tables(memory: &Memory) -> Result<(), BuildMachineError> {
    let table = |index: u64| layout::PAGE_TABLES.start + index * PAGE_BYTES;
    let mut level4 = vec![0; usize::try_from(PAGE_BYTES).expect("a page is small")];
    level4[..8].copy_from_slice(&(table(1) | TABLE_ENTRY).to_le_bytes());
    let level3 = (0..4).map(|index| table(2 + index) | TABLE_ENTRY);
    let level3 = level3.chain(std::iter::repeat_n(0, 508));
    let level2 = (0..4 * ENTRIES_PER_TABLE).map(|index| index << 21 | LARGE_PAGE);
    let mut bytes = level4;
    bytes.extend(level3.chain(level2).flat_map(u64::to_le_bytes));
    let place = Range {
        start: table(0),
        end: table(6),
    };
    guest_write::write(memory, place, "the boot page tables", &bytes)
}
