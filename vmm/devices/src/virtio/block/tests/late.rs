//! The disk over a backend that completes late and in any order: what is in flight, reset, limits.

use std::collections::VecDeque;
use std::io::PipeReader;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::super::{MAX_QUEUES, REQUESTS_PER_QUEUE};
use super::*;
use crate::counters::Counters;
use crate::pci::DeviceSlot;
use crate::rate_limit::{Limits, Throttle, Timer};
use crate::virtio::device::VirtioDevice;
use crate::virtio::executor::InlineExecutor;

const F_MQ: u64 = 1 << 12;

/// A disk whose operations lie still until they are finished. They move bytes only then.
#[derive(Clone)]
pub(super) struct LateDisk {
    disk: MemoryDisk,
    state: Arc<Mutex<State>>,
    /// Nobody reads it.
    descriptor: Arc<PipeReader>,
}

#[derive(Default)]
struct State {
    held: Vec<(RequestId, Operation)>,
    memory: Option<Memory>,
    completed: VecDeque<Completion>,
    /// How often somebody blocked until an operation was finished.
    waits: usize,
}

impl LateDisk {
    fn new() -> Self {
        Self {
            disk: MemoryDisk::new(SECTORS * 512),
            state: Arc::default(),
            descriptor: Arc::new(io::pipe().unwrap().0),
        }
    }

    pub(super) fn held(&self) -> usize {
        lock(&self.state).held.len()
    }

    /// Finishes the operation that was started as number `index` of those that are held.
    pub(super) fn finish(&self, index: usize) {
        let mut state = lock(&self.state);
        let (id, operation) = state.held.remove(index);
        let memory = state.memory.clone().unwrap();
        let result = self.disk.perform(&operation, &memory).unwrap();
        state.completed.push_back(Completion { id, result });
    }
}

impl BlockBackend for LateDisk {
    fn facts(&self) -> DiskFacts {
        self.disk.facts()
    }
    fn start(
        &mut self,
        id: RequestId,
        operation: &Operation,
        memory: &Memory,
    ) -> Result<(), NotMemory> {
        if let Operation::Read { data, .. } | Operation::Write { data, .. } = operation {
            slices(data, memory, Permissions::ReadWrite)?;
        }
        let mut state = lock(&self.state);
        assert!(state.held.iter().all(|held| held.0 != id), "{id} is taken");
        state.held.push((id, operation.clone()));
        state.memory.get_or_insert_with(|| memory.clone());
        Ok(())
    }
    fn next_completed(&mut self) -> Option<Completion> {
        lock(&self.state).completed.pop_front()
    }
    fn wait(&mut self) {
        lock(&self.state).waits += 1;
        self.finish(0);
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor.as_fd())
    }
}

/// A machine with one disk whose sources the test wakes.
pub(super) struct Late {
    pub(super) guest: TestGuest,
    pub(super) disk: LateDisk,
    executor: Arc<InlineExecutor>,
    counters: Arc<Counters>,
}

impl Late {
    pub(super) fn new(queues: u16, throttle: Option<Throttle>) -> Self {
        let disk = LateDisk::new();
        let options = BlockOptions {
            queues,
            ..options(false)
        };
        let mut block = Block::new(Box::new(disk.clone()), options);
        if let Some(throttle) = throttle {
            block = block.throttled(throttle);
        }
        let counters = block.counters().unwrap();
        let executor = Arc::new(InlineExecutor::default());
        Self {
            guest: TestGuest::with_executor(Box::new(block), executor.clone()),
            disk,
            executor,
            counters,
        }
    }

    pub(super) fn wake(&self, source: u16) {
        self.executor
            .source_ready(DeviceSlot::new(3).unwrap(), source);
    }

    /// Submits a read of `sector` into its own part of memory; returns the head.
    pub(super) fn read(&self, ring: &mut Ring, sector: u64) -> u16 {
        let header = HEADER + 0x1_0000 + sector * 0x20;
        self.guest
            .memory
            .write_obj(IN, GuestAddress(header))
            .unwrap();
        self.guest
            .memory
            .write_obj(sector, GuestAddress(header + 8))
            .unwrap();
        ring.submit(&[(header, 16, 0), (data(sector), 513, WRITE)])
    }

    /// Whether the device still has its backend.
    pub(super) fn has_backend(&self) -> bool {
        Arc::strong_count(&self.disk.descriptor) > 1
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.iter().find(|it| it.0 == name).unwrap().1
    }
}

/// Where [`Late::read`] reads to.
pub(super) fn data(sector: u64) -> u64 {
    DATA + 0x2_0000 + sector * 0x400
}

