//! Block devices of a PCI function, claimed so that nobody of the host can begin to use them.
//!
//! A claim is an exclusive open: while it is held, no mount, swap, dm, md or other exclusive opener
//! gets in, and if one is in already the open fails. That alone excludes; the files are opened for
//! reading, so that the agent needs no right to write to the host's disks. Owns the reading of
//! `/sys/class/block`, mountinfo and swaps; names who has what.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use berth_api::pci::PciAddress;
use berth_api::slot::SlotProblemCode;
use rustix::fs::{OFlags, major, minor};

use crate::slot_devices::DeviceError;

/// Block devices that are claimed for as long as this is there.
#[derive(Debug)]
pub(super) struct BlockClaims {
    #[expect(dead_code, reason = "what is open is claimed")]
    files: Vec<File>,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    /// Name in `/sys/class/block`, such as `nvme0n1p1`.
    name: String,
    /// Major and minor number as sysfs has them: `259:1`.
    number: String,
    /// Its folder in sysfs.
    folder: PathBuf,
    is_partition: bool,
}

/// Claim all block devices of a function.
///
/// # Errors
/// `DeviceInUse`, naming the device and who has it; also if one cannot be looked at.
pub(super) fn claim(root: &Path, device: PciAddress) -> Result<BlockClaims, DeviceError> {
    let blocks = find(root, device).map_err(|error| unknown(device, &error))?;
    let mut files = Vec::new();
    for block in &blocks {
        if let Some(how) = used(root, block).map_err(|error| unknown(device, &error))? {
            return Err(in_use(device, block, &how));
        }
        // Of a disk and its partitions only either can be claimed one by one; a claimed partition
        // keeps others from claiming the disk.
        if !has_partitions(block, &blocks) {
            files.push(open(root, block).map_err(|error| busy(root, device, block, &error))?);
        }
    }
    // What came between looking and claiming shows here, and cannot come any more.
    let now = find(root, device).map_err(|error| unknown(device, &error))?;
    if now != blocks {
        let message =
            format!("{device}: its partitions changed while they were claimed; try again");
        return Err(DeviceError::new(SlotProblemCode::DeviceInUse, message));
    }
    for block in &blocks {
        if let Some(how) = used(root, block).map_err(|error| unknown(device, &error))? {
            return Err(in_use(device, block, &how));
        }
    }
    Ok(BlockClaims { files })
}

fn has_partitions(block: &Block, all: &BTreeSet<Block>) -> bool {
    let mut partitions = all.iter().filter(|other| other.is_partition);
    partitions.any(|part| part.folder.parent() == Some(&block.folder))
}

/// Every block device whose folder is below the function's, or below that of an NVMe subsystem which
/// one of its controllers belongs to.
fn find(root: &Path, device: PciAddress) -> io::Result<BTreeSet<Block>> {
    let sys = root.join("sys");
    let function = sys.join("bus/pci/devices").join(device.to_string());
    let mut homes = vec![function.canonicalize()?];
    for subsystem in entries(&sys.join("class/nvme-subsystem"))? {
        let subsystem = subsystem.canonicalize()?;
        for entry in entries(&subsystem)? {
            let is_ours = entry.is_symlink()
                && entry
                    .canonicalize()
                    .is_ok_and(|path| path.starts_with(&homes[0]));
            if is_ours {
                homes.push(subsystem.clone());
                break;
            }
        }
    }
    let mut found = BTreeSet::new();
    for entry in entries(&sys.join("class/block"))? {
        let folder = entry.canonicalize()?;
        if homes.iter().any(|home| folder.starts_with(home)) && !is_hidden(&folder)? {
            found.insert(Block {
                name: name(&entry),
                number: std::fs::read_to_string(folder.join("dev"))?
                    .trim()
                    .to_owned(),
                is_partition: folder.join("partition").exists(),
                folder,
            });
        }
    }
    Ok(found)
}

/// Paths of a multipath device have no file in `/dev`; their head has.
fn is_hidden(folder: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(folder.join("hidden")) {
        Ok(text) => Ok(text.trim() == "1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn open(root: &Path, block: &Block) -> io::Result<File> {
    // A slash in a device's name is an exclamation mark in sysfs.
    let path = root.join("dev").join(block.name.replace('!', "/"));
    let flags = OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    let number = format!("{}:{}", major(meta.rdev()), minor(meta.rdev()));
    if !meta.file_type().is_block_device() || number != block.number {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its file in /dev is something else",
        ));
    }
    Ok(file)
}

/// What the host does with a block device, as far as its tables tell.
fn used(root: &Path, block: &Block) -> io::Result<Option<String>> {
    let source = format!("/dev/{}", block.name.replace('!', "/"));
    let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo"))?;
    for line in mounts.lines() {
        if let Some(place) = mounted_at(line, &block.number, &source) {
            return Ok(Some(format!("mounted on {place}")));
        }
    }
    let swaps = match std::fs::read_to_string(root.join("proc/swaps")) {
        Ok(swaps) => swaps,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut swaps = swaps.lines().filter_map(|line| line.split(' ').next());
    if swaps.any(|path| path == source) {
        return Ok(Some("swap".to_owned()));
    }
    let holders = entries(&block.folder.join("holders"))?;
    Ok(holders
        .first()
        .map(|holder| format!("held by {}", name(holder))))
}

/// Where a line of mountinfo says that this device is mounted (proc(5)).
fn mounted_at(line: &str, number: &str, source: &str) -> Option<String> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ');
    let device = head.nth(2)?;
    let place = head.nth(1)?;
    let mounted_from = tail.split(' ').nth(1);
    (device == number || mounted_from == Some(source)).then(|| place.to_owned())
}

