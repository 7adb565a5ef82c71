//! Interrupts that a device sent, counted and kept for a look.

use std::sync::Mutex;

use berth_vmm_devices::interrupt::{MsiMessage, MsiSender};

/// A receiver of messages.
#[derive(Debug, Default)]
pub struct Messages(Mutex<Vec<MsiMessage>>);

impl Messages {
    /// The messages since the last call.
    ///
    /// # Panics
    /// If a sender panicked, which a fuzzer has seen already.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut *self.0.lock().expect("no sender panics"))
    }
}

impl MsiSender for Messages {
    fn send(&self, message: MsiMessage) {
        self.0.lock().expect("no sender panics").push(message);
    }
}
