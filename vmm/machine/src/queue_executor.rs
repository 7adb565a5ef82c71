//! The I/O side of the machine: active virtio devices, served by one thread.
//!
//! Owns the devices between activation and reset, the ioeventfds that wake the thread, and the
//! order of serving. Activation and reset come from vCPU threads and wait at most for the call of
//! `serve` in progress, whose length is bounded. It knows no device type.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_vmm_devices::pci::DeviceSlot;
use berth_vmm_devices::virtio::device::{MAX_SOURCES, Served};
use berth_vmm_devices::virtio::executor::{ActivateError, ActiveDevice, QueueExecutor};
use berth_vmm_sys::Event;
use rustix::event::epoll;

/// PCI device numbers on one bus.
const SLOTS: usize = 32;
/// Queues of one device that can be served.
const MAX_QUEUES: u16 = 64;
/// Events taken from the kernel at once.
const EVENT_BATCH: usize = 16;

/// Tokens of devices' own descriptors have this bit.
const SOURCE: u64 = 1 << 62;
/// Tokens of other descriptors than devices' have this bit.
const OTHER: u64 = 1 << 63;
/// The token of the descriptor that vCPU threads wake the loop with.
const WAKE: u64 = OTHER | u64::MAX >> 1;

/// What all threads see of the I/O side.
pub struct SharedExecutor {
    places: [Place; SLOTS],
    wake: Event,
}

/// One PCI slot's device while it is active.
#[derive(Default)]
struct Place {
    device: Mutex<Option<ActiveDevice>>,
    /// Queues to serve without waiting for the guest, one bit each.
    pending: AtomicU64,
    /// Descriptors of the host that had input, one bit each.
    ready: AtomicU64,
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, Option<ActiveDevice>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SharedExecutor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SharedExecutor")
            .finish_non_exhaustive()
    }
}

impl SharedExecutor {
    fn place(&self, slot: DeviceSlot) -> Option<&Place> {
        self.places.get(usize::from(slot.number()))
    }

    fn ask_for(&self, slot: DeviceSlot, queues: u64, sources: u64) {
        let Some(place) = self.place(slot) else {
            return;
        };
        place.pending.fetch_or(queues, Ordering::SeqCst);
        place.ready.fetch_or(sources, Ordering::SeqCst);
        self.wake.signal();
    }
}

impl QueueExecutor for SharedExecutor {
    fn activate(&self, slot: DeviceSlot, device: ActiveDevice) -> Result<(), ActivateError> {
        let Some(place) = self
            .place(slot)
            .filter(|_| device.queue_count() <= MAX_QUEUES)
        else {
            return Err(ActivateError {
                device: Some(Box::new(device)),
            });
        };
        *place.lock() = Some(device);
        self.ask_for(slot, u64::MAX, u64::MAX);
        Ok(())
    }

    fn deactivate(&self, slot: DeviceSlot) -> Option<ActiveDevice> {
        self.place(slot)?.lock().take()
    }

    fn notify(&self, slot: DeviceSlot, queue_index: u16) {
        if queue_index < MAX_QUEUES {
            self.ask_for(slot, 1 << queue_index, 0);
        }
    }

    fn eject(&self, slot: DeviceSlot) {
        let Some(place) = self.place(slot) else {
            return;
        };
        if let Some(device) = place.lock().as_mut() {
            device.eject();
        }
    }
}

/// The loop's own side. Used by one thread.
pub struct IoLoop {
    epoll: OwnedFd,
    shared: Arc<SharedExecutor>,
    /// Kept open for as long as KVM may signal them.
    queue_events: Vec<Event>,
    /// Tokens of other descriptors that are ready and not yet handed out.
    ready: Vec<u64>,
}

impl std::fmt::Debug for IoLoop {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("IoLoop")
            .field("queues", &self.queue_events.len())
            .finish()
    }
}

