//! That no program of ours runs a VMM without its jail.

use std::path::Path;

use berth_tests::launch::ALLOW_UNJAILED;
use berth_tests::workspace;

/// Where a use of the flag would reach users.
const SHIPPED: [&str; 8] = [
    "agent",
    "api",
    "cli",
    "controller",
    "packaging",
    "systemd",
    "udev",
    "vmm/machine",
];

#[test]
fn nothing_that_ships_uses_the_flag_that_allows_a_jail_with_gaps() {
    let root = workspace::root();
    for folder in SHIPPED {
        let mut seen = 0;
        check(&root.join(folder), &mut seen);
        assert!(seen > 0, "{folder} has no files: is it still called that?");
    }
}

fn check(folder: &Path, seen: &mut u32) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check(&path, seen);
            continue;
        }
        *seen += 1;
        let content = std::fs::read(&path).unwrap();
        let flag = ALLOW_UNJAILED.as_bytes();
        let is_there = content.windows(flag.len()).any(|window| window == flag);
        assert!(!is_there, "{} uses {ALLOW_UNJAILED}", path.display());
    }
}
