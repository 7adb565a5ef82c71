//! `berth-vmm check-kernel`: from a kernel that somebody gave to the image to start from.
//!
//! Reads the kernel from standard input and writes the image to standard output, both files: an ELF
//! image with a PVH entry stays as it is; a bzImage whose compressed payload is such an image
//! becomes that, as nothing then has to be decompressed at each start; any other bzImage that can be
//! started stays as it is. Kernels are hostile: the process limits its own memory and time, and
//! needs no rights beyond its two descriptors.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use berth_vmm_machine::boot::bzimage::BzImage;
use berth_vmm_machine::boot::{KernelImage, ParseKernelError};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::exit_code::ExitCode;

/// Longest image that is taken or made. Debian's decompressed kernels have 50 MiB.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
/// Address space: the program, one block in and one block out.
const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// CPU time. A kernel takes a fraction of a second.
const MAX_CPU_SECONDS: u64 = 30;

/// The first bytes of an LZ4 stream in the legacy format, which is what Linux's build makes.
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// The most that one block of it decompresses to.
const LZ4_BLOCK_BYTES: usize = 8 << 20;
/// The most that one block may take compressed: LZ4's bound for incompressible data.
const LZ4_COMPRESSED_BYTES: usize = LZ4_BLOCK_BYTES + LZ4_BLOCK_BYTES / 255 + 16;
/// Linux's build appends the decompressed length.
const LENGTH_BYTES: u64 = 4;

