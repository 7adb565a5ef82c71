//! The balloon as its driver meets it, over a host that remembers.

use std::sync::Mutex;

use vm_memory::Bytes;

use super::*;
use crate::virtio::testing::{BUFFERS, NEXT, RAM_BYTES, Ring, TestGuest, WRITE};

/// What a [`RecordingHost`] was asked to take back.
#[derive(Debug, Default)]
struct Asked {
    ranges: Vec<Range<u64>>,
    refuses: bool,
}

#[derive(Clone, Debug, Default)]
struct RecordingHost(Arc<Mutex<Asked>>);

impl HostPages for RecordingHost {
    fn discard(&self, memory: &Memory, range: Range<u64>) -> io::Result<()> {
        let mut asked = self.0.lock().unwrap();
        if asked.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = usize::try_from(range.end - range.start).unwrap();
        memory
            .write_slice(&vec![0; bytes], GuestAddress(range.start))
            .unwrap();
        asked.ranges.push(range);
        Ok(())
    }
}

impl RecordingHost {
    /// Start and end of each range.
    fn take(&self) -> Vec<(u64, u64)> {
        let ranges = std::mem::take(&mut self.0.lock().unwrap().ranges);
        ranges
            .iter()
            .map(|range| (range.start, range.end))
            .collect()
    }
}

struct Fixture {
    guest: TestGuest,
    host: RecordingHost,
    size: Arc<BalloonSize>,
    counters: Arc<Counters>,
    rings: Vec<Ring>,
}

const ALL: BalloonOptions = BalloonOptions {
    deflate_on_oom: true,
    free_page_reporting: true,
};

impl Fixture {
    /// A balloon with these queues set up.
    fn new(options: BalloonOptions, queues: &[u16]) -> Self {
        let host = RecordingHost::default();
        let balloon = Balloon::new(options, Box::new(host.clone()));
        let (size, counters) = (balloon.size(), balloon.counters().unwrap());
        let guest = TestGuest::new(Box::new(balloon));
        guest.enable_msix(guest.common(0x12, 2) + 1);
        guest.negotiate(guest.offered_features() & (DEFLATE_ON_OOM | PAGE_REPORTING));
        guest.set_common(0x10, 2, 0);
        let rings = queues
            .iter()
            .map(|&queue| guest.set_up_queue(queue, QUEUE_SIZE))
            .collect();
        guest.set_status(0xf);
        Self {
            guest,
            host,
            size,
            counters,
            rings,
        }
    }

    /// Offers one chain that names `pages`, in the first of the queues that were set up.
    fn name(&mut self, queue: u16, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.guest
            .memory
            .write_slice(&bytes, GuestAddress(BUFFERS))
            .unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.rings[0].submit(&[(BUFFERS, length, 0)]);
        self.guest.notify(queue);
        assert_eq!(self.rings[0].take_used().len(), 1);
    }

    fn counted(&self, name: &str) -> u64 {
        let mut all = self.counters.iter();
        all.find(|(counter, _)| *counter == name).unwrap().1
    }
}

#[test]
fn inflating_gives_pages_back_in_joined_ranges() {
    let mut balloon = Fixture::new(ALL, &[INFLATE_QUEUE]);
    balloon.name(INFLATE_QUEUE, &[0x302, 0x301, 0x300, 0x310]);
    assert_eq!(
        balloon.host.take(),
        [(0x30_0000, 0x30_3000), (0x31_0000, 0x31_1000)]
    );
    assert_eq!(balloon.counted("inflated_pages"), 4);
    assert_eq!(balloon.guest.errors.total(), 0);
}

#[test]
fn deflating_counts_and_leaves_memory_alone() {
    let mut balloon = Fixture::new(ALL, &[DEFLATE_QUEUE]);
    balloon.name(DEFLATE_QUEUE, &[0x300, 0x301]);
    assert_eq!(balloon.host.take(), []);
    assert_eq!(balloon.counted("deflated_pages"), 2);
}

#[test]
fn pages_named_twice_or_outside_of_memory_are_counted() {
    let mut balloon = Fixture::new(ALL, &[INFLATE_QUEUE]);
    let outside = u32::try_from(RAM_BYTES / PAGE_BYTES).unwrap();
    balloon.name(INFLATE_QUEUE, &[5, 5, outside, u32::MAX]);
    assert_eq!(balloon.host.take(), [(0x5000, 0x6000)]);
    let counted = ["inflated_pages", "duplicate_pages", "outside_pages"];
    assert_eq!(counted.map(|name| balloon.counted(name)), [1, 1, 2]);
}

