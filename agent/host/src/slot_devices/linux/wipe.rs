//! Wiping one device, by what it is.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_agent_core::slot::approval::ApprovedDevice;
use berth_agent_core::slot::device_memory::{GpuSetting, choose_memory_bar};
use berth_agent_core::slot::snapshot::Bar;
use berth_agent_core::slot::wipe::{WipeJournal, WipePolicy, WipeRun};
use berth_api::pci::PciAddress;
use berth_api::slot::{DeviceKind, DeviceWipe, ReadBack, SlotProblemCode, WipeMethod};
use berth_vfio::{RegionInfo, VfioDevice};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::device_registers::{ConfigHead, OpenConfig};
use super::memory_overwrite::{DeviceMemory, OverwriteError, overwrite};
use super::open_slot::{OpenDevice, OpenSlot, owned_in_group};
use super::reset;
use crate::slot_devices::DeviceError;

/// One wipe that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) root: &'a Path,
    pub(super) device: &'a ApprovedDevice,
    pub(super) at: PciAddress,
    pub(super) policy: &'a WipePolicy,
}

impl Order<'_> {
    pub(super) fn failed(&self, why: impl std::fmt::Display) -> DeviceError {
        let message = format!("{}: not wiped: {why}", self.at);
        DeviceError::new(SlotProblemCode::WipeFailed, message)
    }
}

/// Wipe a device that is no drive: reset it, and overwrite its memory if it is a GPU and has any that can
/// be reached. An earlier run is begun anew: nothing of it counts before all was read back.
pub(super) fn wipe(
    order: Order<'_>,
    journal: &mut dyn WipeJournal,
) -> Result<DeviceWipe, DeviceError> {
    let Order { root, at, .. } = order;
    // Whatever a reset of this one may hit is in its group, and a group is never split among slots.
    let owned: Vec<_> = owned_in_group(root, at)?.into_iter().collect();
    let before = reset::look(root, &owned)?;
    let slot = OpenSlot::open(root, &owned)?;
    let open = slot
        .devices
        .iter()
        .find(|open| open.address == at)
        .ok_or_else(|| order.failed("it is not with vfio-pci"))?;
    let memory = match order.device.kind {
        DeviceKind::Gpu => find_memory(order, open)?,
        DeviceKind::Nvme | DeviceKind::Network | DeviceKind::Other => None,
    };
    let has = |method: &WipeMethod| {
        *method == WipeMethod::Reset || *method == WipeMethod::MemoryOverwrite && memory.is_some()
    };
    let method = order.policy.methods.iter().copied().find(has);
    let method = method.ok_or_else(|| {
        order.failed("its approval allows no method that it has; see `wipe.methods`")
    })?;
    let run = WipeRun {
        method,
        started_at_ms: now_ms(),
        marks: BTreeMap::new(),
    };
    journal
        .note(&run)
        .map_err(|error| order.failed(format!("it could not be noted: {error}")))?;
    let found = reset::reset(root, &slot, &before)?;
    let read_back = match memory {
        Some(memory) if method == WipeMethod::MemoryOverwrite => {
            overwrite_memory(order, open, memory, journal)?
        }
        Some(_) | None => nothing_read(),
    };
    Ok(DeviceWipe {
        address: at,
        identity: order.device.identity.clone(),
        method,
        started_at_ms: run.started_at_ms,
        ended_at_ms: now_ms(),
        completion: BTreeMap::from([("reset".to_owned(), found)]),
        restored: Vec::new(),
        read_back,
        not_proved: not_proved(order.device, method),
    })
}

/// What remains in doubt, in words.
fn not_proved(device: &ApprovedDevice, method: WipeMethod) -> Vec<String> {
    let mut doubts = vec!["the device's firmware: it was not read".to_owned()];
    if device.kind == DeviceKind::Gpu {
        let memory = if method == WipeMethod::MemoryOverwrite {
            "memory that the overwritten BAR does not reach, such as caches and registers"
        } else {
            "the device's memory: none was overwritten, only a reset was done"
        };
        doubts.push(memory.to_owned());
        doubts.push(
            "whether the chip cleared its memory by itself: no register of its vendor's was read"
                .to_owned(),
        );
        let settings = GpuSetting::ALL.map(GpuSetting::name).join(", ");
        doubts.push(format!(
            "settings that outlive a reset ({settings}): they are in registers of its vendor's"
        ));
    }
    doubts
}

fn nothing_read() -> ReadBack {
    ReadBack {
        sample: "nothing: no memory of it is known that could be read".to_owned(),
        bytes_total: 0,
        bytes_read: 0,
        bytes_wrong: 0,
        expected: "nothing".to_owned(),
        sha256: hex::encode(ring::digest::digest(&ring::digest::SHA256, &[])),
    }
}

/// A BAR as VFIO has it.
#[derive(Debug)]
struct MemoryBar<'d> {
    index: u8,
    region: RegionInfo,
    device: &'d VfioDevice,
}

impl DeviceMemory for MemoryBar<'_> {
    fn bytes(&self) -> u64 {
        self.region.bytes
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device.read(&self.region, offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write(&self.region, offset, data)
    }
}

fn find_memory<'d>(
    order: Order<'_>,
    open: &'d OpenDevice,
) -> Result<Option<MemoryBar<'d>>, DeviceError> {
    let asked = |error: io::Error| order.failed(format!("its BARs cannot be read: {error}"));
    let head = ConfigHead::read(order.root, order.at).map_err(asked)?;
    let mut regions = BTreeMap::new();
    let mut bars = Vec::new();
    for (index, raw) in (0_u8..).zip(head.liveness().bars) {
        let region = open.device.region(index.into()).map_err(asked)?;
        if region.bytes == 0 || !region.is_readable || !region.is_writable {
            continue;
        }
        bars.push(Bar {
            index,
            bytes: region.bytes,
            is_memory: raw & 1 == 0,
            is_prefetchable: raw & 1 << 3 != 0,
        });
        regions.insert(index, region);
    }
    let bar =
        choose_memory_bar(&bars, &order.device.settings).map_err(|error| order.failed(error))?;
    Ok(bar.and_then(|bar| {
        Some(MemoryBar {
            index: bar.index,
            region: regions.remove(&bar.index)?,
            device: &open.device,
        })
    }))
}

fn overwrite_memory(
    order: Order<'_>,
    open: &OpenDevice,
    mut memory: MemoryBar<'_>,
    journal: &mut dyn WipeJournal,
) -> Result<ReadBack, DeviceError> {
    OpenConfig::new(&open.device)
        .and_then(|config| config.turn_on(false))
        .map_err(|error| order.failed(format!("its memory cannot be turned on: {error}")))?;
    let mut seed = [0; 8];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| order.failed("the host has no random numbers"))?;
    let limit = Duration::from_secs(order.policy.deadline_s);
    let begun = Instant::now();
    let mut now = || begun.elapsed();
    let seed = u64::from_le_bytes(seed);
    let sum = overwrite(&mut memory, seed, limit, &mut now, journal).map_err(|error| {
        let is_left = matches!(error, OverwriteError::Cancelled);
        let failed = order.failed(chain(&error));
        if is_left { failed } else { failed.suspect() }
    })?;
    Ok(ReadBack {
        sample: format!("all of BAR {}", memory.index),
        bytes_total: memory.bytes(),
        bytes_read: memory.bytes(),
        bytes_wrong: 0,
        expected: "what this wipe wrote, another word at each place".to_owned(),
        sha256: hex::encode(sum),
    })
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.ok()
        .and_then(|now| i64::try_from(now.as_millis()).ok())
        .unwrap_or_default()
}
