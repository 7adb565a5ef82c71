//! What the processes of a control group, and KVM, did between two moments: a profile that needs no
//! profiler, of any program.
//!
//! Reads `/proc`, cgroup v2 and KVM's counters in debugfs; changes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The unit of times in `/proc/PID/stat`: hundredths of a second on x86-64 (proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;
/// KVM's counters over all guests, as files in debugfs. A kernel may lack some.
const KVM_FOLDER: &str = "/sys/kernel/debug/kvm";
const KVM_COUNTERS: [&str; 6] = [
    "exits",
    "halt_exits",
    "insn_emulation",
    "io_exits",
    "irq_injections",
    "mmio_exits",
];

/// Seconds of a processor.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Use {
    /// In guest mode.
    pub guest_s: f64,
    /// In the program's own code.
    pub user_s: f64,
    /// In the kernel.
    pub system_s: f64,
}

impl Use {
    /// From the text of `/proc/PID/task/TID/stat`, with the thread's name.
    fn parse(stat: &str) -> Option<(String, Self)> {
        // The name is in parentheses, and may itself hold some.
        let (head, tail) = stat.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        // Fields are counted from 1 in proc_pid_stat(5), and the first of these is the third.
        let seconds = |field: usize| -> Option<f64> {
            Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND)
        };
        let guest_s = seconds(43)?;
        let times = Self {
            guest_s,
            // The kernel counts a guest's time as the program's own, too.
            user_s: (seconds(14)? - guest_s).max(0.0),
            system_s: seconds(15)?,
        };
        Some((name.to_owned(), times))
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            guest_s: self.guest_s - earlier.guest_s,
            user_s: self.user_s - earlier.user_s,
            system_s: self.system_s - earlier.system_s,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total_s(self) -> f64 {
        self.guest_s + self.user_s + self.system_s
    }
}

impl std::ops::AddAssign for Use {
    fn add_assign(&mut self, other: Self) {
        self.guest_s += other.guest_s;
        self.user_s += other.user_s;
        self.system_s += other.system_s;
    }
}

/// All counters at one time.
#[derive(Clone, Debug)]
pub struct Moment {
    at: Instant,
    cpu: Duration,
    threads: BTreeMap<i32, (String, Use)>,
    kvm: BTreeMap<String, u64>,
}

impl Moment {
    /// Reads the counters of the control group at `group`, a folder in `/sys/fs/cgroup`, without this
    /// process.
    ///
    /// # Errors
    /// If the group cannot be read. Threads that end meanwhile are left out.
    pub fn of(group: &Path) -> Result<Self> {
        let members =
            std::fs::read_to_string(group.join("cgroup.procs")).context("reading a group")?;
        let own = std::process::id().to_string();
        let mut threads = BTreeMap::new();
        for pid in members.lines().filter(|pid| *pid != own) {
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else {
                    continue;
                };
                let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok());
                if let Some((tid, thread)) = tid.zip(Use::parse(&stat)) {
                    threads.insert(tid, thread);
                }
            }
        }
        let counter = |name: &&str| {
            let text = std::fs::read_to_string(Path::new(KVM_FOLDER).join(name)).ok()?;
            Some(((*name).to_owned(), text.trim().parse().ok()?))
        };
        Ok(Self {
            at: Instant::now(),
            cpu: group_cpu(group)?,
            threads,
            kvm: KVM_COUNTERS.iter().filter_map(counter).collect(),
        })
    }

    /// What happened from `earlier` to this moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Stretch {
        let mut threads = BTreeMap::<String, Use>::new();
        for (tid, (name, times)) in &self.threads {
            let before = earlier.threads.get(tid).map_or(Use::default(), |old| old.1);
            *threads.entry(kind_of(name)).or_default() += times.since(before);
        }
        let kvm = self.kvm.iter().map(|(name, count)| {
            let before = earlier.kvm.get(name).copied().unwrap_or(0);
            (name.clone(), count.saturating_sub(before))
        });
        Stretch {
            seconds: self.at.duration_since(earlier.at).as_secs_f64(),
            cpu_s: self.cpu.saturating_sub(earlier.cpu).as_secs_f64(),
            threads,
            kvm: kvm.collect(),
        }
    }
}

/// What happened between two moments.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// How long it was.
    pub seconds: f64,
    /// Processor time of the group, threads that have ended included.
    pub cpu_s: f64,
    /// Processor time by kind of thread: names without the numbers at their ends.
    pub threads: BTreeMap<String, Use>,
    /// How far KVM's counters went, over all guests of the host.
    pub kvm: BTreeMap<String, u64>,
}

/// A thread's name without its number.
fn kind_of(name: &str) -> String {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches(['-', ' '])
        .to_owned()
}

/// The processor time that was used in a control group, by the kernel on its behalf included.
///
/// # Errors
/// If its `cpu.stat` cannot be read.
pub fn group_cpu(group: &Path) -> Result<Duration> {
    let text = std::fs::read_to_string(group.join("cpu.stat")).context("reading cpu.stat")?;
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .context("cpu.stat tells no usage")?;
    Ok(Duration::from_micros(usage.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(name: &str, user: u32, system: u32, guest: u32) -> String {
        let between = "0 ".repeat(27);
        format!("7 ({name}) S 1 2 3 4 5 6 7 8 9 10 {user} {system} {between}{guest} 0 0")
    }

    #[test]
    fn guest_time_is_not_counted_as_the_programs_own() {
        let (name, times) = Use::parse(&stat("a) b (c", 250, 40, 200)).unwrap();
        assert_eq!(name, "a) b (c");
        let expected = Use {
            guest_s: 2.0,
            user_s: 0.5,
            system_s: 0.4,
        };
        assert_eq!(times, expected);
        assert!(Use::parse("7 (x) S 1").is_none());
    }

    #[test]
    fn the_layout_is_that_of_this_kernel() {
        let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (name, times) = Use::parse(&text).unwrap();
        assert!(!name.is_empty());
        assert!(times.guest_s < 1.0, "a test runs no guest: {times:?}");
    }

    #[test]
    fn threads_of_a_kind_are_added_and_new_ones_begin_at_nothing() {
        let moment = |at, threads: &[(i32, &str, f64)], exits| Moment {
            at,
            cpu: Duration::from_secs(exits),
            threads: threads
                .iter()
                .map(|&(tid, name, guest_s)| {
                    let times = Use {
                        guest_s,
                        ..Use::default()
                    };
                    (tid, (name.to_owned(), times))
                })
                .collect(),
            kvm: BTreeMap::from([("exits".to_owned(), exits)]),
        };
        let begun = Instant::now();
        let first = moment(begun, &[(1, "vcpu0", 1.0), (2, "iou-wrk-77", 3.0)], 5);
        let later = begun + Duration::from_secs(2);
        let second = moment(later, &[(1, "vcpu0", 2.0), (3, "vcpu1", 0.5)], 9);
        let stretch = second.since(&first);
        assert_eq!(stretch.threads.len(), 1);
        assert!((stretch.threads["vcpu"].total_s() - 1.5).abs() < 1e-9);
        assert_eq!(stretch.kvm["exits"], 4);
        assert!((stretch.cpu_s - 4.0).abs() < 1e-9);
        assert!((stretch.seconds - 2.0).abs() < 1e-9);
    }

    #[test]
    fn names_lose_their_numbers() {
        for (name, kind) in [
            ("vcpu12", "vcpu"),
            ("iou-wrk-4711", "iou-wrk"),
            ("fc_vcpu 0", "fc_vcpu"),
            ("berth-vmm", "berth-vmm"),
        ] {
            assert_eq!(kind_of(name), kind);
        }
    }
}
