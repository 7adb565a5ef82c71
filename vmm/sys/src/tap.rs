//! The host's end of a network interface: a descriptor of `/dev/net/tun`.
//!
//! Owns the ioctls. Which offloads a guest takes and which queue is used is decided elsewhere;
//! packets are moved by [`vectored_io`](crate::vectored_io).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{Ioctl, c_int, c_short, c_uint, c_ulong};

/// The interface behind a descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapInterface {
    /// Its name, in the network namespace where it was made.
    pub name: String,
    /// Ethernet frames with a virtio header and nothing else in front.
    pub is_tap_with_header: bool,
    /// Whether it may have several queues.
    pub is_multiqueue: bool,
}

/// One queue of a tap interface.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// A queue that somebody else opened. What it is, [`Self::interface`] says.
    #[must_use]
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Makes `descriptor`, a fresh `/dev/net/tun`, a queue of the interface `name`, which is made if
    /// it is not there: what launchers do before they hand it over.
    ///
    /// # Errors
    /// If the name is too long, or what the kernel says.
    pub fn attach_to(descriptor: OwnedFd, name: &str, is_multiqueue: bool) -> io::Result<Self> {
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if is_multiqueue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut request = request(flags)?;
        if name.len() >= request.ifr_name.len() || name.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (place, &byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *place = byte.cast_signed();
        }
        let tap = Self(descriptor);
        tap.with_request(libc::TUNSETIFF, &mut request)?;
        Ok(tap)
    }

    /// The interface.
    ///
    /// # Errors
    /// If the descriptor is no tun or tap, or belongs to no interface yet.
    pub fn interface(&self) -> io::Result<TapInterface> {
        let mut request = request(0)?;
        self.with_request(libc::TUNGETIFF, &mut request)?;
        // SAFETY: the kernel filled in the flags, which are a plain integer in any case.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let has = |flag: c_int| flags & flag == flag;
        let name = request.ifr_name.iter().map(|byte| byte.cast_unsigned());
        let name: Vec<u8> = name.take_while(|&byte| byte != 0).collect();
        Ok(TapInterface {
            name: String::from_utf8_lossy(&name).into_owned(),
            is_tap_with_header: has(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR),
            is_multiqueue: has(libc::IFF_MULTI_QUEUE),
        })
    }

    /// Sets the length of the header in front of packets.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_header_bytes(&self, bytes: c_int) -> io::Result<()> {
        // SAFETY: the request reads one `int`, which lives through the call.
        let result = unsafe { libc::ioctl(self.raw(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
        checked(result)
    }

    /// Sets what packets to the descriptor may leave undone: flags `TUN_F_*`, for all queues.
    ///
    /// # Errors
    /// If the kernel does not know one of the flags.
    pub fn set_offloads(&self, flags: c_uint) -> io::Result<()> {
        // SAFETY: the argument is the flags themselves; no memory is touched.
        let result = unsafe { libc::ioctl(self.raw(), libc::TUNSETOFFLOAD, c_ulong::from(flags)) };
        checked(result)
    }

    /// Whether the interface uses this queue. For interfaces with several.
    ///
    /// # Errors
    /// If it is so already, or what the kernel says.
    pub fn set_attached(&self, is_attached: bool) -> io::Result<()> {
        let flags = if is_attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        self.with_request(libc::TUNSETQUEUE, &mut request(flags)?)
    }

    /// Makes reads fail instead of waiting for a packet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        // SAFETY: F_GETFL touches no memory.
        let flags = unsafe { libc::fcntl(self.raw(), libc::F_GETFL) };
        checked(flags)?;
        // SAFETY: F_SETFL takes its flags as the argument and touches no memory.
        checked(unsafe { libc::fcntl(self.raw(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
    }

    /// The descriptor, to hand it over.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    fn raw(&self) -> c_int {
        self.0.as_raw_fd()
    }

    fn with_request(&self, number: Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the requests of the callers read or write one `ifreq`, which is borrowed
        // mutably for the call. On a descriptor that is no tun they fail or, as the number may mean
        // something else there, at most fill that many bytes.
        checked(unsafe { libc::ioctl(self.raw(), number, request) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A request without a name, with `flags`.
fn request(flags: c_int) -> io::Result<libc::ifreq> {
    let flags = c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    })
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
