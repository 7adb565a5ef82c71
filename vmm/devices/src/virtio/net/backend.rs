//! Where packets come from and go to.
//!
//! Owns the seam between the device and the host: one packet at a time, between guest memory and
//! one queue of a host interface, each with the header of [`HEADER_BYTES`](super::HEADER_BYTES) in
//! front. The bytes are the guest's or the network's; nothing here looks at them.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

use super::features::Offloads;

/// One queue of a host interface. Used by one thread at a time.
pub trait NetBackend: Send {
    /// Becomes readable when a packet has come. Of one interface's queues all have one or none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
    /// What [`Self::set_offloads`] takes. Constant.
    fn offloads(&self) -> Offloads;
    /// From here on packets that are received may need `offloads`. For the whole interface.
    ///
    /// # Errors
    /// What the host says.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
    /// Whether the interface uses this queue. Asked only of interfaces with several; all of them
    /// are used at first.
    ///
    /// # Errors
    /// What the host says.
    fn set_attached(&mut self, is_attached: bool) -> io::Result<()>;
    /// Takes the next packet into `buffers`, cut off where they end; returns its length there.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none; else what the host says.
    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;
    /// Sends `buffers` as one packet.
    ///
    /// # Errors
    /// If the host does not take the packet as it is, or not at this time.
    fn send(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
}
