//! Hosts whose drives are in use, drawn as folders.

use super::*;
use crate::tree::Tree;

const DRIVE: &str = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1";

/// A host with a drive of two partitions, and no mounts.
fn host() -> Tree {
    let tree = Tree::new();
    for (path, number) in [
        (DRIVE.to_owned(), "259:0"),
        (format!("{DRIVE}/nvme0n1p1"), "259:1"),
        (format!("{DRIVE}/nvme0n1p2"), "259:2"),
    ] {
        tree.block(&path, number);
    }
    tree.file("proc/self/mountinfo", "");
    tree
}

fn mountinfo(number: &str, point: &str, source: &str) -> String {
    format!("22 27 {number} / {point} rw,relatime shared:1 - ext4 {source} rw\n")
}

#[track_caller]
fn found(tree: &Tree, expected: &[&str]) {
    let mut texts: Vec<String> = uses(tree.root())
        .unwrap()
        .into_iter()
        .map(|(at, used)| match &used {
            HostUse::Block { device, how } => format!("{at} {device} {how}"),
            HostUse::Boot { device } => format!("{at} boots {device}"),
            HostUse::Route { .. }
            | HostUse::Console
            | HostUse::ManagementController
            | HostUse::VfioUser { .. } => panic!("{used:?}"),
        })
        .collect();
    texts.sort();
    assert_eq!(texts, expected);
}

#[test]
fn a_drive_that_nothing_uses_has_no_use() {
    found(&host(), &[]);
}

#[test]
fn a_mounted_partition_is_a_use_of_its_drive() {
    let tree = host();
    tree.file(
        "proc/self/mountinfo",
        &mountinfo("259:1", "/srv/my\\040data", "/dev/nvme0n1p1"),
    );
    found(&tree, &["0000:01:00.0 nvme0n1p1 mounted on /srv/my data"]);
}

#[test]
fn a_mount_that_only_the_first_process_sees_counts() {
    let tree = host();
    tree.file(
        "proc/1/mountinfo",
        &mountinfo("259:1", "/srv", "/dev/nvme0n1p1"),
    );
    found(&tree, &["0000:01:00.0 nvme0n1p1 mounted on /srv"]);
}

#[test]
fn the_system_of_the_host_is_told_as_such() {
    let tree = host();
    tree.file("proc/self/mountinfo", &mountinfo("259:2", "/", "/dev/root"));
    found(
        &tree,
        &[
            "0000:01:00.0 boots nvme0n1p2",
            "0000:01:00.0 nvme0n1p2 mounted on /",
        ],
    );
}

#[test]
fn swap_is_a_use() {
    let tree = host();
    tree.file(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n",
    );
    found(&tree, &["0000:01:00.0 nvme0n1p2 swap"]);
}

#[test]
fn what_stands_on_volumes_and_arrays_stands_on_the_drive() {
    let tree = host();
    tree.file(&format!("{DRIVE}/nvme0n1p1/holders/md0"), "");
    tree.block("sys/devices/virtual/block/md0", "9:0");
    tree.block("sys/devices/virtual/block/md0/md0p1", "259:7");
    tree.file("sys/devices/virtual/block/md0/md0p1/holders/dm-0", "");
    tree.block("sys/devices/virtual/block/dm-0", "253:0");
    tree.file("sys/devices/virtual/block/dm-0/dm/name", "vg-root\n");
    tree.file(
        "proc/self/mountinfo",
        &mountinfo("0:40", "/", "/dev/mapper/vg-root"),
    );
    found(
        &tree,
        &[
            "0000:01:00.0 boots nvme0n1p1",
            "0000:01:00.0 nvme0n1p1 held by md0",
            "0000:01:00.0 nvme0n1p1 mounted on / by way of dm-0",
        ],
    );
}

#[test]
fn a_btrfs_is_a_use_of_each_of_its_devices() {
    let tree = host();
    tree.file("sys/fs/btrfs/6f1c/devices/nvme0n1p2", "");
    found(&tree, &["0000:01:00.0 nvme0n1p2 part of a mounted btrfs"]);
}

#[test]
fn a_drive_with_two_controllers_is_used_through_both() {
    let tree = Tree::new();
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    tree.block(&format!("{subsystem}/nvme0n1"), "259:0");
    for (name, at) in [("nvme0", "0000:01:00.0"), ("nvme1", "0000:02:00.0")] {
        let controller = format!("sys/devices/pci0000:00/{at}/nvme/{name}");
        tree.folder(&controller);
        tree.link(&format!("{subsystem}/{name}"), &controller);
    }
    tree.file(
        "proc/self/mountinfo",
        &mountinfo("259:0", "/srv", "/dev/nvme0n1"),
    );
    found(
        &tree,
        &[
            "0000:01:00.0 nvme0n1 mounted on /srv",
            "0000:02:00.0 nvme0n1 mounted on /srv",
        ],
    );
}

#[test]
fn holders_that_hold_each_other_are_no_endless_way() {
    let tree = host();
    tree.file(&format!("{DRIVE}/holders/dm-0"), "");
    tree.block("sys/devices/virtual/block/dm-0", "253:0");
    tree.file("sys/devices/virtual/block/dm-0/holders/nvme0n1", "");
    found(&tree, &["0000:01:00.0 nvme0n1 held by dm-0"]);
}

#[test]
fn a_host_whose_mounts_cannot_be_read_is_not_read() {
    let tree = Tree::new();
    let error = uses(tree.root()).unwrap_err();
    assert!(error.path.ends_with("proc/self/mountinfo"));
}
