//! Making all guest memory present before the guest runs, on several threads.
//!
//! Owns the cutting into chunks, the threads and the pace of reports. What is done with a report,
//! and whether to go on, is the caller's business.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use berth_api::vmm::MemoryBacking;
use berth_vmm_devices::memory::Memory;
use berth_vmm_sys::populate;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::HugePages;
use crate::refusal::{BuildMachineError, Refusal, host};

/// What one thread makes present at once: a few hundredths of a second.
const CHUNK_BYTES: u64 = 16 << 20;
/// Clearing memory saturates the memory's own bandwidth with fewer threads than this.
const MAX_THREADS: usize = 16;
/// Time between reports.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// The smallest page of the host.
const PAGE_BYTES: u64 = 4096;

/// How far it is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefaulted {
    /// What is present.
    pub done: u64,
    /// What will be.
    pub total: u64,
}

/// Makes all of `memory` present. `report` is called about once per second, and at the end with
/// everything done; if it breaks, that is the end.
///
/// # Errors
/// [`BuildMachineError::Refused`] if the host has not enough memory, [`BuildMachineError::Stopped`]
/// if `report` breaks, otherwise if a thread cannot be started.
pub fn prefault(
    memory: &Memory,
    backing: &MemoryBacking,
    report: &mut dyn FnMut(Prefaulted) -> ControlFlow<()>,
) -> Result<(), BuildMachineError> {
    let chunks = chunks(memory, HugePages::of(backing.pages));
    let total = chunks.iter().map(|chunk| chunk.bytes).sum();
    let next = AtomicUsize::new(0);
    let (sender, receiver) = channel();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads.min(MAX_THREADS).min(chunks.len()) {
            let (sender, chunks, next) = (sender.clone(), &chunks, &next);
            thread::Builder::new()
                .name("prefault".to_owned())
                .spawn_scoped(scope, move || work(memory, chunks, next, &sender))
                .map_err(host("start a thread"))?;
        }
        drop(sender);
        let watched = watch(&receiver, total, report);
        // Threads that are still at work find no further chunk.
        next.store(chunks.len(), Ordering::Relaxed);
        match watched {
            Ok(ControlFlow::Continue(())) => Ok(()),
            Ok(ControlFlow::Break(())) => Err(BuildMachineError::Stopped),
            Err((done, error)) => Err(refused(backing, done, total, &error).into()),
        }
    })
}

/// A part of guest memory, all of one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Chunk {
    start: u64,
    bytes: u64,
}

fn chunks(memory: &Memory, huge: Option<HugePages>) -> Vec<Chunk> {
    let step = huge.map_or(0, |pages| pages.bytes).max(CHUNK_BYTES);
    let mut chunks = Vec::new();
    for region in memory.iter() {
        let (mut start, mut left) = (region.start_addr().0, region.len());
        while left > 0 {
            let bytes = left.min(step);
            chunks.push(Chunk { start, bytes });
            start += bytes;
            left -= bytes;
        }
    }
    chunks
}

/// One thread: takes chunks until there is none, and tells of each.
fn work(memory: &Memory, chunks: &[Chunk], next: &AtomicUsize, told: &Sender<io::Result<u64>>) {
    loop {
        let Some(&chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else {
            return;
        };
        let done = make_present(memory, chunk).map(|()| chunk.bytes);
        let is_error = done.is_err();
        if told.send(done).is_err() || is_error {
            return;
        }
    }
}

fn make_present(memory: &Memory, chunk: Chunk) -> io::Result<()> {
    let bytes = usize::try_from(chunk.bytes).map_err(io::Error::other)?;
    let slice = memory.get_slice(GuestAddress(chunk.start), bytes);
    match populate(&slice.map_err(io::Error::other)?) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => touch(memory, chunk),
        populated => populated,
    }
}

