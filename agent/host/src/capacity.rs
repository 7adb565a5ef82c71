//! What this host is and has: read-only looks at /proc, /etc and the file system.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use berth_api::agent::Capacity;

/// Memory that the host keeps for itself, in MiB.
const HOST_MEMORY_MIB: u64 = 512;
const MIB: u64 = 1024 * 1024;
/// The device that makes VMs possible.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// Why the host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadHostError {
    /// A file is missing or unreadable.
    #[error("could not read {path}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} does not hold what is expected there")]
    Content {
        /// Which.
        path: String,
    },
}

/// Who this host is, in this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The host's name.
    pub node_name: String,
}

fn read_line(path: &str) -> Result<String, ReadHostError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ReadHostError::File {
        path: path.to_owned(),
        cause,
    })?;
    let line = text.trim();
    if line.is_empty() {
        return Err(ReadHostError::Content {
            path: path.to_owned(),
        });
    }
    Ok(line.to_owned())
}

/// Read who this host is.
pub fn identity() -> Result<HostIdentity, ReadHostError> {
    Ok(HostIdentity {
        machine_id: read_line("/etc/machine-id")?,
        boot_id: read_line("/proc/sys/kernel/random/boot_id")?,
        node_name: read_line("/proc/sys/kernel/hostname")?,
    })
}

/// The user that this process runs as.
#[must_use]
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Read what this host can give; disk space is that of the file system under `state`.
pub fn capacity(state: &Path) -> Result<Capacity, ReadHostError> {
    let path = "/proc/meminfo";
    let memory_mib = total_memory_mib(&read_line(path)?).ok_or_else(|| ReadHostError::Content {
        path: path.to_owned(),
    })?;
    let space = rustix::fs::statvfs(state).map_err(|errno| ReadHostError::File {
        path: state.display().to_string(),
        cause: errno.into(),
    })?;
    let vcpus = std::thread::available_parallelism().map_err(|cause| ReadHostError::File {
        path: "the number of CPUs".to_owned(),
        cause,
    })?;
    Ok(Capacity {
        vcpus: u32::try_from(vcpus.get()).unwrap_or(u32::MAX),
        memory_mib: memory_mib.saturating_sub(HOST_MEMORY_MIB),
        disk_mib: space.f_bavail.saturating_mul(space.f_frsize) / MIB,
        kvm: has_kvm(),
    })
}

/// Whether this process can use KVM now.
#[must_use]
pub fn has_kvm() -> bool {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(KVM_DEVICE).is_ok()
}

fn total_memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_read_in_mib() {
        let meminfo = "MemTotal:        2048000 kB\nMemFree:  1 kB\n";
        assert_eq!(total_memory_mib(meminfo), Some(2000));
        assert_eq!(total_memory_mib("MemTotal: much"), None);
    }

    #[test]
    fn this_host_has_cpus_memory_and_disk() {
        let folder = tempfile::tempdir().unwrap();
        let has = capacity(folder.path()).unwrap();
        assert!(has.vcpus > 0 && has.memory_mib > 0 && has.disk_mib > 0);
    }
}
