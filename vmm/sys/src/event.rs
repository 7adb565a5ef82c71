//! An event counter that threads and KVM signal and an event loop waits on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An `eventfd` that never blocks.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// An event that has not happened.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Makes the event happen: whoever waits on the descriptor is woken.
    pub fn signal(&self) {
        // Fails only if the counter is full, and then the descriptor is readable already.
        self.0.write(1).unwrap_or(());
    }

    /// Makes the event not have happened: the descriptor is not readable until the next signal.
    pub fn clear(&self) {
        // Fails only if it has not happened.
        self.0.read().map(drop).unwrap_or(());
    }

    /// Whether the event has happened since it was last cleared or delivered; clears it.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    pub(crate) fn as_eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_happened_once_until_its_next_signal() {
        let event = Event::new().unwrap();
        assert!(!event.take());
        event.signal();
        event.signal();
        assert!(event.take());
        assert!(!event.take());
        event.signal();
        event.clear();
        assert!(!event.take());
    }
}
