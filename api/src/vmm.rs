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
/// Most descriptors that one [`Start`] carries: what Linux passes with one message (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;
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
/// Most network interfaces of one machine.
pub const MAX_NETWORKS: usize = 8;
/// Most queue pairs of one network interface.
pub const MAX_QUEUE_PAIRS: usize = 8;
/// Most request queues of one disk.
pub const MAX_DISK_QUEUES: u16 = 16;
/// Most passed-through devices of one machine.
pub const MAX_PASSTHROUGH: usize = 16;

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
    /// virtio-net interfaces in PCI order, after the disks.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// A virtio socket device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// A virtio console, `hvc0` in a Linux guest.
    #[serde(default)]
    pub virtio_console: Option<VirtioConsole>,
    /// A memory balloon. Refused together with [`Start::vfio`].
    #[serde(default)]
    pub balloon: Option<Balloon>,
    /// Whether the machine has a pvpanic device, by which a guest says that it panicked.
    #[serde(default)]
    pub panic_device: bool,
    /// Host devices that the guest gets.
    #[serde(default)]
    pub vfio: Option<Vfio>,
    /// What guest memory is made of.
    #[serde(default)]
    pub memory_backing: MemoryBacking,
    /// A sealed memory file with what the agent found out about this host's KVM, so that every start
    /// need not ask again. A file that does not fit this host is ignored.
    #[serde(default)]
    pub host_facts: Option<FdIndex>,
}

impl Start {
    /// A machine of one vCPU and 128 MiB without devices.
    #[must_use]
    pub fn new(vm_id: impl Into<String>, kvm: FdIndex, kernel: FdIndex) -> Self {
        Self {
            version: CONTRACT_VERSION,
            vm_id: vm_id.into(),
            vcpus: 1,
            memory_mib: 128,
            kvm,
            kernel,
            initrd: None,
            cmdline: String::new(),
            disks: Vec::new(),
            console: None,
            entropy: false,
            networks: Vec::new(),
            vsock: None,
            virtio_console: None,
            balloon: None,
            panic_device: false,
            vfio: None,
            memory_backing: MemoryBacking::default(),
            host_facts: None,
        }
    }
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
    /// Request queues, up to [`MAX_DISK_QUEUES`]; 0 lets the VMM choose by the number of vCPUs.
    #[serde(default)]
    pub queues: u16,
    /// Bounds on what the guest may do per second.
    #[serde(default)]
    pub rate_limit: RateLimit,
}

impl Disk {
    /// A writable disk with no serial number, the VMM's choice of queues and no limits.
    #[must_use]
    pub fn new(fd: FdIndex, expected_bytes: u64) -> Self {
        Self {
            fd,
            read_only: false,
            serial: String::new(),
            expected_bytes,
            queues: 0,
            rate_limit: RateLimit::default(),
        }
    }
}

/// Bounds on one device. A bucket of one second's worth may be used at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes per second; 0 for no bound.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Requests per second; 0 for no bound.
    #[serde(default)]
    pub requests_per_second: u64,
}

/// One virtio-net interface over tap descriptors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One tap descriptor for each queue pair, 1 to [`MAX_QUEUE_PAIRS`], all of one interface that
    /// was made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` (and `IFF_MULTI_QUEUE` if there are
    /// several). Headers of 12 bytes; the VMM sets the offloads.
    pub taps: Vec<FdIndex>,
    /// No descriptors: packets go through the VMM. As many open `/dev/vhost-net` as there are taps:
    /// through the host's kernel.
    #[serde(default)]
    pub vhost: Vec<FdIndex>,
    /// The guest's address on the link, as `52:54:00:12:34:56`: unicast, locally administered.
    pub mac: String,
    /// The link's MTU in bytes, 68 to 65535; none is told to the guest if it is absent.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// A virtio socket device. The VMM reaches no path: connections come and go through descriptors.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, 3 to `u32::MAX - 1`.
    pub cid: u32,
    /// A listening `AF_UNIX` stream socket. Who connects sends `CONNECT <port>\n`, reads
    /// `OK <host port>\n`, and is then connected with that port of the guest. Whom the guest refuses,
    /// and who says anything else, sees the connection close.
    #[serde(default)]
    pub listener: Option<FdIndex>,
    /// A `SOCK_SEQPACKET` socket. When the guest connects to a port of the host (context id 2), the
    /// VMM sends one [`VsockConnection`] with one end of a new stream socket, which is non-blocking;
    /// whoever reads it serves the connection or closes it. While nobody reads, and a few wait
    /// already, the guest's connections are refused.
    #[serde(default)]
    pub connector: Option<FdIndex>,
}

