//! Features that a tenant may have saved in the drive (NVMe Base 2.0, 5.15 and 5.27), put back to the
//! drive's own defaults. What was set without being saved is gone with the reset of the controller.

use crate::command::{Command, admin};
use crate::drive::{Drive, Transfer};
use crate::error::DriveError;
use crate::identify::Look;

/// Which value of a feature Get Features returns (SEL).
#[derive(Clone, Copy)]
enum Kind {
    Default,
    Saved,
    Capabilities,
}

const SAVEABLE: u32 = 1;
const PER_NAMESPACE: u32 = 1 << 1;
const CHANGEABLE: u32 = 1 << 2;

/// One feature whose value outlives a reset.
struct Feature {
    id: u8,
    name: &'static str,
    /// Bytes of data beside the dword.
    bytes: usize,
}

const fn feature(id: u8, name: &'static str, bytes: usize) -> Feature {
    Feature { id, name, bytes }
}

/// What is put back. Not here: what a host sets at each start (queues, interrupts, host memory, host
/// id, timestamp) and what is no tenant's to save (reservations of a shared drive).
const FEATURES: [Feature; 14] = [
    feature(0x01, "arbitration", 0),
    feature(0x02, "power management", 0),
    feature(0x03, "LBA range types", 4096),
    feature(0x04, "temperature threshold", 0),
    feature(0x05, "error recovery", 0),
    feature(0x06, "volatile write cache", 0),
    feature(0x0a, "write atomicity", 0),
    feature(0x0b, "asynchronous events", 0),
    feature(0x0c, "autonomous power state transitions", 256),
    feature(0x10, "host-controlled thermal management", 0),
    feature(0x11, "non-operational power states", 0),
    feature(0x12, "read recovery level", 0),
    feature(0x16, "host behaviour", 512),
    feature(0x17, "sanitize configuration", 0),
];

/// Set what was saved otherwise back to its default. Returns what was changed, in words.
pub(crate) fn restore(drive: &mut Drive<'_>, look: &Look) -> Result<Vec<String>, DriveError> {
    let mut restored = Vec::new();
    if !look.controller.has_saved_features() {
        return Ok(restored);
    }
    for feature in &FEATURES {
        let Some((capabilities, _)) = value(drive, feature, 0, Kind::Capabilities)? else {
            continue;
        };
        if capabilities & SAVEABLE == 0 || capabilities & CHANGEABLE == 0 {
            continue;
        }
        if capabilities & PER_NAMESPACE == 0 {
            restored.extend(restore_one(drive, feature, 0)?);
            continue;
        }
        for namespace in &look.active {
            restored.extend(restore_one(drive, feature, namespace.id)?);
        }
    }
    Ok(restored)
}

fn restore_one(
    drive: &mut Drive<'_>,
    feature: &Feature,
    nsid: u32,
) -> Result<Option<String>, DriveError> {
    let saved = value(drive, feature, nsid, Kind::Saved)?;
    let default = value(drive, feature, nsid, Kind::Default)?;
    let (Some(saved), Some((word, data))) = (saved, default) else {
        return Ok(None);
    };
    if saved == (word, data.clone()) {
        return Ok(None);
    }
    let save = 1 << 31;
    let command = Command::new(admin::SET_FEATURES, nsid).with(u32::from(feature.id) | save, word);
    let transfer = match feature.bytes {
        0 => Transfer::None,
        _ => Transfer::Out(&data),
    };
    drive.admin_with(&command, transfer)?;
    let of = match nsid {
        0 => String::new(),
        nsid => format!(" of namespace {nsid}"),
    };
    let was = saved.0;
    Ok(Some(format!(
        "feature {:02x}h ({}){of} from {was:#x} to its default {word:#x}",
        feature.id, feature.name
    )))
}

/// A feature's dword and data; `None` if the drive does not have the feature.
fn value(
    drive: &mut Drive<'_>,
    feature: &Feature,
    nsid: u32,
    kind: Kind,
) -> Result<Option<(u32, Vec<u8>)>, DriveError> {
    let select = match kind {
        Kind::Default => 1,
        Kind::Saved => 2,
        Kind::Capabilities => 3,
    };
    let command =
        Command::new(admin::GET_FEATURES, nsid).with(u32::from(feature.id) | select << 8, 0);
    let mut data = vec![0; feature.bytes];
    let transfer = match (feature.bytes, kind) {
        (0, _) | (_, Kind::Capabilities) => Transfer::None,
        _ => Transfer::In(&mut data),
    };
    match drive.admin_with(&command, transfer) {
        Ok(word) => Ok(Some((word, data))),
        Err(DriveError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
