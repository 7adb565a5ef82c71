//! How the driver reaches a drive: registers, memory that the drive can reach too, and time.
//!
//! VFIO is one implementation, in `berth-agent-host`; the controller model is the other. Nothing here
//! knows what the registers mean.

use std::io;
use std::time::Duration;

/// Bytes of one page of the memory that is shared with the drive. The driver sets the drive to this
/// page size, whatever the host's is.
pub const PAGE_BYTES: usize = 4096;

/// Pages that the driver needs: two queue pairs, one PRP list, metadata, and a data buffer.
pub const DMA_PAGES: usize = 6 + DATA_PAGES;

/// Pages of the data buffer: 256 KiB.
pub(crate) const DATA_PAGES: usize = 64;

/// A drive's registers, memory that the drive can reach, and time.
///
/// The drive is hostile: it may change the shared memory at any instant, so that implementations copy
/// (volatile, no references) and the driver copies each value once.
///
/// Order: a register write is seen by the drive after all earlier [`Transport::write_memory`]; what a
/// [`Transport::read_memory`] returns was read after all earlier reads of either kind.
pub trait Transport {
    /// Read a 32-bit register of BAR 0. `offset` is a multiple of 4, in bytes. 64-bit registers are read
    /// in two halves, which NVMe Base 3.1 allows for all of them.
    ///
    /// # Errors
    /// If the host says that the device did not answer. All ones may be returned instead.
    fn read_register(&mut self, offset: u32) -> Result<u32, TransportError>;

    /// Write a 32-bit register of BAR 0; lower half first where a register has 64 bits.
    ///
    /// # Errors
    /// If the host says that the device did not answer, or `offset` is outside the BAR.
    fn write_register(&mut self, offset: u32, value: u32) -> Result<(), TransportError>;

    /// The address by which the drive reaches each page of the shared memory, in the order of
    /// [`Transport::read_memory`]'s offsets; each a multiple of [`PAGE_BYTES`], not necessarily
    /// adjacent. At least [`DMA_PAGES`] of them; the same ones at each call.
    fn page_addresses(&self) -> &[u64];

    /// Copy out of the shared memory, from `offset` bytes on.
    ///
    /// # Errors
    /// If the range is outside the shared memory.
    fn read_memory(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), TransportError>;

    /// Copy into the shared memory, from `offset` bytes on.
    ///
    /// # Errors
    /// If the range is outside the shared memory.
    fn write_memory(&mut self, offset: usize, bytes: &[u8]) -> Result<(), TransportError>;

    /// Time since some fixed instant; never goes back, goes on while the host is suspended or not.
    fn now(&mut self) -> Duration;

    /// Let this much time go by, at least.
    fn sleep(&mut self, duration: Duration);
}

/// Why a drive could not be reached. Says nothing about what the drive did.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A register access failed.
    #[error("the drive does not answer at register {offset:#x}")]
    Register {
        /// Which register, in bytes from the start of BAR 0.
        offset: u32,
        /// What the host said.
        source: io::Error,
    },
    /// A range outside the shared memory, or outside the BAR.
    #[error("bytes {offset:#x} to {end:#x} are outside what is shared with the drive")]
    OutOfRange {
        /// First byte.
        offset: usize,
        /// Byte after the last one.
        end: usize,
    },
}
