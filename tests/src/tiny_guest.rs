//! Guests of a few instructions: PVH ELF images with hand-assembled code.
//!
//! Owns the image format and the handful of x86 encodings that the tests and the start-up benchmark
//! need. It knows no address of the machine: ports and registers are arguments. A guest starts in
//! 32-bit protected mode without paging, has no stack and no interrupt table, and begins at
//! [`LOAD_ADDRESS`]; [`Code::enter_long_mode`] leads on to 64-bit mode.

use std::fs::File;
use std::io::{self, Write as _};

/// Where a guest's code is loaded and entered.
pub const LOAD_ADDRESS: u32 = 0x10_0000;
/// First byte of the page tables that [`Code::enter_long_mode`] makes, which take
/// [`PAGE_TABLE_PAGES`] pages.
pub const PAGE_TABLES: u32 = 0x20_0000;
/// A level 4 page, a level 3 page and a level 2 page for each of [`MAPPED_GIB`].
pub const PAGE_TABLE_PAGES: u32 = 2 + MAPPED_GIB;
/// What long mode maps one to one, in GiB.
pub const MAPPED_GIB: u32 = 8;

const ELF_HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const CODE_OFFSET: u64 = 4096;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PVH_ENTRY: u32 = 18;

/// The length of one access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Double,
}

impl Width {
    /// Every length.
    pub const ALL: [Self; 3] = [Self::Byte, Self::Word, Self::Double];

    /// The operand-size prefix.
    fn prefix(self) -> &'static [u8] {
        if self == Self::Word { &[0x66] } else { &[] }
    }

    /// The lowest opcode bit, which tells bytes from longer operands.
    fn bit(self) -> u8 {
        u8::from(self != Self::Byte)
    }
}

/// Machine code in the making. The same methods give the same meaning in 32-bit and 64-bit mode,
/// except where one says otherwise; what each overwrites is in its text.
#[derive(Clone, Debug, Default)]
pub struct Code {
    bytes: Vec<u8>,
}

/// A place to jump back to.
#[derive(Clone, Copy, Debug)]
pub struct Label(usize);

impl Code {
    /// No instruction yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends encoded instructions.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The address of the next instruction.
    #[must_use]
    pub fn address(&self) -> u32 {
        LOAD_ADDRESS + u32::try_from(self.bytes.len()).expect("a tiny guest stays tiny")
    }

    /// The instructions from an address on that [`Code::address`] told.
    #[must_use]
    pub fn bytes_from(&self, address: u32) -> Vec<u8> {
        let skipped = usize::try_from(address - LOAD_ADDRESS).expect("a tiny guest stays tiny");
        self.bytes[skipped..].to_vec()
    }

    /// Writes the low part of `value` to a port. Overwrites EAX and EDX.
    pub fn port_write(&mut self, port: u16, width: Width, value: u32) -> &mut Self {
        self.set_edx(port).raw(&[0xb8]).raw(&value.to_le_bytes());
        self.raw(width.prefix()).raw(&[0xee | width.bit()])
    }

    /// Reads a port into EAX, of which the bits above the width are zero. Overwrites EDX.
    pub fn port_read(&mut self, port: u16, width: Width) -> &mut Self {
        self.set_edx(port)
            .raw(&[0x31, 0xc0])
            .raw(width.prefix())
            .raw(&[0xec | width.bit()])
    }

    /// Writes each byte to a port. Overwrites EAX and EDX.
    pub fn print(&mut self, port: u16, text: &[u8]) -> &mut Self {
        for &byte in text {
            self.port_write(port, Width::Byte, u32::from(byte));
        }
        self
    }

    /// Writes EAX to a port, byte by byte from the lowest. Overwrites EAX and EDX.
    pub fn print_eax(&mut self, port: u16) -> &mut Self {
        self.set_edx(port);
        for _ in 0..4 {
            // out dx, al; shr eax, 8
            self.raw(&[0xee, 0xc1, 0xe8, 0x08]);
        }
        self
    }

    /// Loads ESI.
    pub fn set_esi(&mut self, value: u32) -> &mut Self {
        self.raw(&[0xbe]).raw(&value.to_le_bytes())
    }

    /// Loads EAX.
    pub fn set_eax(&mut self, value: u32) -> &mut Self {
        self.raw(&[0xb8]).raw(&value.to_le_bytes())
    }

    /// Loads RSI. In 64-bit mode only.
    pub fn set_rsi(&mut self, value: u64) -> &mut Self {
        self.raw(&[0x48, 0xbe]).raw(&value.to_le_bytes())
    }

    /// Reads memory at ESI + `offset` into EAX (AL, AX).
    pub fn load(&mut self, width: Width, offset: u8) -> &mut Self {
        self.raw(width.prefix())
            .raw(&[0x8a | width.bit(), 0x46, offset])
    }

    /// Writes EAX (AX, AL) to memory at ESI + `offset`.
    pub fn store(&mut self, width: Width, offset: u8) -> &mut Self {
        self.raw(width.prefix())
            .raw(&[0x88 | width.bit(), 0x46, offset])
    }

