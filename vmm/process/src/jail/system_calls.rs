//! Every system call that `berth-vmm` may make once its guest runs, and what needs it.
//!
//! The one place to change when a device needs another call: `vmm/process/build.rs` makes the filters
//! from these tables, and what they do not name ends the process with SIGSYS. Name the narrowest
//! arguments that serve, and the narrowest kind of thread. Rules with the same call are alternatives:
//! put the frequent one first. A call with [`ANY`] arguments costs the kernel nothing per call, as it
//! remembers the answer; the order of different calls therefore does not matter.

use libc::{
    AF_UNIX, F_GETFD, MADV_DONTNEED, MADV_FREE, MAP_ANONYMOUS, PROT_EXEC, SIGABRT, SOCK_CLOEXEC,
    SOCK_NONBLOCK, SOCK_STREAM,
};

/// One way in which a call is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    /// The call's number.
    pub(super) call: i64,
    /// What its arguments have to be: all of these.
    pub(super) arguments: Arguments,
    /// What breaks without it.
    pub(super) needed_by: &'static str,
}

/// A condition on one argument: `argument & mask == value`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Argument {
    /// Which one, from 0.
    pub(super) position: u8,
    /// The bits that are looked at.
    pub(super) mask: u64,
    /// What they have to be.
    pub(super) value: u64,
}

/// No condition.
pub(super) const ANY: Arguments = [None, None];

/// Stands for the id of the process, which is known only when the filter is installed.
pub(super) const OWN_PROCESS: u32 = 0x7fff_fff1;

/// What every kind of thread may do.
#[rustfmt::skip]
pub(super) const EVERY_THREAD: &[Rule] = &[
    rule(libc::SYS_futex, ANY, "locks, and waiting at the gate"),
    rule(libc::SYS_write, ANY, "signalling events; console; log"),
    rule(libc::SYS_read, ANY, "clearing events"),
    ioctl(KVM_SIGNAL_MSI, "interrupts of emulated devices"),
    ioctl(KVM_IRQFD, "interrupts of vhost and passed-through devices"),
    ioctl(KVM_SET_GSI_ROUTING, "the same: their messages' targets"),
    rule(libc::SYS_lseek, ANY, "changing console segments"),
    rule(libc::SYS_ftruncate, ANY, "changing console segments"),
    rule(libc::SYS_mmap, ANONYMOUS_WITHOUT_CODE, "the allocator"),
    rule(libc::SYS_munmap, ANY, "the allocator"),
    rule(libc::SYS_mremap, ANY, "the allocator"),
    rule(libc::SYS_brk, ANY, "the allocator"),
    rule(libc::SYS_mprotect, WITHOUT_CODE, "glibc's allocator"),
    rule(libc::SYS_madvise, advice(MADV_DONTNEED), "the allocator; the balloon"),
    rule(libc::SYS_madvise, advice(MADV_FREE), "musl's allocator"),
    rule(libc::SYS_close, ANY, "connections and files that are done"),
    rule(libc::SYS_fcntl, IS_OPEN, "debug builds: checking what is closed"),
    rule(libc::SYS_clock_gettime, ANY, "time, where the clock is no vDSO's"),
    rule(libc::SYS_sched_yield, ANY, "locks that spin for a moment"),
    rule(libc::SYS_nanosleep, ANY, "waiting for a time"),
    rule(libc::SYS_clock_nanosleep, ANY, "waiting for a time"),
    rule(libc::SYS_restart_syscall, ANY, "waits that a signal interrupted"),
    rule(libc::SYS_rt_sigreturn, ANY, "the end of a kick's handler"),
    rule(libc::SYS_rt_sigprocmask, ANY, "aborting"),
    rule(libc::SYS_getpid, ANY, "kicking a vCPU; aborting"),
    rule(libc::SYS_gettid, ANY, "aborting"),
    rule(libc::SYS_tgkill, own_thread(SIGABRT), "aborting"),
    rule(libc::SYS_tkill, ABORT, "aborting, with musl"),
    rule(libc::SYS_sigaltstack, ANY, "the end of a thread"),
    rule(libc::SYS_exit, ANY, "the end of a thread"),
    rule(libc::SYS_exit_group, ANY, "the end"),
];

