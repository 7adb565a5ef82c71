//! Snapshots of machines, good and bad, and what is said about them.

use super::*;
use crate::host::snapshot::Iommu;

const GOOD_PROBE: &str =
    r#"{"kvm":true,"api_version":12,"runs_unmodified_guest":true,"problem":null}"#;

fn ended(output: &str) -> Ran {
    Ran::Ended {
        success: true,
        output: output.to_owned(),
    }
}

fn vtd(name: &str, ecap: u64) -> Iommu {
    Iommu {
        name: name.to_owned(),
        vtd_ecap: Some(ecap),
    }
}

/// A bare-metal Debian 12 host as it should be.
fn good() -> Snapshot {
    Snapshot {
        kvm: KvmDevice::Open,
        probe: ended(GOOD_PROBE),
        cpu_flags: ["fpu", "vmx", "pdpe1gb"].map(str::to_owned).into(),
        iommu_groups: 42,
        iommus: vec![vtd("dmar0", 0x00f0_20df)],
        remapped_interrupts: true,
        unsafe_interrupts: Some(false),
        huge_2m: Some(HugePool {
            total: 512,
            free: 512,
        }),
        huge_1g: Some(HugePool { total: 0, free: 0 }),
        transparent_huge: Some("madvise".to_owned()),
        cgroup_controllers: Some("cpuset cpu io memory hugetlb pids rdma misc".to_owned()),
        kernel: Some("6.1.0-28-amd64".to_owned()),
        systemd: ended("systemd 252 (252.38-1~deb12u1)\n+PAM +AUDIT\n"),
    }
}

#[track_caller]
fn check(name: &str, expected: Status, change: impl FnOnce(&mut Snapshot)) {
    let mut host = good();
    change(&mut host);
    let checks = judge(&host);
    let found = checks.iter().find(|check| check.name == name).unwrap();
    assert_eq!(found.status, expected, "{found:?}");
    assert_eq!(found.remedy.is_none(), expected == Status::Ok, "{found:?}");
}

#[test]
fn a_good_host_passes_every_check() {
    for check in judge(&good()) {
        assert_eq!(check.status, Status::Ok, "{check:?}");
    }
}

#[test]
fn kvm_must_be_there_and_open() {
    let name = "/dev/kvm";
    check(name, Status::Fail, |host| host.kvm = KvmDevice::Absent);
    check(name, Status::Fail, |host| {
        host.kvm = KvmDevice::Closed("Permission denied".to_owned());
    });
}

#[test]
fn kvm_must_run_an_unmodified_guest() {
    let name = "KVM runs a guest";
    check(name, Status::Warn, |host| host.probe = Ran::Absent);
    check(name, Status::Fail, |host| host.probe = Ran::TimedOut);
    check(name, Status::Warn, |host| {
        host.probe = Ran::NotStarted("Exec format error".to_owned());
    });
    check(name, Status::Warn, |host| host.probe = ended("usage: …"));
    for report in [
        r#"{"kvm":false,"api_version":null,"runs_unmodified_guest":false,"problem":"EACCES"}"#,
        r#"{"kvm":true,"api_version":11,"runs_unmodified_guest":true,"problem":null}"#,
        r#"{"kvm":true,"api_version":12,"runs_unmodified_guest":false,"problem":"no hardware assist"}"#,
    ] {
        check(name, Status::Fail, |host| host.probe = ended(report));
    }
}

#[test]
fn a_cpu_without_virtualisation_is_found() {
    let name = "CPU virtualisation";
    check(name, Status::Ok, |host| {
        host.cpu_flags = vec!["svm".to_owned()]
    });
    check(name, Status::Warn, |host| host.cpu_flags.clear());
    check(name, Status::Fail, |host| {
        host.cpu_flags.clear();
        host.kvm = KvmDevice::Absent;
    });
}

#[test]
fn a_host_without_an_iommu_runs_vms_but_passes_no_device_through() {
    check("IOMMU", Status::Warn, |host| {
        host.iommus.clear();
        host.iommu_groups = 0;
    });
    check("IOMMU", Status::Warn, |host| host.iommu_groups = 0);
    check("interrupt remapping", Status::Warn, |host| {
        host.iommus.clear();
        host.remapped_interrupts = false;
    });
}

#[test]
fn interrupts_must_be_remapped_by_every_iommu_and_by_the_kernel() {
    let name = "interrupt remapping";
    check(name, Status::Fail, |host| {
        host.unsafe_interrupts = Some(true)
    });
    check(name, Status::Ok, |host| host.unsafe_interrupts = None);
    check(name, Status::Warn, |host| {
        host.iommus.push(vtd("dmar1", 0x00f0_20d7));
    });
    check(name, Status::Warn, |host| host.remapped_interrupts = false);
    let amd = || {
        vec![Iommu {
            name: "ivhd0".to_owned(),
            vtd_ecap: None,
        }]
    };
    check(name, Status::Ok, |host| host.iommus = amd());
    check(name, Status::Warn, |host| {
        host.iommus = amd();
        host.remapped_interrupts = false;
    });
}

#[test]
fn huge_pages_are_wished_for_only() {
    check("2 MiB huge pages", Status::Warn, |host| host.huge_2m = None);
    check("2 MiB huge pages", Status::Warn, |host| {
        host.huge_2m = Some(HugePool { total: 0, free: 0 });
    });
    check("1 GiB huge pages", Status::Warn, |host| {
        host.cpu_flags = vec!["vmx".to_owned()];
    });
    let name = "transparent huge pages";
    check(name, Status::Warn, |host| host.transparent_huge = None);
    check(name, Status::Warn, |host| {
        host.transparent_huge = Some("never".to_owned());
    });
}

#[test]
fn cgroup_v2_needs_its_controllers() {
    check("cgroup v2", Status::Fail, |host| {
        host.cgroup_controllers = None
    });
    check("cgroup v2", Status::Fail, |host| {
        host.cgroup_controllers = Some("cpuset cpu io pids".to_owned());
    });
}

#[test]
fn versions_are_compared_as_numbers() {
    for (release, status) in [
        ("6.1.0", Status::Ok),
        ("6.18.44-fc-v669", Status::Ok),
        ("10.0.0", Status::Ok),
        ("6.0.12", Status::Fail),
        ("5.15.0-91-generic", Status::Fail),
        ("next", Status::Warn),
    ] {
        check("kernel", status, |host| {
            host.kernel = Some(release.to_owned())
        });
    }
    for (output, status) in [
        ("systemd 257.9 (257.9-1)", Status::Ok),
        ("systemd 251 (251.4)", Status::Fail),
        ("busybox", Status::Warn),
    ] {
        check("systemd", status, |host| host.systemd = ended(output));
    }
    check("systemd", Status::Fail, |host| host.systemd = Ran::Absent);
}
