//! What each attempt meets: with the whole jail, with Landlock alone, and with nothing.

use crate::harness::{Outcome, all, attempt, can_attack};

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENOSYS: i32 = 38;
const ENODEV: i32 = 19;

/// Calls that a vCPU's thread may make.
const VCPUS_OWN: [&str; 1] = ["io_uring_enter"];

/// Calls that the thread which does the I/O may make.
const IOS_OWN: [&str; 6] = [
    "epoll_ctl",
    "fallocate",
    "io_uring_enter",
    "recvmsg",
    "sendmsg",
    "socketpair",
];

/// Attempts that a filter lets through, as it cannot tell them from what the VMM does itself, and
/// that the kernel refuses then.
const REFUSED: [(&str, i32); 1] = [("tkill_by_abort", EPERM)];

/// What a kernel may be built without.
const MAY_BE_ABSENT: [&str; 3] = ["open_by_32_bit_entry", "shmget", "x32_getpid"];

/// What Landlock alone stops, even for root.
const BY_LANDLOCK: [(&str, i32); 21] = [
    ("open", EACCES),
    ("openat", EACCES),
    ("openat2", EACCES),
    ("openat_in_open_folder", EACCES),
    ("openat_by_proc_self_fd", EACCES),
    ("creat", EACCES),
    ("openat_new", EACCES),
    ("truncate", EACCES),
    ("unlink", EACCES),
    ("rename", EACCES),
    ("link", EACCES),
    ("symlink", EACCES),
    ("mkdir", EACCES),
    ("mknod", EACCES),
    ("mount", EPERM),
    ("connect_abstract", EPERM),
    ("connect_tcp", EACCES),
    ("execve", EACCES),
    ("kill", EPERM),
    ("tkill_by_abort", EPERM),
    ("ptrace_seize", EPERM),
];

/// Every attempt that `select` chooses, with what became of it where that is not as expected.
fn surprises(
    jail: &str,
    thread: &str,
    expected: impl Fn(&str) -> Option<Outcome>,
) -> Vec<(String, Outcome, bool)> {
    let mut surprises = Vec::new();
    for name in all() {
        let Some(expected) = expected(&name) else {
            continue;
        };
        let (outcome, survived) = attempt(&name, thread, jail);
        if outcome != expected || jail == "whole" && !survived {
            surprises.push((name, outcome, survived));
        }
    }
    surprises
}

#[test]
fn without_a_jail_every_attempt_succeeds() {
    if !can_attack() {
        return;
    }
    let mut surprises = surprises("free", "io", |_| Some(Outcome::Succeeded));
    surprises.retain(|(name, outcome, _)| {
        let may_be_absent = MAY_BE_ABSENT.contains(&&**name);
        match outcome {
            Outcome::Refused(ENOSYS) if may_be_absent => false,
            Outcome::Refused(ENODEV) if name.starts_with("ioctl_kvm") => {
                println!("SKIPPED: {name}: no /dev/kvm");
                false
            }
            Outcome::Succeeded | Outcome::Refused(_) | Outcome::Killed | Outcome::Strange(_) => {
                true
            }
        }
    });
    assert_eq!(surprises, []);
}

#[test]
fn a_vcpus_thread_gets_out_by_no_attempt() {
    if !can_attack() {
        return;
    }
    let expected = |name: &str| Some(behind_the_jail(name, &VCPUS_OWN));
    assert_eq!(surprises("whole", "vcpu", expected), []);
}

#[test]
fn the_thread_that_does_the_io_gets_out_by_no_attempt() {
    if !can_attack() {
        return;
    }
    let expected = |name: &str| Some(behind_the_jail(name, &IOS_OWN));
    assert_eq!(surprises("whole", "io", expected), []);
}

fn behind_the_jail(name: &str, own: &[&str]) -> Outcome {
    if own.contains(&name) {
        return Outcome::Succeeded;
    }
    let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
    refused.map_or(Outcome::Killed, |(_, error)| Outcome::Refused(*error))
}

#[test]
fn landlock_alone_keeps_even_root_from_files_and_strangers() {
    if !can_attack() {
        return;
    }
    let expected = |name: &str| {
        let stopped = BY_LANDLOCK.iter().find(|(stopped, _)| *stopped == name);
        stopped.map(|(_, error)| Outcome::Refused(*error))
    };
    assert_eq!(surprises("landlock", "io", expected), []);
}
