//! What a jail may lack.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One thing that the process should not have, or should.
#[derive(Debug)]
pub enum Gap {
    /// One of its user or group ids is root's.
    RootIdentity,
    /// It is in further groups.
    Groups(Vec<u32>),
    /// A set of capabilities is not empty.
    Capabilities(&'static str),
    /// This file can be reached below `/`.
    Root(PathBuf),
    /// Privileges could not be given up.
    Privileges(io::Error),
    /// Landlock could not be used.
    Landlock(io::Error),
    /// Something could not be found out.
    Unknown(&'static str, io::Error),
}

impl fmt::Display for Gap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootIdentity => formatter.write_str("the user or the group is root"),
            Self::Groups(groups) => write!(formatter, "the user is in further groups: {groups:?}"),
            Self::Capabilities(set) => write!(formatter, "the {set} capabilities are not empty"),
            Self::Root(path) => write!(formatter, "{} can be reached", path.display()),
            Self::Privileges(error) => write!(formatter, "privileges cannot be given up: {error}"),
            Self::Landlock(error) => write!(
                formatter,
                "the kernel has no Landlock ({error}); boot it with landlock among lsm="
            ),
            Self::Unknown(what, error) => write!(formatter, "{what} cannot be told: {error}"),
        }
    }
}
