//! The kernel's own messages about devices that come, go and change, so that the inventory can be read
//! again. What a message says is not used for anything else: what counts is what sysfs shows then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

/// The kernel's multicast group; what udev sends on is another.
const KERNEL_GROUP: u32 = 1;
/// Longest message: the kernel's buffer for one has 2 KiB for its values and a path before them.
const MESSAGE_BYTES: usize = 8192;
/// What the socket keeps while nobody reads: some thousand messages, as when a bus is scanned again.
const BUFFER_BYTES: usize = 4 << 20;
/// The subsystems whose changes can change a slot.
const SUBSYSTEMS: [&str; 4] = ["pci", "block", "vfio", "iommu"];
/// The device without which a host runs no VM. At boot it may come after whoever asks for it.
const KVM_PATH: &str = "/devices/virtual/misc/kvm";

/// Something about a device changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A message about one device.
    Device {
        /// `add`, `remove`, `bind`, `unbind`, `change`, `move`, `online` or `offline`.
        action: String,
        /// One of `pci`, `block`, `vfio` and `iommu`; `misc` for KVM.
        subsystem: String,
        /// Its path in sysfs, without `/sys`.
        path: String,
    },
    /// Messages were lost: anything may have changed.
    Lost,
}

/// A socket on which the kernel tells of devices. It never blocks: wait until its descriptor is readable,
/// then take changes until there is none.
#[derive(Debug)]
pub struct DeviceWatch {
    socket: OwnedFd,
}

impl AsFd for DeviceWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for DeviceWatch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

impl DeviceWatch {
    /// Listen. What changes from here on is told, so read the inventory after this.
    ///
    /// # Errors
    /// If there is no such socket: in a network namespace of its own a process hears nothing.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )?;
        set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// The next change of KVM, or of a device that a slot could depend on; `None` if there is none
    /// yet.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn next(&self) -> io::Result<Option<Change>> {
        let mut message = [0; MESSAGE_BYTES];
        loop {
            let (bytes, _, sender) =
                match recvfrom(&self.socket, &mut message[..], RecvFlags::empty()) {
                    Ok(received) => received,
                    Err(rustix::io::Errno::AGAIN) => return Ok(None),
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(rustix::io::Errno::NOBUFS) => return Ok(Some(Change::Lost)),
                    Err(error) => return Err(error.into()),
                };
            // Only the kernel has the port 0; other processes may send to this socket, too.
            let is_kernel = sender
                .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
                .is_some_and(|sender| sender.pid() == 0);
            let change = message.get(..bytes).and_then(parse);
            if let Some(change) = change.filter(|_| is_kernel) {
                return Ok(Some(change));
            }
        }
    }
}

/// Reads `ACTION@PATH` and the values after it, each ended by a zero byte.
fn parse(message: &[u8]) -> Option<Change> {
    let text = std::str::from_utf8(message).ok()?;
    let (mut action, mut path, mut subsystem) = (None, None, None);
    for value in text.split('\0').skip(1) {
        match value.split_once('=') {
            Some(("ACTION", value)) => action = Some(value),
            Some(("DEVPATH", value)) => path = Some(value),
            Some(("SUBSYSTEM", value)) => subsystem = Some(value),
            Some(_) | None => {}
        }
    }
    let (subsystem, path) = (subsystem?, path?);
    let is_of_interest = SUBSYSTEMS.contains(&subsystem) || path == KVM_PATH;
    is_of_interest.then_some(())?;
    Some(Change::Device {
        action: action?.to_owned(),
        subsystem: subsystem.to_owned(),
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_about_a_device_is_read() {
        let message = b"remove@/devices/pci0000:00/0000:00:01.0\0ACTION=remove\0\
            DEVPATH=/devices/pci0000:00/0000:00:01.0\0SUBSYSTEM=pci\0SEQNUM=7\0";
        assert_eq!(
            parse(message),
            Some(Change::Device {
                action: "remove".to_owned(),
                subsystem: "pci".to_owned(),
                path: "/devices/pci0000:00/0000:00:01.0".to_owned(),
            })
        );
    }

    #[test]
    fn that_the_host_has_kvm_is_told() {
        let message = b"add@/devices/virtual/misc/kvm\0ACTION=add\0\
            DEVPATH=/devices/virtual/misc/kvm\0SUBSYSTEM=misc\0MAJOR=10\0MINOR=232\0DEVNAME=kvm\0";
        assert!(parse(message).is_some());
        let other = b"add@/devices/virtual/misc/fuse\0ACTION=add\0\
            DEVPATH=/devices/virtual/misc/fuse\0SUBSYSTEM=misc\0";
        assert_eq!(parse(other), None);
    }

    #[test]
    fn messages_about_other_things_and_broken_ones_are_passed_over() {
        for message in [
            &b"add@/x\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=usb\0"[..],
            b"add@/x\0ACTION=add\0SUBSYSTEM=pci\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"",
        ] {
            assert_eq!(parse(message), None);
        }
    }

    #[test]
    fn the_kernel_can_be_listened_to_without_waiting() {
        let watch = DeviceWatch::open().unwrap();
        // Whatever happened on this machine meanwhile, it comes to an end.
        let mut changes = 0;
        while watch.next().unwrap().is_some() && changes < 1000 {
            changes += 1;
        }
        assert!(changes < 1000);
    }
}
