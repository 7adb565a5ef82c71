//! A timer that wakes a device.
//!
//! Owns one `timerfd`. What is waited for is the device's business.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_vmm_devices::rate_limit::Timer;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer on the monotonic clock.
#[derive(Debug)]
pub(crate) struct TimerFd {
    descriptor: OwnedFd,
    /// By the standard library's clock: rustix finds its own by a call that the jail forbids.
    made: Instant,
}

impl TimerFd {
    /// A timer that is not set.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            descriptor: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            made: Instant::now(),
        })
    }
}

impl Timer for TimerFd {
    fn now(&self) -> Duration {
        self.made.elapsed()
    }

    fn set(&mut self, after: Duration) {
        // A time of zero would stop the timer.
        let after = after.max(Duration::from_nanos(1));
        let wanted = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &wanted)
            .expect("a timerfd takes every positive time");
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn the_descriptor_is_readable_when_the_time_has_passed_and_not_before() {
        let mut timer = TimerFd::new().unwrap();
        let is_readable = |timer: &TimerFd, wait: Option<&rustix::event::Timespec>| {
            let mut waiting = [PollFd::from_borrowed_fd(timer.descriptor(), PollFlags::IN)];
            poll(&mut waiting, wait).unwrap() == 1
        };
        let at_once = Timespec::default();
        timer.set(Duration::from_secs(1 << 40));
        assert!(!is_readable(&timer, Some(&at_once)));
        for after in [Duration::from_millis(20), Duration::ZERO] {
            let before = timer.now();
            timer.set(after);
            assert!(is_readable(&timer, None));
            assert!(timer.now() >= before + after);
        }
        timer.set(Duration::from_secs(3600));
        assert!(
            !is_readable(&timer, Some(&at_once)),
            "setting takes it back"
        );
    }
}
