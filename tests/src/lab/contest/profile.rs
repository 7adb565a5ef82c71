//! Where the processor time behind each figure went, and how often guests were left: a second table,
//! beside the figures, for whoever asks why one is as it is.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::contender::Contender;
use crate::processor_time::{Stretch, Use};

/// Threads that took less than this share of a processor are left out of the table.
const SMALLEST_SHARE: f64 = 0.01;

/// All stretches, by figure and contender.
#[derive(Clone, Debug, Default)]
pub(super) struct Profiles(BTreeMap<String, BTreeMap<Contender, Vec<Stretch>>>);

impl Profiles {
    /// Keeps what was done while `figure` was measured.
    pub(super) fn add(&mut self, figure: &str, contender: Contender, stretch: Stretch) {
        let of_figure = self.0.entry(figure.to_owned()).or_default();
        of_figure.entry(contender).or_default().push(stretch);
    }

    /// Figure, contender, and the mean over its rounds.
    fn means(&self) -> impl Iterator<Item = (&str, Contender, Mean)> {
        self.0.iter().flat_map(|(figure, of_figure)| {
            of_figure
                .iter()
                .map(|(contender, stretches)| (figure.as_str(), *contender, Mean::of(stretches)))
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let rows = self.means().map(|(figure, contender, mean)| {
            json!({
                "figure": figure,
                "name": contender.name(),
                "cpu_per_s": mean.cpu,
                "threads_per_s": mean.threads,
                "kvm_per_s": mean.kvm,
            })
        });
        rows.collect()
    }
}

/// What was done in a second, over all rounds.
struct Mean {
    cpu: f64,
    threads: BTreeMap<String, Use>,
    kvm: BTreeMap<String, f64>,
}

impl Mean {
    fn of(stretches: &[Stretch]) -> Self {
        let seconds: f64 = stretches.iter().map(|stretch| stretch.seconds).sum();
        let mut threads = BTreeMap::<String, Use>::new();
        let mut kvm = BTreeMap::<String, f64>::new();
        for stretch in stretches {
            for (name, times) in &stretch.threads {
                *threads.entry(name.clone()).or_default() += *times;
            }
            for (name, count) in &stretch.kvm {
                // Counts of some minutes are far below 2^52.
                #[expect(clippy::cast_precision_loss, reason = "see above")]
                let count = *count as f64;
                *kvm.entry(name.clone()).or_default() += count;
            }
        }
        for times in threads.values_mut() {
            times.guest_s /= seconds;
            times.user_s /= seconds;
            times.system_s /= seconds;
        }
        for rate in kvm.values_mut() {
            *rate /= seconds;
        }
        let cpu: f64 = stretches.iter().map(|stretch| stretch.cpu_s).sum();
        Self {
            cpu: cpu / seconds,
            threads,
            kvm,
        }
    }

    /// `vcpu 61 guest, 2 user, 20 system; berth-vmm 4 user, 9 system`, in hundredths of a processor.
    fn threads(&self) -> String {
        let busy = self
            .threads
            .iter()
            .filter(|(_, times)| times.total_s() >= SMALLEST_SHARE);
        let one = |(name, times): (&String, &Use)| {
            let parts = [
                (times.guest_s, "guest"),
                (times.user_s, "user"),
                (times.system_s, "system"),
            ];
            let parts: Vec<String> = parts
                .iter()
                .filter(|(share, _)| *share >= SMALLEST_SHARE / 2.0)
                .map(|(share, what)| format!("{:.0} {what}", share * 100.0))
                .collect();
            format!("{name} {}", parts.join(", "))
        };
        busy.map(one).collect::<Vec<_>>().join("; ")
    }

    fn rate(&self, counter: &str) -> String {
        let rate = self.kvm.get(counter);
        rate.map_or_else(|| "?".to_owned(), |rate| format!("{rate:.0}"))
    }
}

impl fmt::Display for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Where the time went while each was measured, in hundredths of a processor, means over all \
             rounds. The host\nhas two. Exits, halts and injected interrupts per second are KVM's own \
             counters.\n"
        )?;
        writeln!(
            f,
            "| figure | who | all | threads | exits | halts | interrupts |"
        )?;
        writeln!(f, "| --- | --- | ---: | --- | ---: | ---: | ---: |")?;
        let mut last = "";
        for (figure, contender, mean) in self.means() {
            let name = if figure == last { "" } else { figure };
            last = figure;
            writeln!(
                f,
                "| {name} | {} | {:.0} | {} | {} | {} | {} |",
                contender.name(),
                mean.cpu * 100.0,
                mean.threads(),
                mean.rate("exits"),
                mean.rate("halt_exits"),
                mean.rate("irq_injections"),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_mean_of_a_second() {
        let stretch = |seconds, guest_s, exits| Stretch {
            seconds,
            cpu_s: guest_s,
            threads: BTreeMap::from([
                (
                    "vcpu".to_owned(),
                    Use {
                        guest_s,
                        ..Use::default()
                    },
                ),
                ("idle".to_owned(), Use::default()),
            ]),
            kvm: BTreeMap::from([("exits".to_owned(), exits)]),
        };
        let mut profiles = Profiles::default();
        profiles.add("a_iops", Contender::Berth, stretch(1.0, 1.0, 100));
        profiles.add("a_iops", Contender::Berth, stretch(3.0, 1.0, 300));
        let table = profiles.to_string();
        let row = table.lines().last().unwrap();
        assert_eq!(row, "| a_iops | berth | 50 | vcpu 50 guest | 100 | ? | ? |");
        assert_eq!(profiles.to_json()[0]["kvm_per_s"]["exits"], 100.0);
    }
}
