//! Who has a device open through VFIO, by the links in `/proc/<pid>/fd`.
//!
//! Processes of other users may keep theirs to themselves; whether somebody has a group at all is
//! what opening it tells.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use berth_api::pci::PciAddress;

/// The files by which a device can be had: its group's, and its own where the kernel has those.
pub(super) fn files(root: &Path, device: PciAddress, group: Option<u32>) -> BTreeSet<PathBuf> {
    let mut files: BTreeSet<_> = group
        .map(|group| PathBuf::from(format!("/dev/vfio/{group}")))
        .into_iter()
        .collect();
    let own = root.join(format!("sys/bus/pci/devices/{device}/vfio-dev"));
    let names = std::fs::read_dir(own).into_iter().flatten().flatten();
    files.extend(names.map(|name| Path::new("/dev/vfio/devices").join(name.file_name())));
    files
}

/// Processes that have one of `files` open, in order.
pub(super) fn find(root: &Path, files: &BTreeSet<PathBuf>) -> io::Result<Vec<u32>> {
    let mut users = BTreeSet::new();
    for entry in std::fs::read_dir(root.join("proc"))? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Processes end, and some may not be looked at.
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let mut links = descriptors
            .flatten()
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
        if links.any(|link| files.contains(&link)) {
            users.insert(pid);
        }
    }
    Ok(users.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn processes_with_the_group_or_the_device_are_found() {
        let root = tempfile::tempdir().unwrap();
        let path = |below: &str| root.path().join(below);
        for (pid, target) in [
            ("12", "/dev/vfio/7"),
            ("9", "/dev/vfio/devices/vfio3"),
            ("13", "/dev/vfio/77"),
        ] {
            std::fs::create_dir_all(path(&format!("proc/{pid}/fd"))).unwrap();
            symlink("/dev/null", path(&format!("proc/{pid}/fd/0"))).unwrap();
            symlink(target, path(&format!("proc/{pid}/fd/5"))).unwrap();
        }
        std::fs::create_dir_all(path("proc/14")).unwrap();
        std::fs::create_dir_all(path("proc/irq/fd")).unwrap();
        let own = "sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio3";
        std::fs::create_dir_all(path(own)).unwrap();
        let device = "0000:01:00.0".parse().unwrap();
        let files = files(root.path(), device, Some(7));
        assert_eq!(find(root.path(), &files).unwrap(), [9, 12]);
        assert_eq!(
            find(root.path(), &BTreeSet::new()).unwrap(),
            Vec::<u32>::new()
        );
        find(&path("absent"), &files).unwrap_err();
    }
}
