//! Which of the device's vectors the host has enabled and where each one goes.
//!
//! Owns the difference between what the guest wants and what the host was told. What the guest
//! wants is decided by [`super::msi`] and [`super::msix`].

use super::host::Host;
use super::ops::VectorKind;
use crate::interrupt::MsiMessage;

/// The vectors enabled in the host.
#[derive(Debug, Default)]
pub(super) struct HostVectors {
    kind: Option<VectorKind>,
    routes: Vec<Option<MsiMessage>>,
}

/// A message that reaches a local APIC. The guest can write any other, which on a real machine
/// would be a write to memory: it interrupts nobody.
pub(super) fn is_interrupt(message: &MsiMessage) -> bool {
    message.address & !0xf_ffff == 0xfee0_0000
}

impl HostVectors {
    /// The kind that is on.
    pub(super) fn kind(&self) -> Option<VectorKind> {
        self.kind
    }

    /// Number of vectors enabled.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.routes.len()).unwrap_or(u16::MAX)
    }

    /// Makes `count` vectors of `kind` the enabled ones, routed nowhere. If the host refuses, none
    /// is.
    pub(super) fn turn_on(&mut self, host: &Host, kind: VectorKind, count: u16) {
        self.turn_off(host);
        if count > 0 && host.enable_vectors(kind, 0, count) {
            self.kind = Some(kind);
            self.routes = vec![None; usize::from(count)];
        }
    }

    /// Adds vectors until `count` are enabled, keeping the routes of the others. Only for hosts
    /// that can.
    pub(super) fn add(&mut self, host: &Host, count: u16) {
        let Some(kind) = self.kind else { return };
        let first = self.count();
        if count > first && host.enable_vectors(kind, first, count - first) {
            self.routes.resize(usize::from(count), None);
        }
    }

    /// Turns everything off.
    pub(super) fn turn_off(&mut self, host: &Host) {
        self.routes.clear();
        if self.kind.take().is_some() {
            host.disable_vectors();
        }
    }

    /// Sends vector `index` as `message`, or nowhere. Vectors that are not enabled are left alone.
    pub(super) fn route(&mut self, host: &Host, index: u16, message: Option<MsiMessage>) {
        let message = message.filter(is_interrupt);
        let Some(route) = self.routes.get_mut(usize::from(index)) else {
            return;
        };
        if *route != message {
            let is_routed = host.route_vector(index, message);
            *route = message.filter(|_| is_routed);
        }
    }

    /// Whether vector `index` is enabled, goes nowhere and fired since the last look.
    pub(super) fn take_fired(&self, host: &Host, index: u16) -> bool {
        self.routes
            .get(usize::from(index))
            .is_some_and(|route| route.is_none() && host.take_fired(index))
    }

    /// Gives the host everything once more: the device may have forgotten its vectors.
    pub(super) fn arm_again(&mut self, host: &Host) {
        let Some(kind) = self.kind else { return };
        let routes = std::mem::take(&mut self.routes);
        let count = u16::try_from(routes.len()).unwrap_or(u16::MAX);
        self.turn_on(host, kind, count);
        for (index, message) in (0..).zip(routes) {
            self.route(host, index, message);
        }
    }
}
