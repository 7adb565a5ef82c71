//! A disk in memory that checks what its device promises to every back end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use berth_vmm_devices::virtio::block::backend::BlockBackend;
use vm_memory::VolatileSlice;

/// Length of the disk: few sectors, so that its end is near.
pub const DISK_BYTES: usize = 16 * 512;

/// What a target sees of the disk while the device has it.
#[derive(Clone, Debug)]
pub struct DiskView {
    bytes: Arc<Mutex<Vec<u8>>>,
    is_dirty: Arc<AtomicBool>,
}

impl DiskView {
    /// The present content.
    ///
    /// # Panics
    /// If the device panicked, which a fuzzer has seen already.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.bytes.lock().expect("no device panics").clone()
    }

    /// Whether something was written and not flushed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.is_dirty.load(Ordering::SeqCst)
    }
}

/// The back end.
#[derive(Debug)]
pub struct CheckedDisk {
    view: DiskView,
    read_only: bool,
}

impl CheckedDisk {
    /// A disk of [`DISK_BYTES`] and the view of it. Writes to a read-only one panic.
    #[must_use]
    pub fn new(read_only: bool) -> (Self, DiskView) {
        let pattern = (0_u8..=255).cycle().take(DISK_BYTES).collect();
        let view = DiskView {
            bytes: Arc::new(Mutex::new(pattern)),
            is_dirty: Arc::default(),
        };
        let disk = Self {
            view: view.clone(),
            read_only,
        };
        (disk, view)
    }
}

/// Where a transfer begins, after the checks that [`BlockBackend`] leaves to the device.
fn checked_start(offset: u64, buffers: &[VolatileSlice<'_>]) -> usize {
    let bytes: usize = buffers.iter().map(VolatileSlice::len).sum();
    let start = usize::try_from(offset).expect("an offset lies on the disk");
    assert!(
        bytes <= DISK_BYTES && start <= DISK_BYTES - bytes,
        "past the end of the disk"
    );
    assert!(start % 512 == 0 && bytes % 512 == 0, "not whole sectors");
    start
}

impl BlockBackend for CheckedDisk {
    fn bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn read_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut start = checked_start(offset, buffers);
        let disk = self.view.bytes.lock().expect("no device panics");
        for buffer in buffers {
            buffer.copy_from(&disk[start..start + buffer.len()]);
            start += buffer.len();
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        assert!(!self.read_only, "a write reached a read-only disk");
        let mut start = checked_start(offset, buffers);
        let mut disk = self.view.bytes.lock().expect("no device panics");
        for buffer in buffers {
            buffer.copy_to(&mut disk[start..start + buffer.len()]);
            start += buffer.len();
        }
        self.view.is_dirty.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.view.is_dirty.store(false, Ordering::SeqCst);
        Ok(())
    }
}
