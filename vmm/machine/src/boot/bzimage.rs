//! bzImage files, started at their 64-bit entry.
//!
//! Owns the parsing of the setup header, field by field as `Documentation/arch/x86/boot.rst` of
//! Linux describes it. The guest decompresses its kernel itself.

use std::fs::File;
use std::io;
use std::ops::Range as IndexRange;

use berth_vmm_devices::memory::Memory;

use super::pvh_elf::{read_if_there, u16_at, u32_at, u64_at};
use super::{ParseKernelError, read_file};
use crate::layout::{self, Range};
use crate::refusal::{BuildMachineError, host};

const SECTOR_BYTES: u64 = 512;
/// The first bytes of a bzImage, which hold every field that is read here.
const HEAD_BYTES: usize = 0x290;
/// Where the setup header begins.
const SETUP_HEADER_START: usize = 0x1f1;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8] = b"HdrS";
/// The first version with `xloadflags`.
const LEAST_VERSION: u16 = 0x20c;
/// `LOADED_HIGH` in `loadflags`.
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64` in `xloadflags`.
const HAS_64_BIT_ENTRY: u16 = 1;
/// The 64-bit entry's distance from the load address.
const ENTRY_OFFSET: u64 = 0x200;

/// What is wrong with a bzImage.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BzImageFault {
    /// Too old for a 64-bit entry.
    #[error("its boot protocol {version:#x} is older than 0x20c")]
    TooOld {
        /// The protocol version.
        version: u16,
    },
    /// No 64-bit entry.
    #[error("it has no 64-bit entry")]
    No64BitEntry,
    /// The compressed part is missing or cut.
    #[error("it ends before its {wanted} bytes")]
    Truncated {
        /// The length that the header claims.
        wanted: u64,
    },
    /// A load address or size outside of the memory map.
    #[error("it asks for {bytes} bytes at {start:#x}, which low memory does not have")]
    Place {
        /// The preferred load address.
        start: u64,
        /// The memory that it needs from there on.
        bytes: u64,
    },
    /// A payload outside of the file.
    #[error("its compressed payload lies outside of the file")]
    Payload,
}

/// A checked image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BzImage {
    head: Vec<u8>,
    protected_mode: IndexRange<u64>,
    footprint: Range,
    payload: IndexRange<u64>,
}

/// Whether the file has the magic numbers of a bzImage.
///
/// # Errors
/// If it cannot be read.
pub fn is_bzimage(file: &File) -> io::Result<bool> {
    let mut head = [0; HEAD_BYTES];
    Ok(read_if_there(file, &mut head, 0)?
        && u16_at(&head, 0x1fe) == BOOT_FLAG
        && &head[0x202..0x206] == MAGIC)
}

impl BzImage {
    /// Reads and checks the setup header.
    ///
    /// # Errors
    /// If the file cannot be read or is no image that can be started.
    pub fn parse(file: &File) -> Result<Self, ParseKernelError> {
        let fault = |fault| Err(ParseKernelError::BzImage(fault));
        let mut head = vec![0; HEAD_BYTES];
        if !read_if_there(file, &mut head, 0)? {
            return fault(BzImageFault::Truncated { wanted: 0x290 });
        }
        let version = u16_at(&head, 0x206);
        if version < LEAST_VERSION {
            return fault(BzImageFault::TooOld { version });
        }
        if head[0x211] & LOADED_HIGH == 0 || u16_at(&head, 0x236) & HAS_64_BIT_ENTRY == 0 {
            return fault(BzImageFault::No64BitEntry);
        }
        let protected_mode = protected_mode_range(&head);
        if protected_mode.end > file.metadata()?.len() {
            return fault(BzImageFault::Truncated {
                wanted: protected_mode.end,
            });
        }
        let Some(footprint) = footprint(&head, &protected_mode) else {
            let (start, bytes) = (u64_at(&head, 0x258), u64::from(u32_at(&head, 0x260)));
            return fault(BzImageFault::Place { start, bytes });
        };
        let payload_start = protected_mode.start + u64::from(u32_at(&head, 0x248));
        let payload = payload_start..payload_start + u64::from(u32_at(&head, 0x24c));
        if payload.end > protected_mode.end {
            return fault(BzImageFault::Payload);
        }
        Ok(Self {
            head,
            protected_mode,
            footprint,
            payload,
        })
    }

    /// The 64-bit address to enter at.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.footprint.start + ENTRY_OFFSET
    }

    /// From the load address to the end of what the kernel uses until it reads the memory map.
    #[must_use]
    pub fn footprint(&self) -> Range {
        self.footprint
    }

    /// Where in the file the compressed kernel is.
    #[must_use]
    pub fn payload(&self) -> IndexRange<u64> {
        self.payload.clone()
    }

    /// The setup header, which the zero page begins with a copy of, at [`Self::HEADER_START`].
    pub(super) fn setup_header(&self) -> &[u8] {
        let end = (0x202 + usize::from(self.head[0x201])).clamp(0x264, HEAD_BYTES);
        &self.head[SETUP_HEADER_START..end]
    }

    /// Where the setup header lies in the file and in the zero page.
    pub(super) const HEADER_START: usize = SETUP_HEADER_START;

    /// Reads the protected-mode part into guest memory.
    pub(super) fn load(&self, memory: &Memory, file: &File) -> Result<(), BuildMachineError> {
        let start = self.footprint.start;
        let bytes = self.protected_mode.end - self.protected_mode.start;
        let to = Range {
            start,
            end: start + bytes,
        };
        read_file(memory, file, to, self.protected_mode.start).map_err(host("read the kernel"))
    }
}

/// Where in the file the part is that runs in protected or long mode.
fn protected_mode_range(head: &[u8]) -> IndexRange<u64> {
    // Old images say 0 and mean 4.
    let setup_sectors = match head[SETUP_HEADER_START] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR_BYTES;
    start..start + u64::from(u32_at(head, 0x1f4)) * 16
}

fn footprint(head: &[u8], protected_mode: &IndexRange<u64>) -> Option<Range> {
    let start = u64_at(head, 0x258);
    let needed = u64::from(u32_at(head, 0x260)).max(protected_mode.end - protected_mode.start);
    let end = start.checked_add(needed)?;
    let fits = start >= layout::KERNEL_START
        && start.is_multiple_of(layout::PAGE_BYTES)
        && needed > ENTRY_OFFSET
        && end <= layout::LOW_RAM_END;
    fits.then_some(Range { start, end })
}
