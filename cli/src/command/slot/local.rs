//! `berthctl slot check|candidates|approve|unapprove`: slots on this very host, without a controller.
//!
//! Owns the arguments. `report` judges and shows; `change` writes approvals and what follows from them.

mod change;
mod report;

use std::path::{Path, PathBuf};

use berth_agent_core::slot::approval::Approvals;
use berth_agent_core::slot::snapshot::HostSnapshot;
use berth_api::pci::PciAddress;
use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::screen::Screen;

/// What a host's owner does on the host itself.
#[derive(Subcommand, Debug)]
pub(crate) enum LocalSlotCommand {
    /// Judge this host's approved slots, or devices that could become one
    ///
    /// Each line names what stands against renting it out, and what to do. Exits with 1 if there is
    /// any. Addresses are judged as one slot together. Run it as root: others cannot read config space
    /// whole.
    Check {
        /// Names of slots, or addresses of devices such as 0000:01:00.0 [default: every slot]
        #[arg(value_name = "NAME|ADDRESS")]
        subjects: Vec<String>,
        #[command(flatten)]
        host: HostFolders,
    },
    /// List the devices of this host that could be slots, and why the others cannot
    Candidates {
        /// Also those that are neither drives, nor displays or accelerators, nor network functions
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        host: HostFolders,
    },
    /// Approve devices of this host as one slot (root)
    ///
    /// Shows what is judged and what will be written, asks, and writes the approval and the udev rules
    /// that follow from it. Refuses if anything stands against it. Drives must still have the host's
    /// nvme driver, which tells their serial number.
    Approve {
        /// Addresses of the devices, such as 0000:01:00.0
        #[arg(value_name = "ADDRESS", required = true)]
        addresses: Vec<PciAddress>,
        /// What to call the slot
        #[arg(long)]
        name: String,
        /// What tenants ask for, such as gpu.h100 or nvme
        #[arg(long)]
        class: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        host: HostFolders,
    },
    /// Take an approval back (root)
    ///
    /// Nobody gets the slot from then on. Who has it keeps it until the VM is deleted. The devices stay
    /// with vfio-pci until the next boot.
    Unapprove {
        /// The slot's name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        host: HostFolders,
    },
}

/// Where the host is; another one only for tests.
#[derive(Args, Debug)]
pub(crate) struct HostFolders {
    /// Where the approvals are [default: /etc/berth/slots.d]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Read another root than /
    #[arg(long, value_name = "PATH", default_value = "/", hide = true)]
    sysroot: PathBuf,
}

impl HostFolders {
    fn approvals_folder(&self) -> PathBuf {
        self.dir
            .clone()
            .unwrap_or_else(|| self.sysroot.join("etc/berth/slots.d"))
    }

    /// Whether it is the machine that this runs on.
    fn is_this_host(&self) -> bool {
        self.sysroot == Path::new("/")
    }

    /// Who may own approvals: root, or on a drawn host whoever drew it.
    fn trusted_uid(&self) -> u32 {
        if self.is_this_host() {
            0
        } else {
            rustix::process::geteuid().as_raw()
        }
    }

    fn snapshot(&self) -> Result<HostSnapshot, Failure> {
        Ok(berth_inventory::read(&self.sysroot)?)
    }

    fn approvals(&self) -> Approvals {
        berth_inventory::read_approvals(&self.approvals_folder(), self.trusted_uid())
    }

    fn needs_root(&self) -> Result<(), Failure> {
        if self.is_this_host() && !rustix::process::geteuid().is_root() {
            return Err(Failure::NotRoot);
        }
        Ok(())
    }
}

/// Run one of them.
pub(crate) fn run(screen: &mut Screen, command: &LocalSlotCommand) -> Result<(), Failure> {
    match command {
        LocalSlotCommand::Check { subjects, host } => report::check(screen, host, subjects),
        LocalSlotCommand::Candidates { all, host } => report::candidates(screen, host, *all),
        LocalSlotCommand::Approve {
            addresses,
            name,
            class,
            yes,
            host,
        } => {
            let order = change::Order {
                addresses,
                name,
                class,
                asks: !yes,
            };
            change::approve(screen, host, &order)
        }
        LocalSlotCommand::Unapprove { name, yes, host } => {
            change::unapprove(screen, host, name, !yes)
        }
    }
}
