//! The figures of a start-up measurement: medians, spreads, and ratios to the peers.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::contender::{Contender, Linkage};

/// What the figures mean, for whoever reads them later.
const DEFINITION: &str = "\
Wall: from just before the launcher opens anything for the VMM to the arrival of the guest's first
serial byte at the launcher. CPU: user and system time of all threads of the VMM's process when that
byte has arrived, plus the launcher's own for the start. Memory: the peak of the VMM's resident set
at that time (VmHWM), guest pages touched and shared program pages included. All alike for every
contender: the same PVH guest of a few instructions, 1 vCPU, 128 MiB, one serial port, one warm-up,
then in turn. berth gets the CPUID list of this host's KVM from its launcher, as from its agent, which
asks for it once. Peers run as the given programs do by themselves: with the system call filter that they
were built with, which a Firecracker that was built for glibc lacks.";
/// The promise: at most this share of the better peer's wall time and CPU.
const PROMISED_SHARE: f64 = 0.5;

/// One start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
    pub(super) peak_rss_kib: u64,
}

/// How one figure is spread over the rounds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The middle; of two middles their mean.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// What 95 of 100 do not exceed (nearest rank).
    pub p95: f64,
}

impl Spread {
    pub(crate) fn new(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        let rank = (values.len() * 95).div_ceil(100);
        Some(Self {
            median,
            min,
            max,
            p95: values[rank - 1],
        })
    }

    pub(crate) fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max, "p95": self.p95 })
    }
}

/// The figures of one contender.
#[derive(Clone, Debug)]
pub struct ContenderReport {
    /// `berth`, or a peer's name.
    pub name: String,
    /// Size of its program, in bytes.
    pub program_bytes: u64,
    /// How its program is linked.
    pub linkage: Linkage,
    /// In milliseconds.
    pub wall_ms: Spread,
    /// In milliseconds.
    pub cpu_ms: Spread,
    /// In MiB.
    pub peak_rss_mib: Spread,
}

impl ContenderReport {
    fn figures(&self) -> [(&'static str, Spread); 3] {
        [
            ("wall_ms", self.wall_ms),
            ("cpu_ms", self.cpu_ms),
            ("peak_rss_mib", self.peak_rss_mib),
        ]
    }
}

/// A whole measurement; displays as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// The host in one line.
    pub host: String,
    /// How often each was started.
    pub rounds: usize,
    /// `berth` first, then the peers in the order given.
    pub contenders: Vec<ContenderReport>,
}

impl Report {
    pub(super) fn new(contenders: &[Contender], samples: &[Vec<Sample>]) -> Result<Self> {
        let contenders = contenders.iter().zip(samples);
        Ok(Self {
            host: describe_host()?,
            rounds: samples.first().map_or(0, Vec::len),
            contenders: contenders
                .map(|(who, its)| summarise(who, its))
                .collect::<Result<_>>()?,
        })
    }

    /// berth's median as a share of a peer's, for wall time, CPU and memory.
    #[must_use]
    pub fn ratios(&self, peer: &ContenderReport) -> [f64; 3] {
        let [berth, other] = [&self.contenders[0], peer].map(ContenderReport::figures);
        [0, 1, 2].map(|figure| berth[figure].1.median / other[figure].1.median)
    }

