//! Taking a device from its driver, and giving it back: in which order, and what is undone when a step
//! fails.
//!
//! Knows no file: the kernel is a [`DriverCore`]. Each step is read back, because a probe that fails
//! returns success all the same. `new_id` is never used: it would take all devices of the same kind.

use berth_api::pci::PciAddress;
use berth_api::slot::SlotProblemCode;

use super::disposable::TransferError;
use super::driver_core::DriverCore;
use crate::slot_devices::{DeviceError, Found, VFIO_PCI};

/// Bind to `vfio-pci`. `claim` makes sure that the host does not use the device and keeps it so until
/// what it returns is dropped, which is after the driver is off.
pub(super) fn ensure_bound<C>(
    core: &impl DriverCore,
    device: PciAddress,
    claim: impl FnOnce() -> Result<C, DeviceError>,
) -> Result<Found, DeviceError> {
    let before = driver(core, device)?;
    if before.as_deref() == Some(VFIO_PCI) {
        ensure_override(core, device)?;
        return Ok(VFIO_PCI.to_owned());
    }
    if !core.has_driver(VFIO_PCI) {
        return Err(failed(
            device,
            "the kernel has no driver vfio-pci; load it (`modprobe vfio-pci`)",
        ));
    }
    check_virtual_functions(core, device)?;
    let claims = claim()?;
    set_override(core, device, Some(VFIO_PCI))?;
    if let Some(before) = &before {
        match core.unbind(device, before) {
            // Whether it is off is what the link says.
            Ok(()) | Err(TransferError::Refused(_)) => {}
            Err(error @ TransferError::TimedOut(_)) => {
                // Every other file of the device may block from here on, too. The override stays:
                // if the driver ever lets go, nobody of the host takes the device.
                let message = format!("{before} does not let it go: {error}");
                return Err(failed(device, message).suspect());
            }
            Err(error @ TransferError::Io(_)) => {
                return Err(undo(core, device, Some(before), chain(&error)));
            }
        }
        match driver(core, device)? {
            Some(still) if still == *before => {
                let message = format!("{before} did not let it go");
                return Err(undo(core, device, Some(before), message));
            }
            Some(_) | None => {}
        }
    }
    drop(claims);
    let probed = core.probe(device);
    match (driver(core, device)?, probed) {
        (Some(now), _) if now == VFIO_PCI => {
            let before = before.as_deref().unwrap_or("none");
            Ok(format!("{before} -> {VFIO_PCI}"))
        }
        (_, Err(error @ TransferError::TimedOut(_))) => {
            Err(failed(device, format!("vfio-pci does not take it: {error}")).suspect())
        }
        (now, probed) => {
            let now = now.as_deref().unwrap_or("no driver");
            let mut message = format!("vfio-pci did not take it, {now} has it");
            if let Err(error) = probed {
                message = format!("{message}: {}", chain(&error));
            }
            Err(undo(core, device, before.as_deref(), message))
        }
    }
}

/// Give a device to `wanted`, or to none. Nobody may have it open, which the caller has checked: the
/// kernel would wait for them.
pub(super) fn ensure_unbound(
    core: &impl DriverCore,
    device: PciAddress,
    wanted: Option<&str>,
) -> Result<Found, DeviceError> {
    let before = driver(core, device)?;
    if before.as_deref() != wanted {
        // Decides which driver may probe, so that no other one comes in between.
        set_override(core, device, wanted)?;
        if let Some(before) = &before {
            match core.unbind(device, before) {
                Ok(()) | Err(TransferError::Refused(_) | TransferError::Io(_)) => {}
                Err(error @ TransferError::TimedOut(_)) => {
                    let message = format!("{before} does not let it go: {error}");
                    return Err(failed(device, message).suspect());
                }
            }
        }
        if wanted.is_some() {
            core.probe(device)
                .map_err(|error| failed(device, chain(&error)))?;
        }
        let now = driver(core, device)?;
        if now.as_deref() != wanted {
            let now = now.as_deref().unwrap_or("no driver");
            let wanted = wanted.unwrap_or("none");
            return Err(failed(device, format!("{now} has it, not {wanted}")));
        }
    }
    set_override(core, device, wanted.filter(|wanted| *wanted == VFIO_PCI))?;
    let [before, wanted] = [before.as_deref(), wanted].map(|driver| driver.unwrap_or("none"));
    Ok(format!("{before} -> {wanted}"))
}

fn driver(core: &impl DriverCore, device: PciAddress) -> Result<Option<String>, DeviceError> {
    core.driver(device).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let message = format!("{device} is not there");
            return DeviceError::new(SlotProblemCode::DeviceMissing, message).suspect();
        }
        failed(device, format!("its driver cannot be read: {error}"))
    })
}

fn check_virtual_functions(core: &impl DriverCore, device: PciAddress) -> Result<(), DeviceError> {
    let count = core
        .virtual_functions(device)
        .map_err(|error| failed(device, format!("its virtual functions: {error}")))?;
    match count {
        None => Ok(()),
        Some(0) => core
            .keep_drivers_from_virtual_functions(device)
            .map_err(|error| failed(device, format!("virtual functions: {}", chain(&error)))),
        Some(count) => Err(DeviceError::new(
            SlotProblemCode::DeviceInUse,
            format!(
                "{device} has {count} virtual functions, which others may have; turn them off \
                 (write 0 to its sriov_numvfs) or approve them as slots instead"
            ),
        )),
    }
}

fn ensure_override(core: &impl DriverCore, device: PciAddress) -> Result<(), DeviceError> {
    let now = core
        .driver_override(device)
        .map_err(|error| failed(device, format!("its driver_override: {}", chain(&error))))?;
    if now.as_deref() == Some(VFIO_PCI) {
        return Ok(());
    }
    set_override(core, device, Some(VFIO_PCI))
}

fn set_override(
    core: &impl DriverCore,
    device: PciAddress,
    driver: Option<&str>,
) -> Result<(), DeviceError> {
    core.set_override(device, driver)
        .map_err(|error| failed(device, format!("its driver_override: {}", chain(&error))))
}

/// Puts everything back as it was, and says in the error if that did not come about.
fn undo(
    core: &impl DriverCore,
    device: PciAddress,
    before: Option<&str>,
    message: String,
) -> DeviceError {
    // With the override on its own driver first, no other one can get in.
    let restored = set_override(core, device, before)
        .and_then(|()| match (driver(core, device)?, before) {
            (None, Some(_)) => core
                .probe(device)
                .map_err(|error| failed(device, chain(&error))),
            (_, _) => Ok(()),
        })
        .and_then(|()| set_override(core, device, None))
        .and_then(|()| driver(core, device));
    match restored {
        Ok(now) if now.as_deref() == before => failed(device, message),
        Ok(now) => {
            let now = now.as_deref().unwrap_or("no driver");
            failed(device, format!("{message}; afterwards {now} has it")).suspect()
        }
        Err(error) => failed(device, format!("{message}; undoing failed: {error}")).suspect(),
    }
}

fn failed(device: PciAddress, message: impl std::fmt::Display) -> DeviceError {
    DeviceError::new(SlotProblemCode::BindFailed, format!("{device}: {message}"))
}

fn chain(error: &TransferError) -> String {
    match error {
        TransferError::Io(source) => format!("{error}: {source}"),
        TransferError::TimedOut(_) | TransferError::Refused(_) => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
