//! The validated machine: what [`Start`] and its descriptors become before anything is built.
//!
//! Owns every check that needs only the message and `fstat`/`fcntl`. A [`MachineSpec`] can be made
//! in no other way than by [`TryFrom`], so whoever holds one need not check again. It reads no
//! file's content: a kernel that is none is found by the boot loader.

mod disk;
mod network;

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};

use berth_api::vmm::{self, Balloon, Console, FdIndex, MemoryBacking, Start};
use rustix::fs::{
    FileType, OFlags, SealFlags, Stat, fcntl_get_seals, fcntl_getfl, fstat, major, minor,
};
use rustix::net::{AddressFamily, SocketType, sockopt};

pub use self::disk::DiskSpec;
use self::disk::check_disk;
pub use self::network::NetworkSpec;
use crate::memory::HugePages;
use crate::refusal::Refusal;

pub mod vfio;

use vfio::{VfioSpec, check_vfio};

/// Device number of `/dev/kvm`: fixed by the kernel.
const KVM_DEVICE: (u32, u32) = (10, 232);
/// Longest name in logs.
const MAX_VM_ID_BYTES: usize = 64;
/// Least size of a console segment.
const MIN_SEGMENT_BYTES: u64 = 4096;
/// Most bytes of one console segment: far beyond any use, and small enough for every sum.
const MAX_SEGMENT_BYTES: u64 = 1 << 40;

/// Context ids that are nobody's but a guest's: 0 to 2 and the last are taken (virtio 1.2, 5.10.4).
const CONTEXT_IDS: RangeInclusive<u32> = 3..=u32::MAX - 1;

/// A machine that can be built.
#[derive(Debug)]
pub struct MachineSpec {
    /// The name in logs.
    pub vm_id: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The kernel image.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The command line, printable ASCII.
    pub cmdline: String,
    /// The disks in PCI order.
    pub disks: Vec<DiskSpec>,
    /// The serial port's output.
    pub console: Option<ConsoleSpec>,
    /// Whether there is an entropy device.
    pub entropy: bool,
    /// What the agent found out about this host: sealed, and not yet looked at.
    pub host_facts: Option<File>,
    /// The network interfaces in PCI order.
    pub networks: Vec<NetworkSpec>,
    /// The socket device.
    pub vsock: Option<VsockSpec>,
    /// The virtio console.
    pub virtio_console: Option<VirtioConsoleSpec>,
    /// Whether there is a pvpanic device.
    pub panic_device: bool,
    /// Host devices for the guest.
    pub vfio: Option<VfioSpec>,
    /// The balloon.
    pub balloon: Option<Balloon>,
    /// What memory is made of; `prefault` is set wherever it has to be.
    pub memory_backing: MemoryBacking,
}

/// A virtio console.
#[derive(Debug)]
pub struct VirtioConsoleSpec {
    /// Where output goes.
    pub output: ConsoleSpec,
    /// A pipe, a terminal or a stream socket, open for reading.
    pub input: Option<OwnedFd>,
}

/// A socket device.
#[derive(Debug)]
pub struct VsockSpec {
    /// The guest's context id.
    pub cid: u32,
    /// A listening stream socket of the Unix family.
    pub listener: Option<OwnedFd>,
    /// A sequenced-packet socket.
    pub connector: Option<OwnedFd>,
}

/// Where a console's output goes.
#[derive(Debug)]
pub enum ConsoleSpec {
    /// Bytes as they come.
    Stream(OwnedFd),
    /// Two files in turn.
    Segments {
        /// The files.
        files: [File; 2],
        /// Output bytes that one holds.
        segment_bytes: u64,
    },
}

impl TryFrom<(Start, Vec<OwnedFd>)> for MachineSpec {
    type Error = Refusal;