fn in_use(device: PciAddress, block: &Block, how: &str) -> DeviceError {
    DeviceError::new(
        SlotProblemCode::DeviceInUse,
        format!(
            "{device}: the host uses {}: {how}; stop using it first",
            block.name
        ),
    )
}

fn busy(root: &Path, device: PciAddress, block: &Block, error: &io::Error) -> DeviceError {
    if error.kind() != io::ErrorKind::ResourceBusy {
        return DeviceError::new(
            SlotProblemCode::DeviceInUse,
            format!("{device}: {} cannot be claimed: {error}", block.name),
        );
    }
    // It may have been mounted in this very moment.
    let how = used(root, block).ok().flatten();
    in_use(
        device,
        block,
        how.as_deref()
            .unwrap_or("somebody has opened it exclusively"),
    )
}

fn unknown(device: PciAddress, error: &io::Error) -> DeviceError {
    DeviceError::new(
        SlotProblemCode::DeviceInUse,
        format!("{device}: whether the host uses it cannot be found out: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PCI: &str = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";

    /// A host with a drive of one partition. Its files in `/dev` are no block devices.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.write(
                "proc/self/mountinfo",
                "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n",
            );
            host.write("proc/swaps", "Filename\tType\n");
            std::fs::create_dir_all(host.path("sys/bus/pci/devices")).unwrap();
            std::fs::create_dir_all(host.path("sys/class/block")).unwrap();
            std::fs::create_dir_all(host.path(PCI)).unwrap();
            let link = host.path("sys/bus/pci/devices/0000:01:00.0");
            symlink(host.path(PCI), link).unwrap();
            host
        }

        fn path(&self, below: &str) -> PathBuf {
            self.0.path().join(below)
        }

        fn write(&self, below: &str, text: &str) {
            let path = self.path(below);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn add(&self, folder: &str, number: &str) {
            self.write(&format!("{folder}/dev"), &format!("{number}\n"));
            let name = folder.rsplit('/').next().unwrap();
            let link = self.path(&format!("sys/class/block/{name}"));
            symlink(self.path(folder), link).unwrap();
        }

        fn with_drive() -> Self {
            let host = Self::new();
            let disk = format!("{PCI}/nvme/nvme0/nvme0n1");
            host.add(&disk, "259:0");
            host.add(&format!("{disk}/nvme0n1p1"), "259:1");
            host.write(&format!("{disk}/nvme0n1p1/partition"), "1\n");
            host.add("sys/devices/virtual/block/loop0", "7:0");
            host
        }

        fn names(&self) -> Vec<String> {
            let found = find(self.0.path(), at()).unwrap();
            found.into_iter().map(|block| block.name).collect()
        }

        #[track_caller]
        fn refused(&self) -> String {
            let error = claim(self.0.path(), at()).unwrap_err();
            assert_eq!(error.code, SlotProblemCode::DeviceInUse);
            error.message
        }
    }

    fn at() -> PciAddress {
        "0000:01:00.0".parse().unwrap()
    }

    #[test]
    fn disks_and_partitions_below_the_function_are_found_and_no_others() {
        assert_eq!(Host::with_drive().names(), ["nvme0n1", "nvme0n1p1"]);
        assert_eq!(Host::new().names(), Vec::<String>::new());
        claim(Host::new().0.path(), at()).unwrap();
    }

    #[test]
    fn the_head_of_a_multipath_drive_is_its_controllers() {
        let host = Host::new();
        let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
        std::fs::create_dir_all(host.path(&format!("{PCI}/nvme/nvme0"))).unwrap();
        host.add(&format!("{subsystem}/nvme0n1"), "259:0");
        host.add(&format!("{PCI}/nvme/nvme0/nvme0c0n1"), "0:0");
        host.write(&format!("{PCI}/nvme/nvme0/nvme0c0n1/hidden"), "1\n");
        let controller = host.path(&format!("{PCI}/nvme/nvme0"));
        symlink(controller, host.path(&format!("{subsystem}/nvme0"))).unwrap();
        std::fs::create_dir_all(host.path("sys/class/nvme-subsystem")).unwrap();
        let link = host.path("sys/class/nvme-subsystem/nvme-subsys0");
        symlink(host.path(subsystem), link).unwrap();
        assert_eq!(host.names(), ["nvme0n1"]);
    }

    #[test]
    fn a_mount_a_swap_and_a_holder_are_named() {
        let host = Host::with_drive();
        host.write(
            "proc/self/mountinfo",
            "36 35 259:1 / /srv/data rw,noatime master:1 - ext4 /dev/x rw\n",
        );
        assert!(host.refused().contains("nvme0n1p1: mounted on /srv/data"));
        host.write(
            "proc/self/mountinfo",
            "36 35 0:40 / /srv/pool rw shared:1 - btrfs /dev/nvme0n1 rw\n",
        );
        assert!(host.refused().contains("nvme0n1: mounted on /srv/pool"));
        host.write("proc/self/mountinfo", "");
        host.write("proc/swaps", "/dev/nvme0n1p1 partition 1 0 -2\n");
        assert!(host.refused().contains("nvme0n1p1: swap"));
        host.write("proc/swaps", "");
        host.write(&format!("{PCI}/nvme/nvme0/nvme0n1/holders/dm-0"), "");
        assert!(host.refused().contains("nvme0n1: held by dm-0"));
    }

    #[test]
    fn a_device_that_cannot_be_claimed_is_in_use() {
        let host = Host::with_drive();
        assert!(host.refused().contains("cannot be claimed"));
        host.write("dev/nvme0n1p1", "no block device");
        assert!(host.refused().contains("something else"));
        std::fs::remove_file(host.path("proc/self/mountinfo")).unwrap();
        assert!(host.refused().contains("cannot be found out"));
    }
}
