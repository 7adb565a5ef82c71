//! MSI of a passed-through function: the guest's registers and what they make of the host's
//! vectors.
//!
//! Owns the meaning of the capability's registers, whose values live in the [`ConfigPolicy`]. The
//! device never sees the guest's address and data. Its enable bit follows the host's vectors.

use std::fmt;
use std::sync::Arc;

use super::capabilities::{Capability, msi_bytes};
use super::config_policy::ConfigPolicy;
use super::host::Host;
use super::ops::VectorKind;
use super::vectors::HostVectors;
use crate::interrupt::{MsiMessage, MsiSender};

const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const ADDRESS_HIGH: u16 = 8;
const CONTROL_ENABLE: u16 = 1 << 0;
const CONTROL_CAPABLE_SHIFT: u32 = 1;
const CONTROL_ENABLED_SHIFT: u32 = 4;
const CONTROL_COUNT_BITS: u16 = 0b111;
const CONTROL_64_BIT: u16 = 1 << 7;
const CONTROL_MASKABLE: u16 = 1 << 8;
const MOST_VECTORS_LOG2: u16 = 5;

/// The MSI state of one function.
pub(super) struct PassedMsi {
    start: u16,
    bytes: u16,
    is_64_bit: bool,
    is_maskable: bool,
    most_log2: u16,
    pending: u32,
    sender: Arc<dyn MsiSender>,
}

