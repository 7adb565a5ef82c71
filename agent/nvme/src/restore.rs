//! What a tenant may have left beside data: write protection and namespaces. Each thing that is undone is
//! noted; what cannot be undone ends the wipe.

use crate::command::{Command, admin};
use crate::drive::Drive;
use crate::error::DriveError;
use crate::identify::Look;
use crate::identify::layout::Layout;
use crate::namespaces;
use crate::wipe_error::WipeError;

/// Namespace Write Protection Configuration (NVMe Base 2.0, 5.27.1.24).
const WRITE_PROTECTION: u32 = 0x84;

/// Take write protection off and make the namespaces what they were approved as. What was done is
/// added to `restored`. Returns how the drive is then.
pub(crate) fn ensure(
    drive: &mut Drive<'_>,
    approved: Option<&Layout>,
    restored: &mut Vec<String>,
) -> Result<Look, WipeError> {
    let mut look = Look::at(drive)?;
    if namespaces::protected(&look).next().is_some() {
        for namespace in namespaces::protected(&look) {
            unprotect(drive, namespace.id)?;
            restored.push(format!("write protection of namespace {}", namespace.id));
        }
        look = Look::at(drive)?;
        if let Some(namespace) = namespaces::protected(&look).next() {
            return Err(WipeError::WriteProtected {
                nsid: namespace.id,
                state: "still, after it was taken off",
                remedy: "retire the drive",
            });
        }
    }
    let wanted = namespaces::wanted(approved, &look);
    if namespaces::is_as_wanted(&look, &wanted) {
        return Ok(look);
    }
    let before = look.layout();
    let detached = look.detached.len();
    let look = namespaces::restore(drive, &look, &wanted)?;
    restored.push(format!(
        "namespaces {before} and {detached} detached made {}",
        look.layout()
    ));
    Ok(look)
}

fn unprotect(drive: &mut Drive<'_>, nsid: u32) -> Result<(), WipeError> {
    let ask = Command::new(admin::GET_FEATURES, nsid).with(WRITE_PROTECTION, 0);
    let protected = |state, remedy| WipeError::WriteProtected {
        nsid,
        state,
        remedy,
    };
    match drive.admin(&ask)? & 7 {
        0 | 1 => {
            let set = Command::new(admin::SET_FEATURES, nsid).with(WRITE_PROTECTION, 0);
            drive.admin(&set)?;
            Ok(())
        }
        2 => Err(protected("until power cycle", "power-cycle the host")),
        3 => Err(protected("permanent", "retire the drive")),
        state => Err(WipeError::Drive(DriveError::Malformed {
            what: "the write protection of a namespace",
            found: state.into(),
        })),
    }
}
