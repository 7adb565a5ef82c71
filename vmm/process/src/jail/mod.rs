//! The jail that `berth-vmm` shuts itself into before its guest's first instruction.
//!
//! ```text
//! process starts ──confine──▶ no path, no privilege ──threads exist──▶ shut ──gate opens──▶ guest
//!                    │                                                  │
//!                    └ gaps: refused, unless told otherwise             └ each vCPU: narrow_vcpu
//! ```
//! Owns what a process has to be before it may run a guest, and the giving up of everything that
//! needs no help from outside: new privileges, core dumps, paths (Landlock), system calls (seccomp).
//! The rest (user, capabilities, root) is the unit's to give, and is only checked here.

mod empty_root;
mod filters;
mod gap;
mod identity;

pub use filters::{narrow_vcpu, shut};
pub use gap::Gap;

use std::path::{Path, PathBuf};

use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Gives up everything but system calls, and tells what of the jail is missing. Call it first, while
/// the process has one thread: what is given up here is given up for all later threads.
#[must_use]
pub fn confine() -> Vec<Gap> {
    let mut gaps = identity::gaps();
    if let Some(path) = empty_root::first_stranger(Path::new("/"), &own_path()) {
        gaps.push(Gap::Root(path));
    }
    if let Err(error) = give_up_privileges() {
        gaps.push(Gap::Privileges(error.into()));
    }
    if let Err(error) = berth_vmm_sys::landlock::deny_everything() {
        gaps.push(Gap::Landlock(error));
    }
    gaps
}

/// Where the program lies, as whoever started it says: the one file that has to be there. The kernel
/// does not know better, as systemd starts programs by their descriptors.
fn own_path() -> PathBuf {
    std::env::args_os()
        .next()
        .map(PathBuf::from)
        .unwrap_or_default()
}

fn give_up_privileges() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, nothing)
}