/// Writes to every page what is in it: nobody else does yet. For kernels before Linux 5.14.
fn touch(memory: &Memory, chunk: Chunk) -> io::Result<()> {
    for offset in (0..chunk.bytes).step_by(usize::try_from(PAGE_BYTES).unwrap_or(1)) {
        let page = GuestAddress(chunk.start + offset);
        let byte: u8 = memory.read_obj(page).map_err(io::Error::other)?;
        memory.write_obj(byte, page).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Counts what the threads tell until they are done; an error comes with what was done before.
fn watch(
    told: &Receiver<io::Result<u64>>,
    total: u64,
    report: &mut dyn FnMut(Prefaulted) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, (u64, io::Error)> {
    let (mut done, mut reported) = (0, Instant::now());
    while done < total {
        match told.recv_timeout(REPORT_PERIOD.saturating_sub(reported.elapsed())) {
            Ok(Ok(bytes)) => done += bytes,
            Ok(Err(error)) => return Err((done, error)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err((done, io::Error::other("a thread ended early")));
            }
        }
        if done < total && reported.elapsed() >= REPORT_PERIOD {
            reported = Instant::now();
            if report(Prefaulted { done, total }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(report(Prefaulted { done, total }))
}

fn refused(backing: &MemoryBacking, done: u64, total: u64, error: &io::Error) -> Refusal {
    let where_from = if backing.numa_nodes.is_empty() {
        "this host".to_owned()
    } else {
        format!("nodes {:?} of this host", backing.numa_nodes)
    };
    Refusal::new(
        "memory_backing.prefault",
        format!(
            "{where_from} had {} of {} MiB of memory and no more: {error}",
            done >> 20,
            total >> 20
        ),
        "start the machine with less memory, free memory there, or start it on another host",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(mib: usize) -> Memory {
        let ranges = [
            (GuestAddress(0), mib << 20),
            (GuestAddress(1 << 32), 3 << 20),
        ];
        Memory::from_ranges(&ranges).unwrap()
    }

    #[test]
    fn chunks_cover_all_memory_once() {
        let memory = memory(34);
        let chunk = |start, bytes| Chunk { start, bytes };
        let mib = |count: u64| count << 20;
        assert_eq!(
            chunks(&memory, None),
            [
                chunk(0, mib(16)),
                chunk(mib(16), mib(16)),
                chunk(mib(32), mib(2)),
                chunk(1 << 32, mib(3)),
            ]
        );
        let huge = HugePages::of(berth_api::vmm::HostPages::Huge1G);
        assert_eq!(
            chunks(&memory, huge),
            [chunk(0, mib(34)), chunk(1 << 32, mib(3))]
        );
    }

    #[test]
    fn everything_is_present_at_the_end_and_said_so_last() {
        let memory = memory(130);
        memory.write_obj(7_u8, GuestAddress(0x1234)).unwrap();
        let mut reports = Vec::new();
        prefault(&memory, &MemoryBacking::default(), &mut |report| {
            reports.push(report);
            ControlFlow::Continue(())
        })
        .unwrap();
        let (done, total) = (133 << 20, 133 << 20);
        assert_eq!(reports.last(), Some(&Prefaulted { done, total }));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1234)).unwrap(), 7);
    }

    #[test]
    fn touching_keeps_what_is_in_memory() {
        let memory = memory(2);
        memory.write_obj(7_u8, GuestAddress(0x1000)).unwrap();
        let bytes = 2 << 20;
        touch(&memory, Chunk { start: 0, bytes }).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 7);
        let outside = Chunk {
            start: 2 << 20,
            bytes: PAGE_BYTES,
        };
        touch(&memory, outside).unwrap_err();
    }

    #[test]
    fn who_wants_no_more_stops_it() {
        let stopped = prefault(&memory(1), &MemoryBacking::default(), &mut |_| {
            ControlFlow::Break(())
        });
        assert!(matches!(stopped, Err(BuildMachineError::Stopped)));
    }

    #[test]
    fn memory_that_the_host_does_not_have_is_refused_with_the_amount() {
        let (sender, receiver) = channel();
        sender.send(Ok(3 << 20)).unwrap();
        sender.send(Err(io::ErrorKind::OutOfMemory.into())).unwrap();
        let mut report = |_| ControlFlow::Continue(());
        let (done, error) = watch(&receiver, 9 << 20, &mut report).unwrap_err();
        assert_eq!(done, 3 << 20);
        let backing = MemoryBacking {
            numa_nodes: vec![1],
            ..MemoryBacking::default()
        };
        let refusal = refused(&backing, done, 9 << 20, &error);
        assert_eq!(refusal.field, "memory_backing.prefault");
        assert!(refusal.problem.contains("nodes [1]"), "{}", refusal.problem);
        assert!(
            refusal.problem.contains("3 of 9 MiB"),
            "{}",
            refusal.problem
        );
    }
}
