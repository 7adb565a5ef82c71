//! NVMe drives through VFIO: what they say of themselves, and their wipe.
//!
//! The drive is opened for one call and closed after it, which resets it: whatever it was doing with our
//! memory ends before the memory is given back. A sanitize goes on all the same.

use std::collections::BTreeMap;
use std::path::Path;

use berth_agent_core::slot::wipe::{WipeJournal, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceIdentity, DeviceWipe, SlotProblemCode, serial_kind};
use berth_nvme::drive::Drive;
use berth_nvme::identify;
use berth_nvme::wipe::{WipeOrder, wipe as wipe_drive};
use berth_nvme::wipe_error::WipeError;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::nvme_transport::NvmeTransport;
use super::open_slot::OpenSlot;
use super::wipe::{Order, chain, now_ms};
use crate::slot_devices::DeviceError;

/// Serials and settings of a drive, as it says them.
pub(super) fn identify(
    root: &Path,
    at: PciAddress,
) -> Result<BTreeMap<String, String>, DeviceError> {
    let slot = OpenSlot::open(root, &[at])?;
    let silent = |why: String| changed(at, &format!("it does not say what it is: {why}"));
    let mut transport = transport(&slot).map_err(silent)?;
    let mut drive = Drive::open(&mut transport).map_err(|error| silent(chain(&error)))?;
    let said = identify::identify(&mut drive);
    let closed = drive.close();
    let said = said.map_err(|error| silent(chain(&error)))?;
    closed.map_err(|error| silent(chain(&error)))?;
    Ok(said)
}

/// Wipe a drive, if it is the one that was approved.
pub(super) fn wipe(
    order: Order<'_>,
    earlier: Option<&WipeRun>,
    journal: &mut dyn WipeJournal,
) -> Result<DeviceWipe, DeviceError> {
    let Order { device, at, .. } = order;
    let slot = OpenSlot::open(order.root, &[at])?;
    let unreachable = |why: String| order.failed(why).suspect();
    let mut transport = transport(&slot).map_err(unreachable)?;
    let mut drive = Drive::open(&mut transport).map_err(|error| unreachable(chain(&error)))?;
    let said = identify::identify(&mut drive).map_err(|error| unreachable(chain(&error)))?;
    check_identity(at, &device.identity, &said)?;
    let mut seed = [0; 8];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| order.failed("the host has no random numbers"))?;
    let asked = WipeOrder {
        policy: order.policy,
        approved: &device.settings,
        earlier,
        seed: u64::from_le_bytes(seed),
        started_at_ms: now_ms(),
    };
    let wiped = wipe_drive(&mut drive, &asked, journal).map_err(|error| {
        let failed = order.failed(chain(&error));
        if is_drives_fault(&error) {
            failed.suspect()
        } else {
            failed
        }
    })?;
    drive.close().map_err(|error| unreachable(chain(&error)))?;
    Ok(wiped.into_device_wipe(at, device.identity.clone(), now_ms()))
}

fn transport(slot: &OpenSlot) -> Result<NvmeTransport<'_>, String> {
    let open = slot.devices.first().ok_or("it was not opened")?;
    NvmeTransport::new(&open.device, &slot.iommu).map_err(|error| {
        format!("it cannot share memory with us: {error} (does LimitMEMLOCK= allow 1 MiB?)")
    })
}

/// Another drive at the same place is another tenant's, or the host's own.
fn check_identity(
    at: PciAddress,
    approved: &DeviceIdentity,
    said: &BTreeMap<String, String>,
) -> Result<(), DeviceError> {
    for name in [serial_kind::NVME_SERIAL, serial_kind::NVME_MODEL] {
        let wanted = approved.serials.get(name);
        if wanted.is_none() || wanted != said.get(name) {
            let [wanted, found] = [wanted, said.get(name)]
                .map(|value| value.map_or("nothing", |value| value.as_str()));
            let why = format!("its {name} is {found}, and {wanted} was approved");
            return Err(changed(at, &why));
        }
    }
    Ok(())
}

fn changed(at: PciAddress, why: &str) -> DeviceError {
    DeviceError::new(
        SlotProblemCode::DeviceIdentityChanged,
        format!("{at}: {why}"),
    )
    .suspect()
}

/// Whether an error says something about the drive, and not about our side.
fn is_drives_fault(error: &WipeError) -> bool {
    !matches!(
        error,
        WipeError::Cancelled
            | WipeError::Journal(_)
            | WipeError::NoMethod { .. }
            | WipeError::ApprovedLayout(_)
    )
}

#[cfg(test)]
mod tests {
    use berth_api::pci::{PciClass, PciId};

    use super::*;

    fn serials(serial: &str) -> BTreeMap<String, String> {
        BTreeMap::from([
            (serial_kind::NVME_SERIAL.to_owned(), serial.to_owned()),
            (serial_kind::NVME_MODEL.to_owned(), "drive".to_owned()),
        ])
    }

    #[test]
    fn only_the_approved_drive_is_wiped() {
        let at = "0000:01:00.0".parse().unwrap();
        let mut approved = DeviceIdentity {
            vendor: PciId(1),
            device: PciId(2),
            subsystem_vendor: PciId(3),
            subsystem: PciId(4),
            class: PciClass::NVME,
            path: "pci0000:00/01.0/00.0".to_owned(),
            serials: serials("A"),
        };
        check_identity(at, &approved, &serials("A")).unwrap();
        for said in [serials("B"), BTreeMap::new()] {
            let error = check_identity(at, &approved, &said).unwrap_err();
            assert_eq!(error.code, SlotProblemCode::DeviceIdentityChanged);
        }
        approved.serials.clear();
        check_identity(at, &approved, &BTreeMap::new()).unwrap_err();
    }

    #[test]
    fn what_the_agent_lacks_is_not_the_drives_fault() {
        assert!(!is_drives_fault(&WipeError::Cancelled));
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(!is_drives_fault(&WipeError::Journal(full)));
        assert!(is_drives_fault(&WipeError::TooLong { seconds: 1 }));
        assert!(is_drives_fault(&WipeError::EraseNotShown));
    }
}
