//! ELF images with a PVH entry, as Linux's `vmlinux` is one.
//!
//! Owns the parsing of the ELF header, the program headers and the note that names the entry. Every
//! number is checked against the file's length and against the guest physical map; the image is
//! read into guest memory only after that. Sections are not looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use berth_vmm_devices::memory::Memory;

use super::{ParseKernelError, read_file};
use crate::layout::{self, Range};
use crate::refusal::{BuildMachineError, host};

const MAGIC: [u8; 4] = *b"\x7fELF";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Linux has five; others some more.
const MAX_PROGRAM_HEADERS: usize = 64;
/// Linux's notes take a few hundred bytes.
const MAX_NOTES_BYTES: u64 = 64 * 1024;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const MACHINE_386: u16 = 3;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const NOTE_NAME: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PVH_ENTRY: u32 = 18;
const NOTE_HEADER_BYTES: usize = 12;

/// What is wrong with an ELF file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ElfFault {
    /// A 32-bit or big-endian file, or one for another processor.
    #[error("it is not a 64-bit little-endian x86 executable")]
    WrongKind,
    /// Program headers that make no sense.
    #[error("its {count} program headers of {bytes} bytes cannot be read")]
    ProgramHeaders {
        /// How many it claims.
        count: u16,
        /// How long it claims that each is.
        bytes: u16,
    },
    /// A segment that passes the end of the file or of the guest's memory map.
    #[error("segment {index} does not fit the file or the memory below 3 GiB and above 1 MiB")]
    Segment {
        /// Its position.
        index: usize,
    },
    /// Two segments at one address.
    #[error("two of its segments overlap")]
    Overlap,
    /// Nothing to load.
    #[error("it has nothing to load")]
    NoSegments,
    /// No entry for a PVH start.
    #[error("it has no PVH entry note")]
    NoEntry,
    /// An entry outside of what is loaded.
    #[error("its PVH entry {entry:#x} lies outside of its segments")]
    Entry {
        /// The entry.
        entry: u64,
    },
}

/// A part of the file and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    offset: u64,
    file_bytes: u64,
    memory: Range,
}

/// A checked image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PvhElf {
    /// Ascending, at least one, without overlap.
    segments: Vec<Segment>,
    entry: u32,
}

/// Whether the file starts like an ELF file.
///
/// # Errors
/// If it cannot be read.
pub fn is_elf(file: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    Ok(read_if_there(file, &mut magic, 0)? && magic == MAGIC)
}

impl PvhElf {
    /// Reads and checks all headers.
    ///
    /// # Errors
    /// If the file cannot be read or is no image that can be started.
    pub fn parse(file: &File) -> Result<Self, ParseKernelError> {
        let file_bytes = file.metadata()?.len();
        let headers = read_program_headers(file)?;
        let mut segments = Vec::new();
        let mut entry = None;
        for (index, header) in headers.chunks_exact(PROGRAM_HEADER_BYTES).enumerate() {
            match u32_at(header, 0) {
                SEGMENT_LOAD => segments.extend(load_segment(header, file_bytes, index)?),
                SEGMENT_NOTE if entry.is_none() => {
                    entry = find_entry(&read_notes(file, header, file_bytes, index)?);
                }
                _ => {}
            }
        }
        segments.sort_by_key(|segment| segment.memory.start);
        let entry = entry.ok_or_else(|| fault(ElfFault::NoEntry))?;
        check_segments(&segments, entry)?;
        let entry = u32::try_from(entry).map_err(|_| fault(ElfFault::Entry { entry }))?;
        Ok(Self { segments, entry })
    }

    /// The 32-bit physical address to enter at.
    #[must_use]
    pub fn entry(&self) -> u32 {
        self.entry
    }

    /// From the first to the last address that the image fills.
    #[must_use]
    pub fn footprint(&self) -> Range {
        let start = self
            .segments
            .first()
            .map_or(0, |segment| segment.memory.start);
        let end = self.segments.last().map_or(0, |segment| segment.memory.end);
        Range { start, end }
    }

    /// Reads the segments into guest memory, which is still all zeroes.
    pub(super) fn load(&self, memory: &Memory, file: &File) -> Result<(), BuildMachineError> {
        for segment in &self.segments {
            let start = segment.memory.start;
            let to = Range {
                start,
                end: start + segment.file_bytes,
            };
            read_file(memory, file, to, segment.offset).map_err(host("read the kernel"))?;
        }
        Ok(())
    }
}

fn fault(fault: ElfFault) -> ParseKernelError {
    ParseKernelError::Elf(fault)
}

