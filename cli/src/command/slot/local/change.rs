//! Writes and removes approvals, and the udev rules that follow from all of them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_agent_core::slot::approval::{Approval, FILE_SUFFIX, Wish, contradiction, propose};
use berth_agent_core::slot::judge::Beside;
use berth_agent_core::slot::snapshot::HostUse;
use berth_agent_core::slot::udev_rules::{self, RULES_FILE};
use berth_api::ids::SlotId;
use berth_api::pci::PciAddress;
use berth_api::slot::SlotProblem;
use serde::Serialize;

use super::HostFolders;
use super::report::{self, Verdict};
use crate::failure::Failure;
use crate::screen::Screen;

/// Where udev says that it runs.
const UDEV_CONTROL: &str = "run/udev/control";

/// What to approve.
pub(super) struct Order<'a> {
    pub(super) addresses: &'a [PciAddress],
    pub(super) name: &'a str,
    pub(super) class: &'a str,
    pub(super) asks: bool,
}

/// What was written, for programs.
#[derive(Serialize)]
struct Approved<'a> {
    approval: &'a Approval,
    file: PathBuf,
    findings: [SlotProblem; 0],
}

pub(super) fn approve(
    screen: &mut Screen,
    host: &HostFolders,
    order: &Order<'_>,
) -> Result<(), Failure> {
    host.needs_root()?;
    let snapshot = host.snapshot()?;
    let wish = Wish {
        slot_id: SlotId::generate(),
        name: order.name.to_owned(),
        class: order.class.to_owned(),
        approved_at: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
    };
    let approval = propose(&snapshot, order.addresses, wish)?;
    let folder = host.approvals_folder();
    let file = folder.join(format!("{}{FILE_SUFFIX}", order.name));
    refuse_contradictions(host, &approval, &file)?;

    let verdicts = [
        Verdict::host(&snapshot),
        Verdict::slot(&snapshot, order.name, &approval, &Beside::default()),
    ];
    if report::unfit(&verdicts).is_err() {
        return report::show(screen, &verdicts);
    }
    let text = approval.render()?;
    screen.note(&format!("{}:\n{text}", file.display()));
    if order.asks {
        confirm(&format!(
            "Write it, so that tenants can get {}?",
            order.name
        ))?;
    }
    make_folder(&folder)?;
    write_new(&file, &text).map_err(Failure::file("writing", &file))?;
    if let Err(failure) = write_rules(screen, host) {
        // Without its rules a slot would be half approved.
        fs::remove_file(&file).map_err(Failure::file("removing", &file))?;
        return Err(failure);
    }
    let approved = Approved {
        approval: &approval,
        file,
        findings: [],
    };
    screen.say(
        &approved,
        &format!("{} is approved as {}.", approval.name, approval.slot_id),
    )
}

fn refuse_contradictions(
    host: &HostFolders,
    approval: &Approval,
    file: &Path,
) -> Result<(), Failure> {
    // Also a file that is refused is somebody's word that may be mended.
    if file.symlink_metadata().is_ok() {
        return Err(Failure::SlotTaken {
            reason: format!("{} is there already", file.display()),
        });
    }
    let approvals = host.approvals();
    let others: Vec<(String, &Approval)> = approvals
        .approved
        .iter()
        .map(|slot| {
            let file = format!("{}{FILE_SUFFIX}", slot.approval.name);
            (file, &slot.approval)
        })
        .collect();
    let others = others
        .iter()
        .map(|(file, approval)| (file.as_str(), *approval));
    match contradiction(approval, others) {
        Some(reason) => Err(Failure::SlotTaken { reason }),
        None => Ok(()),
    }
}

