//! A disk in memory that checks what its device promises to every back end, and completes when and
//! in which order the input says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use berth_vmm_devices::memory::Memory;
use berth_vmm_devices::virtio::block::backend::{
    BlockBackend, Completion, DiskFacts, NotMemory, Operation, RequestId, slices,
};
use vm_memory::{Permissions, VolatileSlice};

use crate::input::Input;

/// Length of the disk: few sectors, so that its end is near.
pub const DISK_BYTES: usize = 16 * 512;

/// Decisions about completions that one input makes.
pub const DECISIONS: usize = 16;

/// What a target sees of the disk while the device has it.
#[derive(Clone, Debug)]
pub struct DiskView(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    is_dirty: bool,
    /// What was started and is not complete.
    held: Vec<(RequestId, Operation, Memory)>,
}

impl DiskView {
    /// The present content.
    ///
    /// # Panics
    /// If the device panicked, which a fuzzer has seen already.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Whether something was written and not flushed.
    ///
    /// # Panics
    /// If the device panicked.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.lock().is_dirty
    }

    /// Whether a request is in progress.
    ///
    /// # Panics
    /// If the device panicked.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.lock().held.is_empty()
    }

    /// Whether the device still has the disk.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no device panics")
    }
}

/// What `input` says about completions: nothing, if bit 1 of `options` is clear, and all are
/// complete at once.
pub fn completion_order(options: u8, input: &mut Input<'_>) -> Option<Vec<u8>> {
    (options & 2 != 0).then(|| input.bytes(DECISIONS).to_vec())
}

/// The back end.
#[derive(Debug)]
pub struct CheckedDisk {
    view: DiskView,
    read_only: bool,
    /// The decisions that are left, if requests complete late.
    order: Option<Vec<u8>>,
    /// Nobody reads it.
    descriptor: File,
}

impl CheckedDisk {
    /// A disk of [`DISK_BYTES`] and the view of it. Writes to a read-only one panic.
    ///
    /// # Panics
    /// If the host has no descriptor left.
    #[must_use]
    pub fn new(read_only: bool, order: Option<Vec<u8>>) -> (Self, DiskView) {
        let state = State {
            bytes: (0_u8..=255).cycle().take(DISK_BYTES).collect(),
            is_dirty: false,
            held: Vec::new(),
        };
        let view = DiskView(Arc::new(Mutex::new(state)));
        let disk = Self {
            view: view.clone(),
            read_only,
            order,
            descriptor: File::open("/dev/null").expect("every host has it"),
        };
        (disk, view)
    }

    /// Completes the request at `index` of those in progress.
    fn complete(&self, index: usize) -> Completion {
        let mut state = self.view.lock();
        let (id, operation, memory) = state.held.remove(index);
        let result = state.perform(&operation, &memory);
        Completion { id, result }
    }
}

impl State {
    fn perform(&mut self, operation: &Operation, memory: &Memory) -> io::Result<()> {
        let buffers = |data, access| slices(data, memory, access).expect("it was checked before");
        match operation {
            Operation::Read { offset, data } => {
                let buffers = buffers(data, Permissions::Write);
                let mut start = checked_start(*offset, &buffers);
                for buffer in buffers {
                    buffer.copy_from(&self.bytes[start..start + buffer.len()]);
                    start += buffer.len();
                }
                Ok(())
            }
            Operation::Write { offset, data } => {
                let buffers = buffers(data, Permissions::Read);
                let mut start = checked_start(*offset, &buffers);
                for buffer in buffers {
                    buffer.copy_to(&mut self.bytes[start..start + buffer.len()]);
                    start += buffer.len();
                }
                self.is_dirty = true;
                Ok(())
            }
            Operation::Flush => {
                self.is_dirty = false;
                Ok(())
            }
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
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
    fn facts(&self) -> DiskFacts {
        DiskFacts::plain(DISK_BYTES as u64)
    }

    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory> {
        match operation {
            Operation::Read { data, .. } => drop(slices(data, memory, Permissions::Write)?),
            Operation::Write { data, .. } => {
                assert!(!self.read_only, "a write reached a read-only disk");
                drop(slices(data, memory, Permissions::Read)?);
            }
            Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. } => {}
        }
        let held = &mut self.view.lock().held;
        assert!(held.iter().all(|it| it.0 != id), "a number was given twice");
        held.push((id, operation.clone(), memory.clone()));
        Ok(())
    }

    fn next_completed(&mut self) -> Option<Completion> {
        let count = self.view.lock().held.len();
        let decision = self.order.as_mut().and_then(Vec::pop);
        match decision {
            _ if count == 0 => None,
            Some(decision) if decision & 0x80 != 0 => None,
            Some(decision) => Some(self.complete(usize::from(decision) % count)),
            None => Some(self.complete(0)),
        }
    }

    fn wait(&mut self) {
        // What comes next is complete: no decision puts it off.
        self.order = self.order.is_some().then(Vec::new);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.order.as_ref().map(|_| self.descriptor.as_fd())
    }
}
