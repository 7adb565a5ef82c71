//! The common configuration: feature and queue negotiation and what the device status does.
//!
//! ```text
//! Configuring(device) --DRIVER_OK--> Active (device at the executor)
//!        ^                   \-----> Failed(device): bad ring or no executor; asks for a reset
//!        \------ status 0 ------------ from everywhere, after the executor gave the device back
//! ```
//!
//! Queue registers take effect in one place only: when the driver sets `DRIVER_OK`, checked copies
//! leave with the device. What the driver writes later cannot reach a running queue.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::layout::MAX_QUEUES;
use super::status::{self, StatusWrite};
use crate::guest_error::{GuestError, GuestErrors};
use crate::memory::Memory;
use crate::pci::DeviceSlot;
use crate::virtio::config::DeviceConfig;
use crate::virtio::device::VirtioDevice;
use crate::virtio::executor::{ActiveDevice, QueueExecutor};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::queue::{QueueAddresses, VirtQueue};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Features of the transport and of rings, offered with every device.
const RING_FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const QUEUE_COUNT: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_ADDRESSES_END: u64 = 0x38;

/// The registers of one queue as the driver wrote them.
#[derive(Clone, Debug)]
struct QueueRegisters {
    max_size: u16,
    addresses: QueueAddresses,
    is_enabled: bool,
}

impl QueueRegisters {
    fn after_reset(max_size: u16) -> Self {
        let addresses = QueueAddresses {
            size: max_size,
            ..QueueAddresses::default()
        };
        Self {
            max_size,
            addresses,
            is_enabled: false,
        }
    }

    fn address(&self, offset: u64) -> u64 {
        match (offset - QUEUE_DESCRIPTORS) / 8 {
            0 => self.addresses.descriptors,
            1 => self.addresses.available,
            _ => self.addresses.used,
        }
    }

    fn address_mut(&mut self, offset: u64) -> &mut u64 {
        match (offset - QUEUE_DESCRIPTORS) / 8 {
            0 => &mut self.addresses.descriptors,
            1 => &mut self.addresses.available,
            _ => &mut self.addresses.used,
        }
    }
}

/// Who has the device.
enum Phase {
    Configuring(Box<dyn VirtioDevice>),
    Active,
    /// `None`: the executor lost the device, and no reset brings it back.
    Failed(Option<Box<dyn VirtioDevice>>),
}

/// What the registers need from outside.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) slot: DeviceSlot,
    pub(super) memory: Arc<Memory>,
    pub(super) executor: Arc<dyn QueueExecutor>,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) device_config: Arc<DeviceConfig>,
    pub(super) errors: Arc<GuestErrors>,
}

/// The common configuration structure of one device.
pub(super) struct Registers {
    around: Surroundings,
    phase: Phase,
    offered_features: u64,
    status: u8,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(device: Box<dyn VirtioDevice>, around: Surroundings) -> Self {
        let queues = device
            .queue_max_sizes()
            .iter()
            .take(usize::from(MAX_QUEUES));
        Self {
            offered_features: device.features() | RING_FEATURES,
            queues: queues.copied().map(QueueRegisters::after_reset).collect(),
            phase: Phase::Configuring(device),
            around,
            status: 0,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
        }
    }