impl IoLoop {
    /// A loop without devices.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let shared = SharedExecutor {
            places: std::array::from_fn(|_| Place::default()),
            wake: Event::new()?,
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: a wake-up need not be read, as what it is about lies elsewhere.
        add(&epoll, shared.wake.as_fd(), WAKE, epoll::EventFlags::ET)?;
        Ok(Self {
            epoll,
            shared: Arc::new(shared),
            queue_events: Vec::new(),
            ready: Vec::new(),
        })
    }

    /// What transports are given.
    #[must_use]
    pub fn executor(&self) -> Arc<SharedExecutor> {
        Arc::clone(&self.shared)
    }

    /// Makes a descriptor that KVM can signal when the guest notifies a queue.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn queue_event(&mut self, slot: DeviceSlot, queue: u16) -> io::Result<&Event> {
        let event = Event::new()?;
        let token = u64::from(slot.number()) << 16 | u64::from(queue);
        add(&self.epoll, event.as_fd(), token, epoll::EventFlags::ET)?;
        self.queue_events.push(event);
        self.queue_events
            .last()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Watches a descriptor of the device in `slot`, which the device names `source`, until it is closed.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn watch_source(
        &mut self,
        slot: DeviceSlot,
        source: u16,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let token = SOURCE | u64::from(slot.number()) << 16 | u64::from(source);
        add(&self.epoll, descriptor, token, epoll::EventFlags::ET)
    }

    /// Watches another descriptor; [`IoLoop::wait`] returns `token` while it is readable.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn watch(&mut self, descriptor: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        add(
            &self.epoll,
            descriptor,
            OTHER | u64::from(token),
            epoll::EventFlags::empty(),
        )
    }

    /// Stops watching a descriptor.
    ///
    /// # Errors
    /// If it is not watched.
    pub fn forget(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Serves queues until a watched descriptor is readable; returns its token.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn wait(&mut self) -> io::Result<u32> {
        loop {
            if let Some(token) = self.ready.pop() {
                return Ok(u32::try_from(token & !OTHER).unwrap_or(u32::MAX));
            }
            let has_more = self.serve_pending();
            self.take_events(has_more)?;
        }
    }

    /// Takes what the kernel has; does not wait if queues are left to serve.
    fn take_events(&mut self, has_more: bool) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENT_BATCH);
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = has_more.then_some(&now);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout,
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            match event.data.u64() {
                WAKE => {}
                token if token & OTHER != 0 => self.ready.push(token),
                token => self.mark(token),
            }
        }
        Ok(())
    }

    fn mark(&self, token: u64) {
        let place = usize::try_from((token & !SOURCE) >> 16)
            .ok()
            .and_then(|slot| self.shared.places.get(slot));
        let number = token & 0xffff;
        if let Some(place) = place.filter(|_| number < u64::from(MAX_QUEUES.min(MAX_SOURCES))) {
            let bits = if token & SOURCE == 0 {
                &place.pending
            } else {
                &place.ready
            };
            bits.fetch_or(1 << number, Ordering::SeqCst);
        }
    }

    /// Serves every pending queue and every ready descriptor once; true if some are left.
    fn serve_pending(&self) -> bool {
        let mut has_more = false;
        for place in &self.shared.places {
            let pending = place.pending.swap(0, Ordering::SeqCst);
            let ready = place.ready.swap(0, Ordering::SeqCst);
            if pending == 0 && ready == 0 {
                continue;
            }
            let mut guard = place.lock();
            let Some(device) = guard.as_mut() else {
                continue;
            };
            let queues = device.queue_count().min(MAX_QUEUES);
            for queue in (0..queues).filter(|queue| pending >> queue & 1 == 1) {
                if device.serve(queue) == Served::More {
                    place.pending.fetch_or(1 << queue, Ordering::SeqCst);
                    has_more = true;
                }
            }
            let sources = device.source_count().min(MAX_SOURCES);
            for source in (0..sources).filter(|source| ready >> source & 1 == 1) {
                if device.source_ready(source) == Served::More {
                    place.ready.fetch_or(1 << source, Ordering::SeqCst);
                    has_more = true;
                }
            }
        }
        has_more
    }
}

fn add(
    epoll: &OwnedFd,
    descriptor: BorrowedFd<'_>,
    token: u64,
    flags: epoll::EventFlags,
) -> io::Result<()> {
    let data = epoll::EventData::new_u64(token);
    Ok(epoll::add(
        epoll,
        descriptor,
        data,
        epoll::EventFlags::IN | flags,
    )?)
}
