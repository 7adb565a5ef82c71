//! A network in memory: a back end for tests and fuzzers, and its other end.
//!
//! Packets wait in lists, headers and all. It can be told to refuse.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use vm_memory::VolatileSlice;

use super::backend::NetBackend;
use super::features::Offloads;
use super::slices;
use crate::sync::lock;

/// The network's end of one queue.
#[derive(Clone, Debug, Default)]
pub struct Wire(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    offloads: Offloads,
    is_detached: bool,
    refuses: bool,
    watcher: Watcher,
}

#[derive(Default)]
struct Watcher(Option<Box<dyn FnMut() + Send>>);

impl fmt::Debug for Watcher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.is_some())
    }
}

impl Wire {
    /// A wire without packets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The device's end.
    #[must_use]
    pub fn port(&self) -> Box<dyn NetBackend> {
        Box::new(Port(self.clone()))
    }

    /// Sends `packet`, which begins with a header, to the guest.
    pub fn put(&self, packet: Vec<u8>) {
        lock(&self.0).to_guest.push_back(packet);
    }

    /// Packets that the guest has not got yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.0).to_guest.len()
    }

    /// What the guest sent since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.0).from_guest)
    }

    /// What the guest's driver takes unfinished.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        lock(&self.0).offloads
    }

    /// Whether the interface uses the queue.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        !lock(&self.0).is_detached
    }

    /// Calls `watcher` whenever the device is about to take a packet.
    pub fn watch(&self, watcher: impl FnMut() + Send + 'static) {
        lock(&self.0).watcher = Watcher(Some(Box::new(watcher)));
    }

    /// From here on everything that can fail does, or no longer does.
    pub fn refuse(&self, refuses: bool) {
        lock(&self.0).refuses = refuses;
    }
}

struct Port(Wire);

impl Port {
    fn state(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let state = lock(&self.0.0);
        if state.refuses {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(state)
    }
}

impl NetBackend for Port {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn offloads(&self) -> Offloads {
        Offloads::TCP.and(Offloads::USO)
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.state()?.offloads = offloads;
        Ok(())
    }

    fn set_attached(&mut self, is_attached: bool) -> io::Result<()> {
        self.state()?.is_detached = !is_attached;
        Ok(())
    }

    fn receive(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let packet = {
            let mut state = self.state()?;
            if let Watcher(Some(watcher)) = &mut state.watcher {
                watcher();
            }
            state.to_guest.pop_front()
        };
        let packet = packet.ok_or(io::ErrorKind::WouldBlock)?;
        slices::write_at(buffers, 0, &packet);
        let room = buffers.iter().map(VolatileSlice::len).sum();
        Ok(packet.len().min(room))
    }

    fn send(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut packet = Vec::new();
        for buffer in buffers {
            let start = packet.len();
            packet.resize(start + buffer.len(), 0);
            buffer.copy_to(&mut packet[start..]);
        }
        self.state()?.from_guest.push(packet);
        Ok(())
    }
}
