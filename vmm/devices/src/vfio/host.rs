//! The host's side of one device with its failures absorbed: counted, and answered as a bus would.
//!
//! Owns the counters of the device. A failing device costs the guest that device and nothing else,
//! so nothing past this point returns an error of the host.

use std::fmt;
use std::sync::Arc;

use super::ops::{Area, Region, VectorKind, VfioOps};
use crate::counters::Counters;
use crate::interrupt::MsiMessage;

/// What is counted for each device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(super) enum VfioCounter {
    /// A configuration write or a part of it that the policy does not let through.
    ConfigWriteDropped,
    /// A read that the device or the kernel refused; the guest read all ones.
    ReadFailed,
    /// A write that the device or the kernel refused.
    WriteFailed,
    /// An access to a BAR that was forwarded because its page is not mapped.
    BarAccessForwarded,
    /// An area of a BAR that the host did not map, so that its accesses trap.
    MapFailed,
    /// An area of a BAR that the host did not unmap.
    UnmapFailed,
    /// A BAR address of the guest that is out of the window or came with memory decoding on.
    BarMoveIgnored,
    /// Vectors that the host did not enable, disable or route.
    VectorFailed,
    /// A reset that the guest asked for.
    Reset,
    /// A reset that failed.
    ResetFailed,
    /// A return from a sleeping power state.
    Woken,
    /// An unrecoverable error that the device reported.
    DeviceError,
    /// A wish of the host to have the device back.
    ReturnRequested,
}

impl VfioCounter {
    const NAMES: &'static [&'static str] = &[
        "config_writes_dropped",
        "reads_failed",
        "writes_failed",
        "bar_accesses_forwarded",
        "maps_failed",
        "unmaps_failed",
        "bar_moves_ignored",
        "vector_failures",
        "resets",
        "resets_failed",
        "wake_ups",
        "device_errors",
        "return_requests",
    ];
}

/// One device of the host.
pub(super) struct Host {
    ops: Box<dyn VfioOps>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Host")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Host {
    pub(super) fn new(ops: Box<dyn VfioOps>) -> Self {
        Self {
            ops,
            counters: Arc::new(Counters::new(VfioCounter::NAMES)),
        }
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub(super) fn count(&self, counter: VfioCounter) {
        self.counters.add(counter as usize, 1);
    }

    /// Fills `data`, with all ones if that fails.
    pub(super) fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        if self.ops.read(region, offset, data).is_err() {
            self.count(VfioCounter::ReadFailed);
            data.fill(0xff);
        }
    }

    pub(super) fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.read(Region::Config, u64::from(offset), data);
    }

    pub(super) fn write(&self, region: Region, offset: u64, data: &[u8]) -> bool {
        let result = self.ops.write(region, offset, data);
        self.count_failure(result.is_ok(), VfioCounter::WriteFailed)
    }

    pub(super) fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        self.write(Region::Config, u64::from(offset), data)
    }

    pub(super) fn reset(&self) {
        self.count(VfioCounter::Reset);
        let result = self.ops.reset();
        self.count_failure(result.is_ok(), VfioCounter::ResetFailed);
    }

    pub(super) fn enable_vectors(&self, kind: VectorKind, first: u16, count: u16) -> bool {
        let result = self.ops.enable_vectors(kind, first, count);
        self.count_failure(result.is_ok(), VfioCounter::VectorFailed)
    }

    pub(super) fn disable_vectors(&self) {
        let result = self.ops.disable_vectors();
        self.count_failure(result.is_ok(), VfioCounter::VectorFailed);
    }

    pub(super) fn route_vector(&self, index: u16, message: Option<MsiMessage>) -> bool {
        let result = self.ops.route_vector(index, message);
        self.count_failure(result.is_ok(), VfioCounter::VectorFailed)
    }

    pub(super) fn take_fired(&self, index: u16) -> bool {
        self.ops.take_fired(index)
    }

    pub(super) fn map_area(&self, bar: u8, area: Area, address: u64) -> bool {
        let result = self.ops.map_area(bar, area, address);
        self.count_failure(result.is_ok(), VfioCounter::MapFailed)
    }

    pub(super) fn unmap_area(&self, bar: u8, area: Area, address: u64) {
        let result = self.ops.unmap_area(bar, area, address);
        self.count_failure(result.is_ok(), VfioCounter::UnmapFailed);
    }

    fn count_failure(&self, is_ok: bool, counter: VfioCounter) -> bool {
        if !is_ok {
            self.count(counter);
        }
        is_ok
    }
}
