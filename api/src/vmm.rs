//! What the agent says to one VMM process, and what it hears back.
//!
//! The transport is one `SOCK_SEQPACKET` socket, which the VMM finds as its standard input. Every
//! message is one JSON document of at most [`MAX_MESSAGE_BYTES`]. The first message is [`Start`] and
//! carries, by `SCM_RIGHTS`, every descriptor that the machine will ever use; a [`FdIndex`] counts
//! into them. Afterwards the agent sends [`Request`]s and the VMM sends [`Event`]s. A closed socket
//! means that no agent is there: the guest goes on.
//!
//! The same types are read by `berth-vmm` and written by `berth-agent` and by the tests' launcher.

use serde::{Deserialize, Serialize};

/// The version of this contract. A VMM refuses any other.
pub const CONTRACT_VERSION: u32 = 1;
/// Longest message, in bytes, in either direction.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Most descriptors that one [`Start`] carries (the kernel's own limit is 253).
pub const MAX_DESCRIPTORS: usize = 64;
/// Most vCPUs of one machine. More need x2APIC destinations that we do not offer yet.
pub const MAX_VCPUS: u32 = 254;
/// Least guest memory, in MiB.
pub const MIN_MEMORY_MIB: u64 = 32;
/// Most guest memory, in MiB.
pub const MAX_MEMORY_MIB: u64 = 4 * 1024 * 1024;
/// Longest kernel command line, in bytes without the final NUL (x86 `COMMAND_LINE_SIZE` - 1).
pub const MAX_CMDLINE_BYTES: usize = 2047;
/// Most disks of one machine.
pub const MAX_DISKS: usize = 16;

/// A position in the descriptors that came with [`Start`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub u32);

/// The first message: build this machine and run it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// [`CONTRACT_VERSION`] of the sender.
    pub version: u32,
    /// For logs only; 1 to 64 printable ASCII characters.
    pub vm_id: String,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// An open `/dev/kvm`.
    pub kvm: FdIndex,
    /// A PVH ELF image or an x86-64 bzImage, read-only.
    pub kernel: FdIndex,
    /// An initial RAM disk, read-only.
    pub initrd: Option<FdIndex>,
    /// The kernel command line.
    pub cmdline: String,
    /// virtio-blk disks in PCI order.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Where the serial port's output goes; without it the machine has no serial port.
    pub console: Option<Console>,
    /// Whether the machine has a virtio entropy device.
    #[serde(default)]
    pub entropy: bool,
}

/// One virtio-blk disk with a raw image behind it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A regular file or a block device.
    pub fd: FdIndex,
    /// Whether writes are refused. Must agree with the descriptor's mode.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number: at most 20 printable ASCII characters.
    pub serial: String,
    /// The size that the sender expects, in bytes; a shorter file is refused as truncated.
    pub expected_bytes: u64,
}

/// Where serial output goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Console {
    /// Bytes as they come, to a pipe, a terminal or a file that somebody else bounds. Output that
    /// would block is dropped and counted.
    Stream {
        /// Where the bytes go.
        fd: FdIndex,
    },
    /// Two regular files that are written in turn, so that the newest `segment_bytes` of output at
    /// least are kept and the disk never fills. See [`console_segment`].
    Segments {
        /// The two files, opened for reading and writing.
        fds: [FdIndex; 2],
        /// Output bytes that one file holds before the other one is emptied and used; 4 KiB at least.
        segment_bytes: u64,
    },
}

/// The layout of one console segment file: a header of 16 bytes, then output.
pub mod console_segment {
    /// The first 8 bytes of a segment in use. An empty file is a segment never used.
    pub const MAGIC: [u8; 8] = *b"BERTHCN1";
    /// Header length: the magic, then the little-endian `u64` position of the segment's first
    /// output byte in the whole output since the console was made. The segment with the higher
    /// position is the newer one; a VMM that starts appends to it.
    pub const HEADER_BYTES: u64 = 16;
}

/// What the agent may ask of a running machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Press the ACPI power button.
    PowerButton,
    /// End at once, without asking the guest.
    Stop,
    /// Answer with [`Event::Statistics`].
    Statistics,
}

/// What the VMM says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The machine is built; the vCPUs run.
    Running {
        /// Host process id.
        pid: u32,
    },
    /// [`Start`] was refused or could not be carried out; the process ends after this.
    Refused {
        /// The field of [`Start`] at fault, as a path such as `disks[0].fd`.
        field: String,
        /// What is wrong with its value.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The machine ended; the process ends after this with [`Exit::code`].
    Exited {
        /// Why.
        exit: Exit,
        /// What reset the machine, with [`Exit::Reset`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<ResetCause>,
    },
    /// Counters since the start.
    Statistics {
        /// Guest exits to the VMM per kind, by name.
        exits: std::collections::BTreeMap<String, u64>,
        /// Times that a guest broke a device's rules.
        guest_errors: u64,
        /// Console bytes dropped because nobody read them.
        console_dropped_bytes: u64,
    },
}

/// Why a machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset: whoever started this process starts another.
    Reset,
    /// [`Request::Stop`] or a signal.
    Stopped,
    /// KVM could not run the guest any further.
    GuestCrash,
}

/// What reset a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetCause {
    /// The guest wrote the ACPI reset register.
    Register,
    /// The guest asked the keyboard controller for its reset pulse.
    Keyboard,
    /// A vCPU could not deliver an exception, nor the double fault that follows. Some kernels do
    /// this on purpose when nothing else resets the machine; else it is the guest's crash.
    TripleFault,
}

impl ResetCause {
    /// The name in messages and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Keyboard => "keyboard",
            Self::TripleFault => "triple_fault",
        }
    }
}

impl Exit {
    /// The process's exit status for this end. 64 and above are failures before the guest ran:
    /// 64 for usage, 65 for a refused [`Start`], 70 for our own fault.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset => 10,
            Self::Stopped => 11,
            Self::GuestCrash => 12,
        }
    }

    /// The end that an exit status stands for, if it stands for one.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::PowerOff, Self::Reset, Self::Stopped, Self::GuestCrash]
            .into_iter()
            .find(|exit| i32::from(exit.code()) == code)
    }
}