    /// Marks this place.
    #[must_use]
    pub fn label(&self) -> Label {
        Label(self.bytes.len())
    }

    /// Adds `step` to ESI and goes back to `start` while ESI is below `end`.
    pub fn step_esi(&mut self, start: Label, step: u32, end: u32) -> &mut Self {
        self.raw(&[0x81, 0xc6]).raw(&step.to_le_bytes());
        self.raw(&[0x81, 0xfe]).raw(&end.to_le_bytes());
        // jb start
        self.raw(&[0x0f, 0x82]);
        let from = i64::try_from(self.bytes.len() + 4).expect("a tiny guest stays tiny");
        let to = i64::try_from(start.0).expect("a tiny guest stays tiny");
        let distance = i32::try_from(to - from).expect("a tiny guest stays tiny");
        self.raw(&distance.to_le_bytes())
    }

    /// Makes EAX another pseudo-random number out of EBX, which is the state and may not be 0
    /// (xorshift, period 2^32 - 1).
    pub fn random_eax(&mut self) -> &mut Self {
        for shift in [[0xc1, 0xe0, 13], [0xc1, 0xe8, 17], [0xc1, 0xe0, 5]] {
            // mov eax, ebx; the shift of eax; xor ebx, eax
            self.raw(&[0x89, 0xd8]).raw(&shift).raw(&[0x31, 0xc3]);
        }
        self.raw(&[0x89, 0xd8])
    }

    /// Loads EBX.
    pub fn set_ebx(&mut self, value: u32) -> &mut Self {
        self.raw(&[0xbb]).raw(&value.to_le_bytes())
    }

    /// Spins for `cycles` of the time stamp counter. Overwrites EAX, ECX, EDX and EDI. In 32-bit mode
    /// only.
    pub fn spin(&mut self, cycles: u32) -> &mut Self {
        // rdtsc; mov ecx, eax; mov edi, edx; add ecx, cycles; adc edi, 0
        self.raw(&[0x0f, 0x31, 0x89, 0xc1, 0x89, 0xd7, 0x81, 0xc1])
            .raw(&cycles.to_le_bytes());
        self.raw(&[0x83, 0xd7, 0x00]);
        // again: pause; rdtsc; sub eax, ecx; sbb edx, edi; jb again
        self.raw(&[0xf3, 0x90, 0x0f, 0x31, 0x29, 0xc8, 0x19, 0xfa, 0x72, 0xf6])
    }

