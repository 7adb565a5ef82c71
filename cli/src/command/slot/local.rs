//! `berthctl slot check|candidates|approve|unapprove`: slots on this very host, without a controller.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::screen::Screen;

/// What a host's owner does on the host itself.
#[derive(Subcommand, Debug)]
pub(crate) enum LocalSlotCommand {
    /// Judge this host's approved slots, or devices that could become one
    ///
    /// Each line names what stands against renting it out, and what to do. Exits with 1 if there is
    /// any. Run it as root: others cannot read config space whole.
    Check {
        /// Names of slots, or addresses of devices such as 0000:01:00.0 [default: every slot]
        #[arg(value_name = "NAME|ADDRESS")]
        subjects: Vec<String>,
        #[command(flatten)]
        host: HostFolders,
    },
    /// List the devices of this host that could be slots, and why the others cannot
    Candidates {
        #[command(flatten)]
        host: HostFolders,
    },
}

/// Where the host is; another one only for tests.
#[derive(Args, Debug)]
pub(crate) struct HostFolders {
    /// Where the approvals are
    #[arg(long, value_name = "FOLDER", default_value = "/etc/berth/slots.d")]
    dir: PathBuf,
    /// Read another root than /
    #[arg(long, value_name = "PATH", default_value = "/", hide = true)]
    sysroot: PathBuf,
}

/// Run one of them.
pub(crate) fn run(_screen: &mut Screen, _command: &LocalSlotCommand) -> Result<(), Failure> {
    Err(Failure::Usage {
        sentence: "this build cannot look at slots".to_owned(),
        remedy: "Use a finished one.".to_owned(),
    })
}
