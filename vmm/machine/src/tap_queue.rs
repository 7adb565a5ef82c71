//! One queue of a tap interface behind a virtio network device.
//!
//! Owns the host's names for offloads and what a whole packet is to the kernel. Descriptors were
//! checked by [`spec`](crate::spec); addresses are [`berth_vmm_sys::vectored_io`]'s.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use berth_vmm_devices::virtio::net::backend::NetBackend;
use berth_vmm_devices::virtio::net::{HEADER_BYTES, Offloads};
use berth_vmm_sys::{Tap, vectored_io};
use vm_memory::VolatileSlice;

/// `TUN_F_CSUM`, `TSO4`, `TSO6`, `TSO_ECN`: since Linux 2.6.27.
const TCP: u32 = 0x0f;
/// `TUN_F_UFO`.
const UFO: u32 = 0x10;
/// `TUN_F_USO4` and `TUN_F_USO6`: since Linux 6.2, and then segments of UDP can be sent as well.
const USO: u32 = 0x60;

/// One queue of a tap interface.
#[derive(Debug)]
pub struct TapQueue {
    tap: Tap,
    offloads: Offloads,
}

impl TapQueue {
    /// The queues of one interface: never waiting, with the headers that devices want, and without
    /// offloads until a driver takes some.
    ///
    /// # Errors
    /// What the host says.
    pub fn all(taps: Vec<Tap>) -> io::Result<Vec<Self>> {
        let header = i32::try_from(HEADER_BYTES).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut offloads = None;
        let mut queues = Vec::with_capacity(taps.len());
        for tap in taps {
            tap.set_nonblocking()?;
            tap.set_header_bytes(header)?;
            let offloads = match offloads {
                Some(found) => found,
                None => *offloads.insert(probe(&tap)?),
            };
            queues.push(Self { tap, offloads });
        }
        Ok(queues)
    }
}

/// Asks what the kernel can do, and leaves the interface without offloads.
fn probe(tap: &Tap) -> io::Result<Offloads> {
    let choices = [
        (
            TCP | UFO | USO,
            Offloads::TCP.and(Offloads::UFO).and(Offloads::USO),
        ),
        (TCP | USO, Offloads::TCP.and(Offloads::USO)),
        (TCP | UFO, Offloads::TCP.and(Offloads::UFO)),
        (TCP, Offloads::TCP),
    ];
    let found = choices
        .into_iter()
        .find(|&(flags, _)| tap.set_offloads(flags).is_ok());
    tap.set_offloads(0)?;
    Ok(found.map_or(Offloads::NONE, |(_, offloads)| offloads))
}

/// The host's flags for `offloads`.
fn flags(offloads: Offloads) -> u32 {
    // The guest's feature bits 1, 7, 8, 9 and 54, 55 in the order of the host's flags.
    let known = [
        (1, 0x01),
        (7, 0x02),
        (8, 0x04),
        (9, 0x08),
        (54, 0x20),
        (55, 0x40),
    ];
    known
        .into_iter()
        .filter(|&(feature, _)| offloads.has(feature))
        .fold(0, |flags, (_, flag)| flags | flag)
}

impl NetBackend for TapQueue {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.tap.set_offloads(flags(offloads))
    }

    fn set_attached(&mut self, is_attached: bool) -> io::Result<()> {
        self.tap.set_attached(is_attached)
    }

    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectored_io::read_some(self.tap.as_fd(), buffers)
    }

    fn send(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        // The kernel takes a packet whole or not at all.
        vectored_io::write_some(self.tap.as_fd(), buffers).map(drop)
    }
}
