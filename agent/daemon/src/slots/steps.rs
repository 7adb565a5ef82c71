//! Takes one step of a slot's plan. No decisions.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::plan::Step;
use berth_agent_core::slot::record::SlotRecord;
use berth_agent_host::service_manager::DescriptorStore;
use berth_agent_host::slot_devices::{DeviceError, Found, SlotDevices, VFIO_PCI};
use berth_agent_host::vm_files::VmFiles;
use berth_agent_host::vmm_unit::{UnitState, VmmUnits};
use berth_api::ids::VmId;
use berth_api::pci::PciAddress;
use berth_api::slot::{SlotProblem, SlotProblemCode};
use berth_ledger::receipt::check_wipe;
use tokio::time::Instant;

use super::look::{self, View};
use crate::host::{Host, blocking};

/// How long a process that has ended may take to let go of its devices. The kernel closes a VFIO
/// group only after it has unpinned the guest's memory.
const VACATE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at who has a device.
const VACATE_PAUSE: Duration = Duration::from_millis(100);

/// What came of a step.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The host was looked at.
    Viewed(Box<View>),
    /// A device said what it is.
    Said(PciAddress, BTreeMap<String, String>),
    /// It holds.
    Holds(Found),
}

/// Work that is going on.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<Outcome, DeviceError>> + Send>>;

/// A device of a slot with what it was approved as.
pub(super) fn approved_at(record: &SlotRecord, at: PciAddress) -> Option<ApprovedDevice> {
    let index = record
        .devices
        .iter()
        .position(|device| device.address == Some(at))?;
    let stored = record.approval.as_ref()?;
    stored.approval.devices.get(index).cloned()
}

/// Begin a step. A wipe is not one of these: see `lanes`.
pub(super) fn take<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Arc<Host<U, F, S>>,
    record: &SlotRecord,
    step: Step,
) -> Work {
    let devices = Arc::clone(&host.slots.devices);
    match step {
        Step::Look | Step::Locate => view(host, record),
        Step::Vacate => {
            let vm_id = record.phase.holder().map(|holder| holder.vm_id);
            let addresses = record.addresses();
            let host = Arc::clone(host);
            Box::pin(async move { vacate(&host, vm_id, addresses).await.map(Outcome::Holds) })
        }
        Step::Bind(device) => on_thread(move || devices.ensure_bound(device)),
        Step::Unbind(device) => {
            let driver = record.original_drivers.get(&device).cloned();
            on_thread(move || unbind(&*devices, device, driver))
        }
        Step::Reset => {
            let addresses = record.addresses();
            on_thread(move || devices.reset(&addresses))
        }
        Step::Identify(device) => {
            let approved = approved_at(record, device);
            Box::pin(blocking(move || {
                let approved = approved.ok_or_else(|| unknown(device))?;
                let said = devices.identify(&approved, device)?;
                Ok(Outcome::Said(device, said))
            }))
        }
        Step::Verify => {
            let verified = check_wipe(&record.devices, record.phase.wiped());
            let outcome = verified
                .map(|()| Outcome::Holds("every device was wiped and read".to_owned()))
                .map_err(|fault| {
                    DeviceError::new(SlotProblemCode::WipeFailed, fault.to_string()).suspect()
                });
            Box::pin(std::future::ready(outcome))
        }
        Step::Wipe => Box::pin(std::future::ready(Ok(Outcome::Holds(String::new())))),
    }
}

/// Look at the host.
pub(super) fn view<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Arc<Host<U, F, S>>,
    record: &SlotRecord,
) -> Work {
    let (slots, slot_id) = (host.slots.clone(), record.slot_id);
    Box::pin(blocking(move || {
        look::view(&slots, slot_id).map(|view| Outcome::Viewed(Box::new(view)))
    }))
}

/// Take devices with a tenant's data from the host's drivers.
pub(super) fn seize<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Arc<Host<U, F, S>>,
    addresses: Vec<PciAddress>,
) -> Work {
    let devices = Arc::clone(&host.slots.devices);
    on_thread(move || {
        let found = addresses.iter().map(|at| {
            devices.ensure_bound(*at).inspect_err(|_| {
                // What could not be taken was given back to the driver that had it, which must not
                // read what a tenant left. Of two failures the first one is told.
                devices.ensure_unbound(*at, None).map(drop).unwrap_or(());
            })
        });
        Ok(found.collect::<Result<Vec<_>, _>>()?.join(", "))
    })
}

fn on_thread(work: impl FnOnce() -> Result<Found, DeviceError> + Send + 'static) -> Work {
    Box::pin(blocking(move || work().map(Outcome::Holds)))
}

fn unbind(
    devices: &dyn SlotDevices,
    device: PciAddress,
    driver: Option<Option<String>>,
) -> Result<Found, DeviceError> {
    match driver {
        None => Ok("was not taken".to_owned()),
        Some(Some(driver)) if driver == VFIO_PCI => Ok(format!("stays with {VFIO_PCI}")),
        Some(driver) => devices.ensure_unbound(device, driver.as_deref()),
    }
}

/// Wait until neither the VM's unit runs nor any process has a device.
async fn vacate<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Arc<Host<U, F, S>>,
    vm_id: Option<VmId>,
    addresses: Vec<PciAddress>,
) -> Result<Found, DeviceError> {
    let deadline = Instant::now() + VACATE_TIMEOUT;
    loop {
        let Some(problem) = occupant(host, vm_id, addresses.clone()).await? else {
            return Ok("no unit of the VM runs, and no process has a device".to_owned());
        };
        if Instant::now() >= deadline {
            return Err(DeviceError::new(SlotProblemCode::ForeignUser, problem));
        }
        tokio::time::sleep(VACATE_PAUSE).await;
    }
}

/// Who still has a device, if anybody.
async fn occupant<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Arc<Host<U, F, S>>,
    vm_id: Option<VmId>,
    addresses: Vec<PciAddress>,
) -> Result<Option<String>, DeviceError> {
    if let Some(vm_id) = vm_id {
        match host.units.state(vm_id).await {
            Ok(UnitState::Absent | UnitState::Ended(_)) => {}
            Ok(UnitState::Running { .. } | UnitState::Ending) => {
                return Ok(Some(format!("the process of {vm_id} runs still")));
            }
            Err(error) => {
                return Ok(Some(format!(
                    "it cannot be told whether {vm_id} runs: {error}"
                )));
            }
        }
    }
    let devices = Arc::clone(&host.slots.devices);
    blocking(move || {
        for address in addresses {
            if let Some(pid) = devices.users(address)?.first() {
                return Ok(Some(format!("process {pid} has {address} open")));
            }
        }
        Ok(None)
    })
    .await
}

fn unknown(device: PciAddress) -> DeviceError {
    DeviceError::new(
        SlotProblemCode::DeviceMissing,
        format!("{device} is not a device of the slot any more"),
    )
}

/// Why a step failed, as it is told.
pub(super) fn problem(error: &DeviceError) -> SlotProblem {
    SlotProblem {
        code: error.code,
        message: error.message.clone(),
    }
}
