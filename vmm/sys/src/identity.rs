//! Who the process is.
//!
//! Owns the calls that no safe crate has. What an identity is good for is the caller's business.

use std::io;

/// The real, effective and saved ids of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Of the user.
    pub users: [u32; 3],
    /// Of the group.
    pub groups: [u32; 3],
}

impl Identity {
    /// The calling process's.
    ///
    /// # Errors
    /// Never on Linux.
    pub fn current() -> io::Result<Self> {
        let (mut users, mut groups) = ([0; 3], [0; 3]);
        let [real, effective, saved] = &mut users;
        // SAFETY: the three pointers are to distinct live integers of the right type.
        check(unsafe { libc::getresuid(real, effective, saved) })?;
        let [real, effective, saved] = &mut groups;
        // SAFETY: as above.
        check(unsafe { libc::getresgid(real, effective, saved) })?;
        Ok(Self { users, groups })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
