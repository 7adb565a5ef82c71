//! Both loaders against small images, right ones and wrong ones.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use berth_vmm_devices::memory::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bzimage::BzImageFault;
use super::pvh_elf::ElfFault;
use super::*;

const MEMORY_BYTES: u64 = 32 << 20;
const LOAD: u64 = 0x10_0000;
const CODE: &[u8] = b"not really code";

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

fn put(bytes: &mut Vec<u8>, offset: usize, value: &[u8]) {
    if bytes.len() < offset + value.len() {
        bytes.resize(offset + value.len(), 0);
    }
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// Where the parts of [`elf`] lie.
const LOAD_HEADER: usize = 64;
const NOTE_HEADER: usize = LOAD_HEADER + 56;
const NOTE: usize = NOTE_HEADER + 56;
const CODE_OFFSET: usize = 0x1000;

/// An ELF image with one segment and a note whose descriptor is `entry`.
fn elf(entry: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &[2, 0, 62, 0]);
    put(&mut bytes, 32, &64u64.to_le_bytes());
    put(&mut bytes, 54, &[56, 0, 2, 0, 0, 0, 0, 0]);
    let note_bytes = u64::try_from(16 + entry.len()).unwrap();
    header(
        &mut bytes,
        LOAD_HEADER,
        1,
        [CODE_OFFSET as u64, LOAD, CODE.len() as u64, 0x1000],
    );
    header(
        &mut bytes,
        NOTE_HEADER,
        4,
        [NOTE as u64, 0, note_bytes, note_bytes],
    );
    let length = u32::try_from(entry.len()).unwrap();
    for (index, field) in [4, length, 18].into_iter().enumerate() {
        put(&mut bytes, NOTE + 4 * index, &u32::to_le_bytes(field));
    }
    put(&mut bytes, NOTE + 12, b"Xen\0");
    put(&mut bytes, NOTE + 16, entry);
    put(&mut bytes, CODE_OFFSET, CODE);
    bytes
}

fn header(
    bytes: &mut Vec<u8>,
    at: usize,
    kind: u32,
    [offset, paddr, in_file, in_memory]: [u64; 4],
) {
    put(bytes, at, &kind.to_le_bytes());
    for (position, field) in [(8, offset), (24, paddr), (32, in_file), (40, in_memory)] {
        put(bytes, at + position, &field.to_le_bytes());
    }
}

/// A bzImage of one setup sector and 1 KiB of kernel.
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 512 * 2 + 1024];
    put(&mut bytes, 0x1f1, &[1]);
    put(&mut bytes, 0x1f4, &64u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut bytes, 0x200, &[0xeb, 0x6a]);
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, 0x206, &0x20fu16.to_le_bytes());
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x236, &1u16.to_le_bytes());
    put(&mut bytes, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut bytes, 0x260, &0x1_0000u32.to_le_bytes());
    put(&mut bytes, 1024, CODE);
    bytes
}

fn memory() -> Memory {
    let bytes = usize::try_from(MEMORY_BYTES).unwrap();
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
}

fn boot(memory: &Memory, kernel: &[u8], initrd: Option<&[u8]>) -> Result<EntryState, String> {
    let initrd = initrd.map(file);
    let input = BootInput {
        kernel: &file(kernel),
        initrd: initrd.as_ref(),
        cmdline: "console=ttyS0",
        ram: RamLayout::new(MEMORY_BYTES),
    };
    load(memory, &input).map_err(|error| {
        let BuildMachineError::Refused(refusal) = error else {
            panic!("{error:?}")
        };
        refusal.field
    })
}