    /// Stops for good, with interrupts off.
    pub fn halt(&mut self) -> &mut Self {
        // cli; again: hlt; jmp again
        self.raw(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// Faults without anybody to handle it.
    pub fn triple_fault(&mut self) -> &mut Self {
        // call over six zero bytes that are no instructions: `jmp +6`
        self.raw(&[0xeb, 0x06]);
        let table = self.address();
        self.raw(&[0; 6]);
        // lidt [table]; ud2
        self.raw(&[0x0f, 0x01, 0x1d])
            .raw(&table.to_le_bytes())
            .raw(&[0x0f, 0x0b])
    }

    /// Maps the first [`MAPPED_GIB`] one to one with pages of 2 MiB and goes on in 64-bit mode.
    /// Overwrites EAX, ECX, EDX and EDI.
    pub fn enter_long_mode(&mut self) -> &mut Self {
        self.write_page_tables();
        // mov eax, PAGE_TABLES; mov cr3, eax
        self.set_eax(PAGE_TABLES).raw(&[0x0f, 0x22, 0xd8]);
        // mov eax, cr4; or eax, PAE; mov cr4, eax
        self.raw(&[0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0]);
        // mov ecx, EFER; rdmsr; or eax, LME; wrmsr
        self.raw(&[
            0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0d, 0x00, 0x01, 0, 0, 0x0f, 0x30,
        ]);
        // mov eax, cr0; or eax, PG; mov cr0, eax
        self.raw(&[0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0]);
        // jmp over the table
        self.raw(&[0xeb, 24 + 6]);
        let table = self.address();
        for descriptor in [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff_u64] {
            self.raw(&descriptor.to_le_bytes());
        }
        let pointer = self.address();
        self.raw(&23u16.to_le_bytes()).raw(&table.to_le_bytes());
        // lgdt [pointer]; jmp far 8:next
        self.raw(&[0x0f, 0x01, 0x15]).raw(&pointer.to_le_bytes());
        let next = self.address() + 7;
        self.raw(&[0xea])
            .raw(&next.to_le_bytes())
            .raw(&[0x08, 0x00])
    }

    fn write_page_tables(&mut self) {
        const PRESENT_AND_WRITABLE: u32 = 3;
        const LARGE: u32 = 0x80;
        let (level3, level2) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
        self.set_esi(PAGE_TABLES);
        self.set_eax(level3 | PRESENT_AND_WRITABLE)
            .store(Width::Double, 0);
        for gib in 0..MAPPED_GIB {
            self.set_esi(level3 + 8 * gib);
            self.set_eax((level2 + 0x1000 * gib) | PRESENT_AND_WRITABLE);
            self.store(Width::Double, 0);
        }
        // EDX:EAX is the entry, ESI its place.
        self.raw(&[0x31, 0xd2])
            .set_eax(LARGE | PRESENT_AND_WRITABLE)
            .set_esi(level2);
        let again = self.label();
        // mov [esi], eax; mov [esi+4], edx; add eax, 2 MiB; adc edx, 0
        self.raw(&[
            0x89, 0x06, 0x89, 0x56, 0x04, 0x05, 0, 0, 0x20, 0, 0x83, 0xd2, 0x00,
        ]);
        self.step_esi(again, 8, level2 + 0x1000 * MAPPED_GIB);
    }

    fn set_edx(&mut self, value: u16) -> &mut Self {
        self.raw(&[0xba]).raw(&u32::from(value).to_le_bytes())
    }

    /// The code as a PVH ELF image with one loaded segment.
    #[must_use]
    pub fn to_elf(&self) -> Vec<u8> {
        elf(&self.bytes)
    }

    /// The image as an open file without a name, for reading only, as the VMM wants it.
    ///
    /// # Errors
    /// If the temporary folder cannot be written.
    pub fn to_kernel(&self) -> io::Result<File> {
        read_only_file(&self.to_elf())
    }
}

/// A file without a name that holds `content` and is open for reading only.
///
/// # Errors
/// If the temporary folder cannot be written.
pub fn read_only_file(content: &[u8]) -> io::Result<File> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(content)?;
    File::open(file.path())
}

fn elf(code: &[u8]) -> Vec<u8> {
    let note = pvh_note();
    let note_bytes = u64::try_from(note.len()).expect("a note of 20 bytes");
    let code_bytes = u64::try_from(code.len()).expect("a tiny guest stays tiny");
    let note_offset = ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
    let start = u64::from(LOAD_ADDRESS);
    let mut image = elf_header(start);
    image.extend(program_header(1, 7, CODE_OFFSET, start, code_bytes));
    image.extend(program_header(4, 4, note_offset, 0, note_bytes));
    image.extend(note);
    image.resize(usize::try_from(CODE_OFFSET).expect("one page"), 0);
    image.extend_from_slice(code);
    image
}

fn elf_header(entry: u64) -> Vec<u8> {
    // 64 bits, little endian, version 1.
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    // An executable for x86-64, version 1.
    header.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for field in [entry, ELF_HEADER_BYTES, 0] {
        header.extend(field.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    // Lengths and counts of the headers: this one, two program headers, no sections.
    for field in [64u16, 56, 2, 64, 0, 0] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, flags: u32, offset: u64, address: u64, bytes: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(flags.to_le_bytes());
    for field in [offset, address, address, bytes, bytes, 4] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4, 4, NOTE_PVH_ENTRY] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(LOAD_ADDRESS.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What a disassembler, if there is one, reads in the code.
    fn disassembly(code: &Code, mode: &str) -> Option<String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&code.bytes).unwrap();
        let output = Command::new("objdump")
            .args(["-D", "-b", "binary", "-m", mode])
            .arg(file.path())
            .output()
            .ok()?;
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn the_image_has_its_entry_where_its_code_is() {
        let image = Code::new().halt().to_elf();
        assert_eq!(&image[..4], b"\x7fELF");
        assert_eq!(&image[4096..], [0xfa, 0xf4, 0xeb, 0xfd]);
        let note = 64 + 2 * 56;
        assert_eq!(&image[note + 12..note + 16], b"Xen\0");
        assert_eq!(&image[note + 16..note + 20], LOAD_ADDRESS.to_le_bytes());
    }

    #[test]
    fn the_encodings_mean_what_their_names_say() {
        let mut code = Code::new();
        code.port_write(0x3f8, Width::Byte, 0x41)
            .port_read(0x64, Width::Word);
        code.set_esi(0xe800_0000).set_ebx(7);
        let again = code.label();
        code.load(Width::Byte, 1)
            .store(Width::Word, 2)
            .store(Width::Double, 3)
            .random_eax();
        code.step_esi(again, 4, 0xe810_0000)
            .spin(1000)
            .triple_fault();
        let Some(text) = disassembly(&code, "i386") else {
            println!("SKIPPED: objdump (binutils) is not installed");
            return;
        };
        for instruction in [
            "out    %al,(%dx)",
            "in     (%dx),%ax",
            "mov    0x1(%esi),%al",
            "mov    %ax,0x2(%esi)",
            "mov    %eax,0x3(%esi)",
            "cmp    $0xe8100000,%esi",
            "jb     0x1e",
            "rdtsc",
            "lidtl",
            "ud2",
        ] {
            assert!(
                text.contains(instruction),
                "{instruction} is missing in\n{text}"
            );
        }
    }
}
