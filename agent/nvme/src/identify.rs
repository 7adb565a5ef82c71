//! What a drive says of itself: its controller, its namespaces, its firmware; and the names under which an
//! approval keeps that.

pub mod controller;
pub mod layout;
pub mod namespace;

use std::collections::BTreeMap;

use berth_api::slot::serial_kind;

use crate::drive::Drive;
use crate::error::DriveError;
use crate::fields::Fields;
use controller::ControllerIdentity;
use layout::Layout;
use namespace::{Namespace, active_ids, allocated_ids};

/// Firmware Slot Information (NVMe Base 2.0, 5.16.1.4).
const FIRMWARE_LOG: u8 = 0x03;

/// Names of what outlives a reset of a drive, in an approval's settings.
pub mod setting {
    /// Revision of the firmware that runs.
    pub const FIRMWARE: &str = "nvme_firmware";
    /// Revisions in the drive's slots, and the slot that is active.
    pub const FIRMWARE_SLOTS: &str = "nvme_firmware_slots";
    /// Namespaces, as [`Layout`](crate::identify::layout::Layout) writes them.
    pub const NAMESPACES: &str = "nvme_namespaces";
    /// Length of the boot partitions and which one is active, or `none`. Not what is in them.
    pub const BOOT_PARTITIONS: &str = "nvme_boot_partitions";
    /// Version of NVMe, such as `1.4.0`.
    pub const VERSION: &str = "nvme_version";
    /// Name of the NVM subsystem.
    pub const SUBSYSTEM: &str = "nvme_subsystem";
    /// OACS, FNA, SANICAP and CMIC, in hex: what a wipe can do.
    pub const CAPABILITIES: &str = "nvme_capabilities";
}

/// A drive at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Its controller.
    pub controller: ControllerIdentity,
    /// Its attached namespaces.
    pub active: Vec<Namespace>,
    /// Its namespaces that are not attached.
    pub detached: Vec<Namespace>,
}

impl Look {
    /// Ask the drive.
    ///
    /// # Errors
    /// If it says what cannot be, or refuses.
    pub fn at(drive: &mut Drive<'_>) -> Result<Self, DriveError> {
        let controller = ControllerIdentity::read(drive)?;
        let ids = active_ids(drive)?;
        let active: Vec<_> = ids
            .iter()
            .map(|id| Namespace::read(drive, *id))
            .collect::<Result<_, _>>()?;
        let mut detached = Vec::new();
        if controller.has_namespace_management() {
            for id in allocated_ids(drive)? {
                if ids.binary_search(&id).is_err() {
                    detached.push(Namespace::read_allocated(drive, id)?);
                }
            }
        }
        Ok(Self {
            controller,
            active,
            detached,
        })
    }

    /// How its attached namespaces divide it.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let shapes = self.active.iter().map(|found| (found.id, found.shape));
        Layout(shapes.collect())
    }
}

/// Serials and settings, by the names of [`serial_kind`] and [`setting`].
///
/// # Errors
/// If the drive says what cannot be, or refuses.
pub fn identify(drive: &mut Drive<'_>) -> Result<BTreeMap<String, String>, DriveError> {
    let look = Look::at(drive)?;
    let boot = drive.boot_partitions().map_or_else(
        || "none".to_owned(),
        |found| format!("{} bytes each, {} active", found.bytes, found.active),
    );
    let controller = &look.controller;
    let capabilities = format!(
        "oacs {:04x}, fna {:02x}, sanicap {:08x}, cmic {:02x}",
        controller.admin_commands,
        controller.format_attributes,
        controller.sanitize,
        controller.sharing
    );
    let version = drive.version();
    let version = format!(
        "{}.{}.{}",
        version >> 16,
        version >> 8 & 0xff,
        version & 0xff
    );
    let mut found: BTreeMap<String, String> = [
        (serial_kind::NVME_SERIAL, controller.serial.clone()),
        (serial_kind::NVME_MODEL, controller.model.clone()),
        (setting::FIRMWARE, controller.firmware.clone()),
        (setting::NAMESPACES, look.layout().to_string()),
        (setting::BOOT_PARTITIONS, boot),
        (setting::VERSION, version),
        (setting::CAPABILITIES, capabilities),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    // Refused while a sanitize runs or after one has failed; all else is told then, too.
    match firmware_slots(drive) {
        Ok(slots) => drop(found.insert(setting::FIRMWARE_SLOTS.to_owned(), slots)),
        Err(DriveError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    if !controller.subsystem_name.is_empty() {
        found.insert(
            setting::SUBSYSTEM.to_owned(),
            controller.subsystem_name.clone(),
        );
    }
    Ok(found)
}

fn firmware_slots(drive: &mut Drive<'_>) -> Result<String, DriveError> {
    let mut page = [0; 512];
    drive.log_page(FIRMWARE_LOG, &mut page)?;
    let page = Fields(&page);
    let mut text = format!("active {}", page.byte(0) & 7);
    for slot in 1..=7_usize {
        let revision = page.text(slot * 8, 8);
        if !revision.is_empty() {
            text.push_str(&format!(", {slot} {revision}"));
        }
    }
    Ok(text)
}
