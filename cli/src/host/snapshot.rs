//! What this host is, read from procfs and sysfs: no judgement.
//!
//! Every path is under a root, so that tests can show other machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::probe::{Ran, run};

/// How `/dev/kvm` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KvmDevice {
    /// It is not there.
    Absent,
    /// It cannot be opened; why.
    Closed(String),
    /// It can be opened for reading and writing.
    Open,
}

/// One IOMMU as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Iommu {
    /// Such as `dmar0` or `ivhd0`.
    pub(crate) name: String,
    /// VT-d's extended capabilities, if it is one.
    pub(crate) vtd_ecap: Option<u64>,
}

/// A pool of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HugePool {
    /// Reserved.
    pub(crate) total: u64,
    /// Of these not in use.
    pub(crate) free: u64,
}

/// Everything that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// `/dev/kvm`.
    pub(crate) kvm: KvmDevice,
    /// What `berth-vmm probe` said.
    pub(crate) probe: Ran,
    /// The first CPU's flags.
    pub(crate) cpu_flags: Vec<String>,
    /// Number of groups.
    pub(crate) iommu_groups: usize,
    /// All IOMMUs.
    pub(crate) iommus: Vec<Iommu>,
    /// Whether interrupts are seen to go through remapping.
    pub(crate) remapped_interrupts: bool,
    /// VFIO's `allow_unsafe_interrupts`, if the module is loaded.
    pub(crate) unsafe_interrupts: Option<bool>,
    /// The pool of 2 MiB pages, if the kernel has one.
    pub huge_2m: Option<HugePool>,
    /// The pool of 1 GiB pages, if the kernel has one.
    pub huge_1g: Option<HugePool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub(crate) transparent_huge: Option<String>,
    /// The unified hierarchy's controllers; nothing if it is not mounted.
    pub(crate) cgroup_controllers: Option<String>,
    /// Such as `6.1.0-28-amd64`.
    pub(crate) kernel: Option<String>,
    /// What `systemctl --version` said.
    pub(crate) systemd: Ran,
}

/// Read the host under `root`. `vmm` is the VMM's path as it is.
#[must_use]
pub(crate) fn read(root: &Path, vmm: &Path) -> Snapshot {
    let at = |path: &str| root.join(path);
    let interrupts = text(&at("proc/interrupts")).unwrap_or_default();
    Snapshot {
        kvm: kvm_device(&at("dev/kvm")),
        probe: run(vmm, &["probe"], Duration::from_secs(10)),
        cpu_flags: cpu_flags(&text(&at("proc/cpuinfo")).unwrap_or_default()),
        iommu_groups: entries(&at("sys/kernel/iommu_groups")).len(),
        iommus: entries(&at("sys/class/iommu"))
            .iter()
            .map(|path| iommu(path))
            .collect(),
        remapped_interrupts: interrupts
            .split_whitespace()
            .any(|word| word.starts_with("IR-")),
        unsafe_interrupts: text(&at(
            "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        ))
        .map(|value| value != "N" && value != "0"),
        huge_2m: huge_pool(&at("sys/kernel/mm/hugepages/hugepages-2048kB")),
        huge_1g: huge_pool(&at("sys/kernel/mm/hugepages/hugepages-1048576kB")),
        transparent_huge: text(&at("sys/kernel/mm/transparent_hugepage/enabled"))
            .and_then(|modes| chosen(&modes)),
        cgroup_controllers: text(&at("sys/fs/cgroup/cgroup.controllers")),
        kernel: text(&at("proc/sys/kernel/osrelease")),
        systemd: run(
            &at("usr/bin/systemctl"),
            &["--version"],
            Duration::from_secs(5),
        ),
    }
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

fn kvm_device(path: &Path) -> KvmDevice {
    if !path.exists() {
        return KvmDevice::Absent;
    }
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    match opened {
        Ok(_device) => KvmDevice::Open,
        Err(error) => KvmDevice::Closed(error.to_string()),
    }
}

fn cpu_flags(cpuinfo: &str) -> Vec<String> {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .and_then(|line| line.split_once(':'))
        .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

fn iommu(path: &Path) -> Iommu {
    let ecap = text(&path.join("intel-iommu/ecap"));
    Iommu {
        name: path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        vtd_ecap: ecap.and_then(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok()),
    }
}

fn huge_pool(folder: &Path) -> Option<HugePool> {
    let number = |name: &str| text(&folder.join(name)).and_then(|text| text.parse().ok());
    Some(HugePool {
        total: number("nr_hugepages")?,
        free: number("free_hugepages")?,
    })
}

/// The word in brackets of `always [madvise] never`.
fn chosen(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn a_host_is_read_from_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "dev/kvm", "");
        write(
            root,
            "proc/cpuinfo",
            "processor\t: 0\nflags\t\t: fpu vmx pdpe1gb\n",
        );
        write(
            root,
            "proc/interrupts",
            " 24: 0 IR-PCI-MSI-0000:00:1f.2 0-edge ahci\n",
        );
        write(root, "proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
        write(root, "sys/kernel/iommu_groups/0/type", "DMA");
        write(root, "sys/class/iommu/dmar0/intel-iommu/ecap", "f020df\n");
        write(root, "sys/class/iommu/ivhd0/amd-iommu/features", "0\n");
        write(
            root,
            "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            "N\n",
        );
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "8\n",
        );
        write(
            root,
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "3\n",
        );
        write(
            root,
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        );
        write(
            root,
            "sys/fs/cgroup/cgroup.controllers",
            "cpu io memory pids\n",
        );
        let read = read(root, Path::new("/nonexistent/berth-vmm"));
        assert_eq!(
            read,
            Snapshot {
                kvm: KvmDevice::Open,
                probe: Ran::Absent,
                cpu_flags: ["fpu", "vmx", "pdpe1gb"].map(str::to_owned).into(),
                iommu_groups: 1,
                iommus: vec![
                    Iommu {
                        name: "dmar0".to_owned(),
                        vtd_ecap: Some(0x00f0_20df),
                    },
                    Iommu {
                        name: "ivhd0".to_owned(),
                        vtd_ecap: None,
                    },
                ],
                remapped_interrupts: true,
                unsafe_interrupts: Some(false),
                huge_2m: Some(HugePool { total: 8, free: 3 }),
                huge_1g: None,
                transparent_huge: Some("madvise".to_owned()),
                cgroup_controllers: Some("cpu io memory pids".to_owned()),
                kernel: Some("6.1.0-28-amd64".to_owned()),
                systemd: Ran::Absent,
            }
        );
    }

    #[test]
    fn an_empty_machine_is_read_without_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let read = read(folder.path(), Path::new("/nonexistent/berth-vmm"));
        assert_eq!(read.kvm, KvmDevice::Absent);
        assert_eq!(read.unsafe_interrupts, None);
        assert!(read.cpu_flags.is_empty());
    }
}
