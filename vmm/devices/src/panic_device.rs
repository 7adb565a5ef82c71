//! The pvpanic device: one byte by which a guest says that it panicked.
//!
//! Owns the register and the counting. Each kind of panic is told once: a guest may write as often
//! as it likes. What follows from a panic is the business of whoever is told.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::counters::Counters;

/// Length of the register's range, in bytes.
pub const PANIC_BYTES: u64 = 1;

/// What a guest says by one bit of the register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PanicKind {
    /// It panicked.
    Panicked,
    /// It panicked and starts its own crash kernel.
    CrashLoaded,
}

impl PanicKind {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 2] = [Self::Panicked, Self::CrashLoaded];
    const NAMES: [&str; 2] = ["panicked", "crash_loaded"];

    /// The bit of the register.
    #[must_use]
    pub fn bit(self) -> u8 {
        match self {
            Self::Panicked => 1,
            Self::CrashLoaded => 1 << 1,
        }
    }
}

/// Called on the vCPU thread that wrote the register.
pub type OnPanic = Box<dyn Fn(PanicKind) + Send + Sync>;

/// A bus device of [`PANIC_BYTES`]. Reads tell the kinds that it knows.
pub struct PanicDevice {
    told: AtomicU8,
    counters: Arc<Counters>,
    on_panic: OnPanic,
}

impl PanicDevice {
    /// A device that tells `on_panic` each kind once.
    #[must_use]
    pub fn new(on_panic: OnPanic) -> Self {
        Self {
            told: AtomicU8::new(0),
            counters: Arc::new(Counters::new(&PanicKind::NAMES)),
            on_panic,
        }
    }

    /// How often the guest said each kind.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl fmt::Debug for PanicDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PanicDevice")
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

impl BusDevice for PanicDevice {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = PanicKind::ALL
                .iter()
                .fold(0, |bits, kind| bits | kind.bit());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        for (position, kind) in PanicKind::ALL.into_iter().enumerate() {
            if value & kind.bit() == 0 {
                continue;
            }
            self.counters.add(position, 1);
            if self.told.fetch_or(kind.bit(), Ordering::SeqCst) & kind.bit() == 0 {
                (self.on_panic)(kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn device() -> (PanicDevice, Arc<Mutex<Vec<PanicKind>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let device = PanicDevice::new(Box::new(move |kind| sink.lock().unwrap().push(kind)));
        (device, told)
    }

    #[test]
    fn a_driver_reads_which_events_there_are() {
        let (device, told) = device();
        let (mut byte, mut wide) = ([0], [0; 2]);
        device.read(0, &mut byte);
        device.read(0, &mut wide);
        assert_eq!((byte, wide), ([3], [0xff; 2]));
        assert!(told.lock().unwrap().is_empty());
    }

    #[test]
    fn each_kind_is_told_once_and_counted_always() {
        let (device, told) = device();
        for value in [0, 0xfc, 1, 1, 3, 2] {
            device.write(0, &[value]);
        }
        device.write(0, &[1, 0]);
        assert_eq!(
            *told.lock().unwrap(),
            [PanicKind::Panicked, PanicKind::CrashLoaded]
        );
        let counters: Vec<_> = device.counters().iter().collect();
        assert_eq!(counters, [("panicked", 3), ("crash_loaded", 2)]);
    }
}
