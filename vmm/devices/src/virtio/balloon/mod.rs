//! virtio-balloon: memory that the guest does without, given back to the host.
//!
//! Owns the queues, what the driver says in them and the balloon's size in the configuration space.
//! Giving pages back is the host's side ([`HostPages`]), so that a fuzzer can drive the device on
//! memory of its own. A page that the guest takes back comes from the host as zeroes when it is
//! touched: deflating needs no work here.

mod pages;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};

pub use self::pages::PAGE_BYTES;
use self::pages::PageList;
use super::config::DeviceConfig;
use super::device::VirtioDevice;
use super::queue::{Chain, QueueBroken, Queues, Segment, VirtQueue};
use crate::counters::Counters;
use crate::guest_error::GuestError;
use crate::memory::Memory;

/// Descriptors of each queue. Drivers keep one chain in flight.
pub const QUEUE_SIZE: u16 = 64;
/// Pages that one chain may name: Linux names 256. Further ones are not taken.
pub const MAX_CHAIN_PAGES: usize = 1024;
/// Most bytes that one report gives back, as a range of gibibytes would keep the I/O thread from
/// other devices. Linux reports 128 MiB at most.
pub const MAX_REPORT_BYTES: u64 = 256 << 20;

const DEVICE_TYPE: u16 = 5;
/// Chains that one call takes: each can cost [`MAX_CHAIN_PAGES`] calls of the host.
const CHAIN_BUDGET: u16 = 4;

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const PAGE_REPORTING: u64 = 1 << 5;

const INFLATE_QUEUE: u16 = 0;
const DEFLATE_QUEUE: u16 = 1;
/// Free page reporting is queue 4 by the specification (virtio 1.2, 5.5.2). Drivers that number
/// the queues that they use without gaps, as Linux does, have it at 2. The ones between are of
/// features that are not offered, so that all of them can be that queue.
const REPORTING_QUEUES: Range<u16> = 2..5;

/// `num_pages` of the configuration space.
const CONFIG_TARGET: usize = 0;
/// `actual`, which the driver writes.
const CONFIG_ACTUAL: usize = 4;
const CONFIG_BYTES: usize = 8;

/// What can be counted, in the order of the names.
#[derive(Clone, Copy)]
enum Count {
    InflatedPages,
    DeflatedPages,
    ReportedBytes,
    DuplicatePages,
    OutsidePages,
    FailedDiscards,
}

const COUNTER_NAMES: [&str; 6] = [
    "inflated_pages",
    "deflated_pages",
    "reported_bytes",
    "duplicate_pages",
    "outside_pages",
    "failed_discards",
];

/// The host's side of guest memory.
pub trait HostPages: Send {
    /// Gives the pages of `range` back: whole pages of [`PAGE_BYTES`] that are all RAM of one
    /// region. They read as zeroes afterwards.
    ///
    /// # Errors
    /// If the host keeps them; their content is then as it was.
    fn discard(&self, memory: &Memory, range: Range<u64>) -> io::Result<()>;
}

/// What the driver is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BalloonOptions {
    /// Whether the guest takes pages back by itself before it runs out of memory.
    pub deflate_on_oom: bool,
    /// Whether the guest may report free pages.
    pub free_page_reporting: bool,
}

/// A balloon, which begins empty.
pub struct Balloon {
    options: BalloonOptions,
    host: Box<dyn HostPages>,
    size: Arc<BalloonSize>,
    counters: Arc<Counters>,
}

/// The balloon's size, wanted and actual: for the machine's other threads.
#[derive(Debug)]
pub struct BalloonSize(Arc<DeviceConfig>);

impl BalloonSize {
    /// Asks the guest to let the balloon hold `bytes`, rounded down to pages.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        self.0.update(CONFIG_TARGET, &pages.to_le_bytes());
    }

    /// The wanted size in bytes.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.0.u32_at(CONFIG_TARGET)) * PAGE_BYTES
    }

    /// The size in bytes that the driver claims.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.u32_at(CONFIG_ACTUAL)) * PAGE_BYTES
    }
}

impl Balloon {
    /// A balloon whose pages go to `host`.
    #[must_use]
    pub fn new(options: BalloonOptions, host: Box<dyn HostPages>) -> Self {
        let config = DeviceConfig::with_writable(&[0; CONFIG_BYTES], CONFIG_ACTUAL..CONFIG_BYTES);
        Self {
            options,
            host,
            size: Arc::new(BalloonSize(config)),
            counters: Arc::new(Counters::new(&COUNTER_NAMES)),
        }
    }

