//! Each tenant's token bucket, in memory: the hard limits are the quotas in the database.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use berth_api::ids::TenantId;
use berth_controller_core::rate::{Bucket, Standing};

/// The buckets of all tenants that have called since the start.
#[derive(Debug)]
pub(crate) struct Rates {
    start: Instant,
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

impl Rates {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            buckets: Mutex::new(HashMap::new()),
        }
    }

    /// Take one request from a known tenant's bucket, with the tenant's rate.
    pub(crate) fn take(&self, tenant: &TenantId) -> Option<(u32, Standing)> {
        let now = self.now_ms();
        let mut buckets = self.lock();
        let bucket = buckets.get_mut(tenant)?;
        Some((bucket.rpm(), bucket.take(now)))
    }

    /// Make a tenant known, or give it another rate. The same rate changes nothing.
    pub(crate) fn set(&self, tenant: &TenantId, rpm: u32) {
        let now = self.now_ms();
        let mut buckets = self.lock();
        if buckets.get(tenant).is_none_or(|bucket| bucket.rpm() != rpm) {
            buckets.insert(tenant.clone(), Bucket::full(rpm, now));
        }
    }

    /// Forget a deleted tenant.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.lock().remove(tenant);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
