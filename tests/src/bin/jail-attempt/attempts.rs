//! The attempts by name. What each should meet is the test's to know.

use std::io;

use libc::{AT_FDCWD, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY};

use crate::raw::{address, call, open_by_interrupt, word};
use crate::scene::{Scene, SockAddress, descriptor};

/// One way out of the jail, or one step on it.
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    /// Succeeds if the kernel did what was asked.
    pub(crate) make: fn(&Scene) -> io::Result<i64>,
}

const fn attempt(name: &'static str, make: fn(&Scene) -> io::Result<i64>) -> Attempt {
    Attempt { name, make }
}

const RLIMIT_NOFILE: usize = 7;

/// All attempts.
#[rustfmt::skip]
pub(crate) const ATTEMPTS: &[Attempt] = &[
    // Files.
    attempt("open", |s| call(libc::SYS_open, [address(s.disk.as_c_str()), word(O_RDONLY)])),
    attempt("openat", |s| call(libc::SYS_openat, [word(AT_FDCWD), address(s.disk.as_c_str()), word(O_RDWR)])),
    attempt("openat2", |s| call(libc::SYS_openat2, [word(AT_FDCWD), address(s.disk.as_c_str()), address(&[0_u64; 3]), 24])),
    attempt("openat_in_open_folder", |s| call(libc::SYS_openat, [descriptor(&s.folder), address(s.disk_name.as_c_str()), word(O_RDWR)])),
    attempt("openat_by_proc_self_fd", |s| call(libc::SYS_openat, [word(AT_FDCWD), address(s.disk_by_descriptor.as_c_str()), word(O_RDWR)])),
    attempt("open_by_32_bit_entry", |s| open_by_interrupt(&s.disk)),
    attempt("open_tree", |s| call(libc::SYS_open_tree, [word(AT_FDCWD), address(s.disk.as_c_str()), 0])),
    attempt("creat", |s| call(libc::SYS_creat, [address(s.free_path.as_c_str()), 0o600])),
    attempt("openat_new", |s| call(libc::SYS_openat, [word(AT_FDCWD), address(s.free_path.as_c_str()), word(O_CREAT | O_WRONLY), 0o600])),
    attempt("truncate", |s| call(libc::SYS_truncate, [address(s.disk.as_c_str()), 0])),
    attempt("unlink", |s| call(libc::SYS_unlink, [address(s.disk.as_c_str())])),
    attempt("rename", |s| call(libc::SYS_rename, [address(s.disk.as_c_str()), address(s.free_path.as_c_str())])),
    attempt("link", |s| call(libc::SYS_link, [address(s.disk.as_c_str()), address(s.free_path.as_c_str())])),
    attempt("symlink", |s| call(libc::SYS_symlink, [address(s.disk.as_c_str()), address(s.free_path.as_c_str())])),
    attempt("mkdir", |s| call(libc::SYS_mkdir, [address(s.free_path.as_c_str()), 0o700])),
    attempt("mknod", |s| call(libc::SYS_mknod, [address(s.free_path.as_c_str()), 0o010_600])),
    attempt("chmod", |s| call(libc::SYS_chmod, [address(s.disk.as_c_str()), 0o777])),
    attempt("stat", |s| call(libc::SYS_stat, [address(s.disk.as_c_str()), buffer(256)])),
    attempt("readlink", |s| call(libc::SYS_readlink, [address(s.disk_by_descriptor.as_c_str()), buffer(256), 256])),
    attempt("chdir", |_| call(libc::SYS_chdir, [address(c"/")])),
    attempt("chroot", |_| call(libc::SYS_chroot, [address(c"/")])),
    attempt("mount", |_| call(libc::SYS_mount, [address(c"none"), address(c"/tmp"), address(c"tmpfs"), 0, 0])),
    attempt("fchmod", |s| call(libc::SYS_fchmod, [descriptor(&s.file), 0o666])),
    attempt("memfd_create", |_| call(libc::SYS_memfd_create, [address(c"code"), 0])),
    attempt("inotify_init", |_| call(libc::SYS_inotify_init1, [0])),

    // Sockets.
    attempt("socket_unix", |_| call(libc::SYS_socket, [word(libc::AF_UNIX), word(libc::SOCK_STREAM), 0])),
    attempt("socket_inet", |_| call(libc::SYS_socket, [word(libc::AF_INET), word(libc::SOCK_STREAM), 0])),
    attempt("socket_netlink", |_| call(libc::SYS_socket, [word(libc::AF_NETLINK), word(libc::SOCK_RAW), 0])),
    attempt("socket_packet", |_| call(libc::SYS_socket, [word(libc::AF_PACKET), word(libc::SOCK_RAW), 0])),
    attempt("socketpair_datagram", |_| call(libc::SYS_socketpair, [word(libc::AF_UNIX), word(libc::SOCK_DGRAM), 0, buffer(8)])),
    attempt("connect_path", |s| connect(&s.unix_socket, &s.unix_path)),
    attempt("connect_abstract", |s| connect(&s.unix_socket, &s.unix_abstract)),
    attempt("connect_tcp", |s| connect(&s.tcp_socket, &s.tcp)),
    attempt("bind_tcp", |s| {
        let any = SockAddress::tcp(0);
        call(libc::SYS_bind, [descriptor(&s.tcp_socket), address(&*any.0), any.0.len()])
    }),
    attempt("listen", |s| call(libc::SYS_listen, [descriptor(&s.tcp_socket), 1])),
    attempt("sendto_path", |s| call(libc::SYS_sendto, [descriptor(&s.datagram_socket), address(b"x"), 1, 0, address(&*s.datagram_path.0), s.datagram_path.0.len()])),

    // Processes.
    attempt("execve", |s| {
        let words = [address(s.program.as_c_str()), 0];
        call(libc::SYS_execve, [address(s.program.as_c_str()), address(&words), 0])
    }),
    attempt("execveat", |s| {
        let words = [address(s.program.as_c_str()), 0];
        call(libc::SYS_execveat, [word(AT_FDCWD), address(s.program.as_c_str()), address(&words), 0, 0])
    }),
    attempt("fork", |_| in_child(call(libc::SYS_fork, []))),
    attempt("clone", |_| in_child(call(libc::SYS_clone, [word(libc::SIGCHLD), 0, 0, 0, 0]))),
    attempt("clone3", |_| {
        let mut arguments = [0_u64; 8];
        arguments[4] = 17;
        in_child(call(libc::SYS_clone3, [address(&arguments), 64]))
    }),
    attempt("ptrace_seize", |s| call(libc::SYS_ptrace, [0x4206, word(s.victim), 0, 0])),
    attempt("ptrace_traceme", |_| call(libc::SYS_ptrace, [0, 0, 0, 0])),
    attempt("process_vm_readv", |s| call(libc::SYS_process_vm_readv, [word(s.victim), 0, 0, 0, 0, 0])),
    attempt("process_vm_writev", |s| call(libc::SYS_process_vm_writev, [word(s.victim), 0, 0, 0, 0, 0])),
    attempt("kill", |s| call(libc::SYS_kill, [word(s.victim), word(libc::SIGCONT)])),
    attempt("kill_everybody", |_| call(libc::SYS_kill, [usize::MAX, 0])),
    attempt("tgkill", |s| call(libc::SYS_tgkill, [word(s.victim), word(s.victim), 0])),
    attempt("tgkill_by_kick", |s| call(libc::SYS_tgkill, [word(s.victim), word(s.victim), word(libc::SIGRTMIN())])),
    attempt("tkill_by_abort", |s| call(libc::SYS_tkill, [word(s.victim), word(libc::SIGABRT)])),
    attempt("pidfd_open", |s| call(libc::SYS_pidfd_open, [word(s.victim), 0])),
    attempt("pidfd_getfd", |s| call(libc::SYS_pidfd_getfd, [descriptor(&s.victims_descriptor), 0, 0])),
    attempt("pidfd_send_signal", |s| call(libc::SYS_pidfd_send_signal, [descriptor(&s.victims_descriptor), word(libc::SIGCONT), 0, 0])),
    attempt("setpriority", |s| call(libc::SYS_setpriority, [0, word(s.victim), 1])),
    attempt("sched_setaffinity", |s| call(libc::SYS_sched_setaffinity, [word(s.victim), 8, address(&[1_u64])])),

    // Memory.
    attempt("mmap_code", |_| call(libc::SYS_mmap, [0, 4096, word(libc::PROT_READ | libc::PROT_EXEC), word(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), usize::MAX, 0])),
    attempt("mmap_file", |s| call(libc::SYS_mmap, [0, 4096, word(libc::PROT_READ), word(libc::MAP_PRIVATE), descriptor(&s.file), 0])),
    attempt("mprotect_code", |_| change_protection(libc::SYS_mprotect)),
    attempt("pkey_mprotect_code", |_| change_protection(libc::SYS_pkey_mprotect)),
    attempt("shmget", |_| call(libc::SYS_shmget, [0, 4096, 0o1600])),
    attempt("userfaultfd", |_| call(libc::SYS_userfaultfd, [1])),
    attempt("personality", |_| call(libc::SYS_personality, [0x0040_0000])),

    // The kernel.
    attempt("io_uring_setup", |_| call(libc::SYS_io_uring_setup, [1, buffer(120)])),
    attempt("io_uring_register", |s| call(libc::SYS_io_uring_register, [ring(s), 8, buffer(2064), 256])),
    attempt("bpf", |_| {
        // A map of one element: kind, key size, value size, elements.
        let mut map = [0_u32; 18];
        map[..4].copy_from_slice(&[2, 4, 4, 1]);
        call(libc::SYS_bpf, [0, address(&map), 72])
    }),
    attempt("perf_event_open", |_| {
        // A software clock of this thread.
        let mut event = [0_u32; 16];
        event[..2].copy_from_slice(&[1, 64]);
        call(libc::SYS_perf_event_open, [address(&event), 0, usize::MAX, usize::MAX, 0])
    }),
    attempt("prctl_dumpable", |_| call(libc::SYS_prctl, [4, 1, 0, 0, 0])),
    attempt("prctl_ptracer", |_| call(libc::SYS_prctl, [15, address(c"other"), 0, 0, 0])),
    attempt("seccomp", |_| call(libc::SYS_seccomp, [2, 0, address(&[0x8000_0000_u32])])),
    attempt("setrlimit", |s| call(libc::SYS_setrlimit, [RLIMIT_NOFILE, address(&s.more_files)])),
    attempt("prlimit", |s| call(libc::SYS_prlimit64, [0, RLIMIT_NOFILE, address(&s.more_files), 0])),
    attempt("setuid", |_| call(libc::SYS_setuid, [0])),
    attempt("setgid", |_| call(libc::SYS_setgid, [0])),
    attempt("setresuid", |_| call(libc::SYS_setresuid, [0, 0, 0])),
    attempt("setgroups", |_| call(libc::SYS_setgroups, [1, address(&[0_u32])])),
    attempt("capset", |_| {
        let header = [0x2008_0522_u32, 0];
        call(libc::SYS_capset, [address(&header), address(&[0_u32; 6])])
    }),
    attempt("unshare_mounts", |_| call(libc::SYS_unshare, [word(libc::CLONE_NEWNS)])),
    attempt("unshare_network", |_| call(libc::SYS_unshare, [word(libc::CLONE_NEWNET)])),
    attempt("setns", |s| call(libc::SYS_setns, [descriptor(&s.network_namespace), 0])),
    attempt("add_key", |_| call(libc::SYS_add_key, [address(c"user"), address(c"berth"), address(b"x"), 1, word(-2)])),
    attempt("landlock", |_| call(libc::SYS_landlock_create_ruleset, [0, 0, 1])),
    attempt("modify_ldt", |_| call(libc::SYS_modify_ldt, [0, buffer(64), 64])),
    attempt("x32_getpid", |_| call(0x4000_0000 | libc::SYS_getpid, [])),

    // Device calls.
    attempt("ioctl_tiocsti", |s| call(libc::SYS_ioctl, [descriptor(&s.terminal), 0x5412, address(b"x")])),
    attempt("ioctl_fionread", |s| call(libc::SYS_ioctl, [descriptor(&s.stream), 0x541b, buffer(4)])),
    attempt("ioctl_kvm_create_vm", |s| call(libc::SYS_ioctl, [kvm(s)?, 0xae01, 0])),
    attempt("ioctl_kvm_with_high_bits", |s| call(libc::SYS_ioctl, [kvm(s)?, 0x1_0000_ae01, 0])),

    // What the other kind of thread may do.
    attempt("epoll_ctl", |s| call(libc::SYS_epoll_ctl, [descriptor(&s.epoll), 1, descriptor(&s.stream), address(&[1_u32, 0, 0])])),
    attempt("recvmsg", |s| message(s, libc::SYS_recvmsg)),
    attempt("sendmsg", |s| message(s, libc::SYS_sendmsg)),
    attempt("socketpair", |_| call(libc::SYS_socketpair, [word(libc::AF_UNIX), word(libc::SOCK_STREAM), 0, buffer(8)])),
    attempt("fallocate", |s| call(libc::SYS_fallocate, [descriptor(&s.own_disk), 0, 0, 4096])),
    attempt("io_uring_enter", |s| call(libc::SYS_io_uring_enter, [ring(s), 0, 0, 0, 0, 0])),
];