/// What a vCPU's thread may do besides.
#[rustfmt::skip]
pub(super) const VCPU_THREAD: &[Rule] = &[
    ioctl(KVM_RUN, "running the guest"),
    ioctl(VFIO_DEVICE_SET_IRQS, "a guest switching a device's interrupts"),
    rule(libc::SYS_eventfd2, ANY, "the same: an event for each"),
    ioctl(VFIO_DEVICE_RESET, "a guest resetting a passed-through device"),
    ioctl(KVM_SET_USER_MEMORY_REGION, "a passed-through device's memory that comes and goes"),
    ioctl(VFIO_IOMMU_MAP_DMA, "the same, for other passed-through devices"),
    ioctl(VFIO_IOMMU_UNMAP_DMA, "the same, for other passed-through devices"),
    ioctl(IOMMU_IOAS_MAP, "the same, for other passed-through devices"),
    ioctl(IOMMU_IOAS_UNMAP, "the same, for other passed-through devices"),
    ioctl(KVM_GET_REGS, "saying where a guest crashed"),
    ioctl(KVM_GET_SREGS, "saying where a guest crashed"),
    rule(libc::SYS_io_uring_enter, ANY, "a guest resetting a disk: waiting for its requests"),
    ioctl(VHOST_NET_SET_BACKEND, "a guest resetting a network device"),
    ioctl(VHOST_GET_VRING_BASE, "a guest resetting a network device"),
    rule(libc::SYS_pread64, ANY, "registers of passed-through devices"),
    rule(libc::SYS_pwrite64, ANY, "registers of passed-through devices"),
];

/// What the thread that serves queues and the control socket may do besides.
#[rustfmt::skip]
pub(super) const IO_THREAD: &[Rule] = &[
    rule(libc::SYS_epoll_wait, ANY, "waiting for queues and descriptors"),
    rule(libc::SYS_epoll_pwait, ANY, "the same in musl"),
    rule(libc::SYS_epoll_pwait2, ANY, "the same with a fine timeout"),
    rule(libc::SYS_epoll_ctl, ANY, "connections that come and go"),
    rule(libc::SYS_io_uring_enter, ANY, "rings, which were made and restricted before"),
    rule(libc::SYS_readv, ANY, "packets and streams"),
    rule(libc::SYS_writev, ANY, "packets and streams"),
    rule(libc::SYS_preadv, ANY, "disks"),
    rule(libc::SYS_pwritev, ANY, "disks"),
    rule(libc::SYS_preadv2, ANY, "disks"),
    rule(libc::SYS_pwritev2, ANY, "disks"),
    rule(libc::SYS_pread64, ANY, "disks"),
    rule(libc::SYS_pwrite64, ANY, "disks"),
    rule(libc::SYS_fdatasync, ANY, "disks: flush"),
    rule(libc::SYS_fallocate, ANY, "disks: discard, write zeroes"),
    rule(libc::SYS_getrandom, ANY, "the entropy device"),
    rule(libc::SYS_timerfd_settime, ANY, "rate limits"),
    rule(libc::SYS_tgkill, own_thread(MUSL_KICK), "kicking a vCPU"),
    rule(libc::SYS_tgkill, own_thread(GLIBC_KICK), "kicking a vCPU"),
    rule(libc::SYS_recvmsg, ANY, "requests on the control socket"),
    rule(libc::SYS_sendmsg, ANY, "events on the control socket; vsock connections"),
    rule(libc::SYS_recvfrom, ANY, "vsock streams"),
    rule(libc::SYS_sendto, NO_ADDRESS, "vsock streams"),
    rule(libc::SYS_accept4, ANY, "vsock connections from the host"),
    rule(libc::SYS_socketpair, UNIX_STREAM, "vsock connections to the host"),
    rule(libc::SYS_shutdown, ANY, "vsock streams that end one way"),
    ioctl(VFIO_DEVICE_SET_IRQS, "interrupts of passed-through devices"),
    ioctl(TUNSETOFFLOAD, "a network driver's features"),
    ioctl(TUNSETQUEUE, "a network driver's number of queues"),
    ioctl(VHOST_SET_FEATURES, "a network driver's features"),
    ioctl(VHOST_SET_VRING_NUM, "a network driver's queues"),
    ioctl(VHOST_SET_VRING_ADDR, "a network driver's queues"),
    ioctl(VHOST_SET_VRING_BASE, "a network driver's queues"),
    ioctl(VHOST_GET_VRING_BASE, "stopping a network queue"),
    ioctl(VHOST_NET_SET_BACKEND, "starting and stopping a network queue"),
];

/// The conditions on the arguments of a call.
pub(super) type Arguments = [Option<Argument>; 2];

