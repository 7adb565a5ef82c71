//! Giving up every right that Landlock knows.
//!
//! Owns the two system calls, the layout of their arguments and which rights each version of the
//! kernel's interface has. There are no exceptions to make here: a ruleset without rules.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The kernel's `struct landlock_ruleset_attr`. Older kernels take the longer one if what they do not
/// know is zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

const CREATE_RULESET_VERSION: libc::c_uint = 1;
/// Rights on files of the first version: 13 of them, from executing to making links.
const FILES: u64 = (1 << 13) - 1;
/// Each further right on files and the version that brought it: moving between folders, truncating,
/// device ioctls.
const LATER_FILES: [(i64, u64); 3] = [(2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];
/// Binding and connecting TCP, since version 4.
const NETWORK: u64 = 0b11;
/// Abstract UNIX sockets and signals of others, since version 6.
const SCOPES: u64 = 0b11;

impl Ruleset {
    /// Everything that version `abi` can deny.
    fn all(abi: i64) -> Self {
        let later = LATER_FILES.iter().filter(|(since, _)| abi >= *since);
        Self {
            files: later.fold(FILES, |rights, (_, right)| rights | right),
            network: if abi >= 4 { NETWORK } else { 0 },
            scopes: if abi >= 6 { SCOPES } else { 0 },
        }
    }
}

/// Takes from the calling thread and those that it will start the right to open, make or change any
/// file by its path, to use TCP, and to reach processes outside; each as far as the kernel can.
/// Descriptors that are open keep working. Needs `no_new_privs`.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` where the kernel has no Landlock or has it switched off.
pub fn deny_everything() -> io::Result<()> {
    let nothing: *const Ruleset = std::ptr::null();
    // SAFETY: with this flag the kernel takes a null pointer and a length of 0, and answers a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            nothing,
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    if abi < 0 {
        return Err(io::Error::last_os_error());
    }
    let ruleset = create(&Ruleset::all(abi))?;
    // SAFETY: the call takes two integers; the descriptor is open for as long as `ruleset` lives.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn create(ruleset: &Ruleset) -> io::Result<OwnedFd> {
    // SAFETY: the pointer is to a live struct of the length given, which the kernel only reads.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(ruleset),
            size_of::<Ruleset>(),
            0,
        )
    };
    let descriptor = libc::c_int::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_denies_what_it_knows_and_no_more() {
        let check = |abi, files, network, scopes| {
            assert_eq!(
                Ruleset::all(abi),
                Ruleset {
                    files,
                    network,
                    scopes
                },
                "version {abi}"
            );
        };
        check(1, 0x1fff, 0, 0);
        check(2, 0x3fff, 0, 0);
        check(3, 0x7fff, 0, 0);
        check(4, 0x7fff, 3, 0);
        check(5, 0xffff, 3, 0);
        check(6, 0xffff, 3, 3);
        check(99, 0xffff, 3, 3);
    }
}