    fn try_from((start, descriptors): (Start, Vec<OwnedFd>)) -> Result<Self, Refusal> {
        check_version(start.version)?;
        check_printable("vm_id", &start.vm_id, 1, MAX_VM_ID_BYTES)?;
        let vcpus = check_vcpus(start.vcpus)?;
        let memory_bytes = check_memory(start.memory_mib)?;
        check_printable("cmdline", &start.cmdline, 0, vmm::MAX_CMDLINE_BYTES)?;
        if start.disks.len() > vmm::MAX_DISKS {
            return Err(Refusal::new(
                "disks",
                format!(
                    "{} disks are more than a machine has slots for",
                    start.disks.len()
                ),
                format!("give at most {}", vmm::MAX_DISKS),
            ));
        }
        check_balloon(&start)?;
        let memory_backing = check_backing(&start)?;
        network::check_values(&start.networks)?;
        let mut intake = Intake::new(descriptors)?;
        let kvm = intake.take("kvm", start.kvm)?;
        check_kvm("kvm", &kvm)?;
        let kernel = intake.take_image("kernel", start.kernel)?;
        let initrd = start
            .initrd
            .map(|index| intake.take_image("initrd", index))
            .transpose()?;
        let disks = start
            .disks
            .into_iter()
            .enumerate()
            .map(|(position, disk)| check_disk(&mut intake, position, disk, vcpus))
            .collect::<Result<_, _>>()?;
        let networks = start.networks.iter().enumerate();
        let networks = networks
            .map(|(position, network)| network::take(&mut intake, position, network))
            .collect::<Result<_, _>>()?;
        let host_facts = start
            .host_facts
            .map(|index| take_facts(&mut intake, index))
            .transpose()?;
        let console = start
            .console
            .map(|console| check_console(&mut intake, "console", &console))
            .transpose()?;
        let vfio = start
            .vfio
            .map(|vfio| check_vfio(&mut intake, &vfio))
            .transpose()?;
        let vsock = start
            .vsock
            .map(|vsock| check_vsock(&mut intake, &vsock))
            .transpose()?;
        let virtio_console = start
            .virtio_console
            .map(|console| check_virtio_console(&mut intake, &console))
            .transpose()?;
        intake.finish()?;
        Ok(Self {
            vm_id: start.vm_id,
            vcpus,
            memory_bytes,
            kvm,
            kernel,
            initrd,
            cmdline: start.cmdline,
            disks,
            console,
            entropy: start.entropy,
            host_facts,
            networks,
            vsock,
            virtio_console,
            panic_device: start.panic_device,
            vfio,
            balloon: start.balloon,
            memory_backing,
        })
    }
}

/// The descriptors that came with the message, each of which is taken exactly once.
struct Intake {
    descriptors: Vec<Option<OwnedFd>>,
}

impl Intake {
    fn new(descriptors: Vec<OwnedFd>) -> Result<Self, Refusal> {
        if descriptors.len() > vmm::MAX_DESCRIPTORS {
            return Err(Refusal::new(
                "start",
                format!("it came with {} descriptors", descriptors.len()),
                format!("send at most {}", vmm::MAX_DESCRIPTORS),
            ));
        }
        Ok(Self {
            descriptors: descriptors.into_iter().map(Some).collect(),
        })
    }

    fn take(&mut self, field: &str, FdIndex(index): FdIndex) -> Result<OwnedFd, Refusal> {
        let count = self.descriptors.len();
        let slot = usize::try_from(index)
            .ok()
            .and_then(|position| self.descriptors.get_mut(position))
            .ok_or_else(|| {
                Refusal::new(
                    field,
                    format!("descriptor {index} does not exist: the message came with {count}"),
                    "send every descriptor with the start message and count from 0",
                )
            })?;
        slot.take().ok_or_else(|| {
            Refusal::new(
                field,
                format!("descriptor {index} is named by another field, too"),
                "send one descriptor for each use",
            )
        })
    }

    fn take_image(&mut self, field: &str, index: FdIndex) -> Result<File, Refusal> {
        let descriptor = self.take(field, index)?;
        let stat = status(field, &descriptor)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(not_a(field, "a regular file", "open the image file itself"));
        }
        check_access(field, &descriptor, Access::ReadOnly)?;
        if size_of(&stat) == 0 {
            return Err(Refusal::new(
                field,
                "the file is empty",
                "give a complete image",
            ));
        }
        Ok(File::from(descriptor))
    }

    fn finish(self) -> Result<(), Refusal> {
        match self.descriptors.iter().position(Option::is_some) {
            None => Ok(()),
            Some(index) => Err(Refusal::new(
                "start",
                format!("no field names descriptor {index}"),
                "send only descriptors that the machine uses",
            )),
        }
    }
}

/// A memory file that nobody can change any more.
fn take_facts(intake: &mut Intake, index: FdIndex) -> Result<File, Refusal> {
    const FIELD: &str = "host_facts";
    let descriptor = intake.take(FIELD, index)?;
    let wanted = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
    let is_sealed = fcntl_get_seals(&descriptor).is_ok_and(|seals| seals.contains(wanted));
    if !is_sealed {
        return Err(not_a(
            FIELD,
            "a sealed memory file",
            "make it with memfd_create and seal it against writing, growing and shrinking",
        ));
    }
    Ok(File::from(descriptor))
}

fn check_version(version: u32) -> Result<(), Refusal> {
    if version == vmm::CONTRACT_VERSION {
        return Ok(());
    }
    Err(Refusal::new(
        "version",
        format!(
            "{version} is not the contract that this VMM speaks, {}",
            vmm::CONTRACT_VERSION
        ),
        "install berth-agent and berth-vmm of one release",
    ))
}

