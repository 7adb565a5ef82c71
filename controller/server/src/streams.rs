//! How many event streams are open, and whose: a tenant cannot take the places of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_api::ids::TenantId;

/// Streams of one tenant, or of all operators together.
pub(crate) const MAX_PER_NAMESPACE: usize = 16;

/// The streams that are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<Option<TenantId>, usize>>>);

/// One stream's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    streams: Streams,
    namespace: Option<TenantId>,
}

impl Streams {
    /// A place, if one is left.
    pub(crate) fn take(&self, namespace: Option<&TenantId>) -> Option<Seat> {
        let namespace = namespace.cloned();
        let mut counts = self.lock();
        let count = counts.entry(namespace.clone()).or_default();
        if *count >= MAX_PER_NAMESPACE {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Seat {
            streams: self.clone(),
            namespace,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<TenantId>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.streams.lock();
        if let Some(count) = counts.get_mut(&self.namespace) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_so_many_places_and_gets_them_back() {
        let streams = Streams::default();
        let tenant: TenantId = "acme".parse().unwrap();
        let seats: Vec<_> = (0..MAX_PER_NAMESPACE)
            .map(|_| streams.take(Some(&tenant)).unwrap())
            .collect();
        assert!(streams.take(Some(&tenant)).is_none());
        assert!(streams.take(None).is_some());
        drop(seats);
        assert!(streams.take(Some(&tenant)).is_some());
        assert!(streams.lock().is_empty());
    }
}
