//! virtio-blk: a raw disk.
//!
//! Owns the way of a request: taken from its queue, parsed ([`request`]), started on the backend
//! ([`backend`]), answered when it is complete. Requests are in progress side by side and complete in
//! any order. Where a queue's share of places is used up, or the disk is over its limits, what the
//! driver submits waits in its ring.
//!
//! The medium can be taken out, for good. What a driver asks for from then on fails, as it does on a
//! drive that is broken, and the disk has no sectors any more, of which the driver is told as of any
//! change of the capacity. Either alone would do to hide the content. Without the failures a driver
//! that does not look at the capacity would have no answer; without the capacity, whatever looks
//! through all disks, as udev and blkid do, would fill the guest's log with failures of a device that
//! is well. Linux takes a disk of no sectors for an empty drive and reads nothing of it, not even what
//! it has cached. It sends no uevent for that, so names by label stay until udev looks again.

pub mod backend;
mod features;
mod in_flight;
mod no_medium;
pub mod request;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::{Bytes, GuestAddress, Permissions};

use self::backend::{BlockBackend, Completion, NotMemory, Operation, slices};
pub use self::in_flight::REQUESTS_PER_QUEUE;
use self::in_flight::{InFlight, Pending};
use self::no_medium::NoMedium;
use self::request::{DiskShape, Refusal, SECTOR_BYTES, SERIAL_BYTES, Task};
use super::config::DeviceConfig;
use super::device::{Served, VirtioDevice};
use super::queue::{Buffers, Chain, QueueBroken, Queues, VirtQueue};
use crate::counters::Counters;
use crate::guest_error::GuestError;
use crate::memory::Memory;
use crate::rate_limit::Throttle;

/// Descriptors of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;

const DEVICE_TYPE: u16 = 2;

/// What is counted, in the order of the constants below.
const COUNTERS: &[&str] = &[
    "reads",
    "writes",
    "flushes",
    "discards",
    "write_zeroes",
    "read_bytes",
    "written_bytes",
    "errors",
    "throttled",
];
const READS: usize = 0;
const WRITES: usize = 1;
const FLUSHES: usize = 2;
const DISCARDS: usize = 3;
const ZEROES: usize = 4;
const READ_BYTES: usize = 5;
const WRITTEN_BYTES: usize = 6;
const ERRORS: usize = 7;
const THROTTLED: usize = 8;

/// What a disk tells its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// Serial number: at most 20 bytes are shown, padded with zeroes.
    pub serial: String,
    /// Number of queues: at least 1 and at most [`MAX_QUEUES`] are made.
    pub queues: u16,
}

/// A disk.
pub struct Block {
    backend: Box<dyn BlockBackend>,
    /// Whether the backend has no requests in progress.
    is_synchronous: bool,
    /// Whether the medium was taken out. The backend stays until nothing is in flight.
    is_ejected: bool,
    in_flight: InFlight,
    throttle: Option<Throttle>,
    /// Whether requests have been kept waiting since the last one was taken.
    is_throttled: bool,
    features: u64,
    queue_sizes: Box<[u16]>,
    /// What the driver accepted of `features` is part of it.
    disk: DiskShape,
    /// Whether the driver knows of no cache: every write is then durable before it is answered
    /// (virtio 1.2, 5.2.6.2).
    writes_through: bool,
    serial: [u8; SERIAL_BYTES as usize],
    config: Arc<DeviceConfig>,
    counters: Arc<Counters>,
}

