//! What an attempt has at hand when the jail closes: descriptors of all kinds and a victim.
//!
//! More than a VMM ever has, so that what stops an attempt is the jail and not the want of something
//! to work with.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, getrlimit};

use crate::raw;

/// Everything that is there.
pub(crate) struct Scene {
    /// Another VM's disk.
    pub(crate) disk: CString,
    /// The same below `/proc/self/fd`, where it is open for reading only.
    pub(crate) disk_by_descriptor: CString,
    /// Its name in [`Self::folder`].
    pub(crate) disk_name: CString,
    /// A name that is free.
    pub(crate) free_path: CString,
    pub(crate) program: CString,
    pub(crate) folder: OwnedFd,
    pub(crate) file: File,
    /// A stranger's process of the same user.
    pub(crate) victim: i32,
    pub(crate) unix_path: SockAddress,
    pub(crate) unix_abstract: SockAddress,
    pub(crate) datagram_path: SockAddress,
    pub(crate) tcp: SockAddress,
    pub(crate) unix_socket: OwnedFd,
    pub(crate) datagram_socket: OwnedFd,
    pub(crate) tcp_socket: OwnedFd,
    /// A stream with a byte to read.
    pub(crate) stream: UnixStream,
    pub(crate) epoll: OwnedFd,
    /// A disk that is this VM's.
    pub(crate) own_disk: File,
    pub(crate) kvm: Option<File>,
    pub(crate) terminal: File,
    pub(crate) network_namespace: File,
    pub(crate) victims_descriptor: OwnedFd,
    /// As many open files as the process may allow itself: soft and hard limit.
    pub(crate) more_files: [u64; 2],
    /// An io_uring without restrictions.
    pub(crate) ring: i64,
    _peers: (
        UnixListener,
        UnixListener,
        UnixDatagram,
        TcpListener,
        UnixStream,
    ),
}

/// A socket address as the kernel reads it.
pub(crate) struct SockAddress(pub(crate) Vec<u8>);

impl SockAddress {
    fn unix(path: &[u8]) -> Self {
        let family = u16::try_from(libc::AF_UNIX).unwrap_or(0);
        Self([&family.to_ne_bytes(), path].concat())
    }

    pub(crate) fn tcp(port: u16) -> Self {
        let family = u16::try_from(libc::AF_INET).unwrap_or(0);
        let (family, port) = (family.to_ne_bytes(), port.to_be_bytes());
        Self([&family[..], &port, &[127, 0, 0, 1], &[0; 8]].concat())
    }
}

impl Scene {
    /// Prepares everything, while the process still may.
    ///
    /// # Errors
    /// If something cannot be had.
    pub(crate) fn set(folder: &Path, victim: i32) -> Result<Self> {
        let disk = folder.join("disk.raw");
        std::fs::write(&disk, "another tenant's data").context("writing a disk")?;
        let file = File::open(&disk).context("opening a disk")?;
        let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (listener, path) = (folder.join("stream"), folder.join("datagram"));
        let abstract_name = format!("berth-jail-attempt-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&abstract_name)?;
        let tcp = TcpListener::bind("127.0.0.1:0").context("listening on TCP")?;
        let (mut ours, stream) = UnixStream::pair()?;
        std::io::Write::write_all(&mut ours, b"x")?;
        let unix_path = SockAddress::unix(listener.as_os_str().as_bytes());
        let datagram_path = SockAddress::unix(path.as_os_str().as_bytes());
        let pid = rustix::process::Pid::from_raw(victim).context("the victim's id")?;
        let more_files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        Ok(Self {
            disk_by_descriptor: CString::new(descriptor)?,
            disk_name: CString::new("disk.raw")?,
            disk: CString::new(disk.as_os_str().as_bytes())?,
            free_path: CString::new(folder.join("new").as_os_str().as_bytes())?,
            program: CString::new("/bin/true")?,
            folder: File::open(folder)?.into(),
            file,
            victim,
            unix_abstract: SockAddress::unix(&[b"\0", abstract_name.as_bytes()].concat()),
            tcp: SockAddress::tcp(tcp.local_addr()?.port()),
            unix_socket: socket(AddressFamily::UNIX, SocketType::STREAM, None)?,
            datagram_socket: socket(AddressFamily::UNIX, SocketType::DGRAM, None)?,
            tcp_socket: socket(AddressFamily::INET, SocketType::STREAM, None)?,
            stream,
            epoll: rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?,
            own_disk: File::create(folder.join("own.raw"))?,
            kvm: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .ok(),
            terminal: OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/ptmx")?,
            network_namespace: File::open("/proc/self/ns/net")?,
            victims_descriptor: rustix::process::pidfd_open(
                pid,
                rustix::process::PidfdFlags::empty(),
            )?,
            more_files: [more_files; 2],
            ring: ring()?,
            _peers: (
                UnixListener::bind(&listener).context("listening on a path")?,
                UnixListener::bind_addr(&abstract_address)?,
                UnixDatagram::bind(&path)?,
                tcp,
                ours,
            ),
            unix_path,
            datagram_path,
        })
    }
}

fn ring() -> Result<i64> {
    // The kernel's parameters, which it fills in.
    let parameters = [0_u64; 15];
    raw::call(libc::SYS_io_uring_setup, [1, raw::address(&parameters)]).context("making a ring")
}

/// A descriptor as an argument.
pub(crate) fn descriptor(from: &impl AsRawFd) -> usize {
    let number: RawFd = from.as_raw_fd();
    raw::word(number)
}