#[test]
fn requests_are_answered_when_they_are_complete_in_any_order() {
    let late = Late::new(1, None);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    let heads: Vec<_> = (0..3).map(|sector| late.read(&mut ring, sector)).collect();
    late.guest.notify(0);
    assert_eq!(late.disk.held(), 3, "all are in progress");
    late.wake(0);
    assert!(ring.take_used().is_empty());
    late.disk.finish(2);
    late.disk.finish(0);
    late.wake(0);
    let order = [(heads[2].into(), 513), (heads[0].into(), 513)];
    assert_eq!(ring.take_used(), order);
    assert_eq!(late.guest.messages.take(), [1], "one interrupt for both");
    assert_eq!(
        bytes(&late.guest, data(2), 513),
        [vec![2; 512], vec![OK]].concat()
    );
    late.disk.finish(0);
    late.wake(0);
    assert_eq!(ring.take_used(), [(heads[1].into(), 513)]);
    assert_eq!(
        (late.count("reads"), late.count("read_bytes")),
        (3, 3 * 512)
    );
}

#[test]
fn a_descriptor_head_submitted_twice_while_in_flight_breaks_the_queue() {
    let late = Late::new(1, None);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    let head = late.read(&mut ring, 5);
    late.guest.notify(0);
    ring.offer(head);
    late.guest.notify(0);
    assert_eq!(late.guest.errors.count(GuestError::VirtioQueueBroken), 1);
    assert_eq!(late.guest.status(), 0x4f, "the driver is asked for a reset");
    assert_eq!(late.disk.held(), 1, "one request is in progress");
    late.disk.finish(0);
    late.wake(0);
    assert!(ring.take_used().is_empty(), "a broken ring is left alone");
    late.guest.set_status(0);
    assert_eq!(late.guest.status(), 0);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    late.read(&mut ring, 6);
    late.guest.notify(0);
    late.disk.finish(0);
    late.wake(0);
    assert_eq!(ring.take_used().len(), 1);
}

#[test]
fn reset_returns_when_nothing_is_in_flight_and_what_completes_is_not_told() {
    let late = Late::new(2, None);
    late.guest.enable_msix(3);
    late.guest.negotiate(F_MQ);
    let mut rings = [0, 1].map(|queue| late.guest.set_up_queue(queue, QUEUE_SIZE));
    late.guest.set_status(0xf);
    for (queue, ring) in (0..).zip(&mut rings) {
        late.read(ring, u64::from(queue) + 1);
        late.read(ring, u64::from(queue) + 3);
        late.guest.notify(queue);
    }
    assert_eq!(late.disk.held(), 4);
    late.disk.finish(1);
    late.guest.set_status(0);
    assert_eq!(late.guest.status(), 0);
    assert_eq!(late.disk.held(), 0, "nothing may touch memory any more");
    assert_eq!(lock(&late.disk.state).waits, 3);
    assert!(rings.iter_mut().all(|ring| ring.take_used().is_empty()));
    assert_eq!(late.guest.messages.take(), [0; 0]);
    // Each status byte is as it was: nobody wrote an answer.
    for sector in 1..5 {
        assert_eq!(bytes(&late.guest, data(sector) + 512, 1), [0]);
    }
    late.wake(0);
    assert!(rings.iter_mut().all(|ring| ring.take_used().is_empty()));
    // All places are free again.
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    for sector in 0..SECTORS {
        late.read(&mut ring, sector);
    }
    late.guest.notify(0);
    assert_eq!(late.disk.held(), usize::try_from(SECTORS).unwrap());
}

