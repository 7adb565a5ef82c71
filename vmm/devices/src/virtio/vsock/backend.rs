//! What the device needs of the host: streams, and who wants to connect.
//!
//! Owns no socket. The machine implements these over descriptors that it was given; tests and
//! fuzzers over anything. Nothing here may block.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;

use super::packet::Ports;

/// The host's end of one connection. Dropping it closes it.
pub trait HostStream: fmt::Debug + Send {
    /// Moves bytes of the host's peer to `buffers`; 0 if it will send no more.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing: a [`HostEvent::Ready`] follows when there
    /// is. Anything else ends the direction.
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Moves bytes from `buffers` to the host's peer.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is no room: a [`HostEvent::Ready`] follows when there
    /// is. Anything else ends the direction.
    fn write(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Ends one direction or both; the peer sees the end of the stream, or a broken pipe.
    fn shut_down(&mut self, direction: Shutdown);

    /// The guest accepted a connection that the host's peer asked for: tells the peer, before any
    /// data.
    ///
    /// # Errors
    /// If the peer cannot be told.
    fn tell_accepted(&mut self) -> io::Result<()>;
}

/// What has happened on the host's side.
#[derive(Debug)]
pub enum HostEvent {
    /// Somebody wants to be connected with a port of the guest.
    Asked {
        /// The guest's port, and a host's port from
        /// [`FIRST_HOST_PORT`](super::packet::FIRST_HOST_PORT) on.
        ports: Ports,
        /// The peer. Its [`HostEvent::Ready`] comes under `ports`.
        stream: Box<dyn HostStream>,
    },
    /// A stream's state changed. May come for a connection that is not there.
    Ready {
        /// The connection.
        ports: Ports,
        /// What changed.
        readiness: Readiness,
    },
}

/// How a stream's state changed since the last time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// There is something to read, or the end.
    pub input: bool,
    /// There is room to write.
    pub room: bool,
    /// The peer is gone: it neither reads nor writes any more.
    pub is_gone: bool,
}

/// The host of a guest's virtio socket device. Used by one thread at a time.
pub trait VsockHost: Send {
    /// Becomes readable when [`Self::next_event`] has something; always the same one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// What has happened, one after the other, until there is nothing.
    fn next_event(&mut self) -> Option<HostEvent>;

    /// Connects the guest with whoever serves the host's port. `None` if nobody does.
    fn connect(&mut self, ports: Ports) -> Option<Box<dyn HostStream>>;
}
