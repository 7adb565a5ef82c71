//! Stateful stand-ins for the host: they keep what a host keeps, and can be told to fail.
//!
//! [`Fuse`] is how a test kills an agent: from a chosen step on, no call has any effect. What was
//! done before stays, as it does when a process dies, and the next agent finds it.

mod slot_devices;
mod units;
mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_agent_core::slot::record::SlotRecord;
use berth_agent_core::vm_record::VmRecord;
use berth_api::agent::SignedEnvelope;
use berth_api::ids::{ReceiptId, SlotId, VmId};

use tokio::sync::watch;

use crate::service_manager::{DescriptorStore, NotifyError};
use crate::slot_files::{LinuxSlotFiles, SlotFiles, SlotFilesError};
use crate::vm_files::{FilePresence, GuestFiles, LinuxVmFiles, VmFiles, VmFilesError};

pub use slot_devices::{DeviceCall, DeviceFault, FakeDevice, FakeSlotDevices, GUEST_PID};
pub use units::{FakeUnits, GuestBehaviour};
pub use wire::{HeardStart, receive_datagram, receive_start};

/// The lock's content, whether or not a test thread died holding it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Burns through at a chosen step; then nothing has any effect any more.
#[derive(Debug, Clone)]
pub struct Fuse {
    state: Arc<Mutex<FuseState>>,
    burnt: watch::Sender<bool>,
}

#[derive(Debug)]
struct FuseState {
    steps: u32,
    last: Option<u32>,
    after_effect: bool,
}

/// Whether a step may be taken, and whether its caller hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spark {
    /// Do it.
    Whole,
    /// Do it, and report a failure: the agent dies right after the effect.
    DiesAfter,
    /// Do nothing: the agent is dead.
    Dead,
}

impl Fuse {
    /// A fuse that never burns.
    #[must_use]
    pub fn whole() -> Self {
        Self::new(None, false)
    }

    /// A fuse that burns at step `step`, counted from 0: before that step's effect, or after it.
    #[must_use]
    pub fn burning_at(step: u32, after_effect: bool) -> Self {
        Self::new(Some(step), after_effect)
    }

    fn new(last: Option<u32>, after_effect: bool) -> Self {
        Self {
            state: Arc::new(Mutex::new(FuseState {
                steps: 0,
                last,
                after_effect,
            })),
            burnt: watch::Sender::new(false),
        }
    }

    /// Take a step.
    #[must_use]
    pub fn step(&self) -> Spark {
        let mut state = lock(&self.state);
        let step = state.steps;
        state.steps = step.saturating_add(1);
        let spark = match state.last {
            None => Spark::Whole,
            Some(last) if step < last => Spark::Whole,
            Some(last) if step == last && state.after_effect => Spark::DiesAfter,
            Some(_) => Spark::Dead,
        };
        if spark == Spark::Dead {
            self.burnt.send_replace(true);
        }
        spark
    }

    /// Whether it has burnt through.
    #[must_use]
    pub fn is_burnt(&self) -> bool {
        *self.burnt.borrow()
    }

    /// Returns when it has burnt through.
    pub async fn burnt(&self) {
        let mut burnt = self.burnt.subscribe();
        // The sender is ours, so it cannot be gone.
        drop(burnt.wait_for(|burnt| *burnt).await);
    }

    /// Note that the last step has had its effect and is not heard of any more.
    fn burn(&self) {
        self.burnt.send_replace(true);
    }

    fn guard<T, E>(
        &self,
        dead: impl Fn() -> E,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match self.step() {
            Spark::Whole => act(),
            Spark::DiesAfter => {
                let done = act();
                self.burn();
                done.and_then(|_| Err(dead()))
            }
            Spark::Dead => Err(dead()),
        }
    }
}

/// Real files with a fuse.
#[derive(Debug)]
pub struct FaultyVmFiles {
    inner: LinuxVmFiles,
    fuse: Fuse,
}

impl FaultyVmFiles {
    /// Files that fail when the fuse burns.
    #[must_use]
    pub fn new(inner: LinuxVmFiles, fuse: Fuse) -> Self {
        Self { inner, fuse }
    }

    fn guard<T>(&self, act: impl FnOnce() -> Result<T, VmFilesError>) -> Result<T, VmFilesError> {
        self.fuse.guard(|| VmFilesError::Injected, act)
    }
}