    /// The promises that these figures break, as sentences; none without peers.
    #[must_use]
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let Some((berth, peers)) = self.contenders.split_first() else {
            return broken;
        };
        for figure in 0..2 {
            let (name, ours) = berth.figures()[figure];
            let medians = peers.iter().map(|peer| peer.figures()[figure].1.median);
            let Some(best) = medians.min_by(f64::total_cmp) else {
                continue;
            };
            let share = ours.median / best;
            if share > PROMISED_SHARE {
                broken.push(format!(
                    "{name} is {share:.2} of the better peer's, not {PROMISED_SHARE}"
                ));
            }
        }
        let firecracker = peers.iter().find(|peer| peer.name == "firecracker");
        if let Some(theirs) = firecracker
            && berth.peak_rss_mib.median >= theirs.peak_rss_mib.median
        {
            broken.push("peak_rss_mib is not below firecracker's".to_owned());
        }
        broken
    }

    /// The figures for a program to read.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let contenders = self.contenders.iter().map(|contender| {
            let figures = contender
                .figures()
                .map(|(name, spread)| (name, spread.to_json()));
            let mut value = json!({
                "name": contender.name,
                "program_bytes": contender.program_bytes,
                "linkage": contender.linkage.name(),
            });
            for (name, spread) in figures {
                value[name] = spread;
            }
            let [wall, cpu, memory] = self.ratios(contender);
            value["berth_share"] = json!({ "wall": wall, "cpu": cpu, "peak_rss": memory });
            value
        });
        json!({
            "measurement": "startup",
            "definition": DEFINITION.replace('\n', " "),
            "host": self.host,
            "rounds": self.rounds,
            "contenders": contenders.collect::<Vec<_>>(),
            "broken_promises": self.broken_promises(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Start-up on {}, {} rounds\n", self.host, self.rounds)?;
        writeln!(
            f,
            "{:<17} {:<13} {:>8} {:>8} {:>8} {:>8}   {:>11}",
            "", "", "median", "min", "p95", "max", "berth/peer"
        )?;
        for contender in &self.contenders {
            let ratios = self.ratios(contender);
            for (row, ((name, spread), ratio)) in
                contender.figures().into_iter().zip(ratios).enumerate()
            {
                let who = [contender.name.as_str(), contender.linkage.name(), ""][row];
                let Spread {
                    median,
                    min,
                    max,
                    p95,
                } = spread;
                write!(
                    f,
                    "{who:<17} {name:<13} {median:>8.2} {min:>8.2} {p95:>8.2} {max:>8.2}"
                )?;
                if contender.name == self.contenders[0].name {
                    writeln!(f)?;
                } else {
                    writeln!(f, "   {ratio:>11.2}")?;
                }
            }
        }
        writeln!(f, "\n{DEFINITION}")
    }
}

fn summarise(contender: &Contender, samples: &[Sample]) -> Result<ContenderReport> {
    let spread = |figure: &dyn Fn(&Sample) -> f64| {
        Spread::new(samples.iter().map(figure).collect()).context("no round was measured")
    };
    let (program_bytes, linkage) = contender.program()?;
    Ok(ContenderReport {
        name: contender.name().to_owned(),
        program_bytes,
        linkage,
        wall_ms: spread(&|sample| sample.wall.as_secs_f64() * 1e3)?,
        cpu_ms: spread(&|sample| sample.cpu.as_secs_f64() * 1e3)?,
        peak_rss_mib: spread(&|sample| mib(sample.peak_rss_kib))?,
    })
}

fn mib(kib: u64) -> f64 {
    // Four thousand million KiB are more than any process has.
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}

/// The host in one line.
pub(crate) fn describe_host() -> Result<String> {
    let read =
        |path: &str| std::fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let cpus = read("/proc/cpuinfo")?;
    let models = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let models: Vec<&str> = models.map(|(_, model)| model).collect();
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let load = read("/proc/loadavg")?;
    Ok(format!(
        "{} x {}, Linux {}, load {}",
        models.len(),
        models.first().unwrap_or(&"an unnamed processor"),
        kernel.trim(),
        load.split(' ').next().unwrap_or("unknown")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, wall: f64, cpu: f64, memory: f64) -> ContenderReport {
        let spread = |value| Spread::new(vec![value]).unwrap();
        ContenderReport {
            name: name.to_owned(),
            program_bytes: 1,
            linkage: Linkage::Static,
            wall_ms: spread(wall),
            cpu_ms: spread(cpu),
            peak_rss_mib: spread(memory),
        }
    }

    fn report(contenders: Vec<ContenderReport>) -> Report {
        Report {
            host: "a host".to_owned(),
            rounds: 1,
            contenders,
        }
    }

    #[test]
    fn a_spread_takes_the_middle_and_the_nearest_rank() {
        let spread = Spread::new((1..=20).rev().map(f64::from).collect()).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 10.5,
                min: 1.0,
                max: 20.0,
                p95: 19.0
            }
        );
        let odd = Spread::new(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.p95), (2.0, 3.0));
        assert_eq!(Spread::new(Vec::new()), None);
    }

    #[test]
    fn a_promise_is_measured_against_the_better_peer() {
        let peers = [
            contender("firecracker", 12.0, 4.0, 4.0),
            contender("x", 8.0, 6.0, 10.0),
        ];
        let with = |berth| report([vec![berth], peers.to_vec()].concat());
        assert_eq!(
            with(contender("berth", 4.0, 2.0, 3.9)).broken_promises(),
            [""; 0]
        );
        let broken = with(contender("berth", 4.1, 2.1, 4.0)).broken_promises();
        assert_eq!(broken.len(), 3, "{broken:?}");
        assert!(broken[0].starts_with("wall_ms is 0.51"), "{broken:?}");
        assert!(
            report(vec![contender("berth", 9.0, 9.0, 9.0)])
                .broken_promises()
                .is_empty()
        );
    }

    #[test]
    fn the_table_and_the_json_tell_each_contender_with_its_ratio() {
        let report = report(vec![
            contender("berth", 3.0, 2.0, 2.0),
            contender("x", 6.0, 8.0, 8.0),
        ]);
        let table = report.to_string();
        assert!(table.contains("0.50") && table.contains("0.25"), "{table}");
        let json = report.to_json();
        assert_eq!(json["contenders"][1]["berth_share"]["wall"], 0.5);
        assert_eq!(json["contenders"][0]["cpu_ms"]["median"], 2.0);
    }
}