/// What goes with the descriptor of a connection that a guest opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConnection {
    /// The host's port that the guest asked for: below 2^31.
    pub port: u32,
    /// The guest's own port.
    pub guest_port: u32,
}

/// A virtio console.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioConsole {
    /// Where output goes.
    pub output: Console,
    /// Where input comes from: a pipe, a terminal or a stream socket.
    #[serde(default)]
    pub input: Option<FdIndex>,
}

/// A memory balloon. It begins empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Whether the guest takes pages back by itself before it runs out of memory.
    pub deflate_on_oom: bool,
    /// Whether the guest tells the host of free pages, which the host then takes back.
    pub free_page_reporting: bool,
}

/// Host devices for the guest, through VFIO.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vfio {
    /// How the host's IOMMU is reached.
    pub iommu: Iommu,
    /// The devices in PCI order, after all virtio devices; 1 to [`MAX_PASSTHROUGH`].
    pub devices: Vec<VfioDevice>,
    /// Whether the devices may reach each other's memory directly. Where the host cannot do that,
    /// the VMM says so by [`Warning::PeerToPeer`] and goes on without.
    #[serde(default)]
    pub peer_to_peer: bool,
}

/// The host interface behind VFIO devices.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Iommu {
    /// An open `/dev/vfio/vfio` without groups; each device names its group's descriptor.
    Type1 {
        /// The container.
        container: FdIndex,
    },
    /// An open `/dev/iommu`; each device brings its own descriptor.
    Iommufd {
        /// The descriptor.
        iommu: FdIndex,
    },
}

/// One host device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VfioDevice {
    /// The host's PCI address as `0000:01:00.0`.
    pub address: String,
    /// With [`Iommu::Type1`] an open `/dev/vfio/<group>`, which several devices may name; with
    /// [`Iommu::Iommufd`] the open `/dev/vfio/devices/vfio<n>`.
    pub fd: FdIndex,
}

/// What guest memory is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBacking {
    /// The host's pages.
    #[serde(default)]
    pub pages: HostPages,
    /// The host's NUMA nodes that memory may come from; the host's own choice if empty.
    #[serde(default)]
    pub numa_nodes: Vec<u32>,
    /// Whether all memory is made present before the guest runs, which [`Event::Preparing`] reports.
    /// Always so with [`Start::vfio`].
    #[serde(default)]
    pub prefault: bool,
}

/// The size of the host's pages behind guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPages {
    /// Anonymous memory; large pages where the host gives them.
    #[default]
    Transparent,
    /// Anonymous memory in pages of 4 KiB only: least memory, most time.
    Small,
    /// Reserved pages of 2 MiB; refused where there are not enough.
    Huge2M,
    /// Reserved pages of 1 GiB; refused where there are not enough.
    Huge1G,
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