pub(super) fn unapprove(
    screen: &mut Screen,
    host: &HostFolders,
    name: &str,
    asks: bool,
) -> Result<(), Failure> {
    host.needs_root()?;
    let file = host.approvals_folder().join(format!("{name}{FILE_SUFFIX}"));
    // A name that is none leads to no file of the folder.
    if name.contains('/') || file.symlink_metadata().is_err() {
        return Err(Failure::NoSuchSlot {
            name: name.to_owned(),
        });
    }
    for user in users(host, name)? {
        screen.note(&format!("Process {user} has it open and keeps it."));
    }
    if asks {
        confirm(&format!("Take back the approval of {name}?"))?;
    }
    fs::remove_file(&file).map_err(Failure::file("removing", &file))?;
    write_rules(screen, host)?;
    screen.say(
        &serde_json::json!({ "unapproved": name }),
        &format!("{name} is approved no more."),
    )
}

fn users(host: &HostFolders, name: &str) -> Result<Vec<u32>, Failure> {
    let approvals = host.approvals();
    let Some(slot) = approvals
        .approved
        .iter()
        .find(|slot| slot.approval.name == name)
    else {
        return Ok(Vec::new());
    };
    let snapshot = host.snapshot()?;
    let is_of_slot = |path: &str| {
        slot.approval
            .devices
            .iter()
            .any(|device| device.identity.path == path)
    };
    let mut users: Vec<u32> = snapshot
        .functions
        .values()
        .filter(|function| is_of_slot(&function.identity.path))
        .flat_map(|function| &function.uses)
        .filter_map(|used| match used {
            HostUse::VfioUser { pid } => Some(*pid),
            HostUse::Block { .. }
            | HostUse::Boot { .. }
            | HostUse::Route { .. }
            | HostUse::Console
            | HostUse::ManagementController => None,
        })
        .collect();
    users.dedup();
    Ok(users)
}

fn confirm(question: &str) -> Result<(), Failure> {
    let mut error = io::stderr();
    write!(error, "{question} [y/N] ")?;
    error.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::Declined)
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    if folder.is_dir() {
        return Ok(());
    }
    let failed = || Failure::file("making", folder);
    fs::create_dir_all(folder).map_err(failed())?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed())
}

/// The file is whole or absent, also after a power failure, and no other one is overwritten.
fn write_new(file: &Path, text: &str) -> io::Result<()> {
    let (folder, mut staged) = stage(file, text)?;
    staged.as_file_mut().sync_all()?;
    staged.persist_noclobber(file)?;
    fs::File::open(folder)?.sync_all()
}

fn replace(file: &Path, text: &str) -> io::Result<()> {
    let (folder, mut staged) = stage(file, text)?;
    staged.as_file_mut().sync_all()?;
    staged.persist(file)?;
    fs::File::open(folder)?.sync_all()
}

fn stage<'a>(file: &'a Path, text: &str) -> io::Result<(&'a Path, tempfile::NamedTempFile)> {
    let folder = file
        .parent()
        .ok_or_else(|| io::Error::other("it has no folder"))?;
    let mut staged = tempfile::Builder::new()
        .prefix(".berth-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    staged.write_all(text.as_bytes())?;
    // What the caller's mask took away belongs to a file that everybody may read.
    staged
        .as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok((folder, staged))
}

/// Writes the rules for all approvals and has udev read them.
fn write_rules(screen: &mut Screen, host: &HostFolders) -> Result<(), Failure> {
    let folder = host.sysroot.join("etc/udev/rules.d");
    let file = folder.join(RULES_FILE);
    let approvals = host.approvals();
    let text = udev_rules::render(approvals.approved.iter().map(|slot| &slot.approval));
    fs::create_dir_all(&folder).map_err(Failure::file("making", &folder))?;
    replace(&file, &text).map_err(Failure::file("writing", &file))?;
    // In a chroot there is no udev to tell; it reads the rules when it starts.
    if host.is_this_host() && host.sysroot.join(UDEV_CONTROL).exists() {
        let told = Command::new("/usr/bin/udevadm")
            .args(["control", "--reload"])
            .status();
        if !told.is_ok_and(|status| status.success()) {
            screen.note("udev did not reload its rules: run `udevadm control --reload`.");
        }
    }
    Ok(())
}
