//! The judgement over a snapshot: pure.
//!
//! *fail* means that berth cannot or must not run tenants' VMs here; *warn* that a part of what it
//! offers is missing, or could not be found out.

use serde::{Deserialize, Serialize};

use crate::host::probe::Ran;
use crate::host::snapshot::{HugePool, KvmDevice, Snapshot};

/// Oldest kernel: Debian 12's.
const MIN_KERNEL: (u32, u32) = (6, 1);
/// Oldest systemd: Debian 12's.
const MIN_SYSTEMD: u32 = 252;
/// KVM's API version since Linux 2.6.22, the only one there ever was.
const KVM_API_VERSION: i64 = 12;
/// Interrupt remapping in VT-d's extended capability register (specification 11.4.3).
const ECAP_IR: u64 = 1 << 3;
/// The controllers that VMs are limited with.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// A part of what berth offers is missing or unknown.
    Warn,
    /// No VM can or may run.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it is.
    pub(crate) status: Status,
    /// What was found.
    pub(crate) found: String,
    /// What to do; nothing if it is ok.
    pub(crate) remedy: Option<&'static str>,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Ok,
        found: found.into(),
        remedy: None,
    }
}

fn warn(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Check {
    Check {
        name,
        status: Status::Warn,
        found: found.into(),
        remedy: Some(remedy),
    }
}

fn fail(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Check {
    Check {
        status: Status::Fail,
        ..warn(name, found, remedy)
    }
}

/// All checks, in the order in which to mend them.
#[must_use]
pub(crate) fn judge(host: &Snapshot) -> Vec<Check> {
    vec![
        cpu_virtualisation(host),
        kvm_device(host),
        kvm_guest(host),
        iommu(host),
        interrupt_remapping(host),
        huge_pool(
            "2 MiB huge pages",
            host.huge_2m,
            "Reserve some: `sysctl vm.nr_hugepages=N`.",
        ),
        huge_1g(host),
        transparent_huge(host),
        cgroup(host),
        kernel(host),
        systemd(host),
    ]
}

fn has_flag(host: &Snapshot, flag: &str) -> bool {
    host.cpu_flags.iter().any(|known| known == flag)
}

fn cpu_virtualisation(host: &Snapshot) -> Check {
    const NAME: &str = "CPU virtualisation";
    match ["vmx", "svm"].into_iter().find(|flag| has_flag(host, flag)) {
        Some(flag) => ok(NAME, flag),
        // A hypervisor may offer KVM in a way that the flags do not show.
        None if host.kvm == KvmDevice::Open => warn(
            NAME,
            "neither vmx nor svm, yet /dev/kvm is there",
            "Nothing, if `KVM runs a guest` is ok.",
        ),
        None => fail(
            NAME,
            "neither vmx nor svm",
            "Switch VT-x or AMD-V on in the firmware; on a VM, enable nested virtualisation.",
        ),
    }
}

fn kvm_device(host: &Snapshot) -> Check {
    const NAME: &str = "/dev/kvm";
    match &host.kvm {
        KvmDevice::Open => ok(NAME, "opens"),
        KvmDevice::Closed(why) => fail(
            NAME,
            format!("does not open: {why}"),
            "Run this as root or as a member of the group kvm.",
        ),
        KvmDevice::Absent => fail(
            NAME,
            "absent",
            "Load the module: `modprobe kvm_intel` or `modprobe kvm_amd`.",
        ),
    }
}

/// What `berth-vmm probe` prints.
#[derive(Deserialize)]
struct ProbeReport {
    kvm: bool,
    api_version: Option<i64>,
    runs_unmodified_guest: bool,
    problem: Option<String>,
}

fn kvm_guest(host: &Snapshot) -> Check {
    const NAME: &str = "KVM runs a guest";
    const INSTALL: &str = "Install the package berth-agent, or name the program with --vmm.";
    const OTHER: &str = "Install the berth-agent of the same version as this program.";
    const NATIVE: &str =
        "Use bare metal, or nested virtualisation by hardware; see /dev/kvm's line first.";
    let output = match &host.probe {
        Ran::Absent => return warn(NAME, "unknown: there is no berth-vmm to try it", INSTALL),
        Ran::NotStarted(why) => {
            return warn(
                NAME,
                format!("unknown: berth-vmm does not start: {why}"),
                INSTALL,
            );
        }
        Ran::TimedOut => return fail(NAME, "the probe did not end in 10 s", NATIVE),
        Ran::Ended { output, .. } => output,
    };
    let Ok(report) = serde_json::from_str::<ProbeReport>(output) else {
        return warn(NAME, "unknown: berth-vmm's probe is not understood", OTHER);
    };
    let problem = report
        .problem
        .unwrap_or_else(|| "no reason given".to_owned());
    match report.api_version {
        _ if !report.kvm => fail(NAME, format!("KVM is not usable: {problem}"), NATIVE),
        Some(version) if version != KVM_API_VERSION => {
            fail(NAME, format!("KVM's API version is {version}"), NATIVE)
        }
        _ if report.runs_unmodified_guest => ok(NAME, "an unmodified guest"),
        _ => fail(NAME, format!("not an unmodified one: {problem}"), NATIVE),
    }
}

fn iommu(host: &Snapshot) -> Check {
    const NAME: &str = "IOMMU";
    let names: Vec<&str> = host.iommus.iter().map(|unit| unit.name.as_str()).collect();
    match (host.iommus.len(), host.iommu_groups) {
        (0, 0) => warn(
            NAME,
            "none: VMs run, but no device can be passed through",
            "Switch VT-d or AMD-Vi on in the firmware; for VT-d boot with intel_iommu=on.",
        ),
        (_, 0) => warn(
            NAME,
            format!("{} without groups", names.join(" ")),
            "Boot with intel_iommu=on (Intel) or without amd_iommu=off (AMD).",
        ),
        (_, groups) => ok(NAME, format!("{} with {groups} groups", names.join(" "))),
    }
}

fn interrupt_remapping(host: &Snapshot) -> Check {
    const NAME: &str = "interrupt remapping";
    let lacking: Vec<&str> = host
        .iommus
        .iter()
        .filter(|unit| unit.vtd_ecap.is_some_and(|ecap| ecap & ECAP_IR == 0))
        .map(|unit| unit.name.as_str())
        .collect();
    let capable = host.iommus.iter().any(|unit| unit.vtd_ecap.is_some());
    match host.unsafe_interrupts {
        Some(true) => fail(
            NAME,
            "VFIO is told to do without (allow_unsafe_interrupts)",
            "Remove vfio_iommu_type1.allow_unsafe_interrupts=1: a guest's device could raise any interrupt.",
        ),
        _ if !lacking.is_empty() => warn(
            NAME,
            format!("{} cannot", lacking.join(" ")),
            "Pass no device through behind it: a guest's device could raise any interrupt.",
        ),
        _ if host.remapped_interrupts => ok(NAME, "in use"),
        _ if host.iommus.is_empty() => warn(NAME, "no IOMMU", "See the IOMMU's line."),
        _ if capable => warn(
            NAME,
            "the IOMMU can, the kernel does not use it",
            "Boot without intremap=off and switch x2APIC on in the firmware.",
        ),
        _ => warn(
            NAME,
            "unknown: no interrupt in /proc/interrupts is remapped",
            "Look for `Interrupt remapping enabled` in `journalctl -k`.",
        ),
    }
}

fn huge_pool(name: &'static str, pool: Option<HugePool>, remedy: &'static str) -> Check {
    match pool {
        None => warn(
            name,
            "not in this kernel",
            "Use a kernel with CONFIG_HUGETLBFS.",
        ),
        Some(HugePool { total: 0, .. }) => warn(name, "none reserved", remedy),
        Some(HugePool { total, free }) => ok(name, format!("{free} of {total} free")),
    }
}

fn huge_1g(host: &Snapshot) -> Check {
    const NAME: &str = "1 GiB huge pages";
    if !has_flag(host, "pdpe1gb") {
        return warn(
            NAME,
            "not in this CPU (pdpe1gb)",
            "Nothing: 2 MiB pages serve.",
        );
    }
    match host.huge_1g {
        Some(HugePool { total, free }) if total > 0 => ok(NAME, format!("{free} of {total} free")),
        _ => ok(NAME, "supported, none reserved"),
    }
}

fn transparent_huge(host: &Snapshot) -> Check {
    const NAME: &str = "transparent huge pages";
    match host.transparent_huge.as_deref() {
        Some(mode @ ("always" | "madvise")) => ok(NAME, mode),
        other => warn(
            NAME,
            other.unwrap_or("not in this kernel"),
            "Write madvise into /sys/kernel/mm/transparent_hugepage/enabled.",
        ),
    }
}

fn cgroup(host: &Snapshot) -> Check {
    const NAME: &str = "cgroup v2";
    let Some(controllers) = &host.cgroup_controllers else {
        return fail(
            NAME,
            "the unified hierarchy is not mounted",
            "Boot with systemd.unified_cgroup_hierarchy=1.",
        );
    };
    let known: Vec<&str> = controllers.split_whitespace().collect();
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|controller| !known.contains(controller))
        .collect();
    if missing.is_empty() {
        ok(NAME, CONTROLLERS.join(" "))
    } else {
        fail(
            NAME,
            format!("without {}", missing.join(" ")),
            "Boot without cgroup_disable= and without these on the old hierarchy.",
        )
    }
}

fn kernel(host: &Snapshot) -> Check {
    const NAME: &str = "kernel";
    const REMEDY: &str = "Boot Linux 6.1 or younger.";
    let Some(release) = &host.kernel else {
        return warn(NAME, "unknown", REMEDY);
    };
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= MIN_KERNEL => ok(NAME, release),
        (Some(Ok(_)), Some(Ok(_))) => fail(NAME, release, REMEDY),
        _ => warn(NAME, format!("{release}, which is not understood"), REMEDY),
    }
}

fn systemd(host: &Snapshot) -> Check {
    const NAME: &str = "systemd";
    const REMEDY: &str = "Use a system with systemd 252 or younger, such as Debian 12.";
    let Ran::Ended { output, .. } = &host.systemd else {
        return fail(NAME, "absent or not answering", REMEDY);
    };
    let line = output.lines().next().unwrap_or_default();
    let version = line
        .strip_prefix("systemd ")
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|number| number.parse::<u32>().ok());
    match version {
        Some(version) if version >= MIN_SYSTEMD => ok(NAME, version.to_string()),
        Some(version) => fail(NAME, version.to_string(), REMEDY),
        None => warn(NAME, format!("`{line}` is not understood"), REMEDY),
    }
}

#[cfg(test)]
mod tests;