    /// The value of the register at `offset`, or `None` if there is none of that width.
    pub(super) fn read(&self, offset: u64, width: usize) -> Option<u64> {
        let queue = self.queues.get(usize::from(self.queue_select));
        let value = match (offset, width) {
            (DEVICE_FEATURE_SELECT, 4) => self.device_feature_select.into(),
            (DEVICE_FEATURE, 4) => half(self.offered_features, self.device_feature_select),
            (DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select.into(),
            (DRIVER_FEATURE, 4) => half(self.driver_features, self.driver_feature_select),
            (CONFIG_VECTOR, 2) => self.around.interrupt.config_vector().into(),
            (QUEUE_COUNT, 2) => u64::try_from(self.queues.len()).ok()?,
            (DEVICE_STATUS, 1) => self.shown_status().into(),
            (CONFIG_GENERATION, 1) => self.around.device_config.generation().into(),
            (QUEUE_SELECT, 2) => self.queue_select.into(),
            (QUEUE_SIZE, 2) => queue.map_or(0, |queue| queue.addresses.size.into()),
            (QUEUE_VECTOR, 2) => queue.map_or(0, |_| {
                self.around.interrupt.queue_vector(self.queue_select).into()
            }),
            (QUEUE_ENABLE, 2) => queue.map_or(0, |queue| queue.is_enabled.into()),
            (QUEUE_NOTIFY_OFFSET, 2) => queue.map_or(0, |_| self.queue_select.into()),
            (QUEUE_DESCRIPTORS..QUEUE_ADDRESSES_END, 4 | 8) if is_aligned(offset, width) => {
                queue.map_or(0, |queue| queue.address(offset) >> (offset % 8 * 8))
            }
            _ => return None,
        };
        Some(value)
    }

    /// Takes a write of `value` to the register at `offset`.
    pub(super) fn write(&mut self, offset: u64, width: usize, value: u64) {
        let low16 = u16::try_from(value & 0xffff).expect("the value is masked to 16 bits");
        let low32 = u32::try_from(value & 0xffff_ffff).expect("the value is masked to 32 bits");
        match (offset, width) {
            (DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = low32,
            (DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = low32,
            (DRIVER_FEATURE, 4) => self.write_driver_features(low32),
            (CONFIG_VECTOR, 2) => self.around.interrupt.set_config_vector(low16),
            (DEVICE_STATUS, 1) => self.write_status(low16.to_le_bytes()[0]),
            (QUEUE_SELECT, 2) => self.queue_select = low16,
            (QUEUE_VECTOR, 2) => self.write_queue_vector(low16),
            (QUEUE_SIZE | QUEUE_ENABLE, 2) => self.write_queue(offset, width, value),
            (QUEUE_DESCRIPTORS..QUEUE_ADDRESSES_END, 4 | 8) if is_aligned(offset, width) => {
                self.write_queue(offset, width, value);
            }
            _ => self.around.errors.bump(GuestError::VirtioRegister),
        }
    }

    /// Passes a notification of queue `index` on, if the device is active.
    pub(super) fn notify(&self, index: u16) {
        if usize::from(index) >= self.queues.len() {
            return self.around.errors.bump(GuestError::VirtioQueueIndex);
        }
        match self.phase {
            Phase::Active => self.around.executor.notify(self.around.slot, index),
            Phase::Configuring(_) => self.around.errors.bump(GuestError::VirtioStatus),
            // A driver that was asked for a reset may not have noticed yet.
            Phase::Failed(_) => (),
        }
    }

    /// Has the device give up what the guest reads here, wherever it is.
    pub(super) fn eject(&mut self) {
        match &mut self.phase {
            Phase::Configuring(device) | Phase::Failed(Some(device)) => device.eject(),
            Phase::Active => self.around.executor.eject(self.around.slot),
            Phase::Failed(None) => (),
        }
    }

    fn shown_status(&self) -> u8 {
        if self.around.interrupt.needs_reset() {
            self.status | status::NEEDS_RESET
        } else {
            self.status
        }
    }

    fn write_status(&mut self, written: u8) {
        match status::decide(self.status, written) {
            StatusWrite::Reset => self.reset(),
            StatusWrite::Set(status) => self.status = status,
            StatusWrite::AcceptFeatures(status) => {
                // Where they are not acceptable, the driver finds FEATURES_OK clear and gives up.
                if self.are_features_acceptable() {
                    self.status = status;
                } else {
                    self.around.errors.bump(GuestError::VirtioFeatures);
                }
            }
            StatusWrite::Start(status) => {
                self.status = status;
                self.start();
            }
            StatusWrite::Refused => self.around.errors.bump(GuestError::VirtioStatus),
        }
    }

    fn are_features_acceptable(&self) -> bool {
        self.driver_features & !self.offered_features == 0 && self.driver_features & VERSION_1 != 0
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return self.around.errors.bump(GuestError::VirtioFeatures);
        }
        let (kept, shift) = match self.driver_feature_select {
            0 => (self.driver_features & !u64::from(u32::MAX), 0),
            1 => (self.driver_features & u64::from(u32::MAX), 32),
            // Linux clears feature words that no specification has yet.
            _ if value == 0 => return,
            _ => return self.around.errors.bump(GuestError::VirtioFeatures),
        };
        self.driver_features = kept | u64::from(value) << shift;
    }

    /// Vectors may change at any time: drivers give them back after a reset, and none of them
    /// says where a device reads or writes.
    fn write_queue_vector(&self, vector: u16) {
        if usize::from(self.queue_select) < self.queues.len() {
            self.around
                .interrupt
                .set_queue_vector(self.queue_select, vector);
        } else {
            self.around.errors.bump(GuestError::VirtioQueueIndex);
        }
    }

    fn write_queue(&mut self, offset: u64, width: usize, value: u64) {
        let are_writable = matches!(self.phase, Phase::Configuring(_))
            && self.status & status::FEATURES_OK != 0
            && self.status & status::FAILED == 0;
        let errors = &self.around.errors;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return errors.bump(GuestError::VirtioQueueIndex);
        };
        if !are_writable || queue.is_enabled {
            return errors.bump(GuestError::VirtioQueueLocked);
        }
        match (offset, width) {
            (QUEUE_SIZE, _) => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= queue.max_size => {
                    queue.addresses.size = size;
                }
                _ => errors.bump(GuestError::VirtioQueueSize),
            },
            (QUEUE_ENABLE, _) if value == 1 => queue.is_enabled = true,
            (QUEUE_ENABLE, _) => errors.bump(GuestError::VirtioRegister),
            (_, 8) => *queue.address_mut(offset) = value,
            _ => {
                let shift = offset % 8 * 8;
                let address = queue.address_mut(offset);
                *address = *address & !(u64::from(u32::MAX) << shift) | value << shift;
            }
        }
    }

