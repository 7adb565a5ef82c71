//! The interrupt state that the transport, on vCPU threads, and the active device, on the I/O
//! thread, share: MSI-X, which vector is whose, ISR and the wish for a reset.
//!
//! Owns no device. The MSI-X lock is the only one and is held for a register access or a message.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::pci::msix::{MSIX_NO_VECTOR, Msix};
use crate::sync::lock;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// Interrupts of one virtio function.
#[derive(Debug)]
pub struct VirtioInterrupt {
    msix: Mutex<Msix>,
    vector_count: u16,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    isr: AtomicU8,
    needs_reset: AtomicBool,
}

impl VirtioInterrupt {
    /// Interrupts of a function with `queues` queues, none of which has a vector.
    #[must_use]
    pub fn new(queues: usize, msix: Msix) -> Self {
        Self {
            vector_count: msix.vector_count(),
            msix: Mutex::new(msix),
            config_vector: AtomicU16::new(MSIX_NO_VECTOR),
            queue_vectors: (0..queues)
                .map(|_| AtomicU16::new(MSIX_NO_VECTOR))
                .collect(),
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Tells the driver that queue `index` has used buffers.
    pub fn queue_used(&self, index: u16) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        self.msix().signal(self.queue_vector(index));
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        let vector = self.config_vector();
        self.msix().signal(vector);
    }

    /// Asks the driver for a reset: sets `DEVICE_NEEDS_RESET` and interrupts.
    pub fn ask_for_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.config_changed();
    }

    pub(super) fn msix(&self) -> MutexGuard<'_, Msix> {
        lock(&self.msix)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Reads the ISR register, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::SeqCst);
    }

    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(index));
        vector.map_or(MSIX_NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    /// Back to the state after power-on, but for the vector table, which is the bus driver's.
    pub(super) fn reset(&self) {
        self.config_vector.store(MSIX_NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(MSIX_NO_VECTOR, Ordering::SeqCst);
        }
        self.isr.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.msix().clear_pending();
    }

    /// A vector that is not in the table reads back as "no vector": the driver's sign that the
    /// mapping failed (virtio 1.2, 4.1.5.1.2.1).
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.vector_count {
            vector
        } else {
            MSIX_NO_VECTOR
        }
    }
}