fn read_program_headers(file: &File) -> Result<Vec<u8>, ParseKernelError> {
    let mut header = [0; HEADER_BYTES];
    if !read_if_there(file, &mut header, 0)? {
        return Err(fault(ElfFault::WrongKind));
    }
    let kind_fits = header[4] == CLASS_64
        && header[5] == LITTLE_ENDIAN
        && [TYPE_EXECUTABLE, TYPE_SHARED].contains(&u16_at(&header, 16))
        && [MACHINE_X86_64, MACHINE_386].contains(&u16_at(&header, 18));
    if !kind_fits {
        return Err(fault(ElfFault::WrongKind));
    }
    let (bytes, count) = (u16_at(&header, 54), u16_at(&header, 56));
    let problem = || fault(ElfFault::ProgramHeaders { count, bytes });
    let length = usize::from(count);
    if usize::from(bytes) != PROGRAM_HEADER_BYTES || length == 0 || length > MAX_PROGRAM_HEADERS {
        return Err(problem());
    }
    let mut headers = vec![0; length * PROGRAM_HEADER_BYTES];
    if !read_if_there(file, &mut headers, u64_at(&header, 32))? {
        return Err(problem());
    }
    Ok(headers)
}

/// The segment of one program header; none if it takes no memory.
fn load_segment(
    header: &[u8],
    file_bytes: u64,
    index: usize,
) -> Result<Option<Segment>, ParseKernelError> {
    let (offset, start) = (u64_at(header, 8), u64_at(header, 24));
    let (in_file, in_memory) = (u64_at(header, 32), u64_at(header, 40));
    if in_memory == 0 && in_file == 0 {
        return Ok(None);
    }
    let fits_file = offset
        .checked_add(in_file)
        .is_some_and(|end| end <= file_bytes);
    start
        .checked_add(in_memory)
        .filter(|&end| {
            fits_file
                && in_file <= in_memory
                && start >= layout::KERNEL_START
                && end <= layout::LOW_RAM_END
        })
        .map(|end| {
            Some(Segment {
                offset,
                file_bytes: in_file,
                memory: Range { start, end },
            })
        })
        .ok_or_else(|| fault(ElfFault::Segment { index }))
}

fn read_notes(
    file: &File,
    header: &[u8],
    file_bytes: u64,
    index: usize,
) -> Result<Vec<u8>, ParseKernelError> {
    let (offset, length) = (u64_at(header, 8), u64_at(header, 32));
    let problem = || fault(ElfFault::Segment { index });
    let fits = offset
        .checked_add(length)
        .is_some_and(|end| end <= file_bytes);
    if !fits || length > MAX_NOTES_BYTES {
        return Err(problem());
    }
    let mut notes = vec![0; usize::try_from(length).map_err(|_| problem())?];
    if !read_if_there(file, &mut notes, offset)? {
        return Err(problem());
    }
    Ok(notes)
}

/// The PVH entry among the notes: a descriptor of 4 or 8 bytes.
fn find_entry(notes: &[u8]) -> Option<u64> {
    let mut rest = notes;
    while rest.len() >= NOTE_HEADER_BYTES {
        let name_bytes = usize::try_from(u32_at(rest, 0)).ok()?;
        let value_bytes = usize::try_from(u32_at(rest, 4)).ok()?;
        let kind = u32_at(rest, 8);
        let value_start = NOTE_HEADER_BYTES.checked_add(name_bytes.checked_next_multiple_of(4)?)?;
        let name = rest.get(NOTE_HEADER_BYTES..NOTE_HEADER_BYTES.checked_add(name_bytes)?)?;
        let value = rest.get(value_start..value_start.checked_add(value_bytes)?)?;
        if kind == NOTE_PVH_ENTRY && name == NOTE_NAME {
            return match *value {
                [a, b, c, d] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
                [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
                _ => None,
            };
        }
        let next = value_start.checked_add(value_bytes.checked_next_multiple_of(4)?)?;
        rest = rest.get(next..)?;
    }
    None
}

fn check_segments(segments: &[Segment], entry: u64) -> Result<(), ParseKernelError> {
    if segments.is_empty() {
        return Err(fault(ElfFault::NoSegments));
    }
    if segments
        .windows(2)
        .any(|pair| pair[1].memory.start < pair[0].memory.end)
    {
        return Err(fault(ElfFault::Overlap));
    }
    let inside = |segment: &Segment| (segment.memory.start..segment.memory.end).contains(&entry);
    if segments.iter().any(inside) {
        return Ok(());
    }
    Err(fault(ElfFault::Entry { entry }))
}

/// Fills `buffer` from the file; false if the file ends too early.
pub(super) fn read_if_there(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error)
            if [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidInput]
                .contains(&error.kind()) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Little-endian numbers at constant offsets of buffers whose length the caller has fixed.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
