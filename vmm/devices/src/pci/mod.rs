//! PCI: one bus of functions that the guest reaches through ECAM.

pub mod bar;
pub mod config_space;
pub mod msix;
pub mod root;

use bar::BarRequest;

/// Position of a function on bus 0, 1 to 31. Slot 0 is the host bridge. Functions other than 0 are
/// not there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DeviceSlot(u8);

impl DeviceSlot {
    /// The slot of PCI device number `number`, if that is 1 to 31.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (1..=31).contains(&number).then_some(Self(number))
    }

    /// The PCI device number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// Function 0 of one slot. Called from any vCPU thread, several at once.
///
/// `offset` and width of every access were checked: configuration accesses are 1, 2 or 4 bytes,
/// naturally aligned and below 4096; BAR accesses are 1, 2, 4 or 8 bytes inside the BAR.
pub trait PciFunction: Send + Sync {
    /// The BARs that want addresses. Asked once, before the guest runs.
    fn bar_requests(&self) -> Vec<BarRequest>;
    /// Gives the BAR that starts at register `index` its address. Called once per request, before
    /// the guest runs.
    fn assign_bar(&self, index: u8, address: u64);
    /// Fills `data` from configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Takes a write to configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// Fills `data` from the BAR at register `index`. All ones with memory decoding off.
    fn bar_read(&self, index: u8, offset: u64, data: &mut [u8]);
    /// Takes a write to the BAR at register `index`. Ignored with memory decoding off.
    fn bar_write(&self, index: u8, offset: u64, data: &[u8]);
}