    /// Takes checked copies of the enabled queues and hands the device over.
    fn start(&mut self) {
        let device = match std::mem::replace(&mut self.phase, Phase::Failed(None)) {
            Phase::Configuring(device) => device,
            other @ (Phase::Active | Phase::Failed(_)) => {
                self.phase = other;
                return;
            }
        };
        self.phase = match self.checked_queues() {
            Some(queues) => self.hand_over(device, queues),
            None => Phase::Failed(Some(device)),
        };
        if let Phase::Failed(_) = self.phase {
            self.around.interrupt.ask_for_reset();
        }
    }

    fn hand_over(
        &self,
        mut device: Box<dyn VirtioDevice>,
        queues: Vec<Option<VirtQueue>>,
    ) -> Phase {
        let Surroundings {
            slot,
            memory,
            executor,
            interrupt,
            errors,
            ..
        } = &self.around;
        device.activate(self.driver_features);
        let active = ActiveDevice::new(
            device,
            queues,
            memory.clone(),
            interrupt.clone(),
            errors.clone(),
        );
        match executor.activate(*slot, active) {
            Ok(()) => Phase::Active,
            Err(error) => Phase::Failed(error.device.map(|active| active.into_device())),
        }
    }

    fn checked_queues(&self) -> Option<Vec<Option<VirtQueue>>> {
        let has_event_idx = self.driver_features & EVENT_IDX != 0;
        let checked = self.queues.iter().map(|queue| {
            let Surroundings { memory, errors, .. } = &self.around;
            let enabled = queue.is_enabled.then_some(queue.addresses);
            enabled
                .map(|addresses| VirtQueue::new(addresses, has_event_idx, memory, errors.clone()))
                .transpose()
        });
        checked.collect::<Result<_, _>>().ok()
    }

    /// Back to the state after power-on. Returns when the executor has given the device back, so
    /// the driver that then reads 0 may use the memory of its rings for other things.
    fn reset(&mut self) {
        let device = match std::mem::replace(&mut self.phase, Phase::Failed(None)) {
            Phase::Configuring(device) | Phase::Failed(Some(device)) => Some(device),
            Phase::Active => self
                .around
                .executor
                .deactivate(self.around.slot)
                .map(ActiveDevice::into_device),
            Phase::Failed(None) => None,
        };
        let Some(device) = device else {
            // A status that never reads 0 keeps the driver from believing in the reset.
            self.around.interrupt.ask_for_reset();
            return;
        };
        self.phase = Phase::Configuring(device);
        self.around.interrupt.reset();
        self.status = 0;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::after_reset(queue.max_size);
        }
    }
}

/// The 32 bits of `features` that `select` names; 0 beyond the second half.
fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & u64::from(u32::MAX),
        1 => features >> 32,
        _ => 0,
    }
}

/// Whether an address register may be accessed at `offset` with `width` bytes, 4 or 8.
fn is_aligned(offset: u64, width: usize) -> bool {
    u64::try_from(width).is_ok_and(|width| offset.is_multiple_of(width))
}
