//! A figure beside what is promised of it.

use serde::{Deserialize, Serialize};

use super::latency::short;

/// Which way a figure may differ from its promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It is this or more.
    AtLeast,
    /// It is this or less.
    AtMost,
}

/// One promise and what was measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Promise {
    /// What was measured, with its unit.
    pub what: String,
    /// How the figure is bounded.
    pub bound: Bound,
    /// The promised figure.
    pub promised: f64,
    /// The measured one.
    pub measured: f64,
}

impl Promise {
    /// A figure that should reach what is promised.
    #[must_use]
    pub fn at_least(what: impl Into<String>, promised: f64, measured: f64) -> Self {
        Self {
            what: what.into(),
            bound: Bound::AtLeast,
            promised,
            measured,
        }
    }

    /// A figure that should not exceed what is promised.
    #[must_use]
    pub fn at_most(what: impl Into<String>, promised: f64, measured: f64) -> Self {
        Self {
            what: what.into(),
            bound: Bound::AtMost,
            promised,
            measured,
        }
    }

    /// Whether it is kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        match self.bound {
            Bound::AtLeast => self.measured >= self.promised,
            Bound::AtMost => self.measured <= self.promised,
        }
    }

    /// The promise as a sentence, if it is broken.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        let than = match self.bound {
            Bound::AtLeast => "at least",
            Bound::AtMost => "at most",
        };
        (!self.is_kept()).then(|| {
            let (measured, promised) = (short(self.measured), short(self.promised));
            format!("{} is {measured}, not {than} {promised}", self.what)
        })
    }
}

/// The table of promises.
#[must_use]
pub fn table(promises: &[Promise]) -> String {
    let mut table = String::from("| what | promised | measured | |\n| --- | ---: | ---: | --- |\n");
    for promise in promises {
        let sign = match promise.bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
        };
        let kept = if promise.is_kept() { "kept" } else { "broken" };
        table.push_str(&format!(
            "| {} | {sign} {} | {} | {kept} |\n",
            promise.what,
            short(promise.promised),
            short(promise.measured)
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_up_to_its_bound_and_told_when_it_is_not() {
        assert!(Promise::at_least("creates/s", 2000.0, 2000.0).is_kept());
        assert!(Promise::at_most("p99 ms", 5.0, 5.0).is_kept());
        let broken = Promise::at_most("decision p99 ms", 5.0, 5.1).broken();
        assert_eq!(broken.unwrap(), "decision p99 ms is 5.10, not at most 5.00");
        let broken = Promise::at_least("creates/s", 2000.0, 1999.0);
        assert!(table(&[broken]).contains("| creates/s | ≥ 2000 | 1999 | broken |"));
    }
}