/// Room that the kernel may write to.
fn buffer(bytes: usize) -> usize {
    let room: &'static mut [u8] = Vec::leak(vec![0; bytes]);
    room.as_mut_ptr().expose_provenance()
}

fn connect(socket: &std::os::fd::OwnedFd, to: &SockAddress) -> io::Result<i64> {
    call(
        libc::SYS_connect,
        [descriptor(socket), address(&*to.0), to.0.len()],
    )
}

/// The child of a process that could be copied ends at once.
fn in_child(result: io::Result<i64>) -> io::Result<i64> {
    match result {
        Ok(0) => berth_vmm_sys::exit_now(0),
        other => other,
    }
}

/// Makes a page of this program's own data executable.
fn change_protection(number: i64) -> io::Result<i64> {
    let page = call(
        libc::SYS_mmap,
        [
            0,
            4096,
            word(libc::PROT_READ | libc::PROT_WRITE),
            word(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            usize::MAX,
            0,
        ],
    )?;
    let page = usize::try_from(page).map_err(io::Error::other)?;
    let protection = word(libc::PROT_READ | libc::PROT_EXEC);
    // The last argument is a protection key: none.
    call(number, [page, 4096, protection, usize::MAX])
}

fn ring(scene: &Scene) -> usize {
    usize::try_from(scene.ring).unwrap_or(usize::MAX)
}

fn kvm(scene: &Scene) -> io::Result<usize> {
    scene
        .kvm
        .as_ref()
        .map(descriptor)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// One byte over the stream, with the call that takes a whole message header.
fn message(scene: &Scene, number: i64) -> io::Result<i64> {
    let byte = [0_u8];
    let part = [address(&byte), 1];
    // No name, one part, no ancillary data.
    let header = [0, 0, address(&part), 1, 0, 0, 0];
    call(number, [descriptor(&scene.stream), address(&header), 0])
}
