//! From a kernel file to a guest that can be entered.
//!
//! Owns the choice of the boot protocol, and the initial RAM disk and command line that both
//! protocols share. Images are hostile: [`pvh_elf`] and [`bzimage`] check every header field
//! against the file and against the guest's memory before they act on it. Nothing here runs a vCPU.

pub mod bzimage;
mod entry;
mod firmware;
mod guest_write;
pub mod pvh_elf;
mod start_info;
mod zero_page;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::thread;

use berth_vmm_devices::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

pub(crate) use entry::long_mode as enter_long_mode;
pub use entry::{EntryRegisters, EntryState};

use crate::layout::{self, RamLayout, Range};
use crate::refusal::{BuildMachineError, Refusal, host};
use bzimage::BzImage;
use guest_write::write;
use pvh_elf::PvhElf;

/// Highest address that an initial RAM disk may reach: what every x86-64 kernel accepts.
const INITRD_LIMIT: u64 = 1 << 31;

/// A kernel image of one of the two kinds that can be started.
#[derive(Debug)]
pub enum KernelImage {
    /// An ELF file with a PVH entry.
    Pvh(PvhElf),
    /// A bzImage with a 64-bit entry.
    BzImage(BzImage),
}

/// Why a file is no kernel that can be started.
#[derive(Debug, thiserror::Error)]
pub enum ParseKernelError {
    /// Neither magic number is there.
    #[error("it is neither an ELF file nor a bzImage")]
    UnknownFormat,
    /// An ELF file that cannot be started.
    #[error("as an ELF file, {0}")]
    Elf(pvh_elf::ElfFault),
    /// A bzImage that cannot be started.
    #[error("as a bzImage, {0}")]
    BzImage(bzimage::BzImageFault),
    /// The file cannot be read.
    #[error("the file could not be read")]
    Read(#[from] io::Error),
}

impl KernelImage {
    /// Reads the headers of `file` and checks them.
    ///
    /// # Errors
    /// If the file is no image that can be started.
    pub fn parse(file: &File) -> Result<Self, ParseKernelError> {
        if pvh_elf::is_elf(file)? {
            return PvhElf::parse(file).map(Self::Pvh);
        }
        if bzimage::is_bzimage(file)? {
            return BzImage::parse(file).map(Self::BzImage);
        }
        Err(ParseKernelError::UnknownFormat)
    }

    /// The part of guest memory that the kernel needs for itself at first.
    fn footprint(&self) -> Range {
        match self {
            Self::Pvh(image) => image.footprint(),
            Self::BzImage(image) => image.footprint(),
        }
    }
}

/// What the guest's kernel is started with.
#[derive(Debug)]
pub struct BootInput<'a> {
    /// The kernel image.
    pub kernel: &'a File,
    /// The initial RAM disk, which shares its position with no other open file.
    pub initrd: Option<&'a File>,
    /// The command line.
    pub cmdline: &'a str,
    /// Where RAM is.
    pub ram: RamLayout,
}

/// Puts everything in guest memory and says how the first vCPU enters.
///
/// # Errors
/// [`BuildMachineError::Refused`] if the kernel or the initial RAM disk cannot be used.
pub fn load(memory: &Memory, input: &BootInput<'_>) -> Result<EntryState, BuildMachineError> {
    let image = KernelImage::parse(input.kernel).map_err(refuse_kernel)?;
    let footprint = image.footprint();
    if footprint.end > input.ram.low_end {
        return Err(Refusal::new(
            "memory_mib",
            format!(
                "the kernel needs memory up to {} MiB",
                footprint.end.div_ceil(1 << 20)
            ),
            "give the machine more memory, or use a smaller kernel",
        )
        .into());
    }
    let initrd = place_initrd(input, footprint)?;
    beside_initrd(memory, initrd, || {
        let initrd = initrd.map(|(_, place)| place);
        firmware::write(memory)?;
        write(
            memory,
            layout::CMDLINE,
            "the command line",
            input.cmdline.as_bytes(),
        )?;
        match image {
            KernelImage::Pvh(image) => {
                image.load(memory, input.kernel)?;
                start_info::write(memory, input.ram, initrd)?;
                entry::pvh(memory, image.entry())
            }
            KernelImage::BzImage(image) => {
                image.load(memory, input.kernel)?;
                zero_page::write(memory, image.setup_header(), input.ram, initrd)?;
                entry::long_mode(memory, image.entry())
            }
        }
    })
}

fn refuse_kernel(error: ParseKernelError) -> BuildMachineError {
    match error {
        ParseKernelError::Read(cause) => host("read the kernel")(cause),
        ParseKernelError::UnknownFormat
        | ParseKernelError::Elf(_)
        | ParseKernelError::BzImage(_) => Refusal::new(
            "kernel",
            format!("the file cannot be started: {error}"),
            "give an x86-64 Linux kernel: a bzImage, or an ELF image with a PVH entry",
        )
        .into(),
    }
}

/// The initial RAM disk, and the highest place that suits it.
fn place_initrd<'a>(
    input: &BootInput<'a>,
    kernel: Range,
) -> Result<Option<(&'a File, Range)>, BuildMachineError> {
    let Some(file) = input.initrd else {
        return Ok(None);
    };
    let bytes = file
        .metadata()
        .map_err(host("examine the initial RAM disk"))?
        .len();
    let limit = input.ram.low_end.min(INITRD_LIMIT);
    let Some(start) = limit
        .checked_sub(bytes)
        .map(|start| start - start % layout::PAGE_BYTES)
        .filter(|&start| start >= kernel.end)
    else {
        return Err(Refusal::new(
            "initrd",
            format!("its {bytes} bytes do not fit between the kernel and the end of low memory"),
            "give the machine more memory, or use a smaller initial RAM disk",
        )
        .into());
    };
    let end = start + bytes;
    Ok(Some((file, Range { start, end })))
}

/// Reads the initial RAM disk on a thread of its own while `rest` fills other memory, the kernel's
/// among it: they are the two large files of a start.
fn beside_initrd<T>(
    memory: &Memory,
    initrd: Option<(&File, Range)>,
    rest: impl FnOnce() -> Result<T, BuildMachineError>,
) -> Result<T, BuildMachineError> {
    let Some((file, place)) = initrd else {
        return rest();
    };
    thread::scope(|scope| {
        let reading = thread::Builder::new()
            .name("initrd".to_owned())
            .spawn_scoped(scope, move || read_file(memory, file, place, 0))
            .map_err(host("start a thread"))?;
        let done = rest();
        let read = reading
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended early")));
        read.map_err(host("read the initial RAM disk"))?;
        done
    })
}

/// Reads a part of a file straight into guest memory.
fn read_file(memory: &Memory, mut file: &File, to: Range, offset: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    let bytes = usize::try_from(to.bytes()).map_err(io::Error::other)?;
    memory
        .read_exact_volatile_from(GuestAddress(to.start), &mut file, bytes)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
