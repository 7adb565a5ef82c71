//! What the host's disks could not do, told to whoever watches the machine.
//!
//! Owns the count and the latest failure; failures that nobody has heard of yet become one. What the
//! guest is told is the device's business.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_vmm_sys::Event;

/// The latest failure of a disk on the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskFailure {
    /// The disk's place in the start message.
    pub disk: usize,
    /// What the host said.
    pub error: String,
    /// Failures of all disks since the start, with this one.
    pub total: u64,
}

/// A place for [`DiskFailure`], shared by all disks.
#[derive(Debug)]
pub struct DiskFailures {
    told: Mutex<Told>,
    wake: Event,
}

#[derive(Debug, Default)]
struct Told {
    total: u64,
    latest: Option<DiskFailure>,
}

impl DiskFailures {
    /// No failure yet.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            told: Mutex::default(),
            wake: Event::new()?,
        })
    }

    /// Readable while there is a failure to take.
    #[must_use]
    pub fn descriptor(&self) -> &Event {
        &self.wake
    }

    /// Counts a failure of disk number `disk`.
    pub fn tell(&self, disk: usize, error: &io::Error) {
        let mut told = self.lock();
        told.total = told.total.saturating_add(1);
        told.latest = Some(DiskFailure {
            disk,
            error: error.to_string(),
            total: told.total,
        });
        drop(told);
        self.wake.signal();
    }

    /// The latest failure that was not taken yet.
    pub fn take(&self) -> Option<DiskFailure> {
        // Before looking: a failure that comes in between wakes again.
        self.wake.clear();
        self.lock().latest.take()
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable(failures: &DiskFailures) -> bool {
        let now = rustix::event::Timespec::default();
        let descriptor = failures.descriptor().as_fd();
        let mut waiting = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        poll(&mut waiting, Some(&now)).unwrap() == 1
    }

    #[test]
    fn failures_are_counted_and_the_latest_is_told_once() {
        let failures = DiskFailures::new().unwrap();
        assert!(!is_readable(&failures));
        failures.tell(0, &io::ErrorKind::StorageFull.into());
        failures.tell(1, &io::ErrorKind::UnexpectedEof.into());
        assert!(is_readable(&failures));
        let told = failures.take().unwrap();
        assert_eq!((told.disk, told.total), (1, 2));
        assert_eq!(told.error, "unexpected end of file");
        assert!(!is_readable(&failures));
        assert_eq!(failures.take(), None);
    }
}
