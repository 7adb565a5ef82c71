//! How much a device may do in a second: buckets that are charged after the fact.
//!
//! Pure but for the [`Timer`], which is the machine's: time comes in as a number. Something is
//! admitted while a bucket is not empty and charged with its whole cost, so that a cost need not be
//! known beforehand and one that is larger than the bucket is possible: the bucket is then in debt.
//! Over any time the guest gets at most the rate, a bucket of one second, and one request more.

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What a full bucket is worth.
const BURST: Duration = Duration::from_secs(1);
const NANOSECOND: Duration = Duration::from_nanos(1);
const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;

/// A clock that can wake a device.
pub trait Timer: Send {
    /// Time since a start that never changes; never goes back.
    fn now(&self) -> Duration;
    /// Makes the descriptor readable once, `after` from now, instead of whenever it was set to.
    fn set(&mut self, after: Duration);
    /// What becomes readable. Nobody needs to read it before the next [`Timer::set`].
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// One bound, full at the start.
///
/// The level is kept as a time: the moment until which the rate is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bucket {
    per_second: NonZeroU64,
    used_until: Duration,
}

impl Bucket {
    /// No bucket for 0.
    fn new(per_second: u64) -> Option<Self> {
        Some(Self {
            per_second: NonZeroU64::new(per_second)?,
            used_until: Duration::ZERO,
        })
    }

    /// How long it stays empty.
    fn wait(&self, now: Duration) -> Duration {
        let level = now.saturating_add(BURST);
        match self.used_until.checked_sub(level) {
            None => Duration::ZERO,
            Some(debt) => debt.saturating_add(NANOSECOND),
        }
    }

    fn charge(&mut self, now: Duration, amount: u64) {
        // Rounded up, so that no number of small costs is free.
        let cost = (u128::from(amount) * NANOSECONDS_PER_SECOND)
            .div_ceil(u128::from(self.per_second.get()));
        let cost = Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        self.used_until = self.used_until.max(now).saturating_add(cost);
    }
}

/// Bounds on bytes and on requests of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
}

impl Limits {
    /// Bounds per second, 0 for none; `None` if there is no bound at all.
    #[must_use]
    pub fn new(bytes_per_second: u64, requests_per_second: u64) -> Option<Self> {
        let limits = Self {
            bytes: Bucket::new(bytes_per_second),
            requests: Bucket::new(requests_per_second),
        };
        (limits.bytes.is_some() || limits.requests.is_some()).then_some(limits)
    }

    /// How long nothing more is admitted.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        let waits = [self.bytes, self.requests].map(|bucket| bucket.map(|it| it.wait(now)));
        waits.into_iter().flatten().max().unwrap_or_default()
    }

    /// Charges one request of `bytes` bytes.
    pub fn charge(&mut self, now: Duration, bytes: u64) {
        for (bucket, amount) in [(&mut self.bytes, bytes), (&mut self.requests, 1)] {
            if let Some(bucket) = bucket {
                bucket.charge(now, amount);
            }
        }
    }
}

/// Limits with the timer that tells when they admit something again.
pub struct Throttle {
    limits: Limits,
    timer: Box<dyn Timer>,
    /// When the timer goes off, if it is set.
    wakes_at: Option<Duration>,
}

impl Throttle {
    /// Full buckets.
    #[must_use]
    pub fn new(limits: Limits, timer: Box<dyn Timer>) -> Self {
        Self {
            limits,
            timer,
            wakes_at: None,
        }
    }

    /// Whether something is admitted. If not, the descriptor tells when to ask again.
    pub fn admits(&mut self) -> bool {
        let now = self.timer.now();
        let wait = self.limits.wait(now);
        if wait.is_zero() {
            self.wakes_at = None;
        } else if self.wakes_at.is_none_or(|wakes_at| wakes_at <= now) {
            self.wakes_at = Some(now.saturating_add(wait));
            self.timer.set(wait);
        }
        wait.is_zero()
    }

    /// Charges one request of `bytes` bytes.
    pub fn charge(&mut self, bytes: u64) {
        self.limits.charge(self.timer.now(), bytes);
    }

    /// A source of the device: always the same one.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.timer.descriptor()
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Throttle")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_is_no_bound() {
        assert_eq!(Limits::new(0, 0), None);
        let mut limits = Limits::new(0, 2).unwrap();
        limits.charge(Duration::ZERO, u64::MAX);
        assert_eq!(limits.wait(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_seconds_worth_goes_at_once_and_the_rest_at_the_rate() {
        let mut limits = Limits::new(0, 4).unwrap();
        let start = Duration::from_secs(100);
        for _ in 0..4 {
            assert_eq!(limits.wait(start), Duration::ZERO);
            limits.charge(start, 0);
        }
        assert_eq!(limits.wait(start), NANOSECOND);
        let next = start + NANOSECOND;
        limits.charge(next, 0);
        let later = start + Duration::from_millis(250);
        assert_eq!(limits.wait(later), NANOSECOND);
        assert_eq!(limits.wait(later + NANOSECOND), Duration::ZERO);
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for() {
        let mut limits = Limits::new(1000, 0).unwrap();
        limits.charge(Duration::ZERO, 10_000);
        let nine = Duration::from_secs(9);
        assert_eq!(limits.wait(Duration::ZERO), nine + NANOSECOND);
        assert_eq!(limits.wait(nine + NANOSECOND), Duration::ZERO);
    }

    proptest! {
        /// Whoever asks again after the wait is admitted, and over the whole time nobody gets more
        /// than the rate, the burst and the last request.
        #[test]
        fn the_rate_is_kept_and_nobody_waits_in_vain(
            per_second in prop_oneof![1_u64..100, 1_u64..1 << 40],
            steps in prop::collection::vec((0_u64..2_000_000_000, 0_u64..1 << 20), 1..200),
        ) {
            let mut limits = Limits::new(per_second, 0).unwrap();
            let (mut now, mut total) = (Duration::ZERO, 0_u128);
            for (pause, bytes) in steps {
                now += Duration::from_nanos(pause);
                let wait = limits.wait(now);
                if wait > NANOSECOND {
                    prop_assert!(limits.wait(now + wait - NANOSECOND) > Duration::ZERO);
                }
                now += wait;
                prop_assert_eq!(limits.wait(now), Duration::ZERO);
                let allowed = u128::from(per_second) * (now + BURST).as_nanos() / NANOSECONDS_PER_SECOND;
                prop_assert!(total <= allowed, "{} of {} at {:?}", total, allowed, now);
                limits.charge(now, bytes);
                total += u128::from(bytes);
            }
        }

        #[test]
        fn no_number_overflows(
            rates in any::<(u64, u64)>(),
            charges in prop::collection::vec(any::<(u64, u64, u32)>(), 0..20),
        ) {
            if let Some(mut limits) = Limits::new(rates.0, rates.1) {
                for (bytes, seconds, nanoseconds) in charges {
                    let now = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds.into()));
                    limits.charge(now, bytes);
                    prop_assert!(limits.wait(now) <= Duration::MAX);
                }
            }
        }
    }
}
