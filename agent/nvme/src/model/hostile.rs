//! A modelled drive whose answers are, at places that a script of bytes chooses, whatever those bytes say:
//! registers, completions, identities, logs, blocks. For tests and fuzzing of a driver that has to stand
//! any of it.

use std::time::Duration;

use crate::transport::{Transport, TransportError};

use super::Model;

/// Honest accesses between two lies, at most.
const LONGEST_HONESTY: u64 = 2048;

/// A drive that lies as its bytes say, and is as its model is when they are used up.
#[derive(Debug)]
pub struct Hostile<'a> {
    /// The drive beneath.
    pub model: Model,
    lies: &'a [u8],
    honest_for: u64,
    accesses: u64,
}

impl<'a> Hostile<'a> {
    /// A drive that lies as the bytes say: how many accesses are honest first, then the lie, and again.
    #[must_use]
    pub fn new(model: Model, lies: &'a [u8]) -> Self {
        let mut hostile = Self {
            model,
            lies,
            honest_for: 0,
            accesses: 0,
        };
        hostile.honest_for = hostile.number() % LONGEST_HONESTY;
        hostile
    }

    /// How often the driver read something.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// Up to `count` bytes of what is left.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.lies.split_at(count.min(self.lies.len()));
        self.lies = rest;
        taken
    }

    /// A number of 16 bits; zeroes are added to what is left.
    fn number(&mut self) -> u64 {
        let taken = self.bytes(2).iter().rev();
        taken.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn is_lying(&mut self) -> bool {
        self.accesses += 1;
        if self.honest_for > 0 || self.lies.is_empty() {
            self.honest_for = self.honest_for.saturating_sub(1);
            return false;
        }
        self.honest_for = self.number() % LONGEST_HONESTY;
        true
    }
}

impl Transport for Hostile<'_> {
    fn read_register(&mut self, offset: u32) -> Result<u32, TransportError> {
        let honest = self.model.read_register(offset)?;
        if !self.is_lying() {
            return Ok(honest);
        }
        let lie = self.number() << 16 | self.number();
        Ok(u32::try_from(lie).unwrap_or(u32::MAX))
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Result<(), TransportError> {
        self.model.write_register(offset, value)
    }

    fn page_addresses(&self) -> &[u64] {
        self.model.page_addresses()
    }

    fn read_memory(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), TransportError> {
        self.model.read_memory(offset, bytes)?;
        if self.is_lying() {
            let at = usize::try_from(self.number()).unwrap_or(0) % bytes.len().max(1);
            let count = usize::try_from(self.number() % 256).unwrap_or(0) + 1;
            let lie = self.bytes(count);
            for (place, byte) in bytes.iter_mut().skip(at).zip(lie) {
                *place = *byte;
            }
        }
        Ok(())
    }

    fn write_memory(&mut self, offset: usize, bytes: &[u8]) -> Result<(), TransportError> {
        self.model.write_memory(offset, bytes)
    }

    fn now(&mut self) -> Duration {
        self.model.now()
    }

    fn sleep(&mut self, duration: Duration) {
        self.model.sleep(duration);
    }
}
