//! Deleting and making namespaces (NVMe Base 2.0, 5.22 and 5.23), where the drive can.

use std::time::Duration;

use crate::blocks;
use crate::command::{ALL_NAMESPACES, Command, admin};
use crate::drive::{Drive, Lane, Metadata, Transfer};
use crate::error::DriveError;
use crate::identify::Look;
use crate::identify::controller::ControllerIdentity;
use crate::identify::layout::{Layout, Shape};
use crate::identify::namespace::{LbaFormat, Namespace};
use crate::transport::PAGE_BYTES;
use crate::wipe_error::WipeError;

/// How long a drive may take to make or delete a namespace, or to format one without erasing.
const LIMIT: Duration = Duration::from_mins(10);

/// How a drive has to be divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// As it was approved.
    Exactly(Layout),
    /// One namespace with all there is, as nothing was approved and what is there is more than one, or
    /// less than all.
    OneOfAll,
}

/// What a drive has to be divided into: pure.
pub(crate) fn wanted(approved: Option<&Layout>, look: &Look) -> Wanted {
    if let Some(approved) = approved {
        return Wanted::Exactly(approved.clone());
    }
    let controller = &look.controller;
    // Drives keep a little that no namespace can have.
    let has_room = controller.unallocated_bytes > controller.total_bytes / 100;
    let is_one_of_all = look.active.len() == 1 && look.detached.is_empty() && !has_room;
    if is_one_of_all || !controller.has_namespace_management() {
        return Wanted::Exactly(look.layout());
    }
    Wanted::OneOfAll
}

/// Whether a drive is divided as it has to be.
pub(crate) fn is_as_wanted(look: &Look, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Exactly(layout) => look.layout() == *layout && look.detached.is_empty(),
        Wanted::OneOfAll => false,
    }
}

/// Make it so. What cannot be done is an error that says how it is and how it had to be.
pub(crate) fn restore(
    drive: &mut Drive<'_>,
    look: &Look,
    wanted: &Wanted,
) -> Result<Look, WipeError> {
    if look.controller.has_namespace_management() {
        recreate(drive, look, wanted)?;
    } else if let Wanted::Exactly(layout) = wanted {
        reformat(drive, look, layout)?;
    }
    let found = Look::at(drive)?;
    match wanted {
        Wanted::Exactly(layout) if !is_as_wanted(&found, wanted) => {
            Err(not_restored(&found, layout.to_string()))
        }
        Wanted::OneOfAll if found.active.len() != 1 || !found.detached.is_empty() => {
            Err(not_restored(&found, "one of all there is".to_owned()))
        }
        Wanted::Exactly(_) | Wanted::OneOfAll => Ok(found),
    }
}

fn not_restored(look: &Look, wanted: String) -> WipeError {
    let mut found = look.layout().to_string();
    if !look.detached.is_empty() {
        found.push_str(&format!(" and {} detached", look.detached.len()));
    }
    WipeError::LayoutNotRestored { wanted, found }
}

fn recreate(drive: &mut Drive<'_>, look: &Look, wanted: &Wanted) -> Result<(), WipeError> {
    let formats = formats(drive, look)?;
    for namespace in look.active.iter().chain(&look.detached) {
        run(
            drive,
            &Command::new(admin::NAMESPACE_MANAGEMENT, namespace.id).with(1, 0),
            Transfer::None,
        )?;
    }
    let controller = ControllerIdentity::read(drive)?;
    match wanted {
        Wanted::Exactly(layout) => {
            for (id, shape) in &layout.0 {
                let Some(format) = format_of(&formats, shape) else {
                    return Err(not_restored(look, layout.to_string()));
                };
                let made = create(drive, &controller, shape, format.index)?;
                if made != *id {
                    return Err(WipeError::LayoutNotRestored {
                        wanted: layout.to_string(),
                        found: format!("namespace {made} where {id} was asked for"),
                    });
                }
            }
        }
        Wanted::OneOfAll => {
            let first = look.active.first().map(|found| found.format);
            let format = formats
                .iter()
                .filter(|format| format.metadata_bytes == 0)
                .max_by_key(|format| (Some(format.index) == first, format.block_bytes == 4096))
                .ok_or(DriveError::Unsupported {
                    found: "no LBA format without metadata",
                })?;
            let blocks = controller.unallocated_bytes / u128::from(format.block_bytes);
            let shape = Shape {
                blocks: u64::try_from(blocks).unwrap_or(u64::MAX),
                block_bytes: format.block_bytes,
                metadata_bytes: 0,
                is_extended: false,
                protection: 0,
            };
            create(drive, &controller, &shape, format.index)?;
        }
    }
    Ok(())
}

/// The drive's LBA formats: those of a namespace, or what all of them have in common.
fn formats(drive: &mut Drive<'_>, look: &Look) -> Result<Vec<LbaFormat>, DriveError> {
    if let Some(namespace) = look.active.iter().chain(&look.detached).next() {
        return Ok(namespace.formats.clone());
    }
    let page = drive.identify_page(0, ALL_NAMESPACES)?;
    Ok(crate::identify::namespace::formats(crate::fields::Fields(
        &page,
    )))
}

fn format_of<'a>(formats: &'a [LbaFormat], shape: &Shape) -> Option<&'a LbaFormat> {
    formats.iter().find(|format| {
        format.block_bytes == shape.block_bytes && format.metadata_bytes == shape.metadata_bytes
    })
}

fn create(
    drive: &mut Drive<'_>,
    controller: &ControllerIdentity,
    shape: &Shape,
    format: u8,
) -> Result<u32, DriveError> {
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&shape.blocks.to_le_bytes());
    page[8..16].copy_from_slice(&shape.blocks.to_le_bytes());
    page[26] = format & 0xf | u8::from(shape.is_extended) << 4 | (format >> 4 & 3) << 5;
    page[29] = shape.protection;
    let make = Command::new(admin::NAMESPACE_MANAGEMENT, 0);
    let id = run(drive, &make, Transfer::Out(&page))?;
    let mut list = [0; PAGE_BYTES];
    list[..2].copy_from_slice(&1_u16.to_le_bytes());
    list[2..4].copy_from_slice(&controller.id.to_le_bytes());
    let attach = Command::new(admin::NAMESPACE_ATTACHMENT, id);
    run(drive, &attach, Transfer::Out(&list))?;
    Ok(id)
}

/// Format, without an erase, the namespaces whose format is not the wanted one.
fn reformat(drive: &mut Drive<'_>, look: &Look, layout: &Layout) -> Result<(), WipeError> {
    for namespace in &look.active {
        let Some(shape) = layout.0.get(&namespace.id) else {
            continue;
        };
        if namespace.shape == *shape {
            continue;
        }
        let format = format_of(&namespace.formats, shape);
        let Some(format) = format.filter(|_| look.controller.has_format()) else {
            return Err(not_restored(look, layout.to_string()));
        };
        let command = blocks::format_command(namespace.id, format.index, shape, 0);
        run(drive, &command, Transfer::None)?;
    }
    Ok(())
}

fn run(
    drive: &mut Drive<'_>,
    command: &Command,
    transfer: Transfer<'_>,
) -> Result<u32, DriveError> {
    drive.run(Lane::Admin, command, transfer, Metadata::None, LIMIT)
}

/// Namespaces of a look whose blocks a tenant may have protected.
pub(crate) fn protected(look: &Look) -> impl Iterator<Item = &Namespace> {
    look.active.iter().filter(|found| found.is_write_protected)
}
