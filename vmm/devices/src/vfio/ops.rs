//! What the model of a passed-through function needs from the host, as intents.
//!
//! Owns the trait and its vocabulary. The machine implements it over VFIO and KVM for one opened
//! device; tests and fuzzers implement it over scripts. An implementation decides nothing: it does
//! what it is told, in the order in which it is told, and says whether that worked.
//!
//! The device's error and request interrupts are not here: the machine watches them and tells
//! whoever holds the guest.

use std::io;

use crate::interrupt::MsiMessage;

/// Number of BARs of an ordinary function.
pub const BAR_COUNT: usize = 6;

/// One part of the device that is read and written by offset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Region {
    /// Configuration space.
    Config,
    /// The BAR that starts at register 0 to 5.
    Bar(u8),
}

/// A part of a BAR, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Area {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// Which parts of a BAR the host can map into the guest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Mappable {
    /// None: every access traps.
    #[default]
    Nothing,
    /// All of it (the region's mmap flag without a list of areas).
    Whole,
    /// These (the region's sparse-mmap capability), in any order, not checked.
    Areas(Vec<Area>),
}

/// What the host says about one BAR. Nothing of it is checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BarInfo {
    /// Length; 0 where there is no BAR, as in the upper half of a 64-bit one.
    pub bytes: u64,
    /// Whether reads are possible.
    pub is_readable: bool,
    /// Whether writes are possible.
    pub is_writable: bool,
    /// What can be mapped.
    pub mappable: Mappable,
    /// Whether `mappable` may be believed for the pages of the MSI-X table (the region's
    /// msix-mappable capability). Without it no page of the table's BAR is mapped unless the areas
    /// are listed.
    pub is_msix_mappable: bool,
}

/// How many interrupts of each kind the host can deliver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct InterruptCounts {
    /// INTx: 1 if the device has a pin.
    pub intx: u32,
    /// MSI vectors.
    pub msi: u32,
    /// MSI-X vectors.
    pub msix: u32,
    /// Whether MSI-X vectors can be added while others are enabled (VFIO's no-resize flag is
    /// clear).
    pub can_add_msix: bool,
}

/// What the host says about the device. Nothing of it is checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Description {
    /// Length of configuration space: 256 or 4096.
    pub config_bytes: u64,
    /// The BARs by first register.
    pub bars: [BarInfo; BAR_COUNT],
    /// The interrupts.
    pub interrupts: InterruptCounts,
}

/// A kind of message-signalled interrupts. A device uses at most one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum VectorKind {
    /// MSI.
    Msi,
    /// MSI-X.
    MsiX,
}

/// One opened device of the host. Called from any vCPU thread, with the function's lock held for
/// everything but [`VfioOps::read`] and [`VfioOps::write`] of BARs, which may run several at once.
/// An implementation must not call back into the model.
pub trait VfioOps: Send + Sync {
    /// What the device is made of. Asked once, before the guest runs.
    ///
    /// # Errors
    /// If any part cannot be found out: a device that is half known is refused.
    fn describe(&self) -> io::Result<Description>;

    /// Fills all of `data` from `offset` of `region`. Widths are 1, 2, 4 or 8 bytes and are done
    /// as one access.
    ///
    /// # Errors
    /// What the kernel says: `EIO` while memory decoding is off or the device sleeps. A short
    /// read is an error.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset` of `region`; widths as in [`VfioOps::read`].
    ///
    /// # Errors
    /// What the kernel says. A short write is an error.
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Resets the function (`VFIO_DEVICE_RESET`). Vectors are off and no BAR is mapped when this
    /// is called.
    ///
    /// # Errors
    /// What the kernel says.
    fn reset(&self) -> io::Result<()>;

    /// Makes vectors `first..first + count` of `kind` able to fire: each gets an event of its own,
    /// which is routed nowhere yet and remembers that it fired. `count` is at least 1.
    ///
    /// With `first` 0 nothing was enabled before. Another `first` is the number of vectors that
    /// are enabled, whose events and routes stay; only for MSI-X, and only with
    /// [`InterruptCounts::can_add_msix`].
    ///
    /// # Errors
    /// What the kernel says, after which the vectors before `first` are as they were and the others
    /// are off.
    fn enable_vectors(&self, kind: VectorKind, first: u16, count: u16) -> io::Result<()>;

    /// Turns all vectors off, their routes and events with them. Does nothing if none is enabled.
    ///
    /// # Errors
    /// What the kernel says; the routes are gone all the same.
    fn disable_vectors(&self) -> io::Result<()>;

    /// Delivers vector `index`, which is enabled, as `message` from here on (route first, then the
    /// event bound to it), or with `None` no longer (event unbound first). An event that fired
    /// while it was bound to nothing is delivered once when it is bound, unless
    /// [`VfioOps::take_fired`] took it.
    ///
    /// # Errors
    /// What the kernel says, after which the vector is routed nowhere.
    fn route_vector(&self, index: u16, message: Option<MsiMessage>) -> io::Result<()>;

    /// Whether vector `index`, which is enabled and routed nowhere, fired since it was unrouted or
    /// last asked for. Forgets it.
    fn take_fired(&self, index: u16) -> bool;

    /// Lets the guest reach `area` of BAR `bar` at guest physical `address` without an exit, and
    /// other devices by DMA where the machine's owner chose that. All three numbers are multiples
    /// of 4096, and `area` lies inside what [`Description`] called mappable.
    ///
    /// # Errors
    /// What the kernel says, after which nothing of `area` is mapped.
    fn map_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()>;

    /// Takes back exactly one [`VfioOps::map_area`]. No vCPU reaches the area when this returns.
    ///
    /// # Errors
    /// What the kernel says. The model counts it and treats the area as not mapped.
    fn unmap_area(&self, bar: u8, area: Area, address: u64) -> io::Result<()>;
}
