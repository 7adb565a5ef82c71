//! Counters of one device, shared between the thread that serves it and whoever asks.
//!
//! Owns names and numbers. What is worth counting is the device's business.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers with names, all of them since the start.
#[derive(Debug)]
pub struct Counters {
    names: &'static [&'static str],
    values: Box<[AtomicU64]>,
}

impl Counters {
    /// One counter at 0 for each name.
    #[must_use]
    pub fn new(names: &'static [&'static str]) -> Self {
        Self {
            names,
            values: names.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Adds `amount` to the counter at `position` in the names; a position that is not there is
    /// ignored.
    pub fn add(&self, position: usize, amount: u64) {
        if let Some(value) = self.values.get(position) {
            value.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let value = |value: &AtomicU64| value.load(Ordering::Relaxed);
        self.names
            .iter()
            .copied()
            .zip(self.values.iter().map(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_counts_under_its_name_and_a_missing_one_is_ignored() {
        let counters = Counters::new(&["reads", "writes"]);
        counters.add(1, 3);
        counters.add(1, 4);
        counters.add(2, 9);
        assert_eq!(
            counters.iter().collect::<Vec<_>>(),
            [("reads", 0), ("writes", 7)]
        );
    }
}
