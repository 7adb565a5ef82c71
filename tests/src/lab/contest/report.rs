//! The figures of a contest: medians, ratios to the better peer, promises kept or broken, and the
//! table for people.

use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::contender::Contender;
use super::profile::Profiles;
use super::work::Figures;
use crate::startup::{Spread, describe_host};

/// What the figures mean, for whoever reads them later.
const DEFINITION: &str = "\
All in one sitting on one emulated host (QEMU with SVM and an IOMMU), medians. Contenders in turn, and who begins
goes round. Each boot has a host of its own that has just started, each round of the others has one.
Boot: from starting the VMM to the first act of init in the initial RAM disk of an unmodified Debian
cloud kernel, 1 vCPU, 256 MiB (launcher and kernel loading included), the
processor time of the control group, launcher and guest included, up to then, and the time to the first
line of a script that systemd runs. Block: fio in the guest, 4 KiB random,
libaio, depth 32, O_DIRECT, a raw disk, all of it written before, behind the host's page cache with flushes honoured. Network:
iperf3 between guest and host over one tap, TCP in Mbit/s and 64-byte UDP in packets per second. NVMe:
the same fio on a drive that is passed through, beside the host's own on the same drive.";

/// Which way a figure is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Better {
    Less,
    More,
}

/// What a figure is measured against, and the share that is promised.
fn promise(name: &str) -> Option<(Better, f64)> {
    match name {
        "boot_s" => Some((Better::Less, 0.85)),
        "random_read_iops"
        | "random_write_iops"
        | "guest_to_host_mbits"
        | "host_to_guest_mbits"
        | "guest_to_host_small_packets" => Some((Better::More, 1.0)),
        "nvme_read_iops" | "nvme_write_iops" => Some((Better::More, 0.95)),
        _ => None,
    }
}

/// One figure.
#[derive(Clone, Debug)]
struct Row {
    name: String,
    of_contenders: Vec<(Contender, Spread)>,
    /// What berth is compared with: the better peer, or the host itself.
    against: Option<(String, f64)>,
}

impl Row {
    /// berth's best median as a share of what it is compared with.
    fn share(&self) -> Option<f64> {
        let (_, against) = self.against.as_ref()?;
        let better = promise(&self.name).map_or(Better::More, |(better, _)| better);
        let own = self
            .of_contenders
            .iter()
            .filter(|(contender, _)| !contender.is_peer())
            .map(|(_, spread)| spread.median);
        Some(best(own, better)? / against)
    }

    fn broken(&self) -> Option<String> {
        let (better, promised) = promise(&self.name)?;
        let share = self.share()?;
        let is_broken = match better {
            Better::Less => share > promised,
            Better::More => share < promised,
        };
        let (whose, _) = self.against.as_ref()?;
        is_broken.then(|| format!("{} is {share:.2} of {whose}'s, not {promised}", self.name))
    }
}

/// A whole contest; displays as a table in Markdown.
#[derive(Clone, Debug)]
pub struct ContestReport {
    host: String,
    rounds: usize,
    rows: Vec<Row>,
    /// In whose runs a guest or its host fell, and how many rounds were done again for it.
    falls: Vec<(Contender, usize)>,
    profiles: Profiles,
}

impl ContestReport {
    pub(super) fn new(contenders: &[Contender], figures: &Figures, rounds: usize) -> Result<Self> {
        let row = |name: &str| -> Result<Row> {
            let mut of_contenders = Vec::new();
            for &contender in contenders {
                if let Some(values) = figures.of(name, contender) {
                    let spread = Spread::new(values.to_vec()).context("no round was measured")?;
                    of_contenders.push((contender, spread));
                }
            }
            let against = against(name, &of_contenders, figures);
            Ok(Row {
                name: name.to_owned(),
                of_contenders,
                against,
            })
        };
        Ok(Self {
            host: describe_host()?,
            rounds,
            rows: figures.names().map(row).collect::<Result<_>>()?,
            falls: contenders
                .iter()
                .map(|&contender| (contender, figures.falls(contender)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            profiles: figures.profiles().clone(),
        })
    }

    /// The promises that these figures break, as sentences.
    #[must_use]
    pub fn broken_promises(&self) -> Vec<String> {
        self.rows.iter().filter_map(Row::broken).collect()
    }

    /// The figures for a program to read.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let contenders = row.of_contenders.iter().map(|(contender, spread)| {
                json!({ "name": contender.name(), "spread": spread.to_json() })
            });
            json!({
                "figure": row.name,
                "contenders": contenders.collect::<Vec<_>>(),
                "against": row.against.as_ref().map(|(whose, _)| whose),
                "berth_share": row.share(),
            })
        });
        json!({
            "measurement": "vmm",
            "definition": DEFINITION.replace('\n', " "),
            "host": self.host,
            "rounds": self.rounds,
            "figures": rows.collect::<Vec<_>>(),
            "done_again": self.falls.iter().map(|(who, count)| {
                json!({ "name": who.name(), "rounds": count })
            }).collect::<Vec<_>>(),
            "profiles": self.profiles.to_json(),
            "broken_promises": self.broken_promises(),
        })
    }
}