/// A device reaches all guest memory at any time, so that none of it may go, and huge pages were
/// reserved for this guest: one that goes may be another's when the guest wants it back.
fn check_balloon(start: &Start) -> Result<(), Refusal> {
    let has_huge_pages = HugePages::of(start.memory_backing.pages).is_some();
    let problem = if start.balloon.is_none() {
        return Ok(());
    } else if start.vfio.is_some() {
        "the devices of vfio hold all guest memory"
    } else if has_huge_pages {
        "huge pages are reserved and cannot be given back piece by piece"
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        "balloon",
        problem,
        "leave the balloon out, or use pages of the ordinary size and no vfio",
    ))
}

/// Devices want all memory present, as they reach it without the host's kernel. Huge pages are
/// reserved for the whole host and not on a node: only their coming shows that the nodes have them.
fn check_backing(start: &Start) -> Result<MemoryBacking, Refusal> {
    let backing = &start.memory_backing;
    let huge = HugePages::of(backing.pages);
    if let Some(pages) = huge
        && !(start.memory_mib << 20).is_multiple_of(pages.bytes)
    {
        return Err(Refusal::new(
            "memory_backing.pages",
            format!(
                "{} MiB are not a whole number of pages of {}",
                start.memory_mib, pages.name
            ),
            format!(
                "ask for a multiple of {} MiB, or for other pages",
                pages.bytes >> 20
            ),
        ));
    }
    let has_huge_of_nodes = huge.is_some() && !backing.numa_nodes.is_empty();
    Ok(MemoryBacking {
        prefault: backing.prefault || start.vfio.is_some() || has_huge_of_nodes,
        ..backing.clone()
    })
}

fn check_vcpus(vcpus: u32) -> Result<u8, Refusal> {
    u8::try_from(vcpus)
        .ok()
        .filter(|_| (1..=vmm::MAX_VCPUS).contains(&vcpus))
        .ok_or_else(|| {
            Refusal::new(
                "vcpus",
                format!("{vcpus} is not a number of vCPUs that a machine can have"),
                format!("ask for 1 to {}", vmm::MAX_VCPUS),
            )
        })
}

fn check_memory(mib: u64) -> Result<u64, Refusal> {
    if (vmm::MIN_MEMORY_MIB..=vmm::MAX_MEMORY_MIB).contains(&mib) {
        return Ok(mib << 20);
    }
    Err(Refusal::new(
        "memory_mib",
        format!("{mib} MiB is not a memory that a machine can have"),
        format!(
            "ask for {} to {} MiB",
            vmm::MIN_MEMORY_MIB,
            vmm::MAX_MEMORY_MIB
        ),
    ))
}

fn check_printable(field: &str, text: &str, least: usize, most: usize) -> Result<(), Refusal> {
    let remedy = || format!("use {least} to {most} printable ASCII characters");
    if text.len() < least || text.len() > most {
        return Err(Refusal::new(
            field,
            format!("it has {} bytes", text.len()),
            remedy(),
        ));
    }
    match text.bytes().position(|byte| !(b' '..=b'~').contains(&byte)) {
        None => Ok(()),
        Some(position) => Err(Refusal::new(
            field,
            format!("the byte at {position} is not printable ASCII"),
            remedy(),
        )),
    }
}

fn check_kvm(field: &str, descriptor: &OwnedFd) -> Result<(), Refusal> {
    let stat = status(field, descriptor)?;
    let number = (major(stat.st_rdev), minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode).is_char_device() && number == KVM_DEVICE {
        return check_access(field, descriptor, Access::ReadWrite);
    }
    Err(not_a(
        field,
        "/dev/kvm",
        "open /dev/kvm for reading and writing",
    ))
}

fn check_console(
    intake: &mut Intake,
    field: &str,
    console: &Console,
) -> Result<ConsoleSpec, Refusal> {
    let name = |part: &str| format!("{field}.{part}");
    match *console {
        Console::Stream { fd } => {
            let descriptor = intake.take(&name("fd"), fd)?;
            check_access(&name("fd"), &descriptor, Access::Writable)?;
            Ok(ConsoleSpec::Stream(descriptor))
        }
        Console::Segments {
            fds: [first, second],
            segment_bytes,
        } => {
            if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&segment_bytes) {
                return Err(Refusal::new(
                    name("segment_bytes"),
                    format!("{segment_bytes} bytes are no useful segment"),
                    format!("use {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}"),
                ));
            }
            let first = take_segment(intake, &name("fds[0]"), first)?;
            let second = take_segment(intake, &name("fds[1]"), second)?;
            let files = [first, second];
            Ok(ConsoleSpec::Segments {
                files,
                segment_bytes,
            })
        }
    }
}

fn check_virtio_console(
    intake: &mut Intake,
    console: &vmm::VirtioConsole,
) -> Result<VirtioConsoleSpec, Refusal> {
    let output = check_console(intake, "virtio_console.output", &console.output)?;
    let input = console
        .input
        .map(|index| take_input(intake, "virtio_console.input", index))
        .transpose()?;
    Ok(VirtioConsoleSpec { output, input })
}