impl Block {
    /// A disk over `backend`, which has to take [`REQUESTS_PER_QUEUE`] requests at once for each
    /// queue. Bytes after the last whole sector are not part of the disk.
    #[must_use]
    pub fn new(backend: Box<dyn BlockBackend>, options: BlockOptions) -> Self {
        let facts = backend.facts();
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let features = features::offered(facts, options.read_only, queues);
        let mut serial = [0; SERIAL_BYTES as usize];
        for (byte, &shown) in serial.iter_mut().zip(options.serial.as_bytes()) {
            *byte = shown;
        }
        Self {
            is_synchronous: backend.descriptor().is_none(),
            backend,
            is_ejected: false,
            in_flight: InFlight::new(queues),
            throttle: None,
            is_throttled: false,
            features,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)].into(),
            disk: DiskShape {
                sectors: facts.bytes / SECTOR_BYTES,
                unit: u64::from(facts.logical_block),
                read_only: options.read_only,
                can_discard: false,
                can_write_zeroes: false,
            },
            writes_through: true,
            serial,
            config: DeviceConfig::constant(&features::configuration(facts, features, queues)),
            counters: Arc::new(Counters::new(COUNTERS)),
        }
    }

    /// Bounds what the guest may do.
    #[must_use]
    pub fn throttled(mut self, throttle: Throttle) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// Whether another request of queue `index` may be taken now. If not, a source tells when.
    fn is_ready_for(&mut self, index: u16) -> bool {
        if !self.in_flight.has_room(index) {
            return false;
        }
        let admits = self.throttle.as_mut().is_none_or(Throttle::admits);
        self.is_throttled |= !admits;
        admits
    }

    /// Starts the request in `chain`, or answers it at once.
    fn begin(
        &mut self,
        index: u16,
        mut chain: Chain,
        queue: &mut VirtQueue,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let Some(request) = request::parse(&mut chain, memory, self.disk) else {
            queue.count(GuestError::VirtioRequest);
            return queue.complete(memory, chain, 0);
        };
        let mut pending = Pending {
            queue: index,
            chain,
            status: request.status,
            written: 0,
            settles: false,
        };
        let result = match request.task {
            Ok(Task::Operate(_)) if self.is_ejected => Err(Refusal::HostFailed),
            Ok(Task::Operate(operation)) => match self.start(pending, &operation, memory) {
                Ok(()) => return Ok(()),
                Err((given_back, refusal)) => {
                    pending = given_back;
                    Err(refusal)
                }
            },
            Ok(Task::Identify { data }) => {
                pending.written = SERIAL_BYTES;
                self.identify(&data, memory)
            }
            Err(refusal) => Err(refusal),
        };
        self.answer(pending, result, queue, memory)
    }

    /// Hands `operation` to the backend; a refusal comes with `pending`.
    fn start(
        &mut self,
        mut pending: Pending,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), (Pending, Refusal)> {
        let filled = self.account(operation);
        pending.written = u32::try_from(filled).expect("a request moves at most 64 MiB");
        pending.settles =
            self.writes_through && !matches!(operation, Operation::Read { .. } | Operation::Flush);
        let id = match self.in_flight.insert(pending) {
            Ok(id) => id,
            Err(pending) => return Err((pending, Refusal::HostFailed)),
        };
        match self.backend.start(id, operation, memory) {
            Ok(()) => Ok(()),
            Err(NotMemory) => {
                let pending = self.in_flight.remove(id);
                Err((pending.expect("it was just put there"), NOT_MEMORY))
            }
        }
    }

    /// Counts and charges `operation`; returns the bytes that it fills on success.
    fn account(&mut self, operation: &Operation) -> u64 {
        let (kind, read, written, charged) = match operation {
            Operation::Read { data, .. } => (READS, data.bytes(), 0, data.bytes()),
            Operation::Write { data, .. } => (WRITES, 0, data.bytes(), data.bytes()),
            // Where the host cannot zero a range by itself, zeroes are written like all else.
            Operation::WriteZeroes { bytes, .. } => (ZEROES, 0, 0, *bytes),
            Operation::Flush => (FLUSHES, 0, 0, 0),
            Operation::Discard { .. } => (DISCARDS, 0, 0, 0),
        };
        for (counter, amount) in [(kind, 1), (READ_BYTES, read), (WRITTEN_BYTES, written)] {
            self.counters.add(counter, amount);
        }
        if let Some(throttle) = &mut self.throttle {
            throttle.charge(charged);
        }
        read
    }

    fn identify(&self, data: &Buffers, memory: &Memory) -> Result<(), Refusal> {
        let mut serial = self.serial.as_slice();
        for buffer in slices(data, memory, Permissions::Write).map_err(|_| NOT_MEMORY)? {
            let (shown, rest) = serial.split_at_checked(buffer.len()).ok_or(NOT_MEMORY)?;
            buffer.copy_from(shown);
            serial = rest;
        }
        Ok(())
    }

    /// Answers every request that is complete, and takes more where that makes room.
    fn collect(&mut self, queues: &mut Queues, memory: &Memory) -> Result<(), QueueBroken> {
        let answered = self.answer_completed(queues, memory);
        self.close_when_ejected();
        answered?;
        for index in 0..queues.count() {
            if let Some(queue) = queues.get(index)
                && queue.is_quiet()
                && self.is_ready_for(index)
            {
                queue.serve_again();
            }
        }
        Ok(())
    }

    fn answer_completed(
        &mut self,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        while let Some(Completion { id, result }) = self.backend.next_completed() {
            if result.is_ok() && self.settle(id, memory) {
                continue;
            }
            let Some(pending) = self.in_flight.remove(id) else {
                continue;
            };
            let result = result.map_err(|error| host_failed(&error));
            if let Some(queue) = queues.get(pending.queue) {
                self.answer(pending, result, queue, memory)?;
            }
        }
        Ok(())
    }

    /// Closes what is on the host, once the medium is out and nothing of it is in flight.
    fn close_when_ejected(&mut self) {
        if self.is_ejected && self.in_flight.is_empty() {
            self.backend = Box::new(NoMedium);
            self.is_synchronous = true;
        }
    }

    /// Goes on to make request `id` durable, if that is left to do.
    fn settle(&mut self, id: u16, memory: &Memory) -> bool {
        let settles = self
            .in_flight
            .get(id)
            .is_some_and(|pending| std::mem::take(&mut pending.settles));
        settles && self.backend.start(id, &Operation::Flush, memory).is_ok()
    }

    /// Writes the status of a request and gives its chain back.
    fn answer(
        &mut self,
        pending: Pending,
        result: Result<(), Refusal>,
        queue: &mut VirtQueue,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let (status, written) = match result {
            Ok(()) => (VIRTIO_BLK_S_OK, pending.written),
            Err(Refusal::Failed(error)) => {
                queue.count(error);
                (VIRTIO_BLK_S_IOERR, 0)
            }
            Err(Refusal::HostFailed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::HostUnable) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Unsupported) => {
                queue.count(GuestError::BlockRefused);
                (VIRTIO_BLK_S_UNSUPP, 0)
            }
        };
        self.counters
            .add(ERRORS, u64::from(status != VIRTIO_BLK_S_OK));
        let [status, ..] = status.to_le_bytes();
        let written = match memory.write_obj(status, GuestAddress(pending.status)) {
            Ok(()) => written + 1,
            Err(_) => {
                queue.count(GuestError::VirtioRequest);
                0
            }
        };
        queue.complete(memory, pending.chain, written)
    }
}

