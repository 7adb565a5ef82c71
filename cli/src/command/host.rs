//! `berthctl host`: is this host fit to run VMs?

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::failure::Failure;
use crate::host::judge::{Check, Status, judge};
use crate::host::{slots, snapshot};
use crate::screen::Screen;
use crate::table::{Cell, Table, Tone};

/// What can be asked of this host.
#[derive(Subcommand, Debug)]
pub(crate) enum HostCommand {
    /// Check what berth needs: KVM, IOMMU, huge pages, cgroups, versions, and what slots need
    ///
    /// Each line says what was found and, if it is not ok, what to do. Exits with 1 if a check
    /// failed; warnings do not count.
    Check {
        /// The VMM that tries whether KVM runs a guest
        #[arg(
            long,
            value_name = "PATH",
            default_value = "/usr/libexec/berth/berth-vmm"
        )]
        vmm: PathBuf,
        /// Read another root than /
        #[arg(long, value_name = "PATH", default_value = "/", hide = true)]
        sysroot: PathBuf,
    },
}

/// Run one of them.
pub(crate) fn run(screen: &mut Screen, command: &HostCommand) -> Result<(), Failure> {
    match command {
        HostCommand::Check { vmm, sysroot } => check(screen, vmm, sysroot),
    }
}

fn check(screen: &mut Screen, vmm: &Path, sysroot: &Path) -> Result<(), Failure> {
    let mut checks = judge(&snapshot::read(sysroot, vmm));
    checks.extend(slots::checks(sysroot));
    screen.show(&checks, || table(&checks))?;
    match checks
        .iter()
        .filter(|check| check.status == Status::Fail)
        .count()
    {
        0 => Ok(()),
        count => Err(Failure::HostUnfit { count }),
    }
}

/// The report.
#[must_use]
pub(crate) fn table(checks: &[Check]) -> Table {
    let mut table = Table::new(&["CHECK", "STATUS", "FOUND", "REMEDY"]);
    for check in checks {
        let status = match check.status {
            Status::Ok => Cell::toned("ok", Tone::Good),
            Status::Warn => Cell::toned("warn", Tone::Caution),
            Status::Fail => Cell::toned("fail", Tone::Bad),
        };
        table.row([
            check.name.into(),
            status,
            (&check.found).into(),
            check.remedy.unwrap_or_default().into(),
        ]);
    }
    table
}