impl VmFiles for FaultyVmFiles {
    fn list(&self) -> Result<Vec<VmId>, VmFilesError> {
        self.inner.list()
    }

    fn read_record(&self, vm_id: VmId) -> Result<Option<VmRecord>, VmFilesError> {
        self.inner.read_record(vm_id)
    }

    fn write_record(&self, record: &VmRecord) -> Result<(), VmFilesError> {
        self.guard(|| self.inner.write_record(record))
    }

    fn presence(&self, vm_id: VmId) -> Result<FilePresence, VmFilesError> {
        self.inner.presence(vm_id)
    }

    fn ensure_disk(&self, vm_id: VmId, image: &File, disk_mib: u64) -> Result<(), VmFilesError> {
        self.guard(|| self.inner.ensure_disk(vm_id, image, disk_mib))
    }

    fn open_guest(&self, vm_id: VmId) -> Result<GuestFiles, VmFilesError> {
        self.guard(|| self.inner.open_guest(vm_id))
    }

    fn read_consoles(&self, vm_id: VmId) -> Result<[Vec<u8>; 2], VmFilesError> {
        self.inner.read_consoles(vm_id)
    }

    fn ensure_gone(&self, vm_id: VmId) -> Result<(), VmFilesError> {
        self.guard(|| self.inner.ensure_gone(vm_id))
    }
}

/// Real files of slots with a fuse.
#[derive(Debug)]
pub struct FaultySlotFiles {
    inner: LinuxSlotFiles,
    fuse: Fuse,
}

impl FaultySlotFiles {
    /// Files that fail when the fuse burns.
    #[must_use]
    pub fn new(inner: LinuxSlotFiles, fuse: Fuse) -> Self {
        Self { inner, fuse }
    }

    fn guard<T>(
        &self,
        act: impl FnOnce() -> Result<T, SlotFilesError>,
    ) -> Result<T, SlotFilesError> {
        self.fuse.guard(|| SlotFilesError::Injected, act)
    }
}

impl SlotFiles for FaultySlotFiles {
    fn list(&self) -> Result<Vec<SlotId>, SlotFilesError> {
        self.inner.list()
    }

    fn read_record(&self, slot_id: SlotId) -> Result<Option<SlotRecord>, SlotFilesError> {
        self.inner.read_record(slot_id)
    }

    fn set_record_aside(&self, slot_id: SlotId) -> Result<(), SlotFilesError> {
        self.guard(|| self.inner.set_record_aside(slot_id))
    }

    fn write_record(&self, record: &SlotRecord) -> Result<(), SlotFilesError> {
        self.guard(|| self.inner.write_record(record))
    }

    fn ensure_receipt(
        &self,
        slot_id: SlotId,
        receipt_id: ReceiptId,
        receipt: &SignedEnvelope,
    ) -> Result<(), SlotFilesError> {
        self.guard(|| self.inner.ensure_receipt(slot_id, receipt_id, receipt))
    }
}

/// A descriptor store that outlives its agent, as systemd's does.
#[derive(Debug, Clone)]
pub struct FakeDescriptorStore {
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    fuse: Fuse,
}

impl FakeDescriptorStore {
    /// An empty store.
    #[must_use]
    pub fn new(fuse: Fuse) -> Self {
        Self {
            kept: Arc::default(),
            fuse,
        }
    }

    /// The same store for the next agent, with what is kept in it.
    #[must_use]
    pub fn for_next_agent(&self, fuse: Fuse) -> (Self, Vec<(String, OwnedFd)>) {
        let kept = lock(&self.kept)
            .iter()
            .filter_map(|(name, fd)| Some((name.clone(), fd.try_clone().ok()?)))
            .collect();
        let next = Self {
            kept: Arc::clone(&self.kept),
            fuse,
        };
        (next, kept)
    }

    /// The names under which something is kept.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        lock(&self.kept).keys().cloned().collect()
    }
}

impl DescriptorStore for FakeDescriptorStore {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), NotifyError> {
        self.fuse.guard(
            || NotifyError::Injected,
            || {
                let copy = descriptor
                    .try_clone_to_owned()
                    .map_err(|_| NotifyError::Injected)?;
                lock(&self.kept).insert(name.to_owned(), copy);
                Ok(())
            },
        )
    }

    fn forget(&self, name: &str) -> Result<(), NotifyError> {
        self.fuse.guard(
            || NotifyError::Injected,
            || {
                lock(&self.kept).remove(name);
                Ok(())
            },
        )
    }
}
