//! Registers of BAR 0 (NVMe Base 2.0, 3.1.3): where they are and what their bits mean. No access.

use std::time::Duration;

/// CAP, 64 bits.
pub(crate) const CAP: u32 = 0x00;
/// VS.
pub(crate) const VS: u32 = 0x08;
/// CC.
pub(crate) const CC: u32 = 0x14;
/// CSTS.
pub(crate) const CSTS: u32 = 0x1c;
/// AQA.
pub(crate) const AQA: u32 = 0x24;
/// ASQ, 64 bits.
pub(crate) const ASQ: u32 = 0x28;
/// ACQ, 64 bits.
pub(crate) const ACQ: u32 = 0x30;
/// BPINFO.
pub(crate) const BPINFO: u32 = 0x40;
/// The first doorbell.
pub(crate) const DOORBELLS: u32 = 0x1000;

/// CC with the controller on: NVM command set, 4 KiB pages, round robin, entries of 64 and 16 bytes.
pub(crate) const CC_ON: u32 = 1 | (6 << 16) | (4 << 20);
/// CC.EN.
pub(crate) const CC_EN: u32 = 1;
/// CC.SHN, normal shutdown.
pub(crate) const CC_SHN_NORMAL: u32 = 1 << 14;
/// CSTS.RDY.
pub(crate) const CSTS_RDY: u32 = 1;
/// CSTS.CFS.
pub(crate) const CSTS_CFS: u32 = 1 << 1;
/// CSTS.SHST, and its value when a shutdown is complete.
pub(crate) const CSTS_SHST: u32 = 3 << 2;
pub(crate) const CSTS_SHST_COMPLETE: u32 = 2 << 2;

/// No controller is given less than this to become ready, whatever it says of itself.
const READY_AT_LEAST: Duration = Duration::from_secs(5);

/// What CAP says, as far as the driver needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    pub(crate) fn new(value: u64) -> Self {
        Self(value)
    }

    fn field(self, low: u32, bits: u32) -> u16 {
        debug_assert!(bits <= 16, "fields of CAP have at most 16 bits");
        let value = (self.0 >> low) & ((1 << bits) - 1);
        u16::try_from(value).unwrap_or(u16::MAX)
    }

    /// Entries of the longest queue (MQES, which is one less).
    pub(crate) fn max_entries(self) -> u32 {
        u32::from(self.field(0, 16)) + 1
    }

    /// How long the controller may take to become ready or not ready (TO).
    pub(crate) fn ready_limit(self) -> Duration {
        (Duration::from_millis(500) * u32::from(self.field(24, 8))).max(READY_AT_LEAST)
    }

    /// Whether the NVM command set is there (CSS, bit 0).
    pub(crate) fn has_nvm_command_set(self) -> bool {
        self.field(37, 1) != 0
    }

    /// Whether there may be namespaces of other command sets (CSS, bit 6).
    pub(crate) fn has_other_command_sets(self) -> bool {
        self.field(43, 1) != 0
    }

    /// Whether there are boot partitions (BPS).
    pub(crate) fn has_boot_partitions(self) -> bool {
        self.field(45, 1) != 0
    }

    /// Whether there is a persistent memory region (PMRS).
    pub(crate) fn has_persistent_memory(self) -> bool {
        self.field(56, 1) != 0
    }

    /// Bytes of the smallest page (MPSMIN).
    pub(crate) fn min_page_bytes(self) -> u64 {
        4096 << self.field(48, 4)
    }

    /// Where a queue's doorbell is; `completion` for the head of its completion queue (DSTRD).
    pub(crate) fn doorbell(self, queue: u16, completion: bool) -> u32 {
        let index = u32::from(queue) * 2 + u32::from(completion);
        DOORBELLS + index * (4 << self.field(32, 4))
    }
}

/// What BPINFO says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootPartitions {
    /// Bytes of each of the two (BPSZ).
    pub(crate) bytes: u64,
    /// Which one is active (ABPID).
    pub(crate) active: u8,
}

impl BootPartitions {
    pub(crate) fn new(value: u32) -> Self {
        Self {
            bytes: u64::from(value & 0x7fff) * 128 * 1024,
            active: u8::from(value >> 31 != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_cap_are_where_the_specification_has_them() {
        let cap =
            Capabilities::new(0x7ff | (20 << 24) | (2 << 32) | (1 << 37) | (1 << 45) | (1 << 48));
        assert_eq!(cap.max_entries(), 0x800);
        assert_eq!(cap.ready_limit(), Duration::from_secs(10));
        assert!(cap.has_nvm_command_set() && cap.has_boot_partitions());
        assert!(!cap.has_other_command_sets());
        assert_eq!(cap.min_page_bytes(), 8192);
        assert_eq!(cap.doorbell(0, false), 0x1000);
        assert_eq!(cap.doorbell(1, true), 0x1000 + 3 * 16);
    }

    #[test]
    fn a_cap_of_all_ones_neither_overflows_nor_waits_for_ever() {
        let cap = Capabilities::new(u64::MAX);
        assert_eq!(cap.max_entries(), 65536);
        assert!(cap.ready_limit() < Duration::from_secs(128));
        assert_eq!(cap.min_page_bytes(), 1 << 27);
        assert!(cap.doorbell(1, true) > 0x1000);
    }
}
