//! What the agent's unit makes of a process before it runs: no root, no privileges.
//!
//! Owns the imitation. It happens in the running process, as the programs of a test are linked
//! dynamically and could not be started in an empty root.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
};

/// A user that is nobody's on any machine.
const STRANGER: u32 = 61_000;

/// Leaves the mounts of the host to the host.
///
/// # Errors
/// If this is not root's process.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unsharing mounts needs root")?;
    let nothing: Option<&str> = None;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("making mounts private")
}

/// Makes `/` an empty file system.
///
/// # Errors
/// If it cannot be mounted or entered.
pub(crate) fn empty_root(folder: &Path) -> Result<()> {
    let nothing: Option<&str> = None;
    let root = folder.join("root");
    std::fs::create_dir_all(&root).context("making a folder")?;
    mount(
        Some("tmpfs"),
        &root,
        Some("tmpfs"),
        MsFlags::MS_RDONLY,
        nothing,
    )
    .context("mounting an empty root")?;
    chroot(&root).context("entering the empty root")?;
    chdir("/").context("going to the empty root")
}

/// Gives up root, all groups and all capabilities.
///
/// # Errors
/// If one of them is not to be given up.
pub(crate) fn drop_privileges() -> Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error).context("emptying the bounding set"),
        }
    }
    setgroups(&[]).context("leaving all groups")?;
    let (user, group) = (Uid::from_raw(STRANGER), Gid::from_raw(STRANGER));
    setresgid(group, group, group).context("changing the group")?;
    setresuid(user, user, user).context("changing the user")?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).context("giving up capabilities")
}
