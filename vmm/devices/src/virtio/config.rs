//! The device configuration space: what the driver reads and, in places, writes, while the device
//! itself is on another thread.
//!
//! Owns the bytes, their generation and the interrupt that a change raises. What the bytes mean is
//! the device's.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use super::interrupt::VirtioInterrupt;
use crate::sync::lock;

/// One device's configuration space, shared by its transport and whoever changes it.
#[derive(Debug)]
pub struct DeviceConfig {
    state: Mutex<State>,
    /// The bytes that the driver may write.
    writable: Range<usize>,
    length: usize,
    interrupt: OnceLock<Arc<VirtioInterrupt>>,
}

#[derive(Debug)]
struct State {
    bytes: Box<[u8]>,
    generation: u8,
}

impl DeviceConfig {
    /// A configuration that nobody changes.
    #[must_use]
    pub fn constant(bytes: &[u8]) -> Arc<Self> {
        Self::with_writable(bytes, 0..0)
    }

    /// A configuration of which the driver may write the bytes `writable`.
    #[must_use]
    pub fn with_writable(bytes: &[u8], writable: Range<usize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                bytes: bytes.into(),
                generation: 0,
            }),
            writable,
            length: bytes.len(),
            interrupt: OnceLock::new(),
        })
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The little-endian `u32` at `offset`; 0 where there is none.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> u32 {
        let mut value = [0; 4];
        self.read(offset, &mut value);
        u32::from_le_bytes(value)
    }

    /// Changes the bytes at `offset` on the device's behalf: a new generation, and an interrupt for
    /// the driver. Bytes beyond the end are ignored.
    pub fn update(&self, offset: usize, bytes: &[u8]) {
        {
            let mut state = lock(&self.state);
            state.put(offset, bytes);
            state.generation = state.generation.wrapping_add(1);
        }
        if let Some(interrupt) = self.interrupt.get() {
            interrupt.config_changed();
        }
    }

    /// Fills `data` from `offset` on: 0 beyond the end.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let state = lock(&self.state);
        data.fill(0);
        let there = state.bytes.get(offset..).unwrap_or(&[]);
        for (byte, &value) in data.iter_mut().zip(there) {
            *byte = value;
        }
    }

    /// Takes what the driver writes; false, and nothing happens, if it may not write there.
    pub(super) fn write(&self, offset: usize, data: &[u8]) -> bool {
        let is_allowed = offset >= self.writable.start
            && offset
                .checked_add(data.len())
                .is_some_and(|end| end <= self.writable.end);
        if is_allowed {
            lock(&self.state).put(offset, data);
        }
        is_allowed
    }

    pub(super) fn generation(&self) -> u8 {
        lock(&self.state).generation
    }

    /// Tells where changes are announced.
    pub(super) fn connect(&self, interrupt: Arc<VirtioInterrupt>) {
        // A device has one transport for all its life.
        self.interrupt.set(interrupt).unwrap_or(());
    }
}

impl State {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let there = self.bytes.get_mut(offset..).unwrap_or(&mut []);
        for (byte, &value) in there.iter_mut().zip(bytes) {
            *byte = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_writes_only_where_it_may() {
        let config = DeviceConfig::with_writable(&[1, 2, 3, 4, 5, 6, 7, 8], 4..8);
        assert!(config.write(4, &[9, 9]));
        assert!(!config.write(3, &[0, 0]));
        assert!(!config.write(6, &[0, 0, 0]));
        assert!(!config.write(usize::MAX, &[0]));
        assert_eq!(config.u32_at(0), 0x0403_0201);
        assert_eq!(config.u32_at(4), 0x0807_0909);
        assert_eq!(config.generation(), 0);
    }

    #[test]
    fn every_update_is_a_new_generation_and_stays_inside() {
        let config = DeviceConfig::constant(&[0; 4]);
        config.update(2, &[7, 8, 9]);
        config.update(100, &[1]);
        assert_eq!(config.u32_at(0), 0x0807_0000);
        assert_eq!(config.u32_at(100), 0);
        assert_eq!(config.generation(), 2);
    }
}
