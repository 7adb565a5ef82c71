//! Token buckets: how many requests somebody may still make.
//!
//! Times are milliseconds of any monotonic clock, passed in. Memory is bounded: above
//! [`MAX_KEYS`] keys, new ones share a bucket until old ones are full again and so forgotten.

use std::collections::HashMap;
use std::hash::Hash;

/// Least burst, in requests, however low the rate.
const MIN_BURST: u32 = 10;
const MS_PER_MINUTE: u64 = 60_000;
/// Keys that have a bucket of their own.
pub const MAX_KEYS: usize = 100_000;
/// How often full buckets are looked for, at most, while all keys are taken.
const SWEEP_MS: u64 = 1_000;

/// One bucket. Times are milliseconds of any monotonic clock.
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

    fn refill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.updated_ms);
        let refill = passed.saturating_mul(u64::from(self.rpm));
        self.level = self.level.saturating_add(refill).min(capacity(self.rpm));
        self.updated_ms = now_ms.max(self.updated_ms);
    }

    fn is_full(&mut self, now_ms: u64) -> bool {
        self.refill(now_ms);
        self.level >= capacity(self.rpm)
    }

    /// Let the time pass and take one request if there is one.
    pub fn take(&mut self, now_ms: u64) -> Standing {
        self.refill(now_ms);
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

/// The buckets of many, each found by its key.
#[derive(Clone, Debug)]
pub struct Buckets<K> {
    own: HashMap<K, Bucket>,
    max_keys: usize,
    shared: Option<Bucket>,
    swept_ms: u64,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// No bucket yet; at most `max_keys` of them.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        Self {
            own: HashMap::new(),
            max_keys,
            shared: None,
            swept_ms: 0,
        }
    }

    /// Take one request at this rate from a key's bucket. A bucket of another rate begins anew.
    pub fn take(&mut self, key: &K, rpm: u32, now_ms: u64) -> Standing {
        self.bucket(key, rpm, now_ms).take(now_ms)
    }

    /// How a key's bucket would stand after one request, which is not taken.
    pub fn look(&mut self, key: &K, rpm: u32, now_ms: u64) -> Standing {
        let mut copy = *self.bucket(key, rpm, now_ms);
        copy.take(now_ms)
    }

    /// Forget a key.
    pub fn forget(&mut self, key: &K) {
        self.own.remove(key);
    }

    /// Keys that have a bucket of their own.
    #[must_use]
    pub fn len(&self) -> usize {
        self.own.len()
    }

    /// Whether nobody has a bucket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    fn bucket(&mut self, key: &K, rpm: u32, now_ms: u64) -> &mut Bucket {
        if !self.own.contains_key(key) && self.own.len() >= self.max_keys {
            self.sweep(now_ms);
        }
        let room = self.own.len() < self.max_keys;
        let bucket = if room || self.own.contains_key(key) {
            self.own
                .entry(key.clone())
                .or_insert_with(|| Bucket::full(rpm, now_ms))
        } else {
            self.shared.get_or_insert_with(|| Bucket::full(rpm, now_ms))
        };
        if bucket.rpm() != rpm {
            *bucket = Bucket::full(rpm, now_ms);
        }
        bucket
    }

    /// A full bucket says nothing that no bucket would not say.
    fn sweep(&mut self, now_ms: u64) {
        if self.swept_ms.saturating_add(SWEEP_MS) > now_ms {
            return;
        }
        self.swept_ms = now_ms;
        self.own.retain(|_, bucket| !bucket.is_full(now_ms));
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

    #[test]
    fn each_key_has_its_own_bucket() {
        let mut buckets = Buckets::new(10);
        while buckets.take(&"a", 60, 0).allowed {}
        assert!(!buckets.look(&"a", 60, 0).allowed);
        assert!(buckets.look(&"b", 60, 0).allowed);
        let before = buckets.take(&"b", 60, 0).remaining;
        assert_eq!(buckets.look(&"b", 60, 0).remaining, before - 1);
        assert_eq!(
            buckets.take(&"b", 60, 0).remaining,
            before - 1,
            "a look takes nothing"
        );
        // Another rate is another bucket, and so is a forgotten key's.
        assert!(buckets.take(&"a", 61, 0).allowed);
        while buckets.take(&"a", 61, 0).allowed {}
        buckets.forget(&"a");
        assert!(buckets.take(&"a", 61, 0).allowed);
    }

    #[test]
    fn keys_beyond_the_bound_share_one_bucket_until_others_are_full_again() {
        let mut buckets = Buckets::new(100);
        for key in 0..100 {
            buckets.take(&key, 60, 0);
        }
        let passed = (100..1_000_000)
            .take_while(|key| buckets.take(key, 60, 0).allowed)
            .count();
        assert_eq!(passed, 10, "one burst for all the others together");
        assert_eq!(buckets.len(), 100);
        // Those who were there are as well off as before.
        assert!(buckets.take(&7, 60, 0).allowed);
        // A second later a bucket that lacked one request is full, key 7's is not.
        assert!(buckets.take(&100, 60, 1_000).allowed);
        assert_eq!(buckets.len(), 2);
    }
}