#[test]
fn a_chain_of_too_many_pages_is_cut_and_a_malformed_one_is_counted() {
    let mut balloon = Fixture::new(ALL, &[INFLATE_QUEUE]);
    let many = vec![0x300; MAX_CHAIN_PAGES + 1];
    balloon.name(INFLATE_QUEUE, &many);
    assert_eq!(balloon.host.take(), [(0x30_0000, 0x30_1000)]);
    assert_eq!(balloon.guest.errors.count(GuestError::VirtioRequest), 1);
    let ring = &mut balloon.rings[0];
    ring.submit(&[(BUFFERS, 3, 0)]);
    ring.submit(&[(RAM_BYTES, 4, 0)]);
    ring.submit(&[(RAM_BYTES - 4, u32::MAX, 0)]);
    ring.submit(&[(BUFFERS, 4, WRITE)]);
    balloon.guest.notify(INFLATE_QUEUE);
    assert_eq!(balloon.rings[0].take_used().len(), 4);
    assert_eq!(balloon.guest.errors.count(GuestError::VirtioRequest), 5);
    assert_eq!(balloon.counted("inflated_pages"), 1);
    assert_eq!(balloon.host.take(), []);
}

#[test]
fn pages_that_the_host_keeps_are_not_in_the_balloon() {
    let mut balloon = Fixture::new(ALL, &[INFLATE_QUEUE]);
    balloon.host.0.lock().unwrap().refuses = true;
    balloon.name(INFLATE_QUEUE, &[1, 2, 7]);
    let counted = ["inflated_pages", "failed_discards"];
    assert_eq!(counted.map(|name| balloon.counted(name)), [0, 2]);
}

#[test]
fn free_pages_are_reported_in_whichever_queue_the_driver_counts_to() {
    for queue in REPORTING_QUEUES {
        let mut balloon = Fixture::new(ALL, &[queue]);
        let parts = [
            (0x30_0000, 0x1_0000, WRITE),
            // Only what is whole: 0x32_1000 to 0x32_3000.
            (0x32_0800, 0x2fff, WRITE),
            (0x33_0001, 0x1ffe, WRITE),
            (RAM_BYTES - 0x1000, 0x2000, WRITE),
            (u64::MAX - 10, 0x2000, WRITE),
        ];
        balloon.rings[0].submit(&parts);
        balloon.guest.notify(queue);
        assert_eq!(balloon.rings[0].take_used(), [(0, 0)]);
        assert_eq!(
            balloon.host.take(),
            [(0x30_0000, 0x31_0000), (0x32_1000, 0x32_3000)]
        );
        assert_eq!(balloon.counted("reported_bytes"), 0x1_2000);
        assert_eq!(balloon.guest.errors.count(GuestError::VirtioRequest), 1);
    }
}

#[test]
fn a_report_gives_back_a_bounded_amount() {
    let bytes = |lengths: &[u32]| {
        let parts = (0..).map(|position: u64| position << 32).zip(lengths);
        let segments = parts.map(|(address, &bytes)| Segment { address, bytes });
        let segments: Vec<_> = segments.collect();
        let ranges = reported_ranges(&segments);
        ranges.map(|range| range.end - range.start).sum::<u64>()
    };
    assert_eq!(bytes(&[u32::MAX]), MAX_REPORT_BYTES);
    assert_eq!(bytes(&[200 << 20, 200 << 20, 4096]), MAX_REPORT_BYTES);
    assert_eq!(bytes(&[4095, 0]), 0);
}

#[test]
fn only_what_is_asked_for_is_offered() {
    let features = |options| Fixture::new(options, &[]).guest.offered_features();
    let none = BalloonOptions::default();
    assert_eq!(features(none) & (DEFLATE_ON_OOM | PAGE_REPORTING), 0);
    let all = DEFLATE_ON_OOM | PAGE_REPORTING;
    assert_eq!(features(ALL) & all, all);
    let queues = |options| Fixture::new(options, &[]).guest.common(0x12, 2);
    assert_eq!((queues(none), queues(ALL)), (2, 5));
}

#[test]
fn the_driver_reads_the_target_after_an_interrupt_and_writes_what_it_has() {
    let balloon = Fixture::new(ALL, &[INFLATE_QUEUE]);
    let config = balloon.guest.at.device.unwrap();
    balloon.size.set_target(5 << 20);
    assert_eq!(balloon.guest.messages.take(), [0]);
    assert_eq!(balloon.guest.read(config, 4), 5 * 256);
    balloon.guest.write(config + 4, 4, 3 * 256);
    balloon.guest.write(config, 4, 77);
    assert_eq!(balloon.size.target(), 5 << 20);
    assert_eq!(balloon.size.actual(), 3 << 20);
}

#[test]
fn a_driver_that_loops_its_chain_breaks_only_its_own_device() {
    let mut balloon = Fixture::new(ALL, &[INFLATE_QUEUE]);
    let ring = &mut balloon.rings[0];
    ring.describe(0, BUFFERS, 4, NEXT, 0);
    ring.offer(0);
    balloon.guest.notify(INFLATE_QUEUE);
    assert_eq!(balloon.guest.status() & 0x40, 0x40);
    assert_eq!(balloon.host.take(), []);
}
