//! A token bucket: how many requests a tenant may still make.

/// Least burst, in requests, however low the rate.
const MIN_BURST: u32 = 10;
const MS_PER_MINUTE: u64 = 60_000;

/// One tenant's bucket. Times are milliseconds of any monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    rpm: u32,
    /// Requests left, in units of 1/60000 request, so that one millisecond refills `rpm` units.
    level: u64,
    updated_ms: u64,
}

/// How a bucket stands after a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Whether the request may pass.
    pub allowed: bool,
    /// Whole requests left.
    pub remaining: u64,
    /// Seconds until one more request may pass; 0 when one may pass at once.
    pub retry_after_s: u64,
}

/// The most requests that may come at once for a rate.
#[must_use]
pub fn burst(rpm: u32) -> u32 {
    (rpm / 6).max(MIN_BURST)
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rpm: u32, now_ms: u64) -> Self {
        Self {
            rpm,
            level: capacity(rpm),
            updated_ms: now_ms,
        }
    }

    /// The rate that it was made for, in requests per minute.
    #[must_use]
    pub fn rpm(&self) -> u32 {
        self.rpm
    }

    /// Let the time pass and take one request if there is one.
    pub fn take(&mut self, now_ms: u64) -> Standing {
        let passed = now_ms.saturating_sub(self.updated_ms);
        let refill = passed.saturating_mul(u64::from(self.rpm));
        self.level = self.level.saturating_add(refill).min(capacity(self.rpm));
        self.updated_ms = now_ms.max(self.updated_ms);
        let allowed = self.level >= MS_PER_MINUTE;
        if allowed {
            self.level -= MS_PER_MINUTE;
        }
        let missing = MS_PER_MINUTE.saturating_sub(self.level);
        // A rate of zero never refills; an hour is what we say then.
        let wait_ms = missing
            .checked_div(u64::from(self.rpm))
            .unwrap_or(3_600_000);
        Standing {
            allowed,
            remaining: self.level / MS_PER_MINUTE,
            retry_after_s: if missing == 0 { 0 } else { wait_ms / 1000 + 1 },
        }
    }
}

fn capacity(rpm: u32) -> u64 {
    u64::from(burst(rpm)) * MS_PER_MINUTE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_request_waits() {
        let mut bucket = Bucket::full(600, 0);
        for n in 0..100 {
            assert!(bucket.take(0).allowed, "{n}");
        }
        let standing = bucket.take(0);
        assert_eq!(
            (standing.allowed, standing.remaining, standing.retry_after_s),
            (false, 0, 1)
        );
        assert!(
            bucket.take(100).allowed,
            "600 per minute is one every 100 ms"
        );
        assert!(!bucket.take(150).allowed);
    }

    #[test]
    fn over_any_time_exactly_burst_plus_rate_passes() {
        let mut bucket = Bucket::full(60, 0);
        let passed = (0..=60_000)
            .step_by(10)
            .filter(|now| bucket.take(*now).allowed)
            .count();
        assert_eq!(passed, 10 + 60);
    }

    #[test]
    fn the_wait_that_is_told_is_enough() {
        for rpm in [1, 7, 60, 599, 6000] {
            let mut bucket = Bucket::full(rpm, 0);
            while bucket.take(0).allowed {}
            let wait = bucket.take(0).retry_after_s;
            assert!(bucket.take(wait * 1000).allowed, "{rpm}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let mut bucket = Bucket::full(60, 1_000);
        while bucket.take(1_000).allowed {}
        assert!(!bucket.take(0).allowed);
        assert!(!bucket.take(1_500).allowed);
    }
}