    /// The balloon's size, to ask and to set while the device is in use.
    #[must_use]
    pub fn size(&self) -> Arc<BalloonSize> {
        Arc::clone(&self.size)
    }

    fn count(&self, what: Count, amount: impl TryInto<u64>) {
        let amount = amount.try_into().unwrap_or(u64::MAX);
        self.counters.add(what as usize, amount);
    }

    fn inflate(&self, chain: &Chain, queue: &VirtQueue, memory: &Memory) {
        let list = self.pages(chain, queue, memory);
        for range in list.ranges() {
            if self.discard(memory, range.clone()) {
                self.count(Count::InflatedPages, (range.end - range.start) / PAGE_BYTES);
            }
        }
    }

    fn deflate(&self, chain: &Chain, queue: &VirtQueue, memory: &Memory) {
        let list = self.pages(chain, queue, memory);
        self.count(Count::DeflatedPages, list.len());
    }

    /// The pages that a chain names and that are RAM.
    fn pages(&self, chain: &Chain, queue: &VirtQueue, memory: &Memory) -> PageList {
        let (list, rest) = PageList::read(&chain.readable, memory);
        if rest || chain.writable.bytes() > 0 {
            queue.count(GuestError::VirtioRequest);
        }
        self.count(Count::DuplicatePages, list.duplicates());
        self.count(Count::OutsidePages, list.outside());
        list
    }

    /// Gives back the free pages whose ranges are the chain's writable buffers.
    fn report(&self, chain: &Chain, queue: &VirtQueue, memory: &Memory) {
        if chain.readable.bytes() > 0 {
            queue.count(GuestError::VirtioRequest);
        }
        for range in reported_ranges(chain.writable.segments()) {
            if !is_ram(memory, &range) {
                queue.count(GuestError::VirtioRequest);
            } else if self.discard(memory, range.clone()) {
                self.count(Count::ReportedBytes, range.end - range.start);
            }
        }
    }

    fn discard(&self, memory: &Memory, range: Range<u64>) -> bool {
        let discarded = self.host.discard(memory, range).is_ok();
        if !discarded {
            self.count(Count::FailedDiscards, 1_u64);
        }
        discarded
    }
}

/// The whole pages in each buffer, up to [`MAX_REPORT_BYTES`] in all.
fn reported_ranges(buffers: &[Segment]) -> impl Iterator<Item = Range<u64>> {
    let mut left = MAX_REPORT_BYTES;
    buffers.iter().filter_map(move |segment| {
        let start = segment.address.checked_next_multiple_of(PAGE_BYTES)?;
        let end = segment.address.checked_add(u64::from(segment.bytes))?;
        let bytes = (end - end % PAGE_BYTES).checked_sub(start)?.min(left);
        left -= bytes;
        (bytes > 0).then_some(start..start + bytes)
    })
}

fn is_ram(memory: &Memory, range: &Range<u64>) -> bool {
    usize::try_from(range.end - range.start)
        .is_ok_and(|bytes| memory.check_range(GuestAddress(range.start), bytes))
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let when = |is_offered: bool, feature: u64| if is_offered { feature } else { 0 };
        when(self.options.deflate_on_oom, DEFLATE_ON_OOM)
            | when(self.options.free_page_reporting, PAGE_REPORTING)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        let queues = &[QUEUE_SIZE; REPORTING_QUEUES.end as usize];
        if self.options.free_page_reporting {
            queues
        } else {
            &queues[..REPORTING_QUEUES.start as usize]
        }
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.size.0)
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(Arc::clone(&self.counters))
    }

    fn chain_budget(&self, _index: u16) -> u16 {
        CHAIN_BUDGET
    }

    fn activate(&mut self, _features: u64) {}

    fn serve(
        &mut self,
        index: u16,
        queues: &mut Queues,
        memory: &Memory,
    ) -> Result<(), QueueBroken> {
        let Some(queue) = queues.get(index) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop(memory)? {
            match index {
                INFLATE_QUEUE => self.inflate(&chain, queue, memory),
                DEFLATE_QUEUE => self.deflate(&chain, queue, memory),
                _ => self.report(&chain, queue, memory),
            }
            queue.complete(memory, chain, 0)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Balloon")
            .field("options", &self.options)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