impl fmt::Debug for PassedMsi {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PassedMsi")
            .field("start", &self.start)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl PassedMsi {
    /// Takes the registers of `capability` in `policy` over, unless the host can deliver none of
    /// the vectors.
    pub(super) fn new(
        capability: &Capability,
        host_vectors: u32,
        sender: Arc<dyn MsiSender>,
        policy: &mut ConfigPolicy,
    ) -> Option<Self> {
        let host_log2 = u16::try_from(host_vectors.checked_ilog2()?).unwrap_or(u16::MAX);
        let [_, _, low, high] = capability.header.to_le_bytes();
        let control = u16::from_le_bytes([low, high]);
        let capable = control >> CONTROL_CAPABLE_SHIFT & CONTROL_COUNT_BITS;
        let most_log2 = capable.min(MOST_VECTORS_LOG2).min(host_log2);
        let msi = Self {
            start: capability.offset,
            bytes: msi_bytes(capability.header),
            is_64_bit: control & CONTROL_64_BIT != 0,
            is_maskable: control & CONTROL_MASKABLE != 0,
            most_log2,
            pending: 0,
            sender,
        };
        msi.install(control, policy);
        Some(msi)
    }

    fn install(&self, control: u16, policy: &mut ConfigPolicy) {
        let shown =
            control & (CONTROL_64_BIT | CONTROL_MASKABLE) | self.most_log2 << CONTROL_CAPABLE_SHIFT;
        let writable = CONTROL_ENABLE | CONTROL_COUNT_BITS << CONTROL_ENABLED_SHIFT;
        let body = vec![0; usize::from(self.bytes - ADDRESS)];
        policy.shadow(self.start + ADDRESS, &body, &[]);
        let control = self.start + CONTROL;
        policy.shadow(control, &shown.to_le_bytes(), &writable.to_le_bytes());
        policy.shadow(self.start + ADDRESS, &[0; 4], &[0xfc, 0xff, 0xff, 0xff]);
        if self.is_64_bit {
            policy.shadow(self.start + ADDRESS_HIGH, &[0; 4], &[0xff; 4]);
        }
        policy.shadow(self.data(), &[0; 2], &[0xff; 2]);
        if self.is_maskable {
            let vectors = 1_u64 << (1_u32 << self.most_log2);
            let bits = u32::try_from(vectors - 1).expect("there are at most 32 vectors");
            policy.shadow(self.masks(), &[0; 4], &bits.to_le_bytes());
        }
    }

    fn data(&self) -> u16 {
        self.start + if self.is_64_bit { 12 } else { 8 }
    }

    fn masks(&self) -> u16 {
        self.data() + 4
    }

    fn pending_register(&self) -> u16 {
        self.data() + 8
    }

    /// Whether `bytes` bytes at `offset` touch the capability.
    pub(super) fn is_touched(&self, offset: u16, bytes: u16) -> bool {
        offset < self.start + self.bytes && self.start < offset.saturating_add(bytes)
    }

    /// Takes what fired while it was masked into the pending bits. Before every access.
    pub(super) fn collect(
        &mut self,
        host: &Host,
        vectors: &HostVectors,
        policy: &mut ConfigPolicy,
    ) {
        if self.is_maskable && vectors.kind() == Some(VectorKind::Msi) {
            for index in 0..vectors.count() {
                if self.is_masked(policy, index) && vectors.take_fired(host, index) {
                    self.pending |= 1 << index;
                }
            }
            self.show_pending(policy);
        }
    }

    /// Makes the host's vectors what the registers say, after a write of the guest.
    pub(super) fn update(
        &mut self,
        host: &Host,
        vectors: &mut HostVectors,
        policy: &mut ConfigPolicy,
    ) {
        let control = policy.word(self.start + CONTROL);
        let is_on = vectors.kind() == Some(VectorKind::Msi);
        if control & CONTROL_ENABLE == 0 {
            if is_on {
                vectors.turn_off(host);
                host.write_config(self.start + CONTROL, &[0; 2]);
            }
            self.pending = 0;
        } else {
            let enabled = control >> CONTROL_ENABLED_SHIFT & CONTROL_COUNT_BITS;
            let count = 1 << enabled.min(self.most_log2);
            let is_new = !is_on || vectors.count() != count;
            if is_new {
                vectors.turn_on(host, VectorKind::Msi, count);
            }
            self.deliver(host, vectors, policy, count);
            if is_new {
                let bits = CONTROL_ENABLE | enabled.min(self.most_log2) << CONTROL_ENABLED_SHIFT;
                host.write_config(self.start + CONTROL, &bits.to_le_bytes());
            }
        }
        self.show_pending(policy);
    }

    /// Back to the state after a reset of the function; the vectors are off already.
    pub(super) fn reset(&mut self, policy: &mut ConfigPolicy) {
        self.pending = 0;
        let control = policy.word(self.start + CONTROL);
        let kept = control & !(CONTROL_ENABLE | CONTROL_COUNT_BITS << CONTROL_ENABLED_SHIFT);
        policy.set(self.start + CONTROL, &kept.to_le_bytes());
        let body = vec![0; usize::from(self.bytes - ADDRESS)];
        policy.set(self.start + ADDRESS, &body);
    }

    /// Sends what was pending and is unmasked, and routes every vector.
    fn deliver(
        &mut self,
        host: &Host,
        vectors: &mut HostVectors,
        policy: &ConfigPolicy,
        count: u16,
    ) {
        for index in 0..count {
            let message = self.message(policy, index, count);
            let is_masked = self.is_masked(policy, index);
            if !is_masked && self.pending & 1 << index != 0 {
                self.pending &= !(1 << index);
                self.sender.send(message);
            }
            vectors.route(host, index, (!is_masked).then_some(message));
        }
    }

    fn message(&self, policy: &ConfigPolicy, index: u16, count: u16) -> MsiMessage {
        let low = u64::from(policy.long(self.start + ADDRESS));
        let high = if self.is_64_bit {
            u64::from(policy.long(self.start + ADDRESS_HIGH))
        } else {
            0
        };
        let data = policy.word(self.data()) & !(count - 1) | index;
        MsiMessage {
            address: high << 32 | low,
            data: u32::from(data),
        }
    }

    fn is_masked(&self, policy: &ConfigPolicy, index: u16) -> bool {
        self.is_maskable && policy.long(self.masks()) & 1 << index != 0
    }

    fn show_pending(&self, policy: &mut ConfigPolicy) {
        if self.is_maskable {
            policy.set(self.pending_register(), &self.pending.to_le_bytes());
        }
    }
}
