//! A queue pair that the host's kernel serves: packets go from ring to tap without this process.
//!
//! Owns when the kernel has the rings. A pair's queues are lent to it when the pair is first used
//! after an activation, and the kernel lets go of them before the pair is put out of use and before
//! the device is reset. In between nothing here touches them.
//!
//! ```text
//! idle -> serving -> paused -> serving (the driver uses fewer pairs, then more)
//! any  -> idle (reset)
//! ```

use std::io;
use std::os::fd::BorrowedFd;

use super::{Count, NetCounters};
use crate::virtio::queue::{QueueAddresses, QueueBroken, Queues};

/// Where a ring is, and where it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LentRing {
    /// Its place in guest memory.
    pub addresses: QueueAddresses,
    /// The available index that is taken next.
    pub next: u16,
}

/// The kernel's end of one queue pair: ring 0 receives, ring 1 sends. Used by one thread at a time.
pub trait VhostBackend: Send {
    /// Feature bits of devices and rings that the kernel knows. Constant.
    fn features(&self) -> u64;
    /// Signalled when the driver wants to be interrupted for a ring.
    fn calls(&self) -> [BorrowedFd<'_>; 2];
    /// Signalled when the driver broke a ring.
    fn error(&self) -> BorrowedFd<'_>;
    /// Whether the driver broke a ring since the last call.
    fn take_error(&mut self) -> bool;
    /// Tells the kernel that the driver notified a ring.
    fn kick(&mut self, ring: usize);
    /// Lets the kernel serve the rings, with `features` as far as it knows them.
    ///
    /// # Errors
    /// If a ring is not in one piece on the host, or what the kernel says. It serves nothing then.
    fn start(&mut self, features: u64, rings: &[LentRing; 2]) -> io::Result<()>;
    /// Ends that: on return the kernel does not touch guest memory, in any case. Where each ring
    /// goes on.
    ///
    /// # Errors
    /// What the kernel says. It will never start again.
    fn stop(&mut self) -> io::Result<[u16; 2]>;
}

/// Descriptors of one pair that wake the device: both calls, and the error.
const SOURCES: usize = 3;

/// What a source stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// The driver is to be interrupted for this ring of this pair.
    Call(usize, usize),
    /// A ring of this pair is broken.
    Error(usize),
}

impl Source {
    pub(super) fn at(source: u16) -> Self {
        let source = usize::from(source);
        match (source / SOURCES, source % SOURCES) {
            (pair, ring @ (0 | 1)) => Self::Call(pair, ring),
            (pair, _) => Self::Error(pair),
        }
    }
}

#[derive(Clone, Copy)]
enum State {
    Idle,
    Serving([LentRing; 2]),
    Paused([LentRing; 2]),
}

/// One pair's kernel side.
pub(super) struct KernelPair {
    backend: Box<dyn VhostBackend>,
    state: State,
}

impl KernelPair {
    pub(super) fn new(backend: Box<dyn VhostBackend>) -> Self {
        let state = State::Idle;
        Self { backend, state }
    }

    /// The pair's sources in the order of [`Source::at`].
    pub(super) fn sources(&self) -> [BorrowedFd<'_>; SOURCES] {
        let [receive, transmit] = self.backend.calls();
        [receive, transmit, self.backend.error()]
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.state, State::Serving(_))
    }

    /// Passes a notification on.
    pub(super) fn kick(&mut self, ring: usize) {
        if self.is_serving() {
            self.backend.kick(ring);
        }
    }

    pub(super) fn take_error(&mut self) -> bool {
        self.backend.take_error()
    }

    /// Lends the queues `first` and `first + 1`, if the driver enabled both, or goes on with them.
    ///
    /// # Errors
    /// If the kernel cannot serve them. The driver has to reset the device.
    pub(super) fn start(
        &mut self,
        first: u16,
        features: u64,
        queues: &mut Queues,
        counters: &NetCounters,
    ) -> Result<(), QueueBroken> {
        let rings = match self.state {
            State::Serving(_) => return Ok(()),
            State::Paused(rings) => rings,
            State::Idle => match lend(first, queues) {
                Some(rings) => rings,
                None => return Ok(()),
            },
        };
        let started = self.backend.start(features, &rings);
        if started.is_err() {
            counters.add(Count::HostErrors, 1);
            return Err(QueueBroken);
        }
        self.state = State::Serving(rings);
        Ok(())
    }

    /// Takes the rings from the kernel, to go on later.
    pub(super) fn pause(&mut self, counters: &NetCounters) {
        let State::Serving(mut rings) = self.state else {
            return;
        };
        match self.backend.stop() {
            Ok(next) => {
                for (ring, next) in rings.iter_mut().zip(next) {
                    ring.next = next;
                }
            }
            Err(_) => counters.add(Count::HostErrors, 1),
        }
        self.state = State::Paused(rings);
    }

    /// Takes the rings from the kernel and forgets them.
    pub(super) fn reset(&mut self, counters: &NetCounters) {
        self.pause(counters);
        self.state = State::Idle;
        // What was said of the rings is no more.
        self.backend.take_error();
    }
}

fn lend(first: u16, queues: &mut Queues) -> Option<[LentRing; 2]> {
    let second = first.checked_add(1)?;
    if queues.get(first).is_none() || queues.get(second).is_none() {
        return None;
    }
    let mut rings = [LentRing::default(); 2];
    for (ring, index) in rings.iter_mut().zip([first, second]) {
        let queue = queues.lend(index)?;
        *ring = LentRing {
            addresses: queue.addresses(),
            next: queue.next_available(),
        };
    }
    Some(rings)
}