/// Something that can be waited for and read.
fn take_input(intake: &mut Intake, field: &str, index: FdIndex) -> Result<OwnedFd, Refusal> {
    let descriptor = intake.take(field, index)?;
    let kind = FileType::from_raw_mode(status(field, &descriptor)?.st_mode);
    let is_stream = match kind {
        FileType::Fifo => true,
        FileType::CharacterDevice => rustix::termios::isatty(&descriptor),
        FileType::Socket => sockopt::socket_type(&descriptor) == Ok(SocketType::STREAM),
        FileType::RegularFile
        | FileType::Directory
        | FileType::Symlink
        | FileType::BlockDevice
        | FileType::Unknown => false,
    };
    if !is_stream {
        return Err(not_a(
            field,
            "a pipe, a terminal or a stream socket",
            "send one of these, or leave the field out",
        ));
    }
    check_access(field, &descriptor, Access::Readable)?;
    Ok(descriptor)
}

fn check_vsock(intake: &mut Intake, vsock: &vmm::Vsock) -> Result<VsockSpec, Refusal> {
    if !CONTEXT_IDS.contains(&vsock.cid) {
        return Err(Refusal::new(
            "vsock.cid",
            format!("{} is no context id that a guest can have", vsock.cid),
            format!("use {} to {}", CONTEXT_IDS.start(), CONTEXT_IDS.end()),
        ));
    }
    let listener = vsock
        .listener
        .map(|index| take_socket(intake, "vsock.listener", index, SocketType::STREAM))
        .transpose()?;
    if let Some(listener) = &listener {
        let is_listening = sockopt::socket_acceptconn(listener)
            .map_err(|error| unreadable("vsock.listener", error))?;
        if !is_listening {
            return Err(Refusal::new(
                "vsock.listener",
                "the socket does not listen",
                "call listen() before sending it",
            ));
        }
    }
    let connector = vsock
        .connector
        .map(|index| take_socket(intake, "vsock.connector", index, SocketType::SEQPACKET))
        .transpose()?;
    Ok(VsockSpec {
        cid: vsock.cid,
        listener,
        connector,
    })
}

/// A socket of the Unix family and of this type.
fn take_socket(
    intake: &mut Intake,
    field: &str,
    index: FdIndex,
    wanted: SocketType,
) -> Result<OwnedFd, Refusal> {
    let descriptor = intake.take(field, index)?;
    let (what, remedy) = if wanted == SocketType::SEQPACKET {
        (
            "a SOCK_SEQPACKET socket of the Unix family",
            "send one end of a socketpair",
        )
    } else {
        (
            "a SOCK_STREAM socket of the Unix family",
            "bind and listen on a Unix socket",
        )
    };
    let is_wanted = sockopt::socket_domain(&descriptor) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&descriptor) == Ok(wanted);
    if is_wanted {
        Ok(descriptor)
    } else {
        Err(not_a(field, what, remedy))
    }
}

fn take_segment(intake: &mut Intake, field: &str, index: FdIndex) -> Result<File, Refusal> {
    let descriptor = intake.take(field, index)?;
    let stat = status(field, &descriptor)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(not_a(field, "a regular file", "open two regular files"));
    }
    check_access(field, &descriptor, Access::ReadWrite)?;
    Ok(File::from(descriptor))
}

/// How a descriptor must have been opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
    Writable,
    Readable,
}

fn check_access(field: &str, descriptor: impl AsFd, wanted: Access) -> Result<(), Refusal> {
    let mode = fcntl_getfl(descriptor).map_err(|error| unreadable(field, error))? & OFlags::ACCMODE;
    let (fits, how) = match wanted {
        Access::ReadOnly => (mode == OFlags::RDONLY, "for reading only"),
        Access::ReadWrite => (mode == OFlags::RDWR, "for reading and writing"),
        Access::Writable => (mode != OFlags::RDONLY, "for writing"),
        Access::Readable => (mode != OFlags::WRONLY, "for reading"),
    };
    if fits {
        return Ok(());
    }
    Err(Refusal::new(
        field,
        format!("the descriptor is not open {how}"),
        format!("open it {how}, or correct the field that says otherwise"),
    ))
}

fn status(field: &str, descriptor: impl AsFd) -> Result<Stat, Refusal> {
    fstat(descriptor).map_err(|error| unreadable(field, error))
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn unreadable(field: &str, error: impl std::error::Error) -> Refusal {
    Refusal::new(
        field,
        format!("the descriptor cannot be examined: {error}"),
        "send a descriptor of an ordinary open file",
    )
}

fn not_a(field: &str, what: &str, remedy: &str) -> Refusal {
    Refusal::new(field, format!("the descriptor is not {what}"), remedy)
}

#[cfg(test)]
mod tests;