/// What berth's figure `name` is measured against: the host's own for a drive that is passed
/// through, else the better peer.
fn against(
    name: &str,
    of_contenders: &[(Contender, Spread)],
    figures: &Figures,
) -> Option<(String, f64)> {
    if name.starts_with("nvme_") {
        let of_host = figures.of(&format!("host_{name}"), Contender::Berth)?;
        let median = Spread::new(of_host.to_vec())?.median;
        return Some(("the host".to_owned(), median));
    }
    let (better, _) = promise(name).unwrap_or((Better::Less, 0.0));
    let peers = of_contenders.iter().filter(|(who, _)| who.is_peer());
    let median = best(peers.clone().map(|(_, spread)| spread.median), better)?;
    let mut named = peers;
    let (who, _) = named.find(|(_, spread)| spread.median.total_cmp(&median).is_eq())?;
    Some((who.name().to_owned(), median))
}

/// Whose figure it is: what the node itself gets from the drive is measured beside berth's.
fn measured(name: &str, contender: Contender) -> &'static str {
    if name.starts_with("host_nvme_") {
        "the host"
    } else {
        contender.name()
    }
}

fn best(values: impl Iterator<Item = f64>, better: Better) -> Option<f64> {
    match better {
        Better::Less => values.min_by(f64::total_cmp),
        Better::More => values.max_by(f64::total_cmp),
    }
}

impl fmt::Display for ContestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Host: {}; {} rounds.\n", self.host, self.rounds)?;
        writeln!(f, "{DEFINITION}\n")?;
        writeln!(
            f,
            "| figure | who | median | min | max | berth's share | promised |"
        )?;
        writeln!(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: |")?;
        for row in &self.rows {
            for (position, (contender, spread)) in row.of_contenders.iter().enumerate() {
                let Spread {
                    median, min, max, ..
                } = spread;
                let (name, share, promised) = if position == 0 {
                    let share = row.share().zip(row.against.as_ref());
                    let promised = promise(&row.name).filter(|_| share.is_some());
                    (
                        row.name.as_str(),
                        share.map_or(String::new(), |(share, (whose, _))| {
                            format!("{share:.2} of {whose}")
                        }),
                        promised.map_or(String::new(), |(better, share)| match better {
                            Better::Less => format!("at most {share}"),
                            Better::More => format!("at least {share}"),
                        }),
                    )
                } else {
                    ("", String::new(), String::new())
                };
                let who = measured(&row.name, *contender);
                writeln!(
                    f,
                    "| {name} | {who} | {median:.2} | {min:.2} | {max:.2} | {share} | {promised} |"
                )?;
            }
        }
        for (contender, count) in &self.falls {
            let who = contender.name();
            writeln!(
                f,
                "\nDone again, as the guest or its emulated host fell: {who}, {count} rounds."
            )?;
        }
        write!(f, "\n{}", self.profiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, own: f64, peers: [f64; 2]) -> Row {
        let spread = |value| Spread::new(vec![value]).unwrap();
        let of_contenders = vec![
            (Contender::Berth, spread(own)),
            (Contender::Firecracker, spread(peers[0])),
            (Contender::CloudHypervisor, spread(peers[1])),
        ];
        let against = against(name, &of_contenders, &Figures::default());
        Row {
            name: name.to_owned(),
            of_contenders,
            against,
        }
    }

    #[test]
    fn only_what_the_node_itself_does_is_the_hosts() {
        let firecracker = Contender::Firecracker;
        assert_eq!(
            measured("host_nvme_read_iops", Contender::Berth),
            "the host"
        );
        assert_eq!(
            measured("host_to_guest_mbits", firecracker),
            firecracker.name()
        );
    }

    #[test]
    fn berth_is_compared_with_the_better_peer() {
        assert!(row("boot_s", 0.84, [1.0, 2.0]).broken().is_none());
        assert!(row("boot_s", 0.9, [1.0, 2.0]).broken().is_some());
        assert!(row("random_read_iops", 10.0, [9.0, 8.0]).broken().is_none());
        let broken = row("random_read_iops", 10.0, [9.0, 11.0]).broken().unwrap();
        assert!(broken.contains("cloud-hypervisor"), "{broken}");
        assert!(row("boot_cpu_s", 10.0, [9.0, 11.0]).broken().is_none());
    }
}
