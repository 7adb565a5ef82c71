//! The figures of a ledger for people: promises, table, and the plot of how they grow.

use std::fmt;

use super::{Growth, OfStore, Report};
use crate::load::latency::{Percentiles, short};
use crate::load::plot::{Line, svg};
use crate::load::promise::{self, Promise};
use crate::load::served::StoreKind;

/// What the figures mean, for whoever reads them later.
const DEFINITION: &str = "\
A commit is one event, durable when it is answered (SQLite with `synchronous=FULL`). Alone: one caller,
who asks again when it has its answer. Together: many callers, each of whom does that. Verification is
`berth-controller verify-ledger` on the whole log, its start included. Covered: from the answer to a change
until a head that others are shown covers its entry, asked for over HTTP every 5 ms. Memory is the
peak of the resident set: of the process that writes at this length, and of the verifier.";

/// Where the plot is, from the page that shows it.
const PLOT: &str = "performance/ledger-growth.svg";
/// A process's memory may differ so much between the shortest and the longest log and still be flat, in MiB:
/// the database's own caches fill up to their limits.
const FLAT_MIB: f64 = 16.0;

/// A line of the plot, at one length.
type Figure = fn(&Growth) -> f64;

impl Report {
    /// The plot of how figures grow with the log; `None` if nothing was measured.
    #[must_use]
    pub fn plot(&self) -> Option<(&'static str, String)> {
        let mut lines = Vec::new();
        for of_store in &self.stores {
            let figures: [(&str, Figure); 5] = [
                ("commits/s alone", |growth| growth.alone_per_s),
                ("commits/s together", |growth| growth.together_per_s),
                ("entries/s verified", |growth| growth.verified_per_s),
                ("memory of the writer, MiB", |growth| {
                    growth.write_memory_mib
                }),
                ("memory of the verifier, MiB", |growth| {
                    growth.verify_memory_mib
                }),
            ];
            lines.extend(figures.map(|(name, figure)| {
                let name = format!("{}: {name}", of_store.store.name());
                let length = |growth: &Growth| plotted(growth.entries);
                Line::grown(name, &of_store.growth, length, figure)
            }));
        }
        let picture = svg("Growth with the log", "entries", &lines)?;
        Some((PLOT, picture))
    }

    /// What is promised, beside what was measured.
    #[must_use]
    pub fn promises(&self) -> Vec<Promise> {
        self.stores.iter().flat_map(OfStore::promises).collect()
    }
}

impl OfStore {
    fn promises(&self) -> Vec<Promise> {
        let name = self.store.name();
        let mut promises = vec![Promise::at_most(
            format!("covered by a checkpoint p99, ms ({name})"),
            1000.0,
            self.covered.p99_ms,
        )];
        let least = |figure: fn(&Growth) -> f64| {
            let figures = self.growth.iter().map(figure);
            figures.min_by(f64::total_cmp).unwrap_or(0.0)
        };
        if self.store == StoreKind::Sqlite {
            promises.extend([
                Promise::at_least(
                    format!("commits per second alone, at every length ({name})"),
                    2000.0,
                    least(|growth| growth.alone_per_s),
                ),
                Promise::at_least(
                    format!(
                        "commits per second of {} callers, at every length ({name})",
                        self.callers
                    ),
                    20_000.0,
                    least(|growth| growth.together_per_s),
                ),
            ]);
        }
        if let [first, .., last] = &self.growth[..] {
            for (who, figure) in [
                (
                    "writer",
                    (|growth: &Growth| growth.write_memory_mib) as fn(&Growth) -> f64,
                ),
                ("verifier", |growth: &Growth| growth.verify_memory_mib),
            ] {
                promises.push(Promise::at_most(
                    format!(
                        "memory that the {who} needs more at {} entries than at {}, MiB ({name})",
                        last.entries, first.entries
                    ),
                    FLAT_MIB,
                    figure(last) - figure(first),
                ));
            }
        }
        promises
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "On {}; one durable write of 4 KiB takes {} ms (p50).\n",
            self.host,
            short(self.disk_sync.p50_ms)
        )?;
        writeln!(f, "{}", promise::table(&self.promises()))?;
        for of_store in &self.stores {
            writeln!(f, "### Ledger on {}\n", of_store.store.name())?;
            writeln!(
                f,
                "| entries | what | per second | {} | peak MiB |",
                Percentiles::HEAD
            )?;
            writeln!(
                f,
                "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
            )?;
            for growth in &of_store.growth {
                row(f, of_store.callers, growth)?;
            }
            writeln!(f, "\n| covered after | {} |", Percentiles::HEAD)?;
            writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: |")?;
            writeln!(
                f,
                "| {} changes | {} |\n",
                of_store.covered.count, of_store.covered
            )?;
        }
        writeln!(f, "![Growth with the log]({PLOT})\n\n{DEFINITION}")
    }
}

fn row(f: &mut fmt::Formatter<'_>, callers: u32, growth: &Growth) -> fmt::Result {
    let entries = growth.entries;
    let memory = growth.write_memory_mib;
    writeln!(
        f,
        "| {entries} | commits, alone | {:.0} | {} | {memory:.0} |",
        growth.alone_per_s, growth.alone
    )?;
    writeln!(
        f,
        "| {entries} | commits, {callers} callers | {:.0} | {} | {memory:.0} |",
        growth.together_per_s, growth.together
    )?;
    writeln!(
        f,
        "| {entries} | verification | {:.0} | | | | | | {:.0} |",
        growth.verified_per_s, growth.verify_memory_mib
    )
}

fn plotted(entries: u64) -> f64 {
    f64::from(u32::try_from(entries).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(entries: u64, alone_per_s: f64, verify_memory_mib: f64) -> Growth {
        Growth {
            entries,
            alone_per_s,
            alone: Percentiles::default(),
            together_per_s: 30_000.0,
            together: Percentiles::default(),
            verified_per_s: 100_000.0,
            verify_memory_mib,
            write_memory_mib: 20.0,
        }
    }

    fn report(growth: Vec<Growth>) -> Report {
        Report {
            host: "a host".to_owned(),
            disk_sync: Percentiles::default(),
            stores: vec![OfStore {
                store: StoreKind::Sqlite,
                callers: 256,
                growth,
                covered: Percentiles::default(),
            }],
        }
    }

    #[test]
    fn promises_hold_at_every_length_and_memory_is_flat() {
        let good = report(vec![
            growth(10_000, 2500.0, 10.0),
            growth(1_000_000, 2100.0, 12.0),
        ]);
        assert!(good.promises().iter().all(Promise::is_kept));
        let bad = report(vec![
            growth(10_000, 2500.0, 10.0),
            growth(1_000_000, 1900.0, 120.0),
        ]);
        let broken: Vec<String> = bad.promises().iter().filter_map(Promise::broken).collect();
        assert_eq!(
            broken,
            [
                "commits per second alone, at every length (sqlite) is 1900, not at least 2000",
                "memory that the verifier needs more at 1000000 entries than at 10000, MiB (sqlite) is 110, \
                 not at most 16.0",
            ]
        );
    }

    #[test]
    fn the_report_survives_its_way_through_json() {
        let report = report(vec![growth(10_000, 2500.0, 10.0)]);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(
            report
                .to_string()
                .contains("| 10000 | verification | 100000 |")
        );
    }
}