/// Why no image was written.
#[derive(Debug, thiserror::Error)]
enum CheckKernelError {
    /// The file is too long to be a kernel.
    #[error("the kernel has {bytes} bytes; a kernel has at most {MAX_IMAGE_BYTES}")]
    TooLong { bytes: u64 },
    /// It is no kernel.
    #[error("the file cannot be started")]
    NoKernel(#[source] ParseKernelError),
    /// The limits could not be set.
    #[error("could not limit memory and time")]
    Limit(#[source] io::Error),
    /// A descriptor is not what it should be.
    #[error("standard input and standard output must be files, the latter open for reading, too")]
    Descriptors(#[source] io::Error),
    /// The output could not be written.
    #[error("could not write the image")]
    Write(#[source] io::Error),
}

/// Checks the kernel at standard input; says on standard error why if it is refused.
pub(crate) fn run() -> ExitCode {
    let Err(error) = check() else {
        return ExitCode::SUCCESS;
    };
    let line = format!("berth-vmm check-kernel: {}\n", crate::guest::chain(&error));
    // Who closed standard error does not want to know.
    io::stderr().write_all(line.as_bytes()).unwrap_or(());
    match error {
        CheckKernelError::TooLong { .. } => ExitCode::REFUSED,
        CheckKernelError::NoKernel(ParseKernelError::Read(_)) => ExitCode::FAILED,
        CheckKernelError::NoKernel(_) => ExitCode::REFUSED,
        CheckKernelError::Descriptors(_) => ExitCode::USAGE,
        CheckKernelError::Limit(_) | CheckKernelError::Write(_) => ExitCode::FAILED,
    }
}

fn check() -> Result<(), CheckKernelError> {
    limit(Resource::As, MAX_MEMORY_BYTES)?;
    limit(Resource::Cpu, MAX_CPU_SECONDS)?;
    let kernel = file(&io::stdin()).map_err(CheckKernelError::Descriptors)?;
    let mut output = file(&io::stdout()).map_err(CheckKernelError::Descriptors)?;
    let bytes = kernel
        .metadata()
        .map_err(CheckKernelError::Descriptors)?
        .len();
    if bytes > MAX_IMAGE_BYTES {
        return Err(CheckKernelError::TooLong { bytes });
    }
    // Fails early for a pipe and, as a read of nothing, for a file that is not open for reading.
    output.set_len(0).map_err(CheckKernelError::Descriptors)?;
    output
        .read(&mut [0])
        .map_err(CheckKernelError::Descriptors)?;
    let image = KernelImage::parse(&kernel).map_err(CheckKernelError::NoKernel)?;
    if let KernelImage::BzImage(image) = image
        && unpack(&kernel, &image, &mut output).map_err(CheckKernelError::Write)? == Unpacked::Pvh
    {
        return Ok(());
    }
    copy(kernel, &mut output).map_err(CheckKernelError::Write)
}

fn limit(resource: Resource, value: u64) -> Result<(), CheckKernelError> {
    setrlimit(
        resource,
        Rlimit {
            current: Some(value),
            maximum: Some(value),
        },
    )
    .map_err(|error| CheckKernelError::Limit(error.into()))
}

fn file(stream: &impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

fn copy(mut kernel: File, output: &mut File) -> io::Result<()> {
    output.set_len(0)?;
    output.seek(SeekFrom::Start(0))?;
    kernel.seek(SeekFrom::Start(0))?;
    io::copy(&mut kernel, output)?;
    Ok(())
}

/// What became of a compressed payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unpacked {
    /// The output is an ELF image with a PVH entry.
    Pvh,
    /// It is not, or it is compressed in a way that is not read here.
    No,
}

/// Decompresses the payload of a bzImage into `output`.
fn unpack(kernel: &File, image: &BzImage, output: &mut File) -> io::Result<Unpacked> {
    let payload = image.payload();
    let Some(blocks_end) = payload
        .end
        .checked_sub(LENGTH_BYTES)
        .filter(|&end| end > payload.start)
    else {
        return Ok(Unpacked::No);
    };
    let mut magic = [0; LZ4_LEGACY_MAGIC.len()];
    let mut length = [0; 4];
    kernel.read_exact_at(&mut magic, payload.start)?;
    kernel.read_exact_at(&mut length, blocks_end)?;
    let length = u64::from(u32::from_le_bytes(length));
    if magic != LZ4_LEGACY_MAGIC || length > MAX_IMAGE_BYTES {
        return Ok(Unpacked::No);
    }
    output.seek(SeekFrom::Start(0))?;
    let start = payload.start + 4;
    if !unpack_blocks(kernel, start..blocks_end, length, output)? {
        return Ok(Unpacked::No);
    }
    Ok(match KernelImage::parse(output) {
        Ok(KernelImage::Pvh(_)) => Unpacked::Pvh,
        Ok(KernelImage::BzImage(_)) => Unpacked::No,
        Err(ParseKernelError::Read(error)) => return Err(error),
        Err(_) => Unpacked::No,
    })
}

/// Decompresses block after block; false if they are not what they claim.
fn unpack_blocks(
    kernel: &File,
    blocks: std::ops::Range<u64>,
    length: u64,
    output: &mut File,
) -> io::Result<bool> {
    let mut compressed = vec![0; LZ4_COMPRESSED_BYTES];
    let mut plain = vec![0; LZ4_BLOCK_BYTES];
    let (mut position, mut written) = (blocks.start, 0);
    while position < blocks.end {
        let mut size = [0; 4];
        if blocks.end - position < 4 {
            return Ok(false);
        }
        kernel.read_exact_at(&mut size, position)?;
        position += 4;
        let size = u64::from(u32::from_le_bytes(size));
        let block = usize::try_from(size)
            .ok()
            .and_then(|bytes| compressed.get_mut(..bytes));
        let Some(block) = block.filter(|_| size <= blocks.end - position) else {
            return Ok(false);
        };
        kernel.read_exact_at(block, position)?;
        position += size;
        let Ok(bytes) = lz4_flex::block::decompress_into(block, &mut plain) else {
            return Ok(false);
        };
        written += u64::try_from(bytes).map_err(io::Error::other)?;
        if written > length {
            return Ok(false);
        }
        output.write_all(&plain[..bytes])?;
    }
    Ok(written == length)
}
