//! How long things took: a histogram while they are counted, percentiles once they are told.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest time that is told apart from longer ones, in microseconds: ten minutes.
const LONGEST_US: u64 = 600_000_000;
/// Digits of each time that are kept.
const DIGITS: u8 = 3;

/// Times as they come in.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let empty = Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Self(empty.expect("the bounds are a power of two apart and three digits are few enough"))
    }
}

impl Latencies {
    /// Count one time; one beyond ten minutes counts as ten minutes.
    pub fn record(&mut self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(LONGEST_US);
        self.0.saturating_record(microseconds);
    }

    /// The percentiles of what was counted.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| milliseconds(self.0.value_at_quantile(quantile));
        Percentiles {
            count: self.0.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: milliseconds(self.0.max()),
        }
    }
}

/// What so many of a hundred, or of a thousand, do not exceed; in milliseconds, to three digits.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many times were counted.
    pub count: u64,
    /// The median.
    pub p50_ms: f64,
    /// Of 90 of 100.
    pub p90_ms: f64,
    /// Of 99 of 100.
    pub p99_ms: f64,
    /// Of 999 of 1,000.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Percentiles {
    /// The head of a table whose rows end with these.
    pub const HEAD: &str = "p50 ms | p90 ms | p99 ms | p99.9 ms | longest ms";
}

impl fmt::Display for Percentiles {
    /// Cells of a table, as [`Percentiles::HEAD`] names them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = [
            self.p50_ms,
            self.p90_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
        ];
        let cells = cells.map(short);
        f.write_str(&cells.join(" | "))
    }
}

/// A figure with three digits that count.
#[must_use]
pub fn short(figure: f64) -> String {
    match figure {
        large if large >= 100.0 => format!("{large:.0}"),
        middle if middle >= 10.0 => format!("{middle:.1}"),
        small if small >= 1.0 => format!("{small:.2}"),
        tiny => format!("{tiny:.3}"),
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    // Nothing above ten minutes is stored.
    f64::from(u32::try_from(microseconds).unwrap_or(u32::MAX)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_that_was_counted() {
        let mut times = Latencies::default();
        for ms in 1..=1000 {
            times.record(Duration::from_millis(ms));
        }
        let told = times.percentiles();
        assert_eq!(told.count, 1000);
        let near = |figure: f64, wanted: f64| (figure - wanted).abs() <= wanted / 1000.0;
        assert!(near(told.p50_ms, 500.0), "{told:?}");
        assert!(near(told.p90_ms, 900.0), "{told:?}");
        assert!(near(told.p99_ms, 990.0), "{told:?}");
        assert!(near(told.p999_ms, 999.0), "{told:?}");
        assert!(near(told.max_ms, 1000.0), "{told:?}");
    }

    #[test]
    fn a_time_beyond_the_range_is_the_longest_and_none_is_lost() {
        let mut times = Latencies::default();
        times.record(Duration::MAX);
        times.record(Duration::ZERO);
        let told = times.percentiles();
        assert_eq!(told.count, 2);
        assert!(told.max_ms >= 600_000.0, "{told:?}");
    }

    #[test]
    fn figures_are_shown_with_the_digits_that_count() {
        let shown = [1234.5, 12.34, 1.234, 0.1234].map(short);
        assert_eq!(shown, ["1234", "12.3", "1.23", "0.123"]);
    }
}
