//! Counters of what a guest did against the rules. Devices bump, the control socket reads.
//!
//! A misbehaving guest is an everyday event: it costs one relaxed increment, no log line and no
//! panic. One set is shared by all devices of a machine.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the guest did. The name in [`GuestError::name`] is what statistics show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum GuestError {
    /// An access that no device answers.
    BusMiss,
    /// An access of a width other than 1, 2, 4 or 8, or across the end of a device.
    BusAccess,
    /// A PCI configuration access that is not naturally aligned or wider than 4 bytes.
    PciConfigAccess,
    /// An access to a BAR of a function with memory decoding off.
    PciBarDisabled,
    /// An MSI-X table or PBA access of the wrong width, alignment or offset.
    MsixAccess,
    /// An interrupt message that KVM refuses.
    MsiMessage,
    /// An access to a virtio register with the wrong width or at no register.
    VirtioRegister,
    /// A write to a queue register outside the time between `FEATURES_OK` and `DRIVER_OK`.
    VirtioQueueLocked,
    /// A queue size that is no power of two or above the device's.
    VirtioQueueSize,
    /// A queue index that the device does not have.
    VirtioQueueIndex,
    /// A device status that may not follow the present one.
    VirtioStatus,
    /// Features accepted that were not offered, or `VIRTIO_F_VERSION_1` refused.
    VirtioFeatures,
    /// A `PCI_CFG` window with a bad BAR, offset or length.
    VirtioConfigWindow,
    /// A ring that is misaligned or not wholly in RAM when the driver starts the device.
    VirtioRingAddress,
    /// A running queue with an impossible index or descriptor chain.
    VirtioQueueBroken,
    /// A well-formed chain that is no request of the device: wrong direction or length.
    VirtioRequest,
    /// A block request beyond the end of the disk.
    BlockRange,
    /// A block request of an unknown type, or a write to a read-only disk.
    BlockRefused,
    /// A power or reset register access of the wrong width.
    PowerAccess,
}

impl GuestError {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 19] = [
        Self::BusMiss,
        Self::BusAccess,
        Self::PciConfigAccess,
        Self::PciBarDisabled,
        Self::MsixAccess,
        Self::MsiMessage,
        Self::VirtioRegister,
        Self::VirtioQueueLocked,
        Self::VirtioQueueSize,
        Self::VirtioQueueIndex,
        Self::VirtioStatus,
        Self::VirtioFeatures,
        Self::VirtioConfigWindow,
        Self::VirtioRingAddress,
        Self::VirtioQueueBroken,
        Self::VirtioRequest,
        Self::BlockRange,
        Self::BlockRefused,
        Self::PowerAccess,
    ];

    /// The stable name for statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BusMiss => "bus_miss",
            Self::BusAccess => "bus_access",
            Self::PciConfigAccess => "pci_config_access",
            Self::PciBarDisabled => "pci_bar_disabled",
            Self::MsixAccess => "msix_access",
            Self::MsiMessage => "msi_message",
            Self::VirtioRegister => "virtio_register",
            Self::VirtioQueueLocked => "virtio_queue_locked",
            Self::VirtioQueueSize => "virtio_queue_size",
            Self::VirtioQueueIndex => "virtio_queue_index",
            Self::VirtioStatus => "virtio_status",
            Self::VirtioFeatures => "virtio_features",
            Self::VirtioConfigWindow => "virtio_config_window",
            Self::VirtioRingAddress => "virtio_ring_address",
            Self::VirtioQueueBroken => "virtio_queue_broken",
            Self::VirtioRequest => "virtio_request",
            Self::BlockRange => "block_range",
            Self::BlockRefused => "block_refused",
            Self::PowerAccess => "power_access",
        }
    }
}

/// One counter per [`GuestError`]; shared as `Arc<GuestErrors>`.
#[derive(Debug, Default)]
pub struct GuestErrors {
    counts: [AtomicU64; GuestError::ALL.len()],
}

impl GuestErrors {
    /// Counts one `error`.
    pub fn bump(&self, error: GuestError) {
        self.counter(error).fetch_add(1, Ordering::Relaxed);
    }

    /// How often `error` happened since the start.
    #[must_use]
    pub fn count(&self, error: GuestError) -> u64 {
        self.counter(error).load(Ordering::Relaxed)
    }

    /// The sum over all kinds. An access to an address without a device is left out: probing for
    /// devices is what every kernel does at start.
    #[must_use]
    pub fn total(&self) -> u64 {
        GuestError::ALL
            .into_iter()
            .filter(|&error| error != GuestError::BusMiss)
            .fold(0, |sum, error| sum.saturating_add(self.count(error)))
    }

    fn counter(&self, error: GuestError) -> &AtomicU64 {
        &self.counts[error as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_counter_and_name() {
        let errors = GuestErrors::default();
        for (position, error) in GuestError::ALL.into_iter().enumerate() {
            assert_eq!(error as usize, position);
            errors.bump(error);
        }
        assert!(
            GuestError::ALL
                .into_iter()
                .all(|error| errors.count(error) == 1)
        );
        let mut names: Vec<_> = GuestError::ALL.into_iter().map(GuestError::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), GuestError::ALL.len());
    }

    #[test]
    fn probing_empty_addresses_is_not_in_the_total() {
        let errors = GuestErrors::default();
        errors.bump(GuestError::BusMiss);
        errors.bump(GuestError::BlockRange);
        errors.bump(GuestError::BlockRange);
        assert_eq!(errors.total(), 2);
    }
}