#[test]
fn a_write_is_told_when_it_is_durable_if_the_driver_never_flushes() {
    for (features, flushes) in [(0, 1), (F_FLUSH, 0)] {
        let late = Late::new(1, None);
        let mut ring = late.guest.bring_up(features, QUEUE_SIZE);
        put_header(&late.guest, OUT, 4);
        ring.submit(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
        late.guest.notify(0);
        late.disk.finish(0);
        late.wake(0);
        assert_eq!(late.disk.held(), flushes);
        assert_eq!(ring.take_used().len(), 1 - flushes);
        if flushes == 1 {
            // The host cannot flush: the write has failed.
            late.disk.disk.fails.store(true, Ordering::SeqCst);
            late.disk.finish(0);
            late.wake(0);
            assert_eq!((ring.take_used().len(), status(&late.guest)), (1, IOERR));
            assert_eq!(late.count("errors"), 1);
        }
    }
}

#[test]
fn one_queue_has_a_share_of_the_places_and_the_rest_waits_in_its_ring() {
    let late = Late::new(2, None);
    late.guest.enable_msix(3);
    late.guest.negotiate(F_MQ);
    let mut rings = [0, 1].map(|queue| late.guest.set_up_queue(queue, QUEUE_SIZE));
    late.guest.set_status(0xf);
    put_header(&late.guest, FLUSH, 0);
    // Chains of one descriptor: header and status are one buffer in two directions.
    let table = BUFFERS + 0x8_0000;
    rings[0].describe_in(table, 0, (HEADER, 16), NEXT, 1);
    rings[0].describe_in(table, 1, (STATUS, 1), WRITE, 0);
    for _ in 0..QUEUE_SIZE {
        rings[0].submit(&[(table, 32, INDIRECT)]);
    }
    late.guest.notify(0);
    let share = usize::from(REQUESTS_PER_QUEUE);
    assert_eq!(late.disk.held(), share);
    assert!(rings[0].suppresses_notifications());
    late.read(&mut rings[1], 9);
    late.guest.notify(1);
    assert_eq!(late.disk.held(), share + 1, "the other queue has its own");
    late.guest.notify(0);
    assert_eq!(late.disk.held(), share + 1);
    let mut answered = 0;
    for done in 1..=3 {
        late.disk.finish(0);
        late.wake(0);
        answered += rings[0].take_used().len();
        assert_eq!((answered, late.disk.held()), (done, share + 1));
    }
    while late.disk.held() > 0 {
        late.disk.finish(late.disk.held() - 1);
        // The other queue's call finds what is complete, too.
        late.guest.notify(1);
    }
    answered += rings[0].take_used().len();
    assert_eq!(answered, usize::from(QUEUE_SIZE));
    assert!(!rings[0].suppresses_notifications());
    assert_eq!(late.guest.errors.total(), 0);
}

#[test]
fn several_queues_are_offered_with_their_number() {
    for (queues, shown) in [(0, 1), (1, 1), (4, 4), (99, MAX_QUEUES)] {
        let late = Late::new(queues, None);
        let has_many = late.guest.offered_features() & F_MQ != 0;
        assert_eq!(has_many, shown > 1);
        let config = late.guest.at.device.unwrap();
        let number = if has_many { u64::from(shown) } else { 0 };
        assert_eq!(late.guest.read(config + 34, 2), number);
        assert_eq!(late.guest.common(0x12, 2), u64::from(shown));
    }
}

/// A clock that the test moves.
#[derive(Clone)]
struct TestTimer {
    now: Arc<Mutex<Duration>>,
    set: Arc<Mutex<Option<Duration>>>,
    descriptor: Arc<PipeReader>,
}

impl Timer for TestTimer {
    fn now(&self) -> Duration {
        *lock(&self.now)
    }
    fn set(&mut self, after: Duration) {
        *lock(&self.set) = Some(after);
    }
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn throttled(bytes: u64, requests: u64) -> (Late, TestTimer) {
    let timer = TestTimer {
        now: Arc::default(),
        set: Arc::default(),
        descriptor: Arc::new(io::pipe().unwrap().0),
    };
    let limits = Limits::new(bytes, requests).unwrap();
    let throttle = Throttle::new(limits, Box::new(timer.clone()));
    (Late::new(1, Some(throttle)), timer)
}

#[test]
fn a_throttled_disk_takes_more_when_its_timer_says_so() {
    let (late, timer) = throttled(0, 2);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    for sector in 0..5 {
        late.read(&mut ring, sector);
    }
    late.guest.notify(0);
    assert_eq!(late.disk.held(), 2);
    let wait = lock(&timer.set).take().unwrap();
    assert_eq!(
        wait,
        Duration::from_nanos(1),
        "half a second's worth is left after it"
    );
    // Completions and notifications let nothing more pass, and the timer stays as it is.
    late.disk.finish(0);
    late.wake(0);
    late.guest.notify(0);
    assert_eq!((late.disk.held(), ring.take_used().len()), (1, 1));
    assert_eq!(*lock(&timer.set), None);
    *lock(&timer.now) += wait;
    late.wake(1);
    assert_eq!(late.disk.held(), 2);
    *lock(&timer.now) += lock(&timer.set).take().unwrap();
    late.wake(1);
    assert_eq!(late.disk.held(), 3);
    assert_eq!(late.count("throttled"), 2);
    assert_eq!(lock(&timer.set).unwrap(), Duration::from_millis(500));
}

#[test]
fn a_throttled_disk_is_reset_at_once_and_a_reset_fills_no_bucket() {
    let (late, timer) = throttled(512, 0);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    for sector in 0..5 {
        late.read(&mut ring, sector);
    }
    late.guest.notify(0);
    assert_eq!(late.disk.held(), 1);
    late.guest.set_status(0);
    assert_eq!(late.guest.status(), 0);
    let mut ring = late.guest.bring_up(0, QUEUE_SIZE);
    late.read(&mut ring, 1);
    late.guest.notify(0);
    assert_eq!(late.disk.held(), 0);
    *lock(&timer.now) += Duration::from_nanos(1);
    late.wake(1);
    assert_eq!(late.disk.held(), 1);
}