fn u32_in(memory: &Memory, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn u64_in(memory: &Memory, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn code_at(memory: &Memory, address: u64) -> Vec<u8> {
    let mut bytes = vec![0; CODE.len()];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

#[test]
fn a_pvh_image_is_entered_in_protected_mode_with_its_start_info() {
    for entry in [
        &0x10_0004u32.to_le_bytes()[..],
        &0x10_0004u64.to_le_bytes()[..],
    ] {
        let memory = memory();
        let state = boot(&memory, &elf(entry), Some(b"initrd")).unwrap();
        assert_eq!(state.general().rip, 0x10_0004);
        assert_eq!(code_at(&memory, LOAD), CODE);
        let info = state.general().rbx;
        assert_eq!(u32_in(&memory, info), 0x336e_c578);
        assert_eq!(u32_in(&memory, info + 4), 1);
        assert_eq!(u32_in(&memory, info + 12), 1);
        let module = u64_in(&memory, info + 16);
        let initrd = u64_in(&memory, module);
        assert_eq!((initrd % 4096, u64_in(&memory, module + 8)), (0, 6));
        assert!(initrd + 6 <= MEMORY_BYTES);
        assert_eq!(u32_in(&memory, initrd), u32::from_le_bytes(*b"init"));
        let cmdline = u64_in(&memory, info + 24);
        assert_eq!(u32_in(&memory, cmdline), u32::from_le_bytes(*b"cons"));
        assert_eq!(u64_in(&memory, info + 32), layout::ACPI.start);
        assert!(u32_in(&memory, info + 48) > 0);
        let mut system = kvm_bindings::kvm_sregs::default();
        state.apply_system(&mut system);
        assert_eq!((system.cr0 >> 31, system.efer, system.cs.db), (0, 0, 1));
    }
}

#[test]
fn a_bzimage_is_entered_in_long_mode_with_its_zero_page() {
    let memory = memory();
    let state = boot(&memory, &bzimage(), Some(b"initrd")).unwrap();
    assert_eq!(state.general().rip, 0x100_0200);
    assert_eq!(code_at(&memory, 0x100_0000), CODE);
    let zero_page = state.general().rsi;
    assert_eq!(
        u32_in(&memory, zero_page + 0x202),
        u32::from_le_bytes(*b"HdrS")
    );
    assert_eq!(u32_in(&memory, zero_page + 0x21c), 6);
    assert_eq!(u64_in(&memory, zero_page + 0x70), layout::ACPI.start);
    assert!(
        memory
            .read_obj::<u8>(GuestAddress(zero_page + 0x1e8))
            .unwrap()
            > 0
    );
    let mut system = kvm_bindings::kvm_sregs::default();
    state.apply_system(&mut system);
    assert_eq!((system.cr0 >> 31, system.cs.l), (1, 1));
    let level3 = u64_in(&memory, system.cr3) & !0xfff;
    let level2 = u64_in(&memory, level3 + 8) & !0xfff;
    assert_eq!(u64_in(&memory, level2 + 8), 0x4020_0083);
}

#[test]
fn a_reset_vector_asks_for_a_reset() {
    let memory = memory();
    boot(&memory, &bzimage(), None).unwrap();
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    assert_eq!(
        u32_in(&memory, 0xf_fff0),
        u32::from_le_bytes([0xba, low, high, 0xb0])
    );
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 4096]] {
        assert_eq!(boot(&memory(), bytes, None), Err("kernel".to_owned()));
    }
}

#[track_caller]
fn check_elf(change: impl FnOnce(&mut Vec<u8>), expected: ElfFault) {
    let mut bytes = elf(&0x10_0000u32.to_le_bytes());
    change(&mut bytes);
    match KernelImage::parse(&file(&bytes)) {
        Err(ParseKernelError::Elf(fault)) => assert_eq!(fault, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn elf_headers_are_checked_field_by_field() {
    let load = LOAD_HEADER;
    let outside = ElfFault::Segment { index: 0 };
    check_elf(|bytes| bytes[4] = 1, ElfFault::WrongKind);
    check_elf(|bytes| bytes[18] = 183, ElfFault::WrongKind);
    check_elf(|bytes| bytes.truncate(40), ElfFault::WrongKind);
    check_elf(
        |bytes| bytes[54] = 55,
        ElfFault::ProgramHeaders {
            count: 2,
            bytes: 55,
        },
    );
    check_elf(
        |bytes| bytes[57] = 1,
        ElfFault::ProgramHeaders {
            count: 258,
            bytes: 56,
        },
    );
    check_elf(
        |bytes| put(bytes, 32, &u64::MAX.to_le_bytes()),
        ElfFault::ProgramHeaders {
            count: 2,
            bytes: 56,
        },
    );
    check_elf(
        |bytes| put(bytes, load + 8, &u64::MAX.to_le_bytes()),
        outside.clone(),
    );
    check_elf(
        |bytes| put(bytes, load + 24, &0x7000u64.to_le_bytes()),
        outside.clone(),
    );
    check_elf(
        |bytes| put(bytes, load + 24, &u64::MAX.to_le_bytes()),
        outside.clone(),
    );
    check_elf(
        |bytes| put(bytes, load + 40, &1u64.to_le_bytes()),
        outside.clone(),
    );
    check_elf(
        |bytes| put(bytes, load + 40, &(3u64 << 30).to_le_bytes()),
        outside,
    );
    check_elf(
        |bytes| put(bytes, NOTE_HEADER + 32, &u64::MAX.to_le_bytes()),
        ElfFault::Segment { index: 1 },
    );
    check_elf(
        |bytes| put(bytes, load, &9u32.to_le_bytes()),
        ElfFault::NoSegments,
    );
}

#[test]
fn elf_entries_are_checked() {
    check_elf(
        |bytes| put(bytes, NOTE + 8, &17u32.to_le_bytes()),
        ElfFault::NoEntry,
    );
    check_elf(
        |bytes| put(bytes, NOTE, &u32::MAX.to_le_bytes()),
        ElfFault::NoEntry,
    );
    check_elf(
        |bytes| put(bytes, NOTE + 4, &u32::MAX.to_le_bytes()),
        ElfFault::NoEntry,
    );
    check_elf(
        |bytes| put(bytes, NOTE + 4, &3u32.to_le_bytes()),
        ElfFault::NoEntry,
    );
    check_elf(
        |bytes| put(bytes, NOTE + 16, &0x20_0000u32.to_le_bytes()),
        ElfFault::Entry { entry: 0x20_0000 },
    );
}

#[test]
fn elf_segments_must_not_overlap() {
    check_elf(
        |bytes| {
            // The note's header becomes a second segment over the first; the entry goes with it.
            header(bytes, NOTE_HEADER, 1, [0, LOAD + 0x800, 16, 0x1000]);
            bytes[56] = 3;
            header(bytes, NOTE_HEADER + 56, 4, [0x800, 0, 20, 20]);
            put(
                bytes,
                0x800,
                &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0],
            );
            put(bytes, 0x810, &0x10_0000u32.to_le_bytes());
        },
        ElfFault::Overlap,
    );
}

#[track_caller]
fn check_bzimage(offset: usize, value: &[u8], expected: BzImageFault) {
    let mut bytes = bzimage();
    put(&mut bytes, offset, value);
    match KernelImage::parse(&file(&bytes)) {
        Err(ParseKernelError::BzImage(fault)) => assert_eq!(fault, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bzimage_headers_are_checked_field_by_field() {
    let place = |start, bytes| BzImageFault::Place { start, bytes };
    check_bzimage(0x206, &[0x0b, 2], BzImageFault::TooOld { version: 0x20b });
    check_bzimage(0x236, &[0, 0], BzImageFault::No64BitEntry);
    check_bzimage(0x211, &[0], BzImageFault::No64BitEntry);
    let wanted = 1024 + u64::from(u32::MAX) * 16;
    check_bzimage(0x1f4, &[0xff; 4], BzImageFault::Truncated { wanted });
    check_bzimage(0x258, &[0xff; 8], place(u64::MAX, 0x1_0000));
    check_bzimage(0x258, &0x9000u64.to_le_bytes(), place(0x9000, 0x1_0000));
    check_bzimage(0x260, &[0xff; 4], place(0x100_0000, u64::from(u32::MAX)));
    check_bzimage(0x248, &[0xff; 4], BzImageFault::Payload);
}

#[test]
fn what_does_not_fit_into_memory_is_refused_by_its_own_field() {
    let mut large = bzimage();
    put(&mut large, 0x260, &(64u32 << 20).to_le_bytes());
    assert_eq!(boot(&memory(), &large, None), Err("memory_mib".to_owned()));
    let initrd = vec![1; 31 << 20];
    let entry = 0x10_0000u32.to_le_bytes();
    assert_eq!(
        boot(&memory(), &elf(&entry), Some(&initrd)),
        Err("initrd".to_owned())
    );
}
