//! What each step of a slot's claims and releases took, by its host's own signed receipts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use berth_api::agent::SignedEnvelope;
use berth_api::slot::{Receipt, Statement};
use berth_ledger::receipt::verify;
use serde_json::{Value, json};

/// Times of all steps, in milliseconds, by statement and step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    times: BTreeMap<(&'static str, String), Vec<u64>>,
}

/// Reads receipts and checks them. Those that list no steps tell how long each wipe took.
///
/// # Errors
/// If a file is no receipt that holds, or none lists anything.
pub fn read(files: &[PathBuf]) -> Result<StepTimes> {
    let mut times = StepTimes::default();
    for file in files {
        let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let envelope: SignedEnvelope = serde_json::from_slice(&text)
            .with_context(|| format!("understanding {}", file.display()))?;
        let (_, receipt) =
            verify(&envelope, None).with_context(|| format!("checking {}", file.display()))?;
        times.add(&receipt);
    }
    ensure!(!times.times.is_empty(), "no receipt lists any step");
    Ok(times)
}

impl StepTimes {
    fn add(&mut self, receipt: &Receipt) {
        let (statement, steps) = match &receipt.statement {
            Statement::Claim { steps } => ("claim", steps),
            Statement::Release { steps } => ("release", steps),
            Statement::Wipe { devices } => {
                for device in devices {
                    let took = device.ended_at_ms.saturating_sub(device.started_at_ms);
                    let step = format!("{:?}", device.method);
                    self.note("wipe", step, u64::try_from(took).unwrap_or(0));
                }
                return;
            }
            Statement::Approval { .. } | Statement::Quarantine { .. } => return,
        };
        for step in steps {
            self.note(statement, step.step.clone(), step.took_ms);
        }
    }

    fn note(&mut self, statement: &'static str, step: String, took_ms: u64) {
        self.times
            .entry((statement, step))
            .or_default()
            .push(took_ms);
    }

    /// Each step with how often it was taken, its median and its longest time.
    fn rows(&self) -> impl Iterator<Item = (&'static str, &str, usize, u64, u64)> {
        self.times.iter().map(|((statement, step), times)| {
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
            let longest = sorted.last().copied().unwrap_or(0);
            (*statement, step.as_str(), times.len(), median, longest)
        })
    }

    /// The same for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows = self
            .rows()
            .map(|(statement, step, count, median, longest)| {
                json!({
                    "statement": statement,
                    "step": step,
                    "count": count,
                    "median_ms": median,
                    "longest_ms": longest,
                })
            });
        Value::Array(rows.collect())
    }
}

impl fmt::Display for StepTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| statement | step | count | median ms | longest ms |")?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: |")?;
        for (statement, step, count, median, longest) in self.rows() {
            writeln!(
                f,
                "| {statement} | {step} | {count} | {median} | {longest} |"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_median_and_its_longest_time() {
        let mut times = StepTimes::default();
        for took in [30, 10, 20] {
            times.note("claim", "reset".to_owned(), took);
        }
        times.note("release", "vacate".to_owned(), 5);
        let table = times.to_string();
        assert!(table.contains("| claim | reset | 3 | 20 | 30 |"), "{table}");
        assert!(
            table.contains("| release | vacate | 1 | 5 | 5 |"),
            "{table}"
        );
        assert_eq!(times.to_json()[0]["median_ms"], 20);
    }
}
