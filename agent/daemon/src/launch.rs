//! Carries out the steps of a plan. No decisions.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use berth_agent_core::console::SEGMENT_BYTES;
use berth_agent_core::image_name::{ImageName, ParseImageNameError};
use berth_agent_core::plan::DiskMissing;
use berth_agent_core::seed::SERIAL;
use berth_agent_core::vm_record::VmRecord;
use berth_agent_host::images::{OpenImage, OpenImageError};
use berth_agent_host::service_manager::{DescriptorStore, NotifyError};
use berth_agent_host::slot_devices::{DeviceError, GuestDevices};
use berth_agent_host::vm_files::{GuestFiles, VmFiles, VmFilesError};
use berth_agent_host::vmm_socket::{LaunchSockets, PrepareLaunchError, VmmSocket, prepare_launch};
use berth_agent_host::vmm_unit::{UnitError, UnitSpec, VmmUnits};
use berth_api::agent::FailureCode;
use berth_api::ids::VmId;
use berth_api::pci::PciAddress;
use berth_api::vmm::{Console, Disk, FdIndex, Iommu, Start, Vfio, VfioDevice};

use crate::host::{Host, blocking};
use crate::slots::{SlotUnusable, Slots};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Units(#[from] UnitError),
    #[error(transparent)]
    Files(#[from] VmFilesError),
    #[error(transparent)]
    Image(#[from] OpenImageError),
    #[error(transparent)]
    ImageName(#[from] ParseImageNameError),
    #[error("the image {0} is not the one that the VM was made from")]
    ImageChanged(ImageName),
    #[error(transparent)]
    Disk(#[from] DiskMissing),
    #[error("the record does not say what the VM is made of")]
    Undefined,
    #[error("could not open the KVM device")]
    Kvm(#[source] io::Error),
    #[error(transparent)]
    Prepare(#[from] PrepareLaunchError),
    #[error(transparent)]
    Keep(#[from] NotifyError),
    #[error("could not take up the control socket")]
    Socket(#[source] io::Error),
    #[error("could not look at the guest's seed")]
    Seed(#[source] io::Error),
    #[error(transparent)]
    Slot(#[from] SlotUnusable),
    #[error("the slots' devices could not be opened")]
    Devices(#[from] DeviceError),
}

impl StepError {
    /// The code that is reported.
    pub(crate) fn code(&self) -> FailureCode {
        match self {
            Self::Units(_) => FailureCode::UnitFailed,
            Self::Files(VmFilesError::DiskTooSmall { .. })
            | Self::ImageChanged(_)
            | Self::Image(OpenImageError::Truncated { .. } | OpenImageError::Manifest { .. }) => {
                FailureCode::ImageInvalid
            }
            Self::Files(error) if error.is_out_of_room() => FailureCode::NoRoom,
            Self::Image(OpenImageError::Unknown { .. }) | Self::ImageName(_) => {
                FailureCode::ImageUnknown
            }
            Self::Slot(_) | Self::Devices(_) => FailureCode::SlotUnusable,
            Self::Files(_)
            | Self::Image(OpenImageError::Io { .. })
            | Self::Disk(_)
            | Self::Undefined
            | Self::Kvm(_)
            | Self::Prepare(_)
            | Self::Keep(_)
            | Self::Socket(_)
            | Self::Seed(_) => FailureCode::Internal,
        }
    }
}

/// An error and its causes in one line, for a report or a log.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// The name under which a VM's socket is kept.
pub(crate) fn socket_name(vm_id: VmId) -> String {
    format!("berth-vm-{}", vm_id.bare())
}

/// The name under which the medium of a VM's guest is kept.
pub(crate) fn seed_name(vm_id: VmId) -> String {
    format!("berth-seed-{}", vm_id.bare())
}

/// The image that a VM is made from; the very one, if the VM has been made already.
pub(crate) async fn open_image<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    record: &VmRecord,
) -> Result<OpenImage, StepError> {
    let definition = record.definition.as_ref().ok_or(StepError::Undefined)?;
    let name: ImageName = definition.spec.image.parse()?;
    let images = host.images.clone();
    let wanted = name.clone();
    let image = blocking(move || images.open(&wanted)).await?;
    match &definition.image_digest {
        Some(digest) if *digest != image.digest => Err(StepError::ImageChanged(name)),
        Some(_) | None => Ok(image),
    }
}

/// Ensure the root disk.
pub(crate) async fn ensure_disk<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    record: &VmRecord,
    image: OpenImage,
) -> Result<(), StepError> {
    let definition = record.definition.as_ref().ok_or(StepError::Undefined)?;
    let (vm_id, disk_mib) = (record.vm_id, definition.spec.disk_mib);
    host.on_files(move |files| files.ensure_disk(vm_id, &image.disk, disk_mib))
        .await?;
    Ok(())
}

/// Start the VMM's unit, its `Start` waiting in its standard input.
pub(crate) async fn start_unit<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    slots: &Slots,
    record: &VmRecord,
    seed: Option<&File>,
) -> Result<VmmSocket, StepError> {
    let spec = &record.definition.as_ref().ok_or(StepError::Undefined)?.spec;
    let image = open_image(host, record).await?;
    let vm_id = record.vm_id;
    let guest = host.on_files(move |files| files.open_guest(vm_id)).await?;
    let devices = open_devices(host, slots, record).await?;
    let parts = Parts {
        image: &image,
        guest: &guest,
        seed,
        devices: devices.as_ref(),
    };
    let sockets = prepare(host, record, &parts)?;
    // In the store before the process exists: an agent that dies in between leaves a socket that
    // the next one throws away, and never a process that nobody can talk to.
    let store = Arc::clone(&host.store);
    let agent = blocking(move || {
        store
            .keep(&socket_name(vm_id), sockets.agent.as_fd())
            .map(|()| sockets.agent)
    })
    .await?;
    let unit = UnitSpec {
        vm_id,
        tenant_id: record.tenant_id.clone(),
        name: spec.name.clone(),
        generation: record.generation,
        executable: host.vmm.clone(),
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        device_memory_bytes: devices.as_ref().map(|devices| devices.memory_bytes),
    };
    host.units.start(&unit, sockets.vmm).await?;
    VmmSocket::new(agent).map_err(StepError::Socket)
}

/// Open the devices of a VM's slots, which are noted to be in use before.
async fn open_devices<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    slots: &Slots,
    record: &VmRecord,
) -> Result<Option<GuestDevices>, StepError> {
    let claims = record.claims();
    if claims.is_empty() {
        return Ok(None);
    }
    let addresses = slots.open(record.vm_id, claims).await?;
    let devices = Arc::clone(&host.slots.devices);
    let opened = blocking(move || devices.open_for_guest(&addresses)).await?;
    Ok(Some(opened))
}

/// All that a VMM gets which is open already.
struct Parts<'a> {
    image: &'a OpenImage,
    guest: &'a GuestFiles,
    seed: Option<&'a File>,
    devices: Option<&'a GuestDevices>,
}

fn prepare<U, F, S>(
    host: &Host<U, F, S>,
    record: &VmRecord,
    parts: &Parts<'_>,
) -> Result<LaunchSockets, StepError> {
    let Parts {
        image,
        guest,
        seed,
        devices,
    } = parts;
    let spec = &record.definition.as_ref().ok_or(StepError::Undefined)?.spec;
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&host.kvm)
        .map_err(StepError::Kvm)?;
    let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
    let mut add = |fd| {
        let index = FdIndex(u32::try_from(descriptors.len()).unwrap_or(u32::MAX));
        descriptors.push(fd);
        index
    };
    let (kvm, kernel) = (add(kvm.as_fd()), add(image.kernel.as_fd()));
    let start = Start::new(record.vm_id.to_string(), kvm, kernel);
    let start = Start {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        initrd: image.initrd.as_ref().map(|file| add(file.as_fd())),
        cmdline: image.manifest.cmdline.clone(),
        disks: disks(guest, *seed, &mut add)?,
        console: Some(Console::Segments {
            fds: guest.consoles.each_ref().map(|file| add(file.as_fd())),
            segment_bytes: SEGMENT_BYTES,
        }),
        vfio: devices.map(|devices| passed_through(devices, &mut add)),
        entropy: true,
        host_facts: host.host_facts.get().map(|file| add(file.as_fd())),
        ..start
    };
    Ok(prepare_launch(&start, &descriptors)?)
}

/// The root disk, and then the medium with what the guest is given, which it can only read.
fn disks<'a>(
    guest: &'a GuestFiles,
    seed: Option<&'a File>,
    add: &mut impl FnMut(BorrowedFd<'a>) -> FdIndex,
) -> Result<Vec<Disk>, StepError> {
    let mut disks = vec![Disk {
        serial: "root".to_owned(),
        ..Disk::new(add(guest.disk.as_fd()), guest.disk_bytes)
    }];
    if let Some(seed) = seed {
        let bytes = seed.metadata().map_err(StepError::Seed)?.len();
        disks.push(Disk {
            serial: SERIAL.to_owned(),
            read_only: true,
            queues: 1,
            ..Disk::new(add(seed.as_fd()), bytes)
        });
    }
    Ok(disks)
}

/// What the VMM is told of the devices; each group is sent once.
fn passed_through<'a>(
    devices: &'a GuestDevices,
    add: &mut impl FnMut(BorrowedFd<'a>) -> FdIndex,
) -> Vfio {
    let container = add(devices.container.as_fd());
    let groups: BTreeMap<u32, FdIndex> = devices
        .groups
        .iter()
        .map(|(group, fd)| (*group, add(fd.as_fd())))
        .collect();
    let device = |(address, group): &(PciAddress, u32)| {
        let fd = *groups.get(group)?;
        let address = address.to_string();
        Some(VfioDevice { address, fd })
    };
    Vfio {
        iommu: Iommu::Type1 { container },
        devices: devices.devices.iter().filter_map(device).collect(),
        peer_to_peer: false,
    }
}

/// Ensure that neither process nor socket is left.
pub(crate) async fn ensure_unit_gone<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    vm_id: VmId,
) -> Result<(), StepError> {
    host.units.ensure_gone(vm_id).await?;
    forget_socket(host, vm_id).await?;
    Ok(())
}

/// Ensure that no socket is kept for a VM.
pub(crate) async fn forget_socket<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    vm_id: VmId,
) -> Result<(), NotifyError> {
    let store = Arc::clone(&host.store);
    blocking(move || store.forget(&socket_name(vm_id))).await
}

/// Keep the medium of a VM's guest for the next agent.
pub(crate) async fn keep_seed<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    vm_id: VmId,
    seed: File,
) -> Result<File, NotifyError> {
    let store = Arc::clone(&host.store);
    blocking(move || store.keep(&seed_name(vm_id), seed.as_fd()).map(|()| seed)).await
}

/// Ensure that no medium is kept for a VM.
pub(crate) async fn forget_seed<U: VmmUnits, F: VmFiles, S: DescriptorStore>(
    host: &Host<U, F, S>,
    vm_id: VmId,
) -> Result<(), NotifyError> {
    let store = Arc::clone(&host.store);
    blocking(move || store.forget(&seed_name(vm_id))).await
}