/// A buffer that is not RAM.
const NOT_MEMORY: Refusal = Refusal::Failed(GuestError::VirtioRequest);

/// The guest is told of a failure and nothing about the host; the backend's maker hears more.
fn host_failed(error: &io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::Unsupported {
        Refusal::HostUnable
    } else {
        Refusal::HostFailed
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Block")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.config)
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(Arc::clone(&self.counters))
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        // The backend's is the last: it is closed with the medium, and the timer keeps its number.
        let timer = self.throttle.as_ref().map(Throttle::descriptor);
        timer.into_iter().chain(self.backend.descriptor()).collect()
    }

    fn activate(&mut self, features: u64) {
        self.writes_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        self.disk.can_discard = features & 1 << VIRTIO_BLK_F_DISCARD != 0;
        self.disk.can_write_zeroes = features & 1 << VIRTIO_BLK_F_WRITE_ZEROES != 0;
    }

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        while let Some(queue) = queues.get(index) {
            let is_ready = self.is_ready_for(index);
            queue.keep_quiet(!is_ready);
            if !is_ready {
                break;
            }
            let Some(chain) = queue.pop(memory)? else {
                break;
            };
            self.counters
                .add(THROTTLED, u64::from(std::mem::take(&mut self.is_throttled)));
            self.begin(index, chain, queue, memory)?;
            if self.is_synchronous {
                self.collect(queues, memory)?;
                // The next request may take long: a driver that polls sees this one now.
                queues
                    .get(index)
                    .map_or(Ok(()), |queue| queue.publish(memory))?;
            }
        }
        self.collect(queues, memory)
    }

    fn source_ready(
        &mut self,
        _source: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<Served, QueueBroken> {
        self.collect(queues, memory)?;
        Ok(Served::Idle)
    }

    fn eject(&mut self) {
        if self.is_ejected {
            return;
        }
        self.is_ejected = true;
        self.close_when_ejected();
        self.config.update(features::CAPACITY, &[0; 8]);
    }

    fn reset(&mut self) {
        while !self.in_flight.is_empty() {
            match self.backend.next_completed() {
                // Whoever waited for it is gone.
                Some(completion) => drop(self.in_flight.remove(completion.id)),
                None => self.backend.wait(),
            }
        }
        self.is_throttled = false;
        self.close_when_ejected();
    }
}
