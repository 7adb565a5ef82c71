//! Checks of disks: kind, mode and length of the file, block sizes, and the number of queues.

use std::fs::File;
use std::os::fd::AsFd;

use berth_api::vmm::{self, RateLimit};
use rustix::fs::FileType;

use super::{Access, Intake, check_access, check_printable, not_a, size_of, status, unreadable};
use crate::disk_file::Alignment;
use crate::refusal::Refusal;

/// Bytes of a disk sector; a disk has a whole number of them.
const SECTOR_BYTES: u64 = 512;
/// Longest serial number of a disk.
const MAX_SERIAL_BYTES: usize = 20;
/// Most queues of a disk that the start message leaves to us.
const CHOSEN_DISK_QUEUES: u16 = 4;

/// One disk.
#[derive(Debug)]
pub struct DiskSpec {
    /// The image; its mode agrees with `read_only`.
    pub file: File,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// The serial number that the guest reads.
    pub serial: String,
    /// The size that the guest sees: whole blocks, all of them in the image.
    pub bytes: u64,
    /// Number of queues, at least 1.
    pub queues: u16,
    /// Bounds on what the guest may do.
    pub rate_limit: RateLimit,
    /// Block sizes, and how memory has to lie.
    pub(crate) alignment: Alignment,
}

/// Checks disk number `position` of a machine with `vcpus` vCPUs.
pub(super) fn check_disk(
    intake: &mut Intake,
    position: usize,
    disk: vmm::Disk,
    vcpus: u8,
) -> Result<DiskSpec, Refusal> {
    let field = |name: &str| format!("disks[{position}].{name}");
    check_printable(&field("serial"), &disk.serial, 0, MAX_SERIAL_BYTES)?;
    if disk.expected_bytes == 0 || !disk.expected_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refusal::new(
            field("expected_bytes"),
            format!(
                "{} bytes are not a whole number of sectors",
                disk.expected_bytes
            ),
            format!("use a multiple of {SECTOR_BYTES} above 0"),
        ));
    }
    let fd = field("fd");
    let descriptor = intake.take(&fd, disk.fd)?;
    let stat = status(&fd, &descriptor)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let bytes = if kind.is_file() {
        size_of(&stat)
    } else if kind.is_block_device() {
        rustix::fs::seek(&descriptor, rustix::fs::SeekFrom::End(0))
            .map_err(|error| unreadable(&fd, error))?
    } else {
        return Err(not_a(
            &fd,
            "a regular file or a block device",
            "open the disk image itself",
        ));
    };
    let access = if disk.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    check_access(&fd, &descriptor, access)?;
    if bytes < disk.expected_bytes {
        return Err(Refusal::new(
            fd,
            format!(
                "the disk is truncated: {bytes} of {} bytes",
                disk.expected_bytes
            ),
            "restore the image, or correct expected_bytes",
        ));
    }
    let alignment = Alignment::of(descriptor.as_fd()).map_err(|error| unreadable(&fd, error))?;
    check_blocks(&field("expected_bytes"), disk.expected_bytes, alignment)?;
    Ok(DiskSpec {
        file: File::from(descriptor),
        read_only: disk.read_only,
        serial: disk.serial,
        bytes: disk.expected_bytes,
        queues: check_queues(&field("queues"), disk.queues, vcpus)?,
        rate_limit: disk.rate_limit,
        alignment,
    })
}

/// A disk whose transfers go around the page cache has no part of a block at its end.
pub(super) fn check_blocks(field: &str, bytes: u64, alignment: Alignment) -> Result<(), Refusal> {
    let block = alignment.logical_block();
    if bytes.is_multiple_of(u64::from(block)) {
        return Ok(());
    }
    Err(Refusal::new(
        field,
        format!("{bytes} bytes are not a whole number of blocks of the descriptor's O_DIRECT"),
        format!("use a multiple of {block}, or open the disk without O_DIRECT"),
    ))
}

/// As many queues as asked for; else one for each vCPU, up to a number beyond which one I/O thread
/// gains nothing by more.
pub(super) fn check_queues(field: &str, queues: u16, vcpus: u8) -> Result<u16, Refusal> {
    match queues {
        0 => Ok(u16::from(vcpus).min(CHOSEN_DISK_QUEUES)),
        1..=vmm::MAX_DISK_QUEUES => Ok(queues),
        _ => Err(Refusal::new(
            field,
            format!("{queues} queues are more than a disk can have"),
            format!(
                "use at most {}, or 0 for the VMM's choice",
                vmm::MAX_DISK_QUEUES
            ),
        )),
    }
}