const IS_OPEN: Arguments = [masked(1, INT, bits(F_GETFD)), None];
const WITHOUT_CODE: Arguments = [masked(2, bits(PROT_EXEC), 0), None];
const ANONYMOUS_WITHOUT_CODE: Arguments = [
    masked(2, bits(PROT_EXEC), 0),
    masked(3, bits(MAP_ANONYMOUS), bits(MAP_ANONYMOUS)),
];
/// Nothing that takes an address with each message, and no other family.
const UNIX_STREAM: Arguments = [
    masked(0, INT, bits(AF_UNIX)),
    masked(
        1,
        INT & !bits(SOCK_CLOEXEC | SOCK_NONBLOCK),
        bits(SOCK_STREAM),
    ),
];
/// A null pointer where `sendto` takes whom to send to.
const NO_ADDRESS: Arguments = [masked(4, u64::MAX, 0), None];
const ABORT: Arguments = [masked(1, INT, bits(SIGABRT)), None];
/// The first real-time signal, of which each C library keeps some for itself.
const MUSL_KICK: i32 = 35;
const GLIBC_KICK: i32 = 34;

const KVM_RUN: u32 = io(KVM, 0x80);
const KVM_SIGNAL_MSI: u32 = iow(KVM, 0xa5, 32);
const KVM_IRQFD: u32 = iow(KVM, 0x76, 32);
const KVM_SET_GSI_ROUTING: u32 = iow(KVM, 0x6a, 8);
const KVM_GET_REGS: u32 = ior(KVM, 0x81, 144);
const KVM_GET_SREGS: u32 = ior(KVM, 0x83, 312);
const KVM_SET_USER_MEMORY_REGION: u32 = iow(KVM, 0x46, 32);
const VFIO_DEVICE_SET_IRQS: u32 = io(VFIO, 110);
const VFIO_DEVICE_RESET: u32 = io(VFIO, 111);
const VFIO_IOMMU_MAP_DMA: u32 = io(VFIO, 113);
const VFIO_IOMMU_UNMAP_DMA: u32 = io(VFIO, 114);
const IOMMU_IOAS_MAP: u32 = io(VFIO, 0x85);
const IOMMU_IOAS_UNMAP: u32 = io(VFIO, 0x86);
const TUNSETOFFLOAD: u32 = iow(TUN, 208, 4);
const TUNSETQUEUE: u32 = iow(TUN, 217, 4);
const VHOST_SET_FEATURES: u32 = iow(VHOST, 0x00, 8);
const VHOST_SET_VRING_NUM: u32 = iow(VHOST, 0x10, 8);
const VHOST_SET_VRING_ADDR: u32 = iow(VHOST, 0x11, 40);
const VHOST_SET_VRING_BASE: u32 = iow(VHOST, 0x12, 8);
const VHOST_GET_VRING_BASE: u32 = ior(VHOST, 0x12, 8) | iow(VHOST, 0x12, 8);
const VHOST_NET_SET_BACKEND: u32 = iow(VHOST, 0x30, 8);

const KVM: u32 = 0xae;
const VFIO: u32 = b';' as u32;
const TUN: u32 = b'T' as u32;
const VHOST: u32 = 0xaf;

/// The number of an ioctl without data.
const fn io(kind: u32, number: u32) -> u32 {
    kind << 8 | number
}

/// The number of an ioctl that the kernel reads `bytes` for.
const fn iow(kind: u32, number: u32, bytes: u32) -> u32 {
    1 << 30 | bytes << 16 | io(kind, number)
}

/// The number of an ioctl that the kernel writes `bytes` for.
const fn ior(kind: u32, number: u32, bytes: u32) -> u32 {
    2 << 30 | bytes << 16 | io(kind, number)
}

const fn rule(call: i64, arguments: Arguments, needed_by: &'static str) -> Rule {
    Rule {
        call,
        arguments,
        needed_by,
    }
}

/// The kernel, too, looks at the lower half of the number only.
const fn ioctl(number: u32, needed_by: &'static str) -> Rule {
    let arguments = [masked(1, INT, number as u64), None];
    rule(libc::SYS_ioctl, arguments, needed_by)
}

const fn advice(advice: i32) -> Arguments {
    [masked(2, INT, bits(advice)), None]
}

/// A signal to a thread of this process.
const fn own_thread(signal: i32) -> Arguments {
    [
        masked(0, INT, OWN_PROCESS as u64),
        masked(2, INT, bits(signal)),
    ]
}

/// The part of an argument that is an `int` to the kernel.
const INT: u64 = u32::MAX as u64;

const fn masked(position: u8, mask: u64, value: u64) -> Option<Argument> {
    Some(Argument {
        position,
        mask,
        value,
    })
}

const fn bits(value: i32) -> u64 {
    value.cast_unsigned() as u64
}
