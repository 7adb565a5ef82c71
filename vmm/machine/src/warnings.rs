//! What the machine goes on without, told to whoever watches it.
//!
//! Owns the order of warnings and a bound on how many wait: a guest or a host device that warns
//! without end costs no memory. What is worth a warning is the device's business.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::vmm::Warning;
use berth_vmm_sys::Event;

/// Warnings that wait to be told; further ones are dropped.
const MAX_UNTOLD: usize = 64;

/// A place for [`Warning`]s, shared by all devices.
#[derive(Debug)]
pub struct Warnings {
    untold: Mutex<VecDeque<Warning>>,
    wake: Event,
}

impl Warnings {
    /// No warning yet.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            untold: Mutex::default(),
            wake: Event::new()?,
        })
    }

    /// Readable while there is a warning to take.
    #[must_use]
    pub fn descriptor(&self) -> &Event {
        &self.wake
    }

    /// Warns whoever watches the machine.
    pub fn tell(&self, warning: Warning) {
        let mut untold = self.lock();
        if untold.len() < MAX_UNTOLD {
            untold.push_back(warning);
            self.wake.signal();
        }
    }

    /// The oldest warning that was not taken yet.
    pub fn take(&self) -> Option<Warning> {
        let mut untold = self.lock();
        let warning = untold.pop_front();
        if untold.is_empty() {
            self.wake.clear();
        }
        warning
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Warning>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(warnings: &Warnings) -> bool {
        let descriptor = warnings.descriptor().as_fd();
        let mut waiting = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        poll(&mut waiting, Some(&Timespec::default())).unwrap() == 1
    }

    fn wanted(device: usize) -> Warning {
        Warning::DeviceWanted {
            device: device.to_string(),
        }
    }

    #[test]
    fn every_warning_is_told_once_and_in_order() {
        let warnings = Warnings::new().unwrap();
        assert!(!is_readable(&warnings));
        warnings.tell(wanted(1));
        warnings.tell(wanted(2));
        for device in [1, 2] {
            assert!(is_readable(&warnings));
            assert_eq!(warnings.take(), Some(wanted(device)));
        }
        assert!(!is_readable(&warnings));
        assert_eq!(warnings.take(), None);
    }

    #[test]
    fn warnings_without_end_are_dropped() {
        let warnings = Warnings::new().unwrap();
        for device in 0..MAX_UNTOLD + 10 {
            warnings.tell(wanted(device));
        }
        for device in 0..MAX_UNTOLD {
            assert_eq!(warnings.take(), Some(wanted(device)));
        }
        assert_eq!(warnings.take(), None);
    }
}