/// What the agent may ask of a running machine. What cannot be done now is answered with
/// [`Event::Denied`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Press the ACPI power button.
    PowerButton,
    /// End at once, without asking the guest.
    Stop,
    /// Let no vCPU enter the guest; answered with [`Event::Paused`].
    Pause,
    /// Undo [`Request::Pause`]; answered with [`Event::Resumed`].
    Resume,
    /// Ask the guest to give up memory until the balloon holds `target_mib`.
    Balloon {
        /// The balloon's wanted size in MiB.
        target_mib: u64,
    },
    /// Take the medium out of a read-only disk for good: its descriptor is closed, and the guest reads
    /// nothing of it any more. Answered with [`Event::DiskEjected`], also if it is out already.
    EjectDisk {
        /// The disk's [`Disk::serial`].
        serial: String,
    },
    /// Answer with [`Event::Statistics`].
    Statistics,
}

impl Request {
    /// The request's name in the contract, as `power_button`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PowerButton => "power_button",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Balloon { .. } => "balloon",
            Self::EjectDisk { .. } => "eject_disk",
            Self::Statistics => "statistics",
        }
    }
}

/// Why a [`Request`] was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denial {
    /// The machine is paused already.
    AlreadyPaused,
    /// The machine is not paused.
    NotPaused,
    /// The machine is ending.
    Ending,
    /// The machine has no such device.
    NoDevice,
    /// The value is not one that the machine can have.
    OutOfRange,
    /// The message is no request of this contract.
    Malformed,
    /// The guest does not run yet: its memory is being made present.
    Preparing,
    /// The vCPUs did not come to rest in time: the guest runs on.
    TimedOut,
}

/// Something that the machine goes on without, or that somebody should look at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "warning", rename_all = "snake_case", deny_unknown_fields)]
pub enum Warning {
    /// Devices cannot reach this device's memory.
    PeerToPeer {
        /// The host's PCI address.
        device: String,
        /// What the host said.
        problem: String,
    },
    /// The host wants a passed-through device back (VFIO's request interrupt).
    DeviceWanted {
        /// The host's PCI address.
        device: String,
    },
    /// A passed-through device reported an unrecoverable error (VFIO's error interrupt).
    DeviceError {
        /// The host's PCI address.
        device: String,
    },
    /// The host has no io_uring for this disk, so its requests go one after the other.
    SlowDisk {
        /// Its place in the start message.
        disk: usize,
        /// What the host said.
        problem: String,
    },
    /// The guest says by its pvpanic device that it panicked.
    GuestPanicked {
        /// Whether it goes on into its own crash kernel.
        crash_kernel: bool,
    },
}

/// Counters of one device since the start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStatistics {
    /// Its kind and its position among those of its kind, as `disk0`.
    pub device: String,
    /// Counters by name.
    pub counters: std::collections::BTreeMap<String, u64>,
}

/// What the VMM says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// Guest memory is being made present; comes at most about once per second.
    Preparing {
        /// MiB that are present.
        done_mib: u64,
        /// MiB that will be.
        total_mib: u64,
    },
    /// The machine is built; the vCPUs run.
    Running {
        /// Host process id.
        pid: u32,
    },
    /// No vCPU runs the guest any more.
    Paused,
    /// The vCPUs run the guest again.
    Resumed,
    /// The guest reads nothing of this disk any more.
    DiskEjected {
        /// The disk's [`Disk::serial`].
        serial: String,
    },
    /// A [`Request`] was not done.
    Denied {
        /// The request's name in the contract, as `pause`; empty if it could not be read.
        request: String,
        /// Why.
        reason: Denial,
        /// What to do about it.
        remedy: String,
    },
    /// The machine goes on, but not as asked or not as usual.
    Warning {
        /// What it is about.
        about: Warning,
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
        /// Counters of each device that has some.
        #[serde(default)]
        devices: Vec<DeviceStatistics>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_called_what_it_is_called_on_the_wire() {
        for request in [
            Request::PowerButton,
            Request::Stop,
            Request::Pause,
            Request::Resume,
            Request::Balloon { target_mib: 1 },
            Request::EjectDisk {
                serial: "seed".to_owned(),
            },
            Request::Statistics,
        ] {
            let message = serde_json::to_value(&request).unwrap();
            assert_eq!(message["request"], request.name());
        }
    }
}
