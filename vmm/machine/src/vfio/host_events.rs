//! What the host says about passed-through devices while the guest runs.
//!
//! Owns the events of VFIO's error and request interrupts. The host repeats a request every few
//! seconds, and each is told; of a device's errors the first is told, as a device without end of
//! them is nothing new.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_api::vmm::Warning;
use berth_vmm_devices::vfio::function::VfioPci;
use berth_vmm_sys::Event;

use crate::queue_executor::IoLoop;

/// Tokens of the events in the I/O loop count from here.
const FIRST_TOKEN: u32 = 0x8000_0000;

/// What an event says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HostEventKind {
    /// The device reported an unrecoverable error.
    Error,
    /// The host wants the device back.
    Request,
}

/// One event of one device.
#[derive(Debug)]
pub(super) struct HostEvent {
    pub(super) kind: HostEventKind,
    pub(super) address: String,
    pub(super) event: Event,
    pub(super) function: Arc<VfioPci>,
    pub(super) has_told_error: AtomicBool,
}

/// The events of all devices.
#[derive(Debug, Default)]
pub struct HostEvents(Vec<HostEvent>);

impl HostEvents {
    pub(super) fn new(events: Vec<HostEvent>) -> Self {
        Self(events)
    }

    /// Lets the events wake the loop.
    ///
    /// # Errors
    /// If they cannot be watched.
    pub fn watch(&self, io: &mut IoLoop) -> io::Result<()> {
        (FIRST_TOKEN..)
            .zip(&self.0)
            .try_for_each(|(token, event)| io.watch(event.event.as_fd(), token))
    }

    /// The event that the loop names by `token`, if it is one of these.
    #[must_use]
    pub fn is_one(&self, token: u32) -> bool {
        self.find(token).is_some()
    }

    /// Takes the event and counts it; returns what is worth telling.
    #[must_use]
    pub fn take(&self, token: u32) -> Option<Warning> {
        let event = self.find(token)?;
        event.event.clear();
        let device = event.address.clone();
        match event.kind {
            HostEventKind::Request => {
                event.function.note_host_request();
                Some(Warning::DeviceWanted { device })
            }
            HostEventKind::Error => {
                event.function.note_host_error();
                let has_told = event.has_told_error.swap(true, Ordering::Relaxed);
                (!has_told).then_some(Warning::DeviceError { device })
            }
        }
    }

    fn find(&self, token: u32) -> Option<&HostEvent> {
        let position = usize::try_from(token.checked_sub(FIRST_TOKEN)?).ok()?;
        self.0.get(position)
    }
}
